"""Quantised bases: the same bits from torch, the kernels' code on the host, and the reference.

The reference is core/quant/testdata/cases.safetensors, computed one element at a time; core/quant is held against it
by its own tests.
"""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import tpde
from quantised import every_scale
from support import assert_same_bits
from tpde import quant

ROOT = Path(__file__).parent.parent
KERNELS = ROOT / "kernels"
CASES = ROOT / "core" / "quant" / "testdata" / "cases.safetensors"
TARGETS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NUMBERS = {torch.float16: 10, torch.bfloat16: 11, torch.float32: 12}
KINDS = {number: name for name, number in quant.KINDS.items()}


def reference() -> list[tuple[quant.QuantizedTensor, torch.Tensor]]:
    """Every case as each dtype, with the words it must come to."""
    out = []
    with safe_open(CASES, "pt") as file:
        for i, case in enumerate(json.loads(file.metadata()["cases"])):
            for name, dtype in TARGETS.items():
                q = quant.QuantizedTensor(
                    packed=file.get_tensor(f"{i}.packed").clone(), scale=file.get_tensor(f"{i}.scale").clone(),
                    zero=file.get_tensor(f"{i}.zero") if case["zero"] else None, bits=case["bits"],
                    group_size=case["group"], shape=(case["n"],), dtype=dtype, kind=KINDS[case["kind"]],
                    code=torch.tensor(quant.NF4) if case["kind"] == 2 else None,
                )  # fmt: skip
                out.append((q, file.get_tensor(f"{i}.{name}").view(dtype)))
    return out


def test_torch_computes_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    for piece in (1 << 22, 64):
        monkeypatch.setattr(quant, "_PIECE", piece)
        for q, expected in reference():
            assert_same_bits(q.dequantize(), expected)


def test_subnormals_are_kept_where_torch_flushes_them() -> None:
    """Documents the one setting that breaks the definition, by showing that it is off by default."""
    q = tpde.quantize(torch.tensor([1e-40, -3e-40], dtype=torch.float32), scale_dtype=torch.float32)
    assert q.dequantize().abs().max() > 0


# ---- the kernels' code on the host ------------------------------------------


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """kernels/dequant.cuh, compiled by g++."""
    path = tmp_path_factory.mktemp("dequant") / "dequant.so"
    subprocess.run(
        ["g++", "-std=c++17", "-O2", "-Wall", "-Wno-unknown-pragmas", "-Wno-unused-function", "-shared", "-fPIC",
         f"-I{KERNELS}", str(Path(__file__).parent / "dequant_host.cpp"), "-o", str(path)], check=True,
    )  # fmt: skip
    library = ctypes.CDLL(str(path))
    library.dequant.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint64, ctypes.c_uint64]
    library.dequant_run.argtypes = library.dequant.argtypes
    library.dequant_run.restype = ctypes.c_uint64
    library.group_of.argtypes = [ctypes.c_void_p, ctypes.c_uint64]
    library.group_of.restype = ctypes.c_uint64
    return library


def on_host(library: ctypes.CDLL, q: quant.QuantizedTensor, first: int, count: int) -> torch.Tensor:
    out = torch.empty(count, dtype=q.dtype)
    descriptor = ctypes.create_string_buffer(q.descriptor(), quant.DESCRIPTOR_BYTES)
    library.dequant(out.data_ptr(), descriptor, NUMBERS[q.dtype], first, count)
    return out


def test_runs_are_what_kernels_take_fast(library: ctypes.CDLL) -> None:
    """From any whole word of codes to any end, if groups are powers of two; else they are refused."""
    runs = 0
    for q, expected in reference():
        descriptor = ctypes.create_string_buffer(q.descriptor(), quant.DESCRIPTOR_BYTES)
        n = q.numel()
        for first in range(0, min(n, 2000), 32):
            for count in {n - first, min(n - first, 8), min(n - first, 100)}:
                out = torch.empty(count, dtype=q.dtype)
                done = library.dequant_run(out.data_ptr(), descriptor, NUMBERS[q.dtype], first, count)
                assert_same_bits(out[:done], expected.reshape(-1)[first : first + done])
                runs += done > 0
        assert library.dequant_run(out.data_ptr(), descriptor, NUMBERS[q.dtype], 8, 8) == 0
    assert runs > 100


