"""scatter_add on CUDA devices: the launch, and the flag that tells of bad indices."""

from __future__ import annotations

import torch

from tpde import _core, _cuda, _dtypes
from tpde._status import ArgumentError

_flags: dict[int, torch.Tensor] = {}  # by device: becomes 1 if scatter_add meets bad indices


def scatter_add(
    out: torch.Tensor, base: torch.Tensor, indices: torch.Tensor, values: torch.Tensor, check: bool = False
) -> None:
    """Writes base plus values at strictly increasing indices to out, on the current stream. All are contiguous."""
    device = base.device
    for what, tensor in (("indices", indices), ("values", values), ("out", out)):
        if tensor.device != device:
            raise ArgumentError(f"{what}: is on {tensor.device}, expected {device}, where base is")
    flag = _flags.get(device.index)
    if flag is None:
        flag = _make_flag(device)
    if check:
        torch.cuda.synchronize(device)
        raise_flag(device.index)
    _core.gpu_core().gpu_scatter_add(
        out.data_ptr(),
        base.data_ptr(),
        base.numel(),
        _dtypes.number_of(base.dtype),
        indices.data_ptr(),
        values.data_ptr(),
        indices.numel(),
        flag.data_ptr(),
        _cuda.stream(device.index),
    )
    if check:
        torch.cuda.current_stream(device).synchronize()
        raise_flag(device.index)


def _make_flag(device: torch.device) -> torch.Tensor:
    _cuda.refuse_capture("scatter_add is")
    with _cuda.lock, torch.inference_mode(False):
        if device.index not in _flags:
            flag = torch.zeros(1, dtype=torch.int32, device=device)
            torch.cuda.current_stream(device).synchronize()
            _flags[device.index] = flag  # never freed: every stream may use it
        return _flags[device.index]


def raise_flag(device: int) -> None:
    """Raises ArgumentError if a scatter_add on this device met bad indices since the last call."""
    flag = _flags.get(device)
    if flag is not None and int(flag):
        flag.zero_()
        torch.cuda.current_stream(device).synchronize()
        raise ArgumentError(
            f"indices: a scatter_add on cuda:{device} met indices that are out of range or not strictly increasing; "
            "their sums were left out"
        )
