"""Quantised tensors in files and in state dicts.

A file is an ordinary safetensors file with the tensors `packed` and `scale`, and `zero` and `code` where there are any
(core/quant/FORMAT.md, "Parts"). Its metadata has `tpde.quantized`: a JSON object with `kind`, `bits`, `group_size`,
`shape` and `dtype` (the weight's, as safetensors calls it).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from tpde import _dtypes
from tpde._status import CorruptError
from tpde.quant import KINDS, MAX_GROUP, QuantizedTensor

METADATA_KEY = "tpde.quantized"
_PARTS = ("packed", "scale", "zero", "code")


def save(q: QuantizedTensor, path: Path) -> None:
    """Writes q under a temporary name, then renames it. An existing file is replaced."""
    from safetensors.torch import save_file

    scheme = {
        "kind": q.kind,
        "bits": q.bits,
        "group_size": q.group_size,
        "shape": list(q.shape),
        "dtype": _dtypes.name_of(_dtypes.number_of(q.dtype)),
    }
    parts = {name: getattr(q, name) for name in _PARTS}
    tensors = {name: part.cpu().contiguous() for name, part in parts.items() if part is not None}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata={METADATA_KEY: json.dumps(scheme)})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(opened: Any, path: str) -> QuantizedTensor | None:
    """Returns what a file that is open in safetensors holds, None if it is no quantised tensor.

    Raises CorruptError, ArgumentError or UnsupportedError for one that cannot be.
    """
    text = (opened.metadata() or {}).get(METADATA_KEY)
    if text is None:
        return None
    parts = {name: opened.get_tensor(name) if name in opened.keys() else None for name in _PARTS}  # noqa: SIM118
    if parts["packed"] is None or parts["scale"] is None:
        raise CorruptError(f"{path}: is marked as a quantised tensor, expected tensors packed and scale")
    try:
        scheme = json.loads(text)
        fields = {key: scheme[key] for key in ("kind", "bits", "group_size", "shape", "dtype")}
        shape = tuple(map(int, fields["shape"]))
        bits, group_size = int(fields["bits"]), int(fields["group_size"])
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptError(f"{path}: {METADATA_KEY} is {text!r}: {error!r}") from None
    dtype = _dtypes.torch_of_name(str(fields["dtype"]))
    return QuantizedTensor(
        parts["packed"],
        parts["scale"],
        parts["zero"],
        bits,
        group_size,
        shape,
        dtype,
        str(fields["kind"]),
        parts["code"],
    )


def scheme_tensor(q: QuantizedTensor) -> torch.Tensor:
    """Returns what is needed of q beside its parts: int64 [kind, bits, group size]."""
    return torch.tensor([KINDS[q.kind], q.bits, min(q.group_size, MAX_GROUP)], dtype=torch.int64, device="cpu")


def read_scheme(scheme: torch.Tensor, what: str) -> tuple[str, int, int]:
    """Returns (kind, bits, group size) of a scheme tensor. Raises CorruptError; waits for a GPU that holds it."""
    names = {number: name for name, number in KINDS.items()}
    values = scheme.tolist() if scheme.dtype is torch.int64 and scheme.shape == (3,) else []
    if not values or values[0] not in names:
        raise CorruptError(f"{what}: expected int64 [kind, bits, group size], got {scheme.dtype} {scheme.tolist()}")
    kind, bits, group_size = values
    return names[kind], bits, group_size
