"""Tensors as memory: the checks that stand between Python objects and raw pointers.

Whoever makes a tensor for the core to write to says device="cpu": `torch.set_default_device` and
`with torch.device(...)`, as model loaders use them, would put it elsewhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tpde._status import ArgumentError, UnsupportedError


def parse_device(value: Any, expected: str) -> torch.device:
    """Returns the device that a caller names."""
    try:
        return torch.device(value)
    except (RuntimeError, TypeError) as error:  # torch tells which there are
        raise ArgumentError(f"device: expected {expected}, got {value!r}: {error}") from None


def as_tensor(value: Any, what: str) -> torch.Tensor:
    """Returns value, a torch tensor or numpy array, as a plain tensor that shares its memory.

    Gradients are cut off, lazy conjugation and negation are carried out. `what` names the value in errors.
    """
    if isinstance(value, np.ndarray):
        if not value.flags.writeable or any(stride < 0 for stride in value.strides):
            value = value.copy()  # torch has neither read-only memory nor negative strides
        try:
            value = torch.from_numpy(value)
        except (TypeError, ValueError) as error:  # a dtype that torch lacks, another byte order
            raise UnsupportedError(f"{what}: {error}") from None
    if not isinstance(value, torch.Tensor):
        raise ArgumentError(f"{what}: expected a torch.Tensor or numpy array, got {type(value).__name__}")
    if value.layout is not torch.strided:
        raise UnsupportedError(f"{what}: expected a dense tensor, got layout {value.layout}")
    if value.is_quantized:
        raise UnsupportedError(f"{what}: quantised dtype {value.dtype} is not supported; pack its int_repr()")
    if value.device.type == "meta":
        raise ArgumentError(f"{what}: is on the meta device and has no data")
    return value.detach().resolve_conj().resolve_neg()


def host(value: Any, what: str) -> torch.Tensor:
    """Returns value as a contiguous tensor in host memory, copied only where it has to be."""
    return as_tensor(value, what).cpu().contiguous()


def require_cpu(tensor: torch.Tensor, what: str) -> torch.Tensor:
    """Refuses tensors that the CPU implementation cannot read."""
    if tensor.device.type != "cpu":
        raise UnsupportedError(
            f"{what}: is on {tensor.device}, expected host memory, where the other tensors are; move it with .cpu()"
        )
    return tensor


def require_bytes(value: Any, what: str) -> torch.Tensor:
    """Returns value as a contiguous 1-D uint8 tensor in host memory."""
    if (
        type(value) is torch.Tensor
        and value.dtype is torch.uint8
        and value.dim() == 1
        and value.device.type == "cpu"
        and value.layout is torch.strided
        and value.is_contiguous()
    ):
        return value  # the usual case, several microseconds faster than what follows
    if isinstance(value, (bytes, bytearray, memoryview)):
        value = np.frombuffer(value, dtype=np.uint8)
    tensor = require_cpu(as_tensor(value, what), what)
    if tensor.dtype is not torch.uint8 or tensor.dim() != 1:
        raise ArgumentError(f"{what}: expected a 1-D uint8 tensor, got {tensor.dtype} of shape {list(tensor.shape)}")
    return tensor.contiguous()


def octets(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the bytes of a contiguous tensor, 1-D uint8, sharing its memory."""
    if not tensor.numel():  # may have strides that view refuses
        return torch.empty(0, dtype=torch.uint8, device="cpu")
    return tensor.reshape(-1).view(torch.uint8)


def pinned(n: int) -> torch.Tensor:
    """Returns n bytes of page-locked host memory, uint8."""
    return torch.empty(n, dtype=torch.uint8, device="cpu", pin_memory=True)


# torch says 0 for the address of an empty tensor, but to the core NULL means "no tensor".
_NOWHERE = torch.empty(1, dtype=torch.float64, device="cpu")


def pointer(tensor: torch.Tensor | None) -> tuple[int, int]:
    """Returns address and size in bytes of a contiguous tensor in host memory; (0, 0) for None.

    Raises UnsupportedError for a tensor that has elements but no memory: its storage was freed (as FSDP does), or it
    stands for other tensors (a wrapper subclass, FakeTensor, inside vmap).
    """
    if tensor is None:
        return 0, 0
    size = tensor.numel() * tensor.element_size()
    if not size:
        return _NOWHERE.data_ptr(), 0
    try:
        address = tensor.data_ptr()
    except RuntimeError:  # torch's way to say that there is none
        address = 0
    if not address or tensor.device.type != "cpu":
        raise UnsupportedError(
            f"{type(tensor).__name__} of {tensor.dtype} and shape {list(tensor.shape)} on {tensor.device}: has no host "
            "memory of its own; expected a plain dense tensor"
        )
    return address, size