def test_kernel_code_computes_the_reference(library: ctypes.CDLL) -> None:
    rng = np.random.default_rng(1)
    for q, expected in reference():
        n = q.numel()
        assert_same_bits(on_host(library, q, 0, n), expected)
        for first in rng.integers(0, n, 20).tolist():  # from any element on, across any boundary
            assert_same_bits(on_host(library, q, first, n - first), expected[first:])


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_kernel_code_takes_every_scale(library: ctypes.CDLL, dtype: torch.dtype, bits: int) -> None:
    """Two values at once in 16 bits are what float32 comes to."""
    for zero in (False, True):
        q = every_scale(bits, dtype, zero)
        expected = q.dequantize().flatten()
        assert_same_bits(on_host(library, q, 0, q.numel()), expected)
        out = torch.empty(q.numel(), dtype=dtype)
        descriptor = ctypes.create_string_buffer(q.descriptor(), quant.DESCRIPTOR_BYTES)
        assert library.dequant_run(out.data_ptr(), descriptor, NUMBERS[dtype], 0, q.numel()) == q.numel()
        assert_same_bits(out, expected)


def test_kernel_code_divides_by_any_group(library: ctypes.CDLL) -> None:
    """The group comes from a product with a rounded reciprocal, which is one too large now and then."""
    rng = np.random.default_rng(2)
    groups = [8, 9, 10, 11, 13, 15, 31, 33, 641, 999, 11008, 14336, 1 << 20, (1 << 32) - 1, (1 << 32) + 1, 3 << 40]
    for group in [*groups, (1 << 62) - 1, (1 << 63) + 1, *rng.integers(8, 1 << 40, 50).tolist()]:
        q = tpde.quantize(torch.zeros(8), group_size=group)
        descriptor = ctypes.create_string_buffer(q.descriptor(), quant.DESCRIPTOR_BYTES)
        elements = rng.integers(0, 1 << 63, 200).tolist()
        multiples = [e // group * group for e in elements]
        for element in [*elements, *multiples, *(m - 1 for m in multiples if m), 0, 1, 7, (1 << 63) - 1]:
            assert library.group_of(descriptor, element) == element // group, (group, element)


# ---- quantize ----------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", TARGETS.values())
def test_quantize_is_close(bits: int, symmetric: bool, dtype: torch.dtype) -> None:
    weight = torch.randn(24, 96, generator=torch.Generator().manual_seed(3)).to(dtype)
    q = tpde.quantize(weight, bits=bits, group_size=32, symmetric=symmetric, scale_dtype=torch.float32)
    got = q.dequantize()
    assert got.shape == weight.shape and got.dtype == dtype
    steps = ((got.float() - weight.float()).reshape(-1, 32) / q.scale.reshape(-1, 1)).abs()
    assert steps.max() <= 1.01
    assert steps.median() <= 0.5
    assert q.packed.numel() == weight.numel() * bits // 8


def test_quantize_in_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(5003, generator=torch.Generator().manual_seed(4))
    for group_size in (32, 37, 5003, 1 << 40):
        for bits in (2, 3, 4, 8):
            whole = tpde.quantize(weight, bits=bits, group_size=group_size, symmetric=False)
            with monkeypatch.context() as patch:
                patch.setattr(quant, "_PIECE", 256)
                parts = tpde.quantize(weight, bits=bits, group_size=group_size, symmetric=False)
            assert_same_bits(parts.packed, whole.packed)
            assert_same_bits(parts.scale, whole.scale)
            assert parts.zero is not None and whole.zero is not None
            assert_same_bits(parts.zero, whole.zero)


def test_quantize_is_what_go_does(tmp_path: Path) -> None:
    """Codes, scales, zero points and descriptors of core/quant, through the program in its testdata."""
    if not shutil.which("go"):
        pytest.skip("no Go on the path")
    weight = torch.randn(4099, generator=torch.Generator().manual_seed(5)) * torch.logspace(-6, 3, 4099)
    weight[::97] = 0.0
    weight[5:40] = float("nan")
    weight[300], weight[301] = float("inf"), -float("inf")
    weight[1000:1040] = 1e-41
    weight[1100:1200] = weight[1100:1200].abs()
    program = tmp_path / "program"
    subprocess.run(["go", "build", "-o", str(program), "./core/quant/testdata/program"], cwd=ROOT, check=True)
    for name, dtype in TARGETS.items():
        source = weight.to(dtype).clamp(-60000, 60000)
        source.view(torch.uint8).numpy().tofile(tmp_path / "source")
        for bits in (2, 3, 4, 8):
            for symmetric in (True, False):
                for group_size in (32, 64, 41, 4099):
                    for scale_name, scale_dtype in TARGETS.items():
                        q = tpde.quantize(source, bits, group_size, symmetric, scale_dtype)
                        subprocess.run(
                            [program, tmp_path / "source", name, str(bits), str(group_size), scale_name,
                             "0" if symmetric else "1", tmp_path / "out"], check=True,
                        )  # fmt: skip
                        go = (tmp_path / "out").read_bytes()
                        parts = [q.packed, q.scale, *([] if q.zero is None else [q.zero]), q.dequantize()]
                        mine = b"".join(p.contiguous().view(torch.uint8).numpy().tobytes() for p in parts)
                        mine += q.descriptor()[24:]  # behind the pointers
                        assert mine == go, (name, bits, symmetric, group_size, scale_name)


def test_special_weights() -> None:
    for weight in (torch.empty(0), torch.zeros(3, 5), torch.tensor([float("nan")] * 9), torch.tensor(2.5)):
        for symmetric in (True, False):
            q = tpde.quantize(weight, symmetric=symmetric)
            got = q.dequantize()
            assert got.shape == weight.shape
            assert torch.isfinite(got).all()
    assert tpde.quantize(torch.tensor(2.0)).dequantize() == 2.0


def test_refusals() -> None:
    weight = torch.randn(64)
    for options in ({"bits": 5}, {"group_size": 7}, {"scale_dtype": torch.float64}):
        with pytest.raises(tpde.ArgumentError, match=next(iter(options))):
            tpde.quantize(weight, **options)  # type: ignore[arg-type]
    with pytest.raises(tpde.UnsupportedError, match="int32"):
        tpde.quantize(weight.int())
    with pytest.raises(tpde.ArgumentError, match="cannot hold"):
        tpde.quantize(weight * 1e9, bits=2, scale_dtype=torch.float16)
    q = tpde.quantize(weight)
    for change in (
        {"packed": q.packed[4:]}, {"scale": q.scale.double()}, {"zero": q.packed[:2]}, {"kind": "nf5"}, {"bits": 5},
        {"code": torch.zeros(16)}, {"shape": (65,)}, {"group_size": 0},
    ):  # fmt: skip
        with pytest.raises(tpde.ArgumentError, match=next(iter(change)) if "shape" not in change else "packed"):
            quant.replace(q, **change)  # type: ignore[arg-type]


# ---- bitsandbytes ------------------------------------------------------------


@pytest.mark.parametrize("dtype", TARGETS.values())
def test_bitsandbytes_nf4(dtype: torch.dtype) -> None:
    """kDequantizeBlockwise, one element at a time: high nibble first, a float32 product, then the dtype."""
    rng = np.random.default_rng(6)
    shape, blocksize = (9, 43), 64
    n = 9 * 43
    data = torch.from_numpy(rng.integers(0, 256, (n + 1) // 2, dtype=np.uint8))
    absmax = torch.rand(-(-n // blocksize))
    q = quant.from_bitsandbytes_nf4(data.unsqueeze(1), absmax, None, blocksize, shape, dtype)
    expected = torch.empty(n)
    for i in range(n):
        byte = int(data[i // 2])
        nibble = byte & 0x0F if i % 2 else byte >> 4
        expected[i] = float(np.float32(quant.NF4[nibble]) * np.float32(absmax[i // blocksize]))
    assert_same_bits(q.dequantize(), expected.to(dtype).reshape(shape))
    assert q.packed.data_ptr() == data.data_ptr()


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float16, torch.float64])
def test_bitsandbytes_nf4_under_other_defaults(default: torch.dtype) -> None:
    """As where a model is loaded."""
    data, absmax = torch.arange(32, dtype=torch.uint8), torch.rand(1)
    expected = quant.from_bitsandbytes_nf4(data, absmax, None, 64, (64,), torch.bfloat16).dequantize()
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        with torch.device("meta"):
            q = quant.from_bitsandbytes_nf4(data, absmax, None, 64, (64,), torch.bfloat16)
    finally:
        torch.set_default_dtype(before)
    assert_same_bits(q.dequantize(), expected)


@pytest.mark.parametrize("dtype", TARGETS.values())
def test_bitsandbytes_int8(dtype: torch.dtype) -> None:
    """The expression of int8_vectorwise_dequant itself."""
    codes = torch.randint(-128, 128, (17, 33), dtype=torch.int8)
    scale = torch.rand(17) * 3
    expected = (codes * scale.view(-1, 1) * 7.874015718698502e-3).to(dtype)
    assert_same_bits(quant.from_bitsandbytes_int8(codes, scale, dtype).dequantize(), expected)
    misaligned = torch.empty(17 * 33 + 1, dtype=torch.int8)[1:].view(17, 33).copy_(codes)
    q = quant.from_bitsandbytes_int8(misaligned, scale, dtype)
    assert_same_bits(q.dequantize(), expected)
    with pytest.raises(tpde.ArgumentError, match="aligned"):
        q.descriptor()


def test_bitsandbytes_refusals() -> None:
    with pytest.raises(tpde.ArgumentError, match="expand double-quantised"):
        quant.from_bitsandbytes_nf4(torch.zeros(32, dtype=torch.uint8), torch.zeros(1, dtype=torch.uint8), None, 64,
                                    (64,), torch.bfloat16)  # fmt: skip
    with pytest.raises(tpde.ArgumentError, match="CB"):
        quant.from_bitsandbytes_int8(torch.zeros(4, 4), torch.zeros(4), torch.float16)


# ---- NVRTC -------------------------------------------------------------------

KERNEL = """
#include "dequant.cuh"
template <u32 kKind, u32 kBits, u32 kTarget>
__device__ Group dequant_as(const quant::QuantBase& q, u64 first, u32 count) {
  const quant::Fetched f = quant::fetch<kTarget>(q, first, count);
  return quant::dequant_group<kKind, kBits, kTarget>(quant::values_of(q), f, (u32)first, count);
}

extern "C" __global__ void dequant(const quant::QuantBase* base, uint4* dst, u64 elems) {
  __shared__ quant::QuantBase q;
  u32 i = threadIdx.x;
  if (i < sizeof(q) / 4) reinterpret_cast<u32*>(&q)[i] = reinterpret_cast<const u32*>(base)[i];
  __syncthreads();
  const u32 n = TARGET == quant::kF32 ? 4 : 8;
  u64 at = (u64)blockIdx.x * blockDim.x + i;
  if (at * n + n > elems) return;
  Group g = DEQUANT(q, at * n, n);
  dst[at] = make_uint4(g.w[0], g.w[1], g.w[2], g.w[3]);
}
"""


def compile_cuda(source: str, *options: str) -> str:
    """Returns the PTX of source. Skips without NVRTC."""
    nvidia = Path(torch.__file__).parent.parent / "nvidia"
    found = sorted(nvidia.glob("cu*/lib/libnvrtc.so.*")) + sorted(nvidia.glob("cuda_nvrtc/lib/libnvrtc.so.*"))
    if not found:
        pytest.skip("torch came without NVRTC")
    nvrtc = ctypes.CDLL(str(next(p for p in found if "alt" not in p.name)))
    program = ctypes.c_void_p()
    names = ["common.cuh", "floats.cuh", "group.cuh", "dequant.cuh"]
    texts = (ctypes.c_char_p * len(names))(*[(KERNELS / name).read_bytes() for name in names])
    includes = (ctypes.c_char_p * len(names))(*[name.encode() for name in names])
    create = nvrtc.nvrtcCreateProgram
    assert create(ctypes.byref(program), source.encode(), b"test.cu", len(names), texts, includes) == 0
    flags = (ctypes.c_char_p * len(options))(*[o.encode() for o in options])
    status = nvrtc.nvrtcCompileProgram(program, len(options), flags)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    assert status == 0, log.value.decode()
    nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetPTX(program, ptx)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return ptx.value.decode()


@pytest.mark.parametrize("arch", [80, 90, 100, 120])
@pytest.mark.parametrize("target", [10, 11, 12])
def test_nvrtc_compiles_it(arch: int, target: int) -> None:
    """Also with flags that would fuse and flush: what decides the bits is immune to them."""
    ptx = compile_cuda(
        KERNEL, "-std=c++17", f"--gpu-architecture=compute_{arch}", f"-DTARGET={target}u",
        "-DDEQUANT=quant::dequant_any<TARGET>", "--use_fast_math",
    )  # fmt: skip
    # In 16 bits sm_80 has nothing else: it multiplies by one, or adds nothing.
    fused = r"\bfma\b(?!\.rn\.bf16x2)" if arch == 80 else r"\bfma\b"
    assert not re.search(fused + r"|\bmul(\.rn)?\.ftz\.f(32|16)|\.ftz\.b?f16|cvt\.rn\.ftz", ptx)
    assert "mul.rn.f32" in ptx
    assert ".local" not in ptx


@pytest.mark.parametrize(
    ("kind", "bits"),
    [("kLinear", 2), ("kLinear", 3), ("kLinear", 4), ("kLinear", 8), ("kCodebook", 4), ("kInt8Rows", 8)],
)
def test_nvrtc_compiles_each_layout(kind: str, bits: int) -> None:
    ptx = compile_cuda(
        KERNEL, "-std=c++17", "--gpu-architecture=compute_90", "-DTARGET=11u",
        f"-DDEQUANT=dequant_as<quant::{kind},{bits},TARGET>",
    )  # fmt: skip
    assert ".local" not in ptx


# ---- on a GPU ----------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_computes_the_reference() -> None:
    for q, expected in reference():
        assert_same_bits(q.to("cuda").dequantize().cpu(), expected)
    weight = torch.randn(300, 77)
    for bits in (2, 3, 4, 8):
        for symmetric in (True, False):
            here, there = (tpde.quantize(w, bits, 32, symmetric) for w in (weight, weight.cuda()))
            assert_same_bits(there.packed.cpu(), here.packed)
            assert_same_bits(there.scale.cpu(), here.scale)
