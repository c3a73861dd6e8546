"""The operators that streamed modules call: torch.ops.tpde.streamed_linear and the like.

To torch.compile each is one opaque step: what is copied, decoded and waited for happens inside, when it runs. A layer
is called by a number that stands for it as long as its module lives.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from tpde import _ops, _stream_draft
from tpde._status import HandleError
from tpde._stream_engine import Engine

_library = _ops._library
_tags: tuple[Any, ...] = (torch.Tag.pt2_compliant_tag,)
if hasattr(torch.Tag, "cudagraph_unsafe"):  # torch.compile's own CUDA graphs end before them and begin behind
    _tags += (torch.Tag.cudagraph_unsafe,)
# layer: Entry.handle. dtype: what the weight is converted to before it is used (autocast); None: nothing.
_library.define(
    "streamed_linear(Tensor input, Tensor? bias, int layer, SymInt out_features, ScalarType? dtype) -> Tensor",
    tags=_tags,
)
_library.define(
    "streamed_linear_backward(Tensor grad, int layer, SymInt in_features, ScalarType? dtype) -> Tensor", tags=_tags
)
_library.define("streamed_rows(Tensor indices, int layer, SymInt width, ScalarType dtype) -> Tensor", tags=_tags)


class Entry:
    """A layer of an engine, as a module knows it.

    tie: the same for modules that share a weight. transposed: the weight is [in_features, out_features].
    """

    def __init__(self, engine: Engine, number: int, tie: int, transposed: bool = False) -> None:
        self.engine, self.number, self.tie, self.transposed = engine, number, tie, transposed
        with _lock:
            self.handle = next(_handles)
            _entries[self.handle] = self


_lock = threading.Lock()
_handles = itertools.count(1)
_entries: weakref.WeakValueDictionary[int, Entry] = weakref.WeakValueDictionary()


def _entry(handle: int) -> Entry:
    found = _entries.get(handle)
    if found is None:
        raise HandleError("the streamed model that this layer belongs to is gone")
    return found


@torch.library.impl(_library, "streamed_linear", "CompositeExplicitAutograd")
def _linear(
    input: torch.Tensor, bias: torch.Tensor | None, layer: int, out_features: int, dtype: torch.dtype | None
) -> torch.Tensor:
    entry = _entry(layer)
    if _stream_draft.is_drafting(entry.engine):
        return _stream_draft.linear(entry, input, bias, out_features, dtype)

    def use(weight: torch.Tensor) -> torch.Tensor:
        added = bias
        if dtype is not None:
            weight = weight.to(dtype)
            added = None if bias is None else bias.to(dtype)
        if not entry.transposed:
            return F.linear(input, weight, added)
        flat = input.reshape(-1, input.shape[-1])
        out = flat @ weight if added is None else torch.addmm(added, flat, weight)
        return out.view(*input.shape[:-1], out_features)

    return entry.engine.run(entry.number, use)


@torch.library.impl(_library, "streamed_linear_backward", "CompositeExplicitAutograd")
def _linear_backward(grad: torch.Tensor, layer: int, in_features: int, dtype: torch.dtype | None) -> torch.Tensor:
    entry = _entry(layer)

    def use(weight: torch.Tensor) -> torch.Tensor:
        if dtype is not None:
            weight = weight.to(dtype)
        return grad.matmul(weight.t() if entry.transposed else weight)

    return entry.engine.run(entry.number, use)


@torch.library.impl(_library, "streamed_rows", "CompositeExplicitAutograd")
def _rows(indices: torch.Tensor, layer: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    entry = _entry(layer)
    return entry.engine.rows(entry.number, indices)


@torch.library.register_fake("tpde::streamed_linear", lib=_library)  # type: ignore[untyped-decorator]
def _linear_fake(
    input: torch.Tensor, bias: torch.Tensor | None, layer: int, out_features: int, dtype: torch.dtype | None
) -> torch.Tensor:
    return input.new_empty((*input.shape[:-1], out_features))


@torch.library.register_fake("tpde::streamed_linear_backward", lib=_library)  # type: ignore[untyped-decorator]
def _linear_backward_fake(grad: torch.Tensor, layer: int, in_features: int, dtype: torch.dtype | None) -> torch.Tensor:
    return grad.new_empty((*grad.shape[:-1], in_features))


@torch.library.register_fake("tpde::streamed_rows", lib=_library)  # type: ignore[untyped-decorator]
def _rows_fake(indices: torch.Tensor, layer: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    return indices.new_empty((*indices.shape, width), dtype=dtype)


# (input, bias, layer, out_features, dtype) -> tensor
streamed_linear: Callable[..., torch.Tensor] = torch.ops.tpde.streamed_linear.default
# (grad, layer, in_features, dtype) -> tensor
streamed_linear_backward: Callable[..., torch.Tensor] = torch.ops.tpde.streamed_linear_backward.default
# (indices, layer, width, dtype) -> tensor
streamed_rows: Callable[..., torch.Tensor] = torch.ops.tpde.streamed_rows.default


class Linear(torch.autograd.Function):
    """streamed_linear with gradients of input and bias. The weight is streamed again for them, and never kept."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: torch.Tensor, bias: torch.Tensor | None, layer: int, out_features: int, dtype: torch.dtype | None
    ) -> torch.Tensor:
        return streamed_linear(input, bias, layer, out_features, dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        """Apart from forward, so that torch.func.grad and the like work."""
        input, bias, ctx.layer, _, ctx.dtype = inputs
        ctx.in_features = input.shape[-1]
        ctx.bias_dtype = None if bias is None else bias.dtype

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = grads
        grad_input = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_input = LinearBackward.apply(grad, ctx.layer, ctx.in_features, ctx.dtype)
        if ctx.needs_input_grad[1]:
            grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0).to(ctx.bias_dtype)
        return grad_input, grad_bias, None, None, None


