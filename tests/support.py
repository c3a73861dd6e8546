"""What the tests share: the real data, small checkpoints, comparisons on bits."""

from __future__ import annotations

from pathlib import Path

import torch

DATA = Path(__file__).parent / "data"


def small_checkpoints() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """State dicts with changed, unchanged, new, removed, reshaped, recast, empty and 0-d tensors."""
    g = torch.Generator().manual_seed(7)
    base = {
        "changed.weight": torch.randn(64, 48, generator=g).bfloat16(),
        "dense.weight": torch.randn(33, 31, generator=g),
        "kept.weight": torch.randn(40, 40, generator=g).half(),
        "gone.weight": torch.randn(5, generator=g),
        "reshaped.weight": torch.randn(4, 6, generator=g),
        "recast.weight": torch.randn(9, generator=g),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(3.5),
        "steps": torch.tensor(41, dtype=torch.int64),
        "mask": torch.rand(77, generator=g) > 0.5,
    }
    target = {name: tensor.clone() for name, tensor in base.items() if name != "gone.weight"}
    target["changed.weight"].view(-1)[::50] += 1
    target["dense.weight"] += 1e-3 * torch.randn(33, 31, generator=g)
    target["reshaped.weight"] = torch.randn(6, 5, generator=g)
    target["recast.weight"] = target["recast.weight"].double()
    target["scalar"] = torch.tensor(-0.0)
    target["steps"] += 1
    target["mask"][3] ^= True
    target["new.weight"] = torch.randn(12, 7, generator=g)
    return base, target


def random_bits(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """A tensor of any bit pattern that dtype allows."""
    g = torch.Generator().manual_seed(seed)
    if dtype is torch.bool:
        return torch.randint(0, 2, shape, generator=g).bool()
    size = dtype.itemsize
    octets = torch.randint(0, 256, (*shape[:-1], shape[-1] * size), generator=g, dtype=torch.uint8)
    return octets.view(dtype)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor."""
    if not tensor.numel():  # may have strides that view refuses
        return torch.empty(0, dtype=torch.uint8)
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def assert_same_bits(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    assert torch.equal(bits(got), bits(expected))


def assert_same_tensors(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert sorted(got) == sorted(expected)
    for name, tensor in expected.items():
        assert_same_bits(got[name], tensor)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below folder with its content, hidden ones included."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
