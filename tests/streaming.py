"""What tests of streamed models on the CPU share."""

from __future__ import annotations

import pytest
from torch import nn

import tpde
from tiny_models import GPT2, Llama
from tpde._residency import smallest_budget
from tpde.runtime import Runtime

KINDS = pytest.mark.parametrize("kind", [Llama, GPT2])


def offloaded(model: nn.Module, share: float | None = 0.0, **options) -> Runtime:
    """Streams a model; share: of the budget between the smallest and what holds everything."""
    runtime = tpde.offload(model, device="cpu", reserve=0, workers=1, **options)
    if share is not None:
        runtime.set_vram(budget(runtime, share), reserve=0)
    return runtime


def budget(runtime: Runtime, share: float) -> int:
    plan = runtime.plan
    smallest = smallest_budget(plan.layers, plan.fixed_bytes)
    return smallest + int(share * (plan.fixed_bytes + sum(n.weight_bytes for n in plan.layers) - smallest))


def engine_of(runtime: Runtime):
    """What a runtime only refers to."""
    return runtime._engine()


def packed(model: nn.Module):
    """The linear layers of a model, as load_into takes them."""
    for name, module in model.named_modules():
        if type(module) is nn.Linear:
            base = tpde.quantize(module.weight, 4)
            yield name, base, *tpde.encode(base, module.weight)
