"""Writes what torch computes on a CPU for the float types that have an add residual.

    python torch_sums.py        (needs torch and numpy; writes beside itself)

torch_f8_<type>.bin.gz   65,536 bytes: the sum of bytes a and b at a * 256 + b,
                         added as float32 and cast to the type
torch_<type>.bin         rows of three words, little-endian: a, b and what
                         scatter_add_ makes of a when b is added to it
torch_narrow.bin         rows of (u32 float32, u16 float16, u16 bfloat16): casts
"""

import gzip
import pathlib

import numpy as np
import torch

HERE = pathlib.Path(__file__).parent
PAIRS = 3000


def special(exp_bits: int, mantissa_bits: int) -> list[int]:
    """Zeros, subnormals, smallest and largest normals, infinities and NaNs of both signs."""
    one = ((1 << (exp_bits - 1)) - 1) << mantissa_bits
    inf = ((1 << exp_bits) - 1) << mantissa_bits
    magnitudes = [
        0,
        1,
        2,
        3,
        (1 << mantissa_bits) - 1,
        1 << mantissa_bits,
        (1 << mantissa_bits) + 1,
        one - 1,
        one,
        one + 1,
        inf - 2,
        inf - 1,
        inf,
        inf + 1,
        inf + (1 << (mantissa_bits - 1)),
    ]
    sign = 1 << (exp_bits + mantissa_bits)
    return magnitudes + [m | sign for m in magnitudes]


def pairs(rng: np.random.Generator, exp_bits: int, mantissa_bits: int) -> tuple[np.ndarray, np.ndarray]:
    width = 1 + exp_bits + mantissa_bits
    word = np.dtype(f"<u{width // 8}")
    s = np.array(special(exp_bits, mantissa_bits), dtype=word)
    a, b = np.repeat(s, len(s)), np.tile(s, len(s))
    x = rng.integers(0, 1 << width, PAIRS, dtype=np.uint64).astype(word)
    # Half of the random pairs are of similar magnitude, where rounding happens.
    near = x ^ rng.integers(0, 1 << (mantissa_bits + 3), PAIRS, dtype=np.uint64).astype(word)
    far = rng.integers(0, 1 << width, PAIRS, dtype=np.uint64).astype(word)
    y = np.where(np.arange(PAIRS) % 2 == 0, near, far)
    return np.concatenate([a, x]), np.concatenate([b, y])


def main() -> None:
    rng = np.random.default_rng(1)
    signed = {2: np.int16, 4: np.int32, 8: np.int64}
    for name, dtype, exp_bits, mantissa_bits in [
        ("f16", torch.float16, 5, 10),
        ("bf16", torch.bfloat16, 8, 7),
        ("f32", torch.float32, 8, 23),
        ("f64", torch.float64, 11, 52),
    ]:
        a, b = pairs(rng, exp_bits, mantissa_bits)
        s = signed[a.dtype.itemsize]
        total = torch.from_numpy(a.view(s).copy()).view(dtype)
        total.scatter_add_(0, torch.arange(len(a)), torch.from_numpy(b.view(s).copy()).view(dtype))
        bits = total.view(torch.from_numpy(np.zeros(1, s)).dtype).numpy().view(a.dtype)
        (HERE / f"torch_{name}.bin").write_bytes(np.stack([a, b, bits], axis=1).tobytes())

    codes = torch.arange(256, dtype=torch.uint8)
    for dtype in [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]:
        wide = codes.view(dtype).float()
        sums = (wide[:, None] + wide[None, :]).to(dtype).view(torch.uint8).numpy().tobytes()
        name = str(dtype).removeprefix("torch.float8_")
        (HERE / f"torch_f8_{name}.bin.gz").write_bytes(gzip.compress(sums, 9, mtime=0))

    x = np.concatenate(
        [
            np.array(special(8, 23), dtype="<u4"),
            rng.integers(0, 1 << 32, 1000, dtype=np.uint64).astype("<u4"),
            # around the range of float16, with ties: few bits set below its mantissa
            (rng.integers(0x32000000, 0x48000000, 2000, dtype=np.uint64).astype("<u4") & np.uint32(0xFFFFF000)),
        ]
    )
    f = torch.from_numpy(x.view(np.float32).copy())
    rows = np.zeros(len(x), dtype=[("f32", "<u4"), ("f16", "<u2"), ("bf16", "<u2")])
    rows["f32"] = x
    rows["f16"] = f.to(torch.float16).view(torch.int16).numpy().view("<u2")
    rows["bf16"] = f.to(torch.bfloat16).view(torch.int16).numpy().view("<u2")
    (HERE / "torch_narrow.bin").write_bytes(rows.tobytes())


if __name__ == "__main__":
    main()
