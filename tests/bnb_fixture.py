"""Weights as bitsandbytes lays them out in safetensors files, made in plain torch.

The formulas and names are those of bitsandbytes; core/quant/FORMAT.md says where they were read.
"""

from __future__ import annotations

import json

import torch

from tpde.quant import NF4

_BLOCK = 64
_NESTED = 256


def nf4(name: str, weight: torch.Tensor, double: bool) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Returns the tensors that stand for `name`, and absmax as float32, by the formula of double quantisation."""
    code = torch.tensor(NF4)
    flat = torch.nn.functional.pad(weight.float().reshape(-1), (0, -weight.numel() % _BLOCK)).reshape(-1, _BLOCK)
    absmax = flat.abs().amax(1)
    codes = (flat / absmax[:, None].clamp(min=1e-30)).unsqueeze(-1).sub(code).abs().argmin(-1).to(torch.uint8)
    codes = codes.reshape(-1)[: weight.numel()]
    codes = torch.nn.functional.pad(codes, (0, codes.numel() % 2))
    state = {
        "quant_type": "nf4",
        "blocksize": _BLOCK,
        "dtype": str(weight.dtype).removeprefix("torch."),
        "shape": list(weight.shape),
    }
    parts = {name: (codes[::2] << 4 | codes[1::2])[:, None].contiguous(), f"{name}.quant_map": code}
    if double:
        offset = absmax.mean()
        parts[f"{name}.absmax"], parts[f"{name}.nested_absmax"], parts[f"{name}.nested_quant_map"] = _blockwise(
            absmax - offset
        )
        absmax = dequantize_blockwise(
            parts[f"{name}.absmax"], parts[f"{name}.nested_absmax"], parts[f"{name}.nested_quant_map"]
        )
        absmax += offset
        state |= {"nested_blocksize": _NESTED, "nested_dtype": "float32", "nested_offset": offset.item()}
    else:
        parts[f"{name}.absmax"] = absmax
    text = json.dumps(state).encode()
    parts[f"{name}.quant_state.bitsandbytes__nf4"] = torch.tensor(list(text), dtype=torch.uint8)
    return parts, absmax


def dequantize_blockwise(codes: torch.Tensor, absmax: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
    """bitsandbytes' backends/default/ops.py: `code[A]`, padded, times absmax of the block, in float32."""
    out = torch.nn.functional.pad(code[codes.int()], (0, -codes.numel() % _NESTED))
    return (out.view(-1, _NESTED) * absmax.view(-1, 1)).reshape(-1)[: codes.numel()]


def _blockwise(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    code = torch.linspace(-1, 1, 256) ** 3
    blocks = torch.nn.functional.pad(values, (0, -values.numel() % _NESTED)).reshape(-1, _NESTED)
    absmax = blocks.abs().amax(1)
    codes = (blocks / absmax[:, None]).unsqueeze(-1).sub(code).abs().argmin(-1).to(torch.uint8)
    return codes.reshape(-1)[: values.numel()].contiguous(), absmax, code


def int8(module: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns the tensors that stand for `module`.weight."""
    scale = weight.float().abs().amax(1)
    return {
        f"{module}.weight": torch.round(weight.float() * (127.0 / scale[:, None])).to(torch.int8),
        f"{module}.SCB": scale,
        f"{module}.weight_format": torch.tensor(0, dtype=torch.uint8),
    }
