"""The picture of bench_gpu.py: bars of copy and decode time beside the copy of the full tensor, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_BAR, _GAP, _LEFT, _WIDTH, _RIGHT, _TOP = 16, 12, 330, 520, 90, 62
_COLOURS = {"copy of the full tensor": "#9aa5b1", "copy of the residual": "#2f6fab", "decode and rebuild": "#e0912f"}


@dataclass(frozen=True)
class Bar:
    """Parts are named as in _COLOURS, in milliseconds."""

    label: str
    parts: dict[str, float]


def svg(title: str, bars: Sequence[Bar]) -> str:
    """Returns a picture of horizontal bars, one per line, on one scale."""
    longest = max(sum(bar.parts.values()) for bar in bars)
    height = _TOP + len(bars) * (_BAR + _GAP) + 8
    total_width = _LEFT + _WIDTH + _RIGHT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total_width}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        _text(16, 22, title, "start", 'font-size="14" font-weight="bold"'),
    ]
    for i, (name, colour) in enumerate(_COLOURS.items()):
        lines.append(f'<rect x="{16 + 190 * i}" y="34" width="12" height="12" fill="{colour}"/>')
        lines.append(_text(34 + 190 * i, 44, name, "start"))
    for i, bar in enumerate(bars):
        y = _TOP + i * (_BAR + _GAP)
        lines.append(_text(_LEFT - 8, y + 12, bar.label, "end"))
        x = float(_LEFT)
        for name, milliseconds in bar.parts.items():
            width = _WIDTH * milliseconds / longest
            fill = _COLOURS[name]
            lines.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{fill}"/>')
            x += width
        lines.append(_text(x + 6, y + 12, f"{sum(bar.parts.values()):.2f} ms", "start"))
    return "\n".join([*lines, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}" {more}>{escape(text)}</text>'