class LinearBackward(torch.autograd.Function):
    """streamed_linear_backward with a gradient, for double backward: it is linear in what it takes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: torch.Tensor, layer: int, in_features: int, dtype: torch.dtype | None) -> torch.Tensor:
        return streamed_linear_backward(grad, layer, in_features, dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        grad, ctx.layer, _, ctx.dtype = inputs
        ctx.out_features = grad.shape[-1]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return Linear.apply(grads[0], None, ctx.layer, ctx.out_features, ctx.dtype), None, None, None


def _linear_batched(
    info: Any,
    in_dims: tuple[int | None, ...],
    input: torch.Tensor,
    bias: torch.Tensor | None,
    layer: int,
    out_features: int,
    dtype: torch.dtype | None,
) -> tuple[torch.Tensor, int]:
    """One more leading dimension is nothing new to a linear layer."""
    inner = input.dim() - 1
    if in_dims[0] is not None:
        input, inner = input.movedim(in_dims[0], 0), inner - 1
    if bias is None or in_dims[1] is None:
        return streamed_linear(input, bias, layer, out_features, dtype), 0
    bias = bias.movedim(in_dims[1], 0)
    bias = bias.reshape(bias.shape[0], *[1] * inner, out_features)
    return streamed_linear(input, None, layer, out_features, dtype) + bias, 0


def _linear_backward_batched(
    info: Any,
    in_dims: tuple[int | None, ...],
    grad: torch.Tensor,
    layer: int,
    in_features: int,
    dtype: torch.dtype | None,
) -> tuple[torch.Tensor, int]:
    assert in_dims[0] is not None
    return streamed_linear_backward(grad.movedim(in_dims[0], 0), layer, in_features, dtype), 0


if hasattr(torch.library, "register_vmap"):  # torch 2.5
    torch.library.register_vmap("tpde::streamed_linear", _linear_batched, lib=_library)
    torch.library.register_vmap("tpde::streamed_linear_backward", _linear_backward_batched, lib=_library)
