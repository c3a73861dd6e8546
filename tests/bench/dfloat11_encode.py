"""DFloat11's format, written by vectorised torch on any device instead of a Python loop over elements.

The bytes are those of dfloat11_utils.encode_weights (tests/test_bench_offload.py compares them); code book and look-up
tables are made by that package itself. See `dfloat11` in offload_peers.py.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from llama_shape import Shape
from torch import Tensor

BYTES_PER_THREAD, THREADS = 8, 512
_PIECE = 1 << 24  # elements whose bits are laid out at once
_NONE = -1


def _folder() -> Path:
    found = importlib.util.find_spec("dfloat11")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'dfloat11'", name="dfloat11")
    return Path(found.submodule_search_locations[0])


def utils() -> Any:
    """The package's encoder, without what the package imports besides (CuPy)."""
    if "dfloat11_utils" not in sys.modules:
        spec = importlib.util.spec_from_file_location("dfloat11_utils", _folder() / "dfloat11_utils.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules["dfloat11_utils"] = module
    return sys.modules["dfloat11_utils"]


def decode_hook() -> Callable[..., Any]:
    """The package's forward pre-hook, which decodes and hands out weights."""
    folder = _folder()
    try:
        import pkg_resources  # noqa: F401
    except ImportError:  # setuptools has it no more; the package asks it for one path
        stub = types.ModuleType("pkg_resources")
        stub.resource_filename = lambda _, name: str(folder / name)  # type: ignore[attr-defined]
        sys.modules["pkg_resources"] = stub
    from dfloat11.dfloat11 import get_hook

    made: Callable[..., Any] = get_hook((THREADS,), BYTES_PER_THREAD)
    return made


def groups(shape: Shape) -> dict[str, list[str]]:
    """What is decoded at once: modules, with those inside whose weights it is ([""]: its own)."""
    blocks = {f"model.layers.{i}": list(shape.modules()) for i in range(shape.layers)}
    return {"model.embed_tokens": [""], **blocks, "lm_head": [""]}


def encoded(weights: Sequence[Tensor], device: torch.device) -> tuple[dict[str, Tensor], int]:
    """Returns the buffers of weights that are decoded at once, on a device, and the shared memory that it takes."""
    bits = torch.cat([w.to(device).flatten() for w in weights]).view(torch.int16)
    exponents = ((bits >> 7) & 0xFF).to(torch.uint8)
    others = ((bits >> 8) & 0x80 | (bits & 0x7F)).to(torch.uint8)
    del bits
    with contextlib.redirect_stdout(io.StringIO()):
        counts = torch.bincount(exponents, minlength=256).tolist()
        codec, _, table = utils().get_32bit_codec({value: n for value, n in enumerate(counts) if n})
        luts = utils().get_luts(table)
    stream, gaps, positions = _encode(exponents, codec)
    buffers = {
        "luts": luts.to(device),
        "encoded_exponent": stream,
        "sign_mantissa": others,
        "output_positions": positions.to(torch.int32).view(torch.uint8),
        "gaps": gaps,
    }
    most = int((positions[1:] - positions[:-1]).max())
    return buffers, THREADS * 4 + 4 + 2 * most


def _encode(symbols: Tensor, codec: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Returns codes, gaps (5 bits for each thread: where in its 64 bits the first code starts), and for each block of
    threads the number of its first symbol."""
    device = symbols.device
    lengths, values = torch.zeros(256, dtype=torch.int64), torch.zeros(256, dtype=torch.int64)
    for symbol, (length, value) in codec._table.items():
        if isinstance(symbol, int):
            lengths[symbol], values[symbol] = length, value
    lengths, values = lengths.to(device), values.to(device)
    counts = torch.bincount(symbols, minlength=256)
    total = int((counts * lengths).sum())
    end_length, end_value = codec._table[codec._eof]
    padded = total % 8 != 0
    n_bytes = -(-total // 8)
    per_thread, per_block = 8 * BYTES_PER_THREAD, 8 * BYTES_PER_THREAD * THREADS
    blocks = -(-n_bytes // (BYTES_PER_THREAD * THREADS))
    stream = torch.zeros(n_bytes + 8, dtype=torch.int32, device=device)
    gap = torch.full((blocks * THREADS,), _NONE, dtype=torch.int64, device=device)
    position = torch.full((blocks,), _NONE, dtype=torch.int64, device=device)
    at = 0
    for first in range(0, symbols.numel(), _PIECE):
        part = symbols[first : first + _PIECE].long()
        length, value = lengths[part], values[part]
        starts = length.cumsum(0).add_(at)
        end = int(starts[-1])
        starts -= length
        word = value << (40 - length - (starts & 7))  # five bytes from starts // 8 on
        place = starts >> 3
        for i in range(5):
            stream.index_add_(0, place + i, ((word >> (32 - 8 * i)) & 0xFF).int())
        units, which = _first_starts(starts, at, end, per_thread, gap)
        gap[units] = starts[which] - units * per_thread
        units, which = _first_starts(starts, at, end, per_block, position)
        position[units] = which + first
        at = end
    if padded:  # with the head of the end symbol, which counts as one that starts there
        room = 8 - total % 8
        stream[n_bytes - 1] += (
            end_value >> (end_length - room) if end_length >= room else end_value << (room - end_length)
        )
        for out, unit, what in ((gap, per_thread, total % per_thread), (position, per_block, symbols.numel())):
            if out[total // unit] == _NONE:
                out[total // unit] = what
    position = torch.cat((position[position != _NONE], position.new_tensor([symbols.numel()])))
    return stream[:n_bytes].to(torch.uint8), _packed_gaps(gap.clamp_(min=0)), position


def _first_starts(starts: Tensor, begin: int, end: int, unit: int, known: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the units of bits in which a code of [begin, end) starts and none did before, and the first such code."""
    units = torch.arange(begin // unit, (end - 1) // unit + 1, device=starts.device)
    which = torch.searchsorted(starts, units * unit)
    some = (which < starts.numel()) & (known[units] == _NONE)
    units, which = units[some], which[some]
    inside = starts[which] < (units + 1) * unit
    return units[inside], which[inside]


def _packed_gaps(gap: Tensor) -> Tensor:
    """Eight numbers of five bits in five bytes, highest bit first."""
    eight = gap.view(-1, 8)
    word = torch.zeros(len(eight), dtype=torch.int64, device=gap.device)
    for i in range(8):
        word |= eight[:, i] << (35 - 5 * i)
    return torch.stack([(word >> (32 - 8 * i)) & 0xFF for i in range(5)], 1).to(torch.uint8).flatten()
