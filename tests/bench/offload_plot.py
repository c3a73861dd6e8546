"""The picture of bench_offload.py: tokens a second against what each way to run a model takes of VRAM, as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 860, 460, 62, 24, 44, 46
_LINES = ("#2f6fab", "#3a9a6b", "#8a5fb0")
_OTHERS = "#c0622f"


@dataclass(frozen=True)
class Point:
    """line: what it belongs to, the points of which are joined; "" for a point of its own."""

    label: str
    gib: float
    tokens: float
    line: str = ""


def svg(title: str, points: Sequence[Point]) -> str:
    """Returns a picture; tokens a second are on a logarithmic scale."""
    most = max(p.gib for p in points) * 1.12
    low = math.floor(math.log10(min(p.tokens for p in points)) * 2) / 2
    high = math.ceil(math.log10(max(p.tokens for p in points)) * 2) / 2
    high = max(high, low + 0.5)

    def x(gib: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * gib / most

    def y(tokens: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (math.log10(tokens) - low) / (high - low)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        _text(16, 22, title, "start", 'font-size="14" font-weight="bold"'),
        _text((_LEFT + _WIDTH) / 2, _HEIGHT - 10, "peak VRAM, GiB", "middle"),
        _text(16, _TOP - 8, "tokens a second", "start"),
    ]
    step = 2 if most <= 24 else 10
    for gib in range(0, int(most) + 1, step):
        lines.append(_stroke(x(gib), _TOP, x(gib), _HEIGHT - _BOTTOM, "#e6e9ec"))
        lines.append(_text(x(gib), _HEIGHT - _BOTTOM + 16, str(gib), "middle"))
    for exponent in range(math.floor(low), math.ceil(high) + 1):
        for digit in (1, 2, 5):
            tokens = digit * 10.0**exponent
            if low <= math.log10(tokens) <= high:
                lines.append(_stroke(_LEFT, y(tokens), _WIDTH - _RIGHT, y(tokens), "#e6e9ec"))
                lines.append(_text(_LEFT - 6, y(tokens) + 4, f"{tokens:g}", "end"))
    joined: dict[str, list[Point]] = {}
    for p in points:
        joined.setdefault(p.line, []).append(p)
    names = [name for name in joined if name]
    for name, some in joined.items():
        colour = _LINES[names.index(name) % len(_LINES)] if name else _OTHERS
        some = sorted(some, key=lambda p: p.gib)
        if name and len(some) > 1:
            path = " ".join(f"{x(p.gib):.1f},{y(p.tokens):.1f}" for p in some)
            lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for p in some:
            lines.append(f'<circle cx="{x(p.gib):.1f}" cy="{y(p.tokens):.1f}" r="4" fill="{colour}"/>')
    placed: list[tuple[float, float, float]] = []
    for p in sorted(points, key=lambda p: (p.line != "", p.gib)):
        # Above and left of a line, which rises; right of other points, or left where the picture ends.
        text = f"{p.label}: {p.tokens:.3g}"
        width = 6.4 * len(text)
        left = bool(p.line) or x(p.gib) + 8 + width > _WIDTH - 4
        begin = x(p.gib) - 8 - width if left else x(p.gib) + 8
        height = y(p.tokens) + (-5 if p.line else 4)
        while any(abs(height - h) < 13 and begin < e and b < begin + width for b, e, h in placed):
            height += -13 if p.line else 13
        placed.append((begin, begin + width, height))
        at, anchor = (x(p.gib) - 8, "end") if left else (x(p.gib) + 8, "start")
        lines.append(_text(at, height, text, anchor, 'stroke="white" stroke-width="3"'))
        lines.append(_text(at, height, text, anchor))
    return "\n".join([*lines, "</svg>"]) + "\n"


def _stroke(x: float, y: float, to_x: float, to_y: float, colour: str) -> str:
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(text)}</text>'
