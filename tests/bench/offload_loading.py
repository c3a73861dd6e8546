"""From files in the page cache to the first token: tpde.load of a compressed model beside safetensors of bf16."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from llama_shape import Runner, config, empty_model, prompt, put
from offload_measure import PROMPT, Figures, Settings, allocated, require_logits
from offload_peers import HostWeights
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tpde

_SHARD = 4 << 30
_RUNS = 3


class Loading:
    """A model in a folder as transformers writes it, and compressed in another."""

    def __init__(self, s: Settings, weights: HostWeights, base: str, folder: Path) -> None:
        self.s = dataclasses.replace(s, kind="transformers")  # what tpde.load makes
        self.original, self.compressed, self.base = folder / "model", folder / "out", base
        self._expected: Tensor | None = None
        began = time.perf_counter()
        self._write(weights)
        between = time.perf_counter()
        tpde.compress(self.original, self.compressed, base=base, progress=False)
        size, small = (read(path) for path in (self.original, self.compressed))  # they are in the page cache after that
        print(
            f"model written in {between - began:.1f} s, compressed in {time.perf_counter() - between:.1f} s: "
            f"{size / 1e9:.2f} GB to {small / 1e9:.2f}, ratio {size / small:.3f}",
            flush=True,
        )

    def _write(self, weights: HostWeights) -> None:
        self.original.mkdir()
        made = config(self.s.shape)
        made.architectures, made.dtype = ["LlamaForCausalLM"], torch.bfloat16
        made.save_pretrained(self.original)
        shards: list[dict[str, Tensor]] = [{}]
        for name, tensor in weights.tensors.items():
            if shards[-1] and sum(t.nbytes for t in shards[-1].values()) + tensor.nbytes > _SHARD:
                shards.append({})
            shards[-1][name] = tensor
        names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
        for file, shard in zip(names, shards, strict=True):
            save_file(shard, self.original / file, metadata={"format": "pt"})
        index = {
            "metadata": {"total_size": sum(tensor.nbytes for tensor in weights.tensors.values())},
            "weight_map": {name: file for file, shard in zip(names, shards, strict=True) for name in shard},
        }
        (self.original / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")

    def bf16(self) -> Figures:
        """The least that a loader does: each file to the device, its tensors into an empty model."""

        def load() -> nn.Module:
            model = empty_model(self.s.shape, "transformers")
            for path in sorted(self.original.glob("*.safetensors")):
                for name, tensor in load_file(path, device=str(self.s.device)).items():
                    put(model, name.removesuffix(".weight"), tensor)
            return model.to(self.s.device)

        return self._row("load bf16 safetensors", load, None)

    def ours(self, vram: int) -> Figures:
        what = f"tpde.load, base {self.base}, {vram / 2**30:.3g} GiB"
        return self._row(what, lambda: tpde.load(self.compressed, vram=vram, device=self.s.device), vram)

    @torch.no_grad()
    def _row(self, what: str, load: Callable[[], nn.Module], vram: int | None) -> Figures:
        s = self.s
        before = allocated(s.device)
        if s.cuda:
            torch.cuda.reset_peak_memory_stats(s.device)
        ids = prompt(s.shape, PROMPT, s.device)
        loaded, took = [], []
        for _ in range(_RUNS):
            allocated(s.device)
            began = time.perf_counter()
            model: Any = load()
            loaded.append(time.perf_counter() - began)
            logits = Runner(model, s.shape, s.device, PROMPT)(ids)
            token = int(logits[0, -1].argmax())
            took.append(time.perf_counter() - began)
            del model
            if self._expected is None:
                self._expected = logits.cpu()
            require_logits(what, logits, self._expected)
        note = f"first token after {statistics.median(took):.2f} s, the median of {_RUNS}, the first {took[0]:.2f}"
        row = Figures(what, "yes", budget_bytes=vram, note=note)
        row.peak_bytes = torch.cuda.max_memory_allocated(s.device) - before if s.cuda else None
        row.more = {"first_token_seconds": took, "load_seconds": loaded, "first_token": token}
        return row


def read(folder: Path) -> int:
    """Has all files in the page cache. Returns their bytes."""
    total = 0
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                while piece := file.read(64 << 20):
                    total += len(piece)
    return total
