"""What pack, unpack, verify and inspect tell: typed records that print as tables."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class TensorReport:
    """One tensor of a delta. Sizes are in bytes; `words` and `deltas` count the units that the codecs see."""

    name: str
    dtype: str
    shape: list[int]
    kind: str
    """delta (coded against the base), new (coded against nothing), verbatim (stored as it is), alias (equal to another
    tensor of the target), unchanged."""
    codec: str | None = None
    residual: str | None = None
    words: int = 0
    deltas: int = 0
    """Words that differ from the base."""
    target_bytes: int = 0
    stored_bytes: int = 0
    """Index and blob."""
    chunks: int = 0
    base_digest: str | None = None
    """None where it has no base."""
    target_digest: str = ""
    of: str = ""
    """alias: the tensor that it equals."""
    reason: str = ""
    """Why it has no base although one has its name."""
    base_layout: str = ""
    """Compressed models: how its base is stored, int4, nf4 and so on, or a dtype; "" where it has none."""
    base_group: int = 0
    """Compressed models: elements that share a scale, 0 where there are no scales."""
    base_bytes: int = 0
    """Compressed models: codes and scales of its base."""

    @property
    def elements(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)

    @property
    def resident_bits(self) -> float:
        """Compressed models: bits of base per weight."""
        return 8 * self.base_bytes / self.elements if self.elements else 0.0

    @property
    def streamed_bits(self) -> float:
        """Compressed models: bits of residual per weight."""
        return 8 * self.stored_bytes / self.elements if self.elements else 0.0

    @property
    def changed(self) -> float:
        """Share of the words that differ from the base, 0 to 1."""
        return self.deltas / self.words if self.words else 0.0

    @property
    def ratio(self) -> float | None:
        """target_bytes / stored_bytes; None where nothing is stored."""
        return self.target_bytes / self.stored_bytes if self.stored_bytes else None


@dataclass(frozen=True)
class FileReport:
    """One file of the target."""

    path: str
    bytes: int
    sha256: str
    kind: str = ""
    """safetensors (rebuilt), same (equal to the base's), carried (stored compressed)."""
    verified: bool = False
    """The rebuilt bytes were hashed and have this sha256."""


@dataclass(frozen=True)
class Totals:
    """Sums over a delta. Sizes are in bytes."""

    tensors: int = 0
    delta: int = 0
    new: int = 0
    alias: int = 0
    unchanged: int = 0
    verbatim: int = 0
    removed: int = 0
    target_bytes: int = 0
    changed_target_bytes: int = 0
    stored_bytes: int = 0
    file_bytes: int = 0
    """Size of the delta's files on disk."""
    ratio: float = 0.0
    """target_bytes / file_bytes."""


class _Report:
    """Conversions that all reports share."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as plain dicts and lists."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]

    def to_json(self) -> str:
        """Returns the report as JSON text."""
        return json.dumps(self.to_dict(), indent=2)


@dataclass(frozen=True)
class DeltaReport(_Report):
    """What a delta holds: returned by `inspect`, and by `pack` with `out` and `seconds` filled."""

    base: str
    """Digest of the base checkpoint, in hexadecimal."""
    target: str
    tool: str
    tensors: list[TensorReport] = field(repr=False)
    removed: list[str]
    files: list[FileReport]
    totals: Totals
    out: list[str] = field(default_factory=list)
    """The files that pack wrote."""
    seconds: float | None = None

    @classmethod
    def of(cls, report: dict[str, Any]) -> DeltaReport:
        return cls(
            base=report["base"],
            target=report["target"],
            tool=report["tool"],
            tensors=[_make(TensorReport, row) for row in report["tensors"] or ()],
            removed=list(report["removed"] or ()),
            files=[_make(FileReport, row) for row in report["files"] or ()],
            totals=_make(Totals, report["totals"]),
            out=list(report.get("out") or ()),
            seconds=report.get("seconds"),
        )

    def summary(self) -> str:
        """Returns the totals in one line."""
        t = self.totals
        line = f"{size(t.target_bytes)} -> {size(t.file_bytes)} (ratio {t.ratio:.2f}): {t.tensors} tensors"
        counts = {name: getattr(t, name) for name in ("delta", "new", "verbatim", "alias", "unchanged", "removed")}
        line += "".join(f", {count} {name}" for name, count in counts.items() if count)
        if self.seconds:
            line += f"; {self.seconds:.2f} s, {size(t.target_bytes / self.seconds)}/s"
        return line

    def __str__(self) -> str:
        rows = [
            (
                printable(tensor.name), tensor.dtype, "x".join(map(str, tensor.shape)) or "scalar", tensor.kind,
                tensor.codec or "-",
                f"{100 * tensor.changed:.2f}" if tensor.kind == "delta" else "-",
                size(tensor.target_bytes), size(tensor.stored_bytes),
                "-" if tensor.ratio is None else f"{tensor.ratio:.2f}", str(tensor.chunks),
            )
            for tensor in self.tensors
        ]  # fmt: skip
        head = ("tensor", "dtype", "shape", "kind", "codec", "changed %", "bytes", "stored", "ratio", "chunks")
        lines = [table(head, rows, left=5)] if rows else []
        if self.removed:
            lines.append("removed: " + ", ".join(map(printable, self.removed)))
        lines += [f"base   {self.base}", f"target {self.target}", self.summary()]
        return "\n".join(lines)


@dataclass(frozen=True)
class CompressedReport(DeltaReport):
    """What a compressed model holds: returned by `inspect`, and by `compress` with `out` and `seconds` filled.

    `totals.file_bytes` is the size of the residual's files; `totals.ratio` counts those of the base, too.
    """

    base_tensors: int = 0
    """Tensors that have a base."""
    base_bytes: int = 0
    """Their codes and scales."""
    base_file_bytes: int = 0
    """Size of the base's files on disk."""

    @classmethod
    def of(cls, report: dict[str, Any]) -> CompressedReport:
        fields = DeltaReport.of(report).__dict__
        return cls(**fields, **{key: report[key] for key in ("base_tensors", "base_bytes", "base_file_bytes")})

    @property
    def based(self) -> list[TensorReport]:
        """The tensors that have a base."""
        return [tensor for tensor in self.tensors if tensor.base_layout]

    def summary(self) -> str:
        """Returns the totals in one line."""
        t = self.totals
        parts = f"base {size(self.base_file_bytes)} + residual {size(t.file_bytes)}"
        line = f"{size(t.target_bytes)} -> {parts} (ratio {t.ratio:.2f}): {t.tensors} tensors"
        line += f", {self.base_tensors} with a base"
        weights = sum(tensor.elements for tensor in self.based)
        if weights:
            streamed = sum(tensor.stored_bytes for tensor in self.based)
            bits = f"{8 * self.base_bytes / weights:.2f} resident + {8 * streamed / weights:.2f} streamed"
            line += f" of {bits} bits per weight"
        elif t.target_bytes:
            line += f", {8 * t.stored_bytes / sum(tensor.elements for tensor in self.tensors):.2f} bits per weight"
        if self.seconds:
            line += f"; {self.seconds:.2f} s, {size(t.target_bytes / self.seconds)}/s"
        return line

    def __str__(self) -> str:
        rows = [
            (
                printable(tensor.name), tensor.dtype, "x".join(map(str, tensor.shape)) or "scalar", tensor.kind,
                (tensor.base_layout + (f"/{tensor.base_group}" if tensor.base_group else "")) or "-",
                tensor.codec or "-",
                size(tensor.target_bytes), size(tensor.base_bytes), size(tensor.stored_bytes),
                f"{tensor.resident_bits:.2f}", f"{tensor.streamed_bits:.2f}",
            )
            for tensor in self.tensors
        ]  # fmt: skip
        head = ("tensor", "dtype", "shape", "kind", "base", "codec", "bytes", "base bytes", "residual", "resident b/w",
                "streamed b/w")  # fmt: skip
        lines = [table(head, rows, left=6)] if rows else []
        lines += [f"target {self.target}", self.summary()]
        return "\n".join(lines)


@dataclass(frozen=True)
class UnpackReport(_Report):
    """What `unpack` wrote, or `verify` proved."""

    base: str
    target: str
    files: list[FileReport]
    bytes: int
    seconds: float
    target_compared: bool = False
    """verify: the tensors were compared with a target that was given, too."""

    @classmethod
    def of(cls, report: dict[str, Any]) -> UnpackReport:
        return cls(
            base=report["base"],
            target=report["target"],
            files=[_make(FileReport, row) for row in report["files"] or ()],
            bytes=report["bytes"],
            seconds=report["seconds"],
            target_compared=report.get("target_compared", False),
        )

    def __str__(self) -> str:
        lines = [
            f"{f.sha256}  {printable(f.path)}  ({size(f.bytes)}, {'sha256 verified' if f.verified else 'not verified'})"
            for f in self.files
        ]
        rate = f", {size(self.bytes / self.seconds)}/s" if self.seconds else ""
        lines.append(f"target {self.target}: {size(self.bytes)} in {self.seconds:.2f} s{rate}")
        if self.target_compared:
            lines.append("every tensor equals the given target, bit for bit")
        return "\n".join(lines)


def _make(cls: type[T], row: dict[str, Any]) -> T:
    """Builds a record from JSON; fields that a newer core adds are passed over."""
    names = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    return cls(**{key: value for key, value in row.items() if key in names})


def size(count: float) -> str:
    """Returns a number of bytes for people, in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def printable(name: str) -> str:
    """Returns a name from a file so that it can neither break a line nor command a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in name)


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], left: int = 1) -> str:
    """Returns rows of text under a head; the first `left` columns are aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(row: tuple[str, ...]) -> str:
        cells = zip(row, widths, strict=True)
        return "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(cells)).rstrip()

    return "\n".join(map(line, (head, *rows)))
