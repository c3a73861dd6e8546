"""The operator torch.ops.tpde.quantised_linear: few rows by a quantised weight that is never written down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from tpde import _cuda_matvec, _ops, quant
from tpde._status import ArgumentError, UnsupportedError
from tpde.quant import QuantizedTensor

_library = _ops._library
# The weight is passed as its parts, as to reconstruct_quantized; it is [out_features, in_features of x].
_library.define(
    "quantised_linear(Tensor x, Tensor packed, Tensor scale, Tensor? zero, Tensor? code, str kind,"
    " int bits, int group_size, SymInt out_features, Tensor? bias) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "quantised_linear_backward(Tensor grad, Tensor packed, Tensor scale, Tensor? zero, Tensor? code, str kind,"
    " int bits, int group_size, SymInt in_features) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def quantised_linear(x: torch.Tensor, weight: QuantizedTensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Returns x @ weight.T + bias, as `nn.functional.linear` does, for a quantised weight.

    x: [..., in_features], float32, float16 or bfloat16, on the device of the weight, any strides.
    weight: [out_features, in_features]. Its elements are rounded to x's dtype, whatever its own is.
    bias: [out_features], of x's dtype, or None.

    Returns [..., out_features] of x's dtype. On a GPU up to 64 rows are multiplied by the codes themselves: the result
    is that of the dequantised weight but for the order of the float32 sums, and the same every time. Gradients flow to
    x and bias. Works under torch.compile and in CUDA graphs. Raises ArgumentError, UnsupportedError.
    """
    if not isinstance(weight, QuantizedTensor):
        raise ArgumentError(f"weight: expected a QuantizedTensor, got {type(weight).__name__}; see tpde.quantize")
    group_size = min(weight.group_size, quant.MAX_GROUP)
    if len(weight.shape) != 2 or x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ArgumentError(
            f"weight: expected 2 dimensions, the last like that of x; got shape {list(weight.shape)} for x of shape "
            f"{list(x.shape)}"
        )
    return _op(
        x, weight.packed, weight.scale, weight.zero, weight.code, weight.kind, weight.bits, group_size,
        weight.shape[0], bias,
    )  # fmt: skip


def _weight(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    code: torch.Tensor | None,
    kind: str,
    bits: int,
    group_size: int,
    out_features: int,
    bias: torch.Tensor | None,
) -> QuantizedTensor:
    """Returns the weight, in the dtype of x. Raises ArgumentError for what does not fit x."""
    if x.dim() == 0:
        raise ArgumentError("x: expected at least one dimension, got none")
    if x.dtype not in quant._TARGETS:
        raise UnsupportedError(f"x: expected one of {quant._names(quant._TARGETS)}, got {x.dtype}")
    if bias is not None and (bias.shape != (out_features,) or bias.dtype != x.dtype):
        raise ArgumentError(
            f"bias: expected {x.dtype} of shape {[out_features]}, got {bias.dtype} of shape {list(bias.shape)}"
        )
    for what, tensor in (("weight", packed), ("bias", bias)):
        if tensor is not None and tensor.device != x.device:
            raise ArgumentError(f"{what}: is on {tensor.device}, expected {x.device}, where x is")
    shape = (out_features, x.shape[-1])
    return QuantizedTensor(packed, scale, zero, bits, group_size, shape, x.dtype, kind, code)


@torch.library.impl(_library, "quantised_linear", "CPU")
def _on_cpu(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    code: torch.Tensor | None,
    kind: str,
    bits: int,
    group_size: int,
    out_features: int,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    weight = _weight(x, packed, scale, zero, code, kind, bits, group_size, out_features, bias)
    return F.linear(x, weight.dequantize(), bias)


@torch.library.impl(_library, "quantised_linear", "CUDA")
def _on_cuda(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    code: torch.Tensor | None,
    kind: str,
    bits: int,
    group_size: int,
    out_features: int,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    weight = _weight(x, packed, scale, zero, code, kind, bits, group_size, out_features, bias)
    out = _cuda_matvec.linear(x.reshape(-1, x.shape[-1]), weight, bias)
    return out.view(*x.shape[:-1], out_features)


@torch.library.register_fake("tpde::quantised_linear", lib=_library)  # type: ignore[untyped-decorator]
def _fake(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    code: torch.Tensor | None,
    kind: str,
    bits: int,
    group_size: int,
    out_features: int,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], out_features))


_op: Callable[..., torch.Tensor] = torch.ops.tpde.quantised_linear.default


@torch.library.impl(_library, "quantised_linear_backward", "CompositeExplicitAutograd")
def _grad_x(
    grad: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    code: torch.Tensor | None,
    kind: str,
    bits: int,
    group_size: int,
    in_features: int,
) -> torch.Tensor:
    shape = (grad.shape[-1], in_features)
    weight = QuantizedTensor(packed, scale, zero, bits, group_size, shape, grad.dtype, kind, code)
    if not grad.is_cuda:
        return grad.matmul(weight.dequantize())
    return grad.matmul(_cuda_matvec.dequantise(weight, 0, weight.numel()).view(shape))


@torch.library.register_fake("tpde::quantised_linear_backward", lib=_library)  # type: ignore[untyped-decorator]
def _grad_x_fake(
    grad: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    code: torch.Tensor | None,
    kind: str,
    bits: int,
    group_size: int,
    in_features: int,
) -> torch.Tensor:
    return grad.new_empty((*grad.shape[:-1], in_features))


_backward_op: Callable[..., torch.Tensor] = torch.ops.tpde.quantised_linear_backward.default


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, *parts, _, _ = inputs
    ctx.save_for_backward(*parts[:4])
    ctx.scheme, ctx.ins = parts[4:], x.shape[-1]


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    grad_x = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = _backward_op(grad, *ctx.saved_tensors, *ctx.scheme, ctx.ins)
    if ctx.needs_input_grad[9]:
        grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0)
    return grad_x, *[None] * 8, grad_bias


torch.library.register_autograd("tpde::quantised_linear", _backward, setup_context=_keep, lib=_library)
