"""Products with quantised weights on CUDA devices: which way they go, and the launches.

Few rows are multiplied by the codes themselves, which are read once for eight of them. For more, the weight is written
down in pieces, so that no more than `_PIECE_BYTES` are taken beside the result, and torch multiplies by them.
"""

from __future__ import annotations

import torch

from tpde import _core, _cuda, _dtypes
from tpde.quant import KINDS, QuantizedTensor

FUSED_ROWS = 64
"""The most rows that are multiplied by codes."""

_PIECE_BYTES = 64 << 20


def linear(x: torch.Tensor, q: QuantizedTensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Returns x [rows, ins] @ q.T + bias on the current stream. x, q and bias are on one device and of one dtype."""
    rows, ins = x.shape
    outs = q.shape[0]
    if ins == 0 or rows == 0 or outs == 0:
        zeros = x.new_zeros(rows, outs)
        return zeros if bias is None else zeros + bias
    out = torch.empty(rows, outs, dtype=x.dtype, device=x.device)
    if rows > FUSED_ROWS:
        step = max(_PIECE_BYTES // (ins * x.dtype.itemsize), 1)
        for first in range(0, outs, step):
            last = min(first + step, outs)
            part = None if bias is None else bias[first:last]
            weight = dequantise(q, first * ins, (last - first) * ins).view(-1, ins)
            out[:, first:last] = torch.nn.functional.linear(x, weight, part)
        return out
    if x.stride(1) != 1 or (rows > 1 and x.stride(0) < ins) or x.data_ptr() % 16:
        x = x.clone(memory_format=torch.contiguous_format)
    bias = None if bias is None else bias.contiguous()
    _core.gpu_core().gpu_quantised_linear(
        out.data_ptr(),
        x.data_ptr(),
        x.stride(0) if rows > 1 else ins,
        rows,
        _described(q),
        outs,
        ins,
        0 if bias is None else bias.data_ptr(),
        _cuda.stream(x.device.index),
    )
    return out


def dequantise(q: QuantizedTensor, first: int, count: int) -> torch.Tensor:
    """Returns elements first up to first + count of q, 1-D, on the current stream: the bits of `dequantize`."""
    out = torch.empty(count, dtype=q.dtype, device=q.device)
    _core.gpu_core().gpu_dequantise(
        out.data_ptr(), _described(q), q.numel(), first, count, _cuda.stream(q.device.index)
    )
    return out


def _described(q: QuantizedTensor) -> tuple[int, int, int, int, int, int, int, int, int]:
    """tpde_quantised of tpde.h."""
    return (
        q.packed.data_ptr(),
        q.scale.data_ptr(),
        0 if q.zero is None else q.zero.data_ptr(),
        0 if q.code is None else q.code.data_ptr(),
        q.group_size,
        KINDS[q.kind],
        q.bits,
        _dtypes.number_of(q.scale.dtype),
        _dtypes.number_of(q.dtype),
    )
