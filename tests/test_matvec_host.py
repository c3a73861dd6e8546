"""The kernels that multiply by quantised weights, on the host: as they are, every thread of a block a thread.

What they compute is compared with float64; `tests/test_gpu_quantised_linear.py` does the same on a GPU.
"""

from __future__ import annotations

import ctypes
import struct
import subprocess
from pathlib import Path

import pytest
import torch

from quantised import LAYOUTS, TOLERANCE, error, expected, layout
from support import assert_same_bits
from tpde import quant

ROOT = Path(__file__).parent
TYPES = {torch.bfloat16: "quant::kBF16", torch.float16: "quant::kF16", torch.float32: "quant::kF32"}
KINDS = {"linear": "quant::kLinear", "codebook": "quant::kCodebook", "int8_rows": "quant::kInt8Rows"}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory):
    """(source, macros) -> the function `run`."""
    folder = tmp_path_factory.mktemp("matvec")
    made: dict[tuple[str, ...], ctypes.CDLL] = {}

    def get(source: str, *macros: str):
        key = (source, *macros)
        if key not in made:
            path = folder / f"{len(made)}.so"
            subprocess.run(
                ["g++", "-std=c++17", "-O1", "-Wall", "-Wno-unknown-pragmas", "-Wno-unused-function", "-shared",
                 "-fPIC", "-pthread", f"-I{ROOT.parent / 'kernels'}", f'-DKERNEL="{source}"',
                 *(f"-D{macro}" for macro in macros), str(ROOT / "matvec_host.cpp"), "-o", str(path)], check=True,
            )  # fmt: skip
            made[key] = ctypes.CDLL(str(path))
        return made[key].run

    return get


def address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def multiplied(run, per_block: int, x: torch.Tensor, q: quant.QuantizedTensor, bias: torch.Tensor | None):
    outs, ins = q.shape
    y = torch.full((x.shape[0] + 2, outs), 7.0, dtype=x.dtype)  # a row in front and one behind must stay
    parts = -(-x.shape[0] // 8)
    row_groups, shift = (1, 31) if q.group_size >= ins else (ins // q.group_size, q.group_size.bit_length() - 1)
    arguments = q.descriptor() + struct.pack(
        "<4Q3Q4I", address(q.code), x.data_ptr(), address(bias), y[1].data_ptr(), x.stride(0), outs, ins,
        x.shape[0], parts, row_groups, shift,
    )  # fmt: skip
    run(arguments, -(-outs // per_block) * parts)
    assert bool((y[0] == 7).all()) and bool((y[-1] == 7).all())
    return y[1:-1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", LAYOUTS)
def test_tiles(compiled, name, dtype):
    kind, bits = LAYOUTS[name]
    run = compiled("matvec.cu", f"TYPE={TYPES[dtype]}", f"KIND={KINDS[kind]}", f"BITS={bits}")
    unit = {2: 64, 3: 128, 4: 32, 8: 16}[bits]
    for outs, ins, rows, options in [
        (16, 4 * unit, 1, {}),
        (17, 36 * unit, 8, {"zero": True, "bias": True}),
        (5, 9 * unit, 3, {"group": 9 * unit, "zero": True, "scale": torch.float32}),
        (33, 2 * unit, 2, {"group": 32, "scale": torch.float16}),
        (16, 22 * unit, 9, {"group": 32, "scale": torch.bfloat16, "bias": True}),
    ]:
        if kind == "int8_rows":
            options = {"bias": options.get("bias", False)}
        x, q, bias = layout(name, outs, ins, rows, dtype, **options)
        got = multiplied(run, 16, x, q, bias)
        assert error(got, expected(x, q, bias)) <= TOLERANCE[dtype], (outs, ins, rows, options)


def test_tiles_are_exact_where_sums_are(compiled):
    """Every product and sum is a small integer: the result has no excuse to differ."""
    for dtype in (torch.bfloat16, torch.float16):
        for bits in (2, 3, 4, 8):
            run = compiled("matvec.cu", f"TYPE={TYPES[dtype]}", "KIND=quant::kLinear", f"BITS={bits}")
            g = torch.Generator().manual_seed(bits)
            ins = 1152
            packed = torch.randint(0, 256, (3 * ins * bits // 8,), dtype=torch.uint8, generator=g)
            scale = torch.ones(3 * ins // 32, dtype=dtype)
            zero = torch.randint(0, 256, scale.shape, dtype=torch.uint8, generator=g)
            q = quant.QuantizedTensor(packed, scale, zero, bits, 32, (3, ins), dtype)
            x = torch.zeros(4, ins, dtype=dtype)
            x.scatter_(1, torch.randint(0, ins, (4, 1), generator=g), 1.0)
            weight = q.dequantize()
            assert_same_bits(multiplied(run, 16, x, q, None), (x.double() @ weight.double().T).to(dtype))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_any(compiled, dtype):
    run = compiled("matvec_any.cu", f"TYPE={TYPES[dtype]}")
    for name, (kind, _) in LAYOUTS.items():
        for outs, ins, rows, options in [
            (3, 64, 1, {"group": 32}), (9, 101, 9, {"group": 9, "zero": True, "bias": True}), (1, 7, 2, {"group": 64}),
        ]:  # fmt: skip
            if kind == "int8_rows" and ins < 8:
                continue
            x, q, bias = layout(name, outs, ins, rows, dtype, **options)
            got = multiplied(run, 8, x, q, bias)
            assert error(got, expected(x, q, bias)) <= TOLERANCE[dtype], (name, outs, ins, rows, options)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_dequantise(compiled, dtype):
    run = compiled("dequantise.cu", "DEQUANTISE", f"TYPE={TYPES[dtype]}")
    for name in LAYOUTS:
        _, q, _ = layout(name, 5, 67, 1, dtype, group=16, zero=True)
        for first, count in [(0, 335), (67, 134), (330, 5)]:
            out = torch.full((340,), 7.0, dtype=dtype)
            arguments = q.descriptor() + struct.pack("<4Q", address(q.code), out.data_ptr(), first, count)
            run(arguments, -(-count * dtype.itemsize // 4096))
            assert_same_bits(out[:count], q.dequantize().view(-1)[first : first + count])
            assert bool((out[count:] == 7).all())
