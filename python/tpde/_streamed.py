"""Modules whose weights are streamed. Ordinary ones become them, in place: whoever refers to a module keeps it, with
its hooks and attributes, and isinstance says what it did before.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from tpde import _stream_ops
from tpde._status import UnsupportedError
from tpde._stream_ops import Entry

_CONV1D = {("transformers.pytorch_utils", "Conv1D"), ("transformers.modeling_utils", "Conv1D")}


class RebuiltWeight(Tensor):
    """The weight of a streamed layer: shape, dtype and device are known, the elements are rebuilt by each operation.

    A copy; changes to it are lost.
    """

    _entry: Entry

    @staticmethod
    def __new__(cls, entry: Entry) -> RebuiltWeight:
        layer = entry.engine.memory.layers[entry.number]
        made: RebuiltWeight = Tensor._make_wrapper_subclass(
            cls, layer.shape, dtype=layer.dtype, device=entry.engine.memory.device
        )
        made._entry = entry
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"RebuiltWeight(shape={list(self.shape)}, dtype={self.dtype}, device={self.device})"

    def rebuilt(self) -> Tensor:
        """Returns the weight as an ordinary tensor."""
        return self._entry.engine.rebuild(self._entry.number)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.rebuilt().__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: Any) -> Tensor:
        return self.rebuilt()

    def storage(self) -> NoReturn:
        """Is asked for by what writes tensors from their memory, `save_pretrained` and safetensors."""
        raise UnsupportedError(
            "a streamed weight has no memory of its own that could be saved; call Runtime.unload() first, or "
            "torch.save(model.state_dict(), file), which rebuilds one weight at a time"
        )

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        def rebuilt(value: Any) -> Any:
            return value.rebuilt() if isinstance(value, RebuiltWeight) else value

        return func(*tree_map(rebuilt, args), **tree_map(rebuilt, kwargs or {}))


class _Streamed(nn.Module):
    """What streamed modules share."""

    _entry: Entry
    _ordinary: type[nn.Module]
    """The class that the module had."""
    _trainable: bool
    """Whether its weight had requires_grad."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Streamed:
        # Asking fn what it would do to an empty tensor tells what it does before anything is touched.
        probe = torch.empty(0, dtype=self._dtype(), device=self._entry.engine.memory.device)
        changed = fn(probe)
        if changed.dtype != probe.dtype or changed.device != probe.device:
            raise TypeError(
                f"a streamed model cannot be moved to {changed.device} or converted to {changed.dtype}: its weights "
                f"are {probe.dtype} on {probe.device}, rebuilt bit for bit; Runtime.unload() makes it an ordinary one"
            )
        return cast(_Streamed, super()._apply(fn, recurse))  # type: ignore[no-untyped-call]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        # Without it, a checkpoint of the model would silently lack its weights. They are rebuilt as they are written.
        destination[f"{prefix}weight"] = self.weight
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        if f"{prefix}weight" in state_dict:
            error_msgs.append(f"{prefix}weight: a streamed weight is frozen; call Runtime.unload() first")
            state_dict = {name: tensor for name, tensor in state_dict.items() if name != f"{prefix}weight"}
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _dtype(self) -> torch.dtype:
        return self._entry.engine.memory.layers[self._entry.number].dtype


class StreamedLinear(_Streamed, nn.Linear):
    """An `nn.Linear` whose weight is decoded just before it is used, from a base in VRAM and a residual that comes from
    host memory.

    Output and gradients (to the input and to bias) are those of `nn.Linear` with the original weight, bit for bit. The
    backward pass decodes the weight again. Made by `tpde.load_into` and `tpde.offload`.

    Attributes:
        bias: parameter [out_features], or None.
        weight: [out_features, in_features]; not stored. Its shape, dtype and device cost nothing to ask for; computing
            with it rebuilds it, in memory beside the budget.
    """

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return RebuiltWeight(self._entry)

    def forward(self, input: Tensor) -> Tensor:
        """Returns input [..., in_features] @ weight.T + bias, [..., out_features]."""
        return _linear(self, input, self.out_features)


class _StreamedConv1D(_Streamed):
    """Conv1D of transformers: a linear layer with its weight transposed, [nx, nf]."""

    nf: int

    @property
    def weight(self) -> Tensor:
        return RebuiltWeight(self._entry)

    def forward(self, x: Tensor) -> Tensor:
        """Returns x [..., nx] @ weight + bias, [..., nf]."""
        return _linear(self, x, self.nf)


