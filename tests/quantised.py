"""What tests of multiplying by quantised weights share: weights of every layout, and what is expected of them."""

from __future__ import annotations

import torch

import tpde
from tpde import quant

LAYOUTS = {
    "int2": ("linear", 2), "int3": ("linear", 3), "int4": ("linear", 4), "int8": ("linear", 8),
    "nf4": ("codebook", 4), "int8_rows": ("int8_rows", 8),
}  # fmt: skip

# Of the result, relative: half a unit of the last place of its type, and the roundings of float32 sums.
TOLERANCE = {torch.bfloat16: 2**-7.99, torch.float16: 2**-10.99, torch.float32: 2**-21}


def layout(
    name: str, outs: int, ins: int, rows: int, dtype: torch.dtype, *, group: int = 64, zero: bool = False,
    scale: torch.dtype | None = None, bias: bool = False, seed: int = 0,
) -> tuple[torch.Tensor, quant.QuantizedTensor, torch.Tensor | None]:  # fmt: skip
    """x [rows, ins], a weight [outs, ins] and a bias [outs]. scale: dtype if None."""
    g = torch.Generator().manual_seed(seed)
    kind, bits = LAYOUTS[name]
    weight = torch.randn(outs, ins, generator=g).to(dtype)
    if kind == "linear":
        q = tpde.quantize(weight, bits, group, symmetric=not zero, scale_dtype=scale or dtype)
    elif kind == "codebook":
        packed = torch.randint(0, 256, (-(-outs * ins // 2),), dtype=torch.uint8, generator=g)
        absmax = torch.rand(-(-outs * ins // group), generator=g)
        q = quant.from_bitsandbytes_nf4(packed, absmax, None, group, (outs, ins), dtype)
    else:
        codes = torch.randint(-128, 128, (outs, ins), dtype=torch.int8, generator=g)
        q = quant.from_bitsandbytes_int8(codes, 4 * torch.rand(outs, generator=g), dtype)
    x = torch.randn(rows, ins, generator=g).to(dtype)
    return x, q, torch.randn(outs, generator=g).to(dtype) if bias else None


def every_scale(bits: int, dtype: torch.dtype, zero: bool) -> quant.QuantizedTensor:
    """A weight of a 16-bit dtype with every scale of that dtype, subnormals, infinities and NaNs among them; zero
    points are from 0 to 255."""
    g = torch.Generator().manual_seed(bits)
    scale = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
    packed = torch.randint(0, 256, (65536 * 16 * bits // 8,), dtype=torch.uint8, generator=g)
    zeros = torch.randint(0, 256, (65536,), dtype=torch.uint8, generator=g) if zero else None
    return quant.QuantizedTensor(packed, scale, zeros, bits, 16, (1024, 1024), dtype)


def expected(x: torch.Tensor, q: quant.QuantizedTensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The product in float64."""
    y = x.double() @ q.dequantize().double().T
    return y if bias is None else y + bias.double()


def bound(x: torch.Tensor, q: quant.QuantizedTensor, bias: torch.Tensor | None) -> float:
    """How far off the result may be, relative to its length: sums in float32 lose by what cancels out in them."""
    exact = expected(x, q, bias)
    added = x.double().abs() @ q.dequantize().double().abs().T
    return TOLERANCE[x.dtype] + 2**-24 * float(added.norm() / exact.norm())


def error(got: torch.Tensor, exact: torch.Tensor) -> float:
    """How far off the result is, relative to its length."""
    return float((got.double() - exact).norm() / exact.norm())
