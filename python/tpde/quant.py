"""Quantised bases: a weight in 2, 3, 4 or 8 bits, and the layouts of bitsandbytes.

A model that does not fit keeps such a base in memory; the residual to the full weight restores every bit. What a
quantised base is worth is defined bit for bit by core/quant/FORMAT.md, so that packing and rebuilding agree on every
machine; `QuantizedTensor.dequantize` computes those bits in torch, on the device where the tensors are.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field, replace

import torch

from tpde import _dtypes, _memory, _options
from tpde._status import ArgumentError, UnsupportedError

KINDS = {"linear": 1, "codebook": 2, "int8_rows": 3}
"""Numbers of the kinds in the format."""

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The code book of NormalFloat4: nf4_dequantization_lut in bitsandbytes' csrc/kernels.cu."""

DESCRIPTOR_BYTES = 128
MAX_GROUP = 2**63 - 1
"""The largest group that fits a torch integer. No tensor has as many elements: a larger one means the same."""

_TARGETS = (torch.float32, torch.float16, torch.bfloat16)
_MIN_GROUP = 8
_OVER_127 = 7.874015718698502e-3
# Elements that are worked on at once: temporary memory is about 20 bytes for each.
_PIECE = 1 << 22


@dataclass(frozen=True)
class QuantizedTensor:
    """A weight in a few bits. All tensors are on one device, 1-D and contiguous.

    packed: uint8, the codes (FORMAT.md says in which order).
    scale: one float32, float16 or bfloat16 number per group of `group_size` elements of the flattened weight.
    zero: uint8, one zero point per group, or None.
    code: float32, the 16 values of a code book, or None.
    shape, dtype: of the weight.
    kind: "linear", "codebook" (NF4 and FP4 of bitsandbytes) or "int8_rows" (its LLM.int8()).
    """

    packed: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None
    bits: int
    group_size: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: str = "linear"
    code: torch.Tensor | None = field(default=None)

    def __post_init__(self) -> None:
        _check(self)

    @property
    def device(self) -> torch.device:
        """Where the codes are."""
        return self.packed.device

    def parts(self) -> list[torch.Tensor]:
        """The tensors that there are, of packed, scale, zero and code."""
        return [part for part in (self.packed, self.scale, self.zero, self.code) if part is not None]

    def numel(self) -> int:
        """The number of elements of the weight."""
        return math.prod(self.shape)

    def nbytes(self) -> int:
        """Bytes that the quantised weight takes."""
        return sum(t.numel() * t.element_size() for t in (self.packed, self.scale, self.zero) if t is not None)

    def to(self, device: torch.device | str) -> QuantizedTensor:
        """Returns the same tensor on another device."""
        return replace(
            self,
            packed=self.packed.to(device),
            scale=self.scale.to(device),
            zero=None if self.zero is None else self.zero.to(device),
            code=None if self.code is None else self.code.to(device),
        )

    def dequantize(self) -> torch.Tensor:
        """Returns the weight that the codes stand for, of `shape` and `dtype`, on the device of the codes."""
        out = torch.empty(self.numel(), dtype=self.dtype, device=self.packed.device)
        for first in range(0, self.numel(), _PIECE):
            out[first : first + _PIECE] = _dequantize(self, first, min(_PIECE, self.numel() - first))
        return out.reshape(self.shape)

    def descriptor(self) -> bytes:
        """Returns the 128 bytes that a kernel reads of this tensor (FORMAT.md, "Descriptor").

        They hold the addresses of the parts: keep self alive for as long as they are in use. Raises ArgumentError if a
        part is not aligned, as views into a file may be; tensors that torch allocated are. Waits for a GPU that holds
        a code book.
        """
        if self.packed.data_ptr() % 4 or self.scale.data_ptr() % self.scale.element_size():
            raise ArgumentError("packed, scale: expected 4-byte aligned codes and aligned scales; clone them")
        return make_descriptor(
            self.packed.data_ptr(),
            self.scale.data_ptr(),
            0 if self.zero is None else self.zero.data_ptr(),
            self.numel(),
            self.packed.numel(),
            self.group_size,
            KINDS[self.kind],
            self.bits,
            _dtypes.number_of(self.scale.dtype),
            None if self.code is None else self.code.tolist(),
        )


