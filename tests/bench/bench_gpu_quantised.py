"""bench_gpu's section "quantised": codes and a residual, dequantised and rebuilt in one pass; and no base at all."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import torch
from gpu_sets import SET_BYTES, SIDE, Settings, require_same_bits
from gpu_timing import on_device

import tpde


def quantised(s: Settings) -> list[dict[str, Any]]:
    """Beside it: dequantising alone (a residual of nothing), and a copy of what is moved."""
    g = torch.Generator().manual_seed(0)
    weight = (0.02 * torch.randn(SIDE, SIDE, generator=g)).bfloat16()
    copies = SET_BYTES // (2 * weight.numel())
    figures, rows = [], []
    for bits, group in ((4, 64), (8, 128), (3, 64), (2, 32)):
        base = tpde.quantize(weight, bits, group)
        plain = base.dequantize()
        changed = torch.rand(weight.shape, generator=g) < 0.02
        for what, target, codec in (
            ("dequantised alone", plain, "raw"),
            ("2% changed, raw", torch.where(changed, weight, plain), "raw"),
            ("to the last bit, prefix", weight, "prefix"),
        ):
            index_map, blob = tpde.encode(base, target, codec=codec)
            items = [
                (replace(there, packed=there.packed.clone(), scale=there.scale.clone()), index_map, blob.cuda().clone())
                for there in [base.to("cuda")] * copies
            ]
            expected = target.cuda()
            for got in tpde.cuda.reconstruct_many(items, check=True):
                require_same_bits(what, got, expected)
            timing = on_device([lambda items=items: tpde.cuda.reconstruct_many(items, verify=False)], s.repeats)
            tpde.cuda.synchronize()
            output = copies * 2 * weight.numel()
            moved = copies * (base.nbytes() + blob.numel() + index_map.numel()) + output
            source = torch.empty(moved // 2, dtype=torch.uint8, device="cuda")
            destination = torch.empty_like(source)
            copied = on_device([lambda to=destination, of=source: to.copy_(of)], s.repeats)
            del source, destination
            share = copied.seconds / timing.seconds
            rates = [f"{n / timing.seconds / 1e9:.0f}" for n in (output, moved)]
            rows.append((f"int{bits}, groups of {group}: {what}", timing.text(), *rates, f"{100 * share:.0f}%"))
            figures.append(
                {"bits": bits, "group": group, "what": what, "output_bytes": output, "moved_bytes": moved,
                 **dataclasses.asdict(timing), "copy_seconds": copied.seconds}
            )  # fmt: skip
    index_map, blob = tpde.encode(None, weight, codec="prefix")
    items = [(None, index_map, blob.cuda().clone()) for _ in range(copies)]
    for got in tpde.cuda.reconstruct_many(items, check=True):
        require_same_bits("no base", got, weight.cuda())
    timing = on_device([lambda: tpde.cuda.reconstruct_many(items, verify=False)], s.repeats)
    tpde.cuda.synchronize()
    output = copies * 2 * weight.numel()
    moved = copies * (blob.numel() + index_map.numel()) + output
    rows.append(("no base: prefix", timing.text(), *(f"{n / timing.seconds / 1e9:.0f}" for n in (output, moved)), ""))
    figures.append(
        {"what": "no base: prefix", "output_bytes": output, "moved_bytes": moved, **dataclasses.asdict(timing)}
    )
    print("\nQuantised bases, 512 MiB of bf16; of a copy: that reads and writes as many bytes as are moved\n")
    s.table(("what", "ms", "output GB/s", "moved GB/s", "of a copy"), rows)
    return figures