class StreamedEmbedding(_Streamed, nn.Embedding):
    """An `nn.Embedding` whose weight stays in pinned host memory: only the rows that are looked up cross to the GPU.

    Attributes:
        weight: [num_embeddings, embedding_dim], in host memory, through the GPU's eyes where it can see it. Frozen.
    """

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self._entry.engine.table(self._entry.number)

    def _dtype(self) -> torch.dtype:
        return self.weight.dtype

    def forward(self, input: Tensor) -> Tensor:
        """Returns the rows of input [...], [..., embedding_dim]."""
        weight = self.weight
        return _stream_ops.streamed_rows(input, self._entry.handle, self.embedding_dim, weight.dtype)


def _linear(module: Any, input: Tensor, out_features: int) -> Tensor:
    dtype = None
    kind = input.device.type
    if torch.is_autocast_enabled(kind) and input.is_floating_point() and input.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        input = input.to(dtype)
    bias, layer = module.bias, module._entry.handle
    if torch.is_grad_enabled() and (input.requires_grad or (bias is not None and bias.requires_grad)):
        out: Tensor = _stream_ops.Linear.apply(input, bias, layer, out_features, dtype)
        return out
    return _stream_ops.streamed_linear(input, bias, layer, out_features, dtype)


def is_conv1d(cls: type) -> bool:
    return any((base.__module__, base.__name__) in _CONV1D for base in cls.__mro__)


def is_streamable(module: nn.Module) -> bool:
    """Whether a module is a linear layer that computes what one does, with a weight of its own."""
    cls = type(module)
    if isinstance(module, _Streamed) or module._parameters.get("weight") is None:
        return False
    if "forward" in module.__dict__ and "_old_forward" not in module.__dict__:
        return False  # somebody gave it another
    if isinstance(module, nn.Linear):
        # nn.MultiheadAttention takes the weight out of its projection, and does not call it.
        return cls.forward is nn.Linear.forward and not isinstance(
            module, nn.modules.linear.NonDynamicallyQuantizableLinear
        )
    return is_conv1d(cls) and cls.__name__ == "Conv1D"


def is_streamable_embedding(module: nn.Module) -> bool:
    """Whether a module is an embedding of which rows can be looked up where they are."""
    replaced = "forward" in module.__dict__ and "_old_forward" not in module.__dict__
    return type(module) is nn.Embedding and module.max_norm is None and not replaced


def streamed_class(cls: type) -> Any:
    """Returns the class that a module of a class becomes."""
    found = _classes.get(cls)
    if found is None:
        mixin = StreamedLinear if issubclass(cls, nn.Linear) else _StreamedConv1D
        found = _classes[cls] = type(f"Streamed{cls.__name__}", (mixin, cls), {"__module__": __name__})
    return found


_classes: dict[type, Any] = {nn.Linear: StreamedLinear, nn.Embedding: StreamedEmbedding}


def stream(module: nn.Module, entry: Entry) -> None:
    """Makes a module a streamed one. Its weight goes."""
    cls = type(module)
    weight = module._parameters.pop("weight")
    module.__class__ = streamed_class(cls)
    streamed = cast(_Streamed, module)
    streamed._ordinary, streamed._entry = cls, entry
    streamed._trainable = weight is not None and weight.requires_grad
    _wrap_again(module)


def restore(module: nn.Module, weight: nn.Parameter) -> None:
    """Makes a streamed module an ordinary one again."""
    assert isinstance(module, _Streamed)
    cls = module._ordinary
    del module._ordinary, module._entry, module._trainable
    cast(Any, module).__class__ = cls
    # Where it was: parameters are iterated over in the order in which they were made.
    others = dict(module._parameters)
    module._parameters.clear()
    module._parameters.update({"weight": weight, **others})
    _wrap_again(module)


def _wrap_again(module: nn.Module) -> None:
    """accelerate's hooks call the forward that a module had when they were added; it has another now."""
    if "_old_forward" in module.__dict__:
        module.__dict__["_old_forward"] = types.MethodType(type(module).forward, module)


def streamed_modules(module: nn.Module) -> list[_Streamed]:
    """The streamed modules inside a module, each once."""
    return [one for one in module.modules() if isinstance(one, _Streamed)]