def make_descriptor(
    packed: int,
    scale: int,
    zero: int,
    n: int,
    packed_bytes: int,
    group: int,
    kind: int,
    bits: int,
    scale_type: int,
    code: list[float] | None,
) -> bytes:
    """Returns what a kernel reads of a quantised tensor of n elements whose parts are at these addresses.

    zero: 0 if it has no zero points. kind: of KINDS. scale_type: as core/dtype numbers it. Raises ArgumentError for a
    code book that is not finite.
    """
    shift = group.bit_length() - 1 if group & (group - 1) == 0 else 255
    code = [0.0] * 16 if code is None else code
    _require_finite(code)
    inverse = ((1 << 64) // group + 1) % (1 << 64)
    return struct.pack(
        "<7Q4BI16f", packed, scale, zero, n, packed_bytes, group, inverse, kind, bits, scale_type, shift, 0, *code
    )  # fmt: skip


def quantize(
    weight: torch.Tensor,
    bits: int = 4,
    group_size: int = 64,
    symmetric: bool = True,
    scale_dtype: torch.dtype = torch.bfloat16,
) -> QuantizedTensor:
    """Quantises a weight, so that it can serve as a base.

    weight: float32, float16 or bfloat16, any shape and device. Elements that are NaN or infinite become 0.
    bits: 2, 3, 4 or 8. group_size: consecutive elements that share a scale, at least 8; usually a power of
        two from 32 to 256, or weight.shape[-1] for one scale per row; the last group may be shorter.
    symmetric: False stores a zero point per group, for groups that are not centred on 0.
    scale_dtype: float32, float16 or bfloat16.

    Returns a QuantizedTensor on the weight's device. The same codes come out on every device and of core/quant.
    Raises ArgumentError, also when a scale is too large for float16; UnsupportedError for other dtypes.
    """
    weight = _memory.as_tensor(weight, "weight")
    if weight.dtype not in _TARGETS:
        raise UnsupportedError(f"weight: dtype {weight.dtype} cannot be quantised; expected one of {_names(_TARGETS)}")
    if _options.whole(bits) not in (2, 3, 4, 8):
        raise ArgumentError(f"bits: expected 2, 3, 4 or 8, got {bits!r}")
    if scale_dtype not in _TARGETS:
        raise ArgumentError(f"scale_dtype: expected one of {_names(_TARGETS)}, got {scale_dtype}")
    _require_group(group_size)
    flat = weight.reshape(-1)
    n = flat.numel()
    groups = -(-n // group_size)
    size = group_size if groups > 1 else max(n, 1)
    packed = torch.zeros(-(-n * bits // 32) * 4, dtype=torch.uint8, device=weight.device)
    scale = torch.empty(groups, dtype=scale_dtype, device=weight.device)
    zero = None if symmetric else torch.empty(groups, dtype=torch.uint8, device=weight.device)
    # Eight groups fill whole bytes.
    step = max(_PIECE // (8 * size), 1) * 8 * size
    for first in range(0, n, step):
        part = flat[first : first + step].float()
        count = part.numel()
        rows = -(-count // size)
        part = torch.nn.functional.pad(part, (0, rows * size - count)).reshape(rows, size)
        group = first // size
        codes, part_scale, part_zero = _choose(part, bits, symmetric, scale_dtype)
        scale[group : group + rows] = part_scale
        if zero is not None:
            zero[group : group + rows] = part_zero
        data = _pack(codes.reshape(-1)[:count], bits)
        packed[first * bits // 8 : first * bits // 8 + data.numel()] = data
    if bool(torch.isinf(scale).any()):
        raise ArgumentError(f"weight: {scale_dtype} cannot hold the scale of a group; use scale_dtype=torch.float32")
    return QuantizedTensor(packed, scale, zero, bits, group_size, tuple(weight.shape), weight.dtype)


def from_bitsandbytes_nf4(
    packed: torch.Tensor,
    absmax: torch.Tensor,
    code: torch.Tensor | None,
    blocksize: int,
    shape: tuple[int, ...] | torch.Size,
    dtype: torch.dtype,
) -> QuantizedTensor:
    """Takes over a 4-bit weight of bitsandbytes (NF4, or FP4 with its code book), without copying the codes.

    packed: `weight.data` of any dtype (quant_storage), two codes to a byte, high nibble first. absmax: float32, one per
    block of `blocksize` elements; a double-quantised one is expanded first: `dequantize_blockwise(state.absmax,
    state.state2) + state.offset`. code: `state.code` ("quant_map" in files), None for NF4. shape, dtype: `state.shape`
    and the dtype of the result, usually `state.dtype`.

    The value is `code[q] * absmax` in float32, rounded to dtype: kDequantizeBlockwise in bitsandbytes' csrc/kernels.cu,
    where `vals[2j]` comes from `q >> 4` and `vals[2j + 1]` from `q & 0x0F`. (The plain torch backend of bitsandbytes
    rounds the code book to dtype first, and differs.) Raises ArgumentError.
    """
    packed = _memory.as_tensor(packed, "packed").contiguous().reshape(-1).view(torch.uint8)
    if code is None:
        code = torch.tensor(NF4, dtype=torch.float32, device="cpu")  # whatever the default dtype and device are
    return QuantizedTensor(
        packed, _statistics(absmax, "absmax"), None, 4, blocksize, tuple(shape), dtype, "codebook",
        _statistics(code, "code").to(packed.device),
    )  # fmt: skip


def from_bitsandbytes_int8(CB: torch.Tensor, SCB: torch.Tensor, dtype: torch.dtype) -> QuantizedTensor:
    """Takes over an 8-bit weight of bitsandbytes (LLM.int8()), without copying the codes.

    CB: int8, row-major, `weight.CB` or `weight.data`. SCB: float32, the absolute maximum of each row. dtype: of the
    result. Rows have at least 8 elements.

    The value is `(q * SCB) * 7.874015718698502e-3` in float32, rounded to dtype: int8_vectorwise_dequant in
    bitsandbytes' functional.py and _ops.py. Raises ArgumentError.
    """
    CB = _memory.as_tensor(CB, "CB")
    if CB.dtype is not torch.int8 or CB.dim() == 0:
        raise ArgumentError(f"CB: expected int8 of at least one dimension, got {CB.dtype} of shape {list(CB.shape)}")
    packed = CB.contiguous().reshape(-1).view(torch.uint8)
    return QuantizedTensor(packed, _statistics(SCB, "SCB"), None, 8, CB.shape[-1], tuple(CB.shape), dtype, "int8_rows")


def _check(q: QuantizedTensor) -> None:
    """Raises ArgumentError unless the parts of q fit each other."""
    if q.kind not in KINDS:
        raise ArgumentError(f"kind: expected one of {', '.join(KINDS)}, got {q.kind!r}")
    if q.dtype not in _TARGETS:
        raise UnsupportedError(f"dtype: {q.dtype} cannot be quantised; expected one of {_names(_TARGETS)}")
    _require_group(q.group_size)
    allowed = {"linear": (2, 3, 4, 8), "codebook": (4,), "int8_rows": (8,)}[q.kind]
    if q.bits not in allowed:
        raise ArgumentError(f"bits: expected one of {allowed} for kind {q.kind}, got {q.bits}")
    n, groups = q.numel(), -(-q.numel() // q.group_size)
    packed_bytes = -(-n * q.bits // 32) * 4 if q.kind == "linear" else -(-n * q.bits // 8)
    scales = _TARGETS if q.kind == "linear" else (torch.float32,)
    _require(q.packed, "packed", (torch.uint8,), packed_bytes, q.packed.device)
    _require(q.scale, "scale", scales, groups, q.packed.device)
    if q.zero is not None:
        if q.kind != "linear":
            raise ArgumentError(f"zero: expected None for kind {q.kind}")
        _require(q.zero, "zero", (torch.uint8,), groups, q.packed.device)
    if (q.code is not None) != (q.kind == "codebook"):
        raise ArgumentError(f"code: {'missing' if q.code is None else 'expected None'} for kind {q.kind}")
    if q.code is not None:
        _require(q.code, "code", (torch.float32,), 16, q.packed.device)
        if q.code.is_cpu:  # elsewhere it is looked at when a descriptor is made: looking means waiting for the GPU
            _require_finite(q.code.tolist())


def _require_finite(code: list[float]) -> None:
    if not all(map(math.isfinite, code)):
        raise ArgumentError("code: holds a value that is not finite")


def _require(t: torch.Tensor, what: str, dtypes: tuple[torch.dtype, ...], n: int, device: torch.device) -> None:
    if t.dtype not in dtypes or t.dim() != 1 or t.numel() != n or not t.is_contiguous():
        raise ArgumentError(
            f"{what}: expected {n} contiguous elements of {_names(dtypes)}, got shape {list(t.shape)} of {t.dtype}"
        )
    if t.device != device:
        raise ArgumentError(f"{what}: is on {t.device}, the codes are on {device}")


def _require_group(size: int) -> None:
    number = _options.whole(size)
    if number is None or not _MIN_GROUP <= number < 1 << 64:
        raise ArgumentError(f"group_size: expected {_MIN_GROUP} to 2^64 - 1 elements, got {size!r}")


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(d).removeprefix("torch.") for d in dtypes)


def _statistics(t: torch.Tensor, what: str) -> torch.Tensor:
    t = _memory.as_tensor(t, what)
    if t.dtype is not torch.float32:
        raise ArgumentError(f"{what}: expected float32, got {t.dtype}; expand double-quantised statistics first")
    return t.contiguous().reshape(-1)


def _choose(
    part: torch.Tensor, bits: int, symmetric: bool, scale_dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns codes (uint8), scales and zero points (uint8) of a float32 matrix with a group per row.

    Divisors are tensors: torch may turn a division by a number into a product with its reciprocal.
    """
    finite = torch.isfinite(part)
    known = torch.where(finite, part, 0.0)
    least = known.amin(1, keepdim=True).clamp(max=0.0)
    greatest = known.amax(1, keepdim=True).clamp(min=0.0)
    top, middle = (1 << bits) - 1, 1 << (bits - 1)
    if symmetric:
        exact = torch.where(greatest >= -least, greatest, least) / torch.full_like(least, -middle)
    else:
        steps = torch.full_like(least, top)
        exact = greatest / steps - least / steps
    scale = exact.to(scale_dtype)
    wide = scale.float()
    usable = wide != 0
    divisor = torch.where(usable, wide, 1.0)
    if symmetric:
        zero = torch.full_like(least, middle)
    else:
        zero = torch.where(usable, torch.round(-least / divisor), 0.0).clamp(0, top)
    moved = torch.where(usable, torch.round(known / divisor), 0.0)
    codes = (torch.maximum(torch.minimum(moved, top - zero), -zero) + zero).to(torch.uint8)
    return codes, scale.reshape(-1), zero.reshape(-1).to(torch.uint8)


def _pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Returns codes (uint8) as a stream of bits, least significant first, in whole bytes."""
    if bits == 8:
        return codes
    n = codes.numel()
    codes = torch.nn.functional.pad(codes, (0, -n % 8)).reshape(-1, 8)
    out = torch.zeros(codes.shape[0], bits, dtype=torch.uint8, device=codes.device)
    for i in range(8):  # eight codes fill `bits` bytes
        at, shift = divmod(i * bits, 8)
        out[:, at] |= codes[:, i] << shift
        if shift + bits > 8:
            out[:, at + 1] |= codes[:, i] >> (8 - shift)
    return out.reshape(-1)[: -(-n * bits // 8)]


def _unpack(q: QuantizedTensor, first: int, count: int) -> torch.Tensor:
    """Returns the codes of elements first to first + count - 1 as uint8. first is a multiple of 8."""
    data = q.packed[first * q.bits // 8 : -(-(first + count) * q.bits // 8)]
    if q.bits == 8:
        return data
    if q.kind == "codebook":
        return torch.stack((data >> 4, data & 15), 1).reshape(-1)[:count]
    data = torch.nn.functional.pad(data, (0, -data.numel() % q.bits)).reshape(-1, q.bits)
    codes = torch.empty(data.shape[0], 8, dtype=torch.uint8, device=data.device)
    for i in range(8):
        at, shift = divmod(i * q.bits, 8)
        codes[:, i] = data[:, at] >> shift
        if shift + q.bits > 8:
            codes[:, i] |= data[:, at + 1] << (8 - shift)
    return (codes & ((1 << q.bits) - 1)).reshape(-1)[:count]


def _dequantize(q: QuantizedTensor, first: int, count: int) -> torch.Tensor:
    """Returns elements first to first + count - 1. Every operation below rounds once, in its own kernel."""
    codes = _unpack(q, first, count)
    begin, end = first // q.group_size, (first + count - 1) // q.group_size + 1
    inside = first - begin * q.group_size

    def spread(per_group: torch.Tensor) -> torch.Tensor:
        if q.group_size < count:
            return per_group[begin:end].repeat_interleave(q.group_size)[inside : inside + count]
        head = min(q.group_size - inside, count)  # at most two groups
        parts = per_group[begin].expand(head), per_group[end - 1].expand(count - head)
        return torch.cat(parts) if count > head else parts[0]

    scale = spread(q.scale.float())
    if q.kind == "codebook":
        assert q.code is not None
        value = q.code[codes.int()] * scale
    elif q.kind == "int8_rows":
        value = codes.view(torch.int8).float() * scale
        value = value * torch.full_like(value, _OVER_127)
    else:
        zero = 1 << (q.bits - 1) if q.zero is None else spread(q.zero.to(torch.int16))
        value = (codes.to(torch.int16) - zero).float() * scale
    out = value.to(q.dtype)
    # A NaN has the bits that NVIDIA GPUs give it.
    words = out.view(torch.int32 if q.dtype is torch.float32 else torch.int16)
    words.masked_fill_(torch.isnan(out), 0x7FFFFFFF if q.dtype is torch.float32 else 0x7FFF)
    return out
