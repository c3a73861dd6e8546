"""Writes cases.safetensors: quantised tensors and what they are worth, computed one element at a time.

    python core/quant/testdata/cases.py

The reference shares nothing with the implementations: codes are packed with Python's integers, the float32 products
come from numpy, the rounding to bfloat16 and float16 from torch. tests/test_quant.py and quant_test.go read the file.
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
SCALES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
rng = np.random.default_rng(20)
tensors: dict[str, torch.Tensor] = {}
cases: list[dict[str, object]] = []


def stream(codes: list[int], bits: int) -> bytes:
    number = sum(int(c) << (i * bits) for i, c in enumerate(codes))
    return number.to_bytes((len(codes) * bits + 31) // 32 * 4, "little")


def words(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    narrow = value.to(dtype)
    integer = narrow.view(torch.int32 if dtype is torch.float32 else torch.int16)
    integer[torch.isnan(narrow)] = 0x7FFFFFFF if dtype is torch.float32 else 0x7FFF
    return integer.view(torch.uint8)


def special_scales(groups: int, kind: str) -> torch.Tensor:
    """float32 scales: usual ones, then the corners of float32 and of the narrower types."""
    usual = rng.standard_normal(groups).astype(np.float32) * np.float32(0.01)
    corners = np.array(
        [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -3e-42, 1.1754944e-38, 3.4e38, -1e38, 6.1e-5, 5.96e-8, 2.98e-8,
         65504.0, 511.75, 8188.0, 1.0, -1.0, 1e-8, 0.3333333],
        dtype=np.float32,
    )  # fmt: skip
    at = rng.permutation(groups)[: len(corners)]
    usual[at] = corners[: len(at)]
    return torch.from_numpy(usual).to(SCALES[kind])


def add(kind: int, bits: int, group: int, n: int, scale_type: str, with_zero: bool = False) -> None:
    groups = -(-n // group)
    codes = rng.integers(0, 1 << bits, n).tolist()
    for code in range(min(1 << bits, n)):  # every code occurs
        codes[code * 7 % n if n % 7 else code] = code
    scale = special_scales(groups, scale_type)
    zero = torch.from_numpy(rng.integers(0, 1 << bits, groups).astype(np.uint8)) if with_zero else None
    if zero is not None and groups > 2:
        zero[1] = 255
    wide = scale.float().numpy()
    value = np.empty(n, dtype=np.float32)
    with np.errstate(all="ignore"):
        for i, c in enumerate(codes):
            s = wide[i // group]
            if kind == 1:
                value[i] = np.float32(c - (int(zero[i // group]) if zero is not None else 1 << (bits - 1))) * s
            elif kind == 2:
                value[i] = np.float32(NF4[c]) * s
            else:
                value[i] = np.float32(np.float32(c - 256 if c > 127 else c) * s) * np.float32(7.874015718698502e-3)
    if kind == 1:
        packed = stream(codes, bits)
    elif kind == 2:
        padded = [*codes, 0] if n % 2 else codes
        packed = bytes(a << 4 | b for a, b in zip(padded[::2], padded[1::2], strict=True))
    else:
        packed = bytes(codes)
    name = str(len(cases))
    cases.append({"kind": kind, "bits": bits, "group": group, "n": n, "scale": scale_type, "zero": with_zero})
    tensors[name + ".packed"] = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
    tensors[name + ".scale"] = scale
    if zero is not None:
        tensors[name + ".zero"] = zero
    for target, dtype in SCALES.items():
        tensors[f"{name}.{target}"] = words(torch.from_numpy(value), dtype)


for bits in (2, 3, 4, 8):
    for scale_type in SCALES:
        add(1, bits, 32, 32 * 22, scale_type, with_zero=bits % 2 == 0)
        add(1, bits, 32, 32 * 21 + 13, scale_type, with_zero=bits == 3)
    add(1, bits, 37, 37 * 23 + 5, "F32", with_zero=True)
    add(1, bits, 1536, 1536 + 700, "BF16")
    add(1, bits, 8, 45, "F16", with_zero=True)
    add(1, bits, 64, 1, "F32")
add(2, 4, 64, 64 * 22, "F32")
add(2, 4, 64, 64 * 21 + 31, "F32")
add(2, 4, 128, 77, "F32")
add(3, 8, 29, 29 * 24, "F32")
add(3, 8, 1100, 1100 * 2, "F32")
tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
path = Path(__file__).with_name("cases.safetensors")
save_file(tensors, path, metadata={"cases": json.dumps(cases)})
print(len(cases), "cases,", path.stat().st_size, "bytes")
