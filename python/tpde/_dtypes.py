"""Element types: torch's dtypes, safetensors' names and the numbers of the index format.

The numbers are those of `core/dtype` and part of the file format.
"""

from __future__ import annotations

import torch

from tpde._status import UnsupportedError

# number, name in safetensors, attribute of torch (None: torch has no such dtype)
_TABLE: tuple[tuple[int, str, str | None], ...] = (
    (1, "BOOL", "bool"),
    (2, "U8", "uint8"),
    (3, "I8", "int8"),
    (4, "U16", "uint16"),
    (5, "I16", "int16"),
    (6, "U32", "uint32"),
    (7, "I32", "int32"),
    (8, "U64", "uint64"),
    (9, "I64", "int64"),
    (10, "F16", "float16"),
    (11, "BF16", "bfloat16"),
    (12, "F32", "float32"),
    (13, "F64", "float64"),
    (14, "C64", "complex64"),
    (15, "F8_E4M3", "float8_e4m3fn"),
    (16, "F8_E5M2", "float8_e5m2"),
    (17, "F8_E8M0", "float8_e8m0fnu"),
    (18, "F8_E4M3FNUZ", "float8_e4m3fnuz"),
    (19, "F8_E5M2FNUZ", "float8_e5m2fnuz"),
    (20, "F6_E2M3", None),
    (21, "F6_E3M2", None),
    (22, "F4", "float4_e2m1fn_x2"),
)

_NAMES: dict[int, str] = {number: name for number, name, _ in _TABLE}
_NUMBERS: dict[str, int] = {name: number for number, name, _ in _TABLE}
# Older versions of torch lack some of the dtypes.
_TORCH: dict[int, torch.dtype] = {
    number: getattr(torch, attribute)
    for number, _, attribute in _TABLE
    if attribute is not None and hasattr(torch, attribute)
}
_OF_TORCH: dict[torch.dtype, int] = {dtype: number for number, dtype in _TORCH.items()}

_F4 = _NUMBERS["F4"]


def number_of(dtype: torch.dtype) -> int:
    """Returns the number of a torch dtype. Raises UnsupportedError for one that safetensors lacks."""
    number = _OF_TORCH.get(dtype)
    if number is None:
        raise UnsupportedError(
            f"dtype {dtype} cannot be packed: safetensors has no name for it; "
            f"expected one of {', '.join(str(d).removeprefix('torch.') for d in supported())}"
        )
    return number


def torch_of(number: int) -> torch.dtype:
    """Returns the torch dtype of a number. Raises UnsupportedError where this torch has none."""
    dtype = _TORCH.get(number)
    if dtype is None:
        name = _NAMES.get(number, f"number {number}")
        raise UnsupportedError(f"element type {name} has no dtype in torch {torch.__version__}")
    return dtype


def torch_of_name(name: str) -> torch.dtype:
    """Returns the torch dtype that safetensors calls name."""
    number = _NUMBERS.get(name)
    if number is None:
        raise UnsupportedError(f"element type {name!r} is not one of safetensors' types")
    return torch_of(number)


def name_of(number: int) -> str:
    """Returns safetensors' name of a number."""
    return _NAMES[number]


def supported() -> tuple[torch.dtype, ...]:
    """Returns the dtypes that can be packed with this version of torch."""
    return tuple(_OF_TORCH)


def element_shape(tensor: torch.Tensor) -> list[int]:
    """Returns the shape of tensor in elements of the format.

    torch counts a pair of 4-bit floats as one element, the format (like safetensors) counts two.
    """
    shape = list(tensor.shape)
    if _OF_TORCH.get(tensor.dtype) == _F4:
        if not shape:
            raise UnsupportedError("a 0-dimensional float4_e2m1fn_x2 tensor cannot be packed: it has no last dimension")
        shape[-1] *= 2
    return shape


def torch_shape(number: int, shape: list[int]) -> list[int]:
    """Returns what torch calls the shape of `shape` elements of the format; undoes element_shape."""
    if number == _F4:
        if not shape or shape[-1] % 2:
            raise UnsupportedError(f"F4 tensor of shape {shape} has no torch equivalent: the last dimension is odd")
        return [*shape[:-1], shape[-1] // 2]
    return list(shape)
