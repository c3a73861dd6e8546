"""Streamed layers in draft mode: what they compute with the bases that are in VRAM, without a residual.

A thread is in draft mode for an engine while it is within `drafting(engine)`. The operator that streamed modules call
looks at that when it runs, so that a model is one and the same, also compiled, whether it drafts or not. The schedule
is left alone: a draft copies nothing, decodes nothing, and does not count as a pass.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from tpde import _cuda_matvec
from tpde._residency import no_plan
from tpde._status import UnsupportedError
from tpde.quant import QuantizedTensor

if TYPE_CHECKING:
    from tpde._stream_engine import Engine
    from tpde._stream_ops import Entry


_SMALL = 1 << 14  # elements; from so many on, compressing a model gives a weight a base


class _Local(threading.local):
    engines: tuple[Engine, ...] = ()


_local = _Local()


@contextlib.contextmanager
def drafting(engine: Engine) -> Iterator[None]:
    """Has the layers of an engine draft, in this thread."""
    before = _local.engines
    _local.engines = (*before, engine)
    try:
        yield
    finally:
        _local.engines = before


def is_drafting(engine: Engine) -> bool:
    """Whether this thread drafts with an engine."""
    return engine in _local.engines


def linear(
    entry: Entry, input: torch.Tensor, bias: torch.Tensor | None, out_features: int, dtype: torch.dtype | None
) -> torch.Tensor:
    """streamed_linear with the base for a weight; with the weight itself where that is in VRAM.

    Raises UnsupportedError for a layer that has neither.
    """
    if dtype is not None and bias is not None:
        bias = bias.to(dtype)
    engine = entry.engine
    with engine.lock:  # nothing is moved meanwhile
        weight = weight_of(engine, entry.number)
        if isinstance(weight, QuantizedTensor) and input.is_cuda and not entry.transposed:
            q = weight if weight.dtype == input.dtype else replace(weight, dtype=input.dtype)
            flat = input.reshape(-1, input.shape[-1])
            return _cuda_matvec.linear(flat, q, bias).view(*input.shape[:-1], out_features)
        if isinstance(weight, QuantizedTensor):
            if input.is_cuda:
                weight = _cuda_matvec.dequantise(weight, 0, weight.numel()).view(weight.shape)
            else:
                weight = weight.dequantize()
        if dtype is not None:
            weight = weight.to(dtype)
        if not entry.transposed:
            return F.linear(input, weight, bias)
        flat = input.reshape(-1, input.shape[-1])
        out = flat @ weight if bias is None else torch.addmm(bias, flat, weight)
        return out.view(*input.shape[:-1], out_features)


def weight_of(engine: Engine, number: int) -> torch.Tensor | QuantizedTensor:
    """Returns what a layer drafts with: its weight if that is in VRAM or too small for a base, else its base.

    Raises UnsupportedError.
    """
    if engine.plan is None:
        raise no_plan()
    whole = engine.memory.whole[number]
    if whole is not None:
        return whole
    layer = engine.memory.layers[number]
    if layer.base is None:
        if math.prod(layer.shape) < _SMALL and any(other.base is not None for other in engine.memory.layers):
            return _small(engine, number)
        raise UnsupportedError(
            f"{layer.name}: has no base to draft with, and its weight is not in VRAM; expected a model made with "
            "base='int4' or another base"
        )
    return layer.base


def _small(engine: Engine, number: int) -> torch.Tensor:
    """Returns a small weight, which stays in VRAM from its first use on, until there is another plan."""
    found = engine.small.get(number)
    if found is None:
        with torch.inference_mode(False):
            found = engine.memory.rebuild_on_host(number).to(engine.memory.device)
        engine.small[number] = found
    return found


def require_draft(engine: Engine) -> None:
    """Raises UnsupportedError unless every layer has something to draft with."""
    with engine.lock:
        for number in range(len(engine.memory.layers)):
            weight_of(engine, number)
