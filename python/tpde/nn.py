"""Modules that compute with weights which exist only as base + residual."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tpde import _memory, _ops, _tensors
from tpde._sources import TORCH_SUFFIXES, PathLike, load_torch
from tpde._status import ArgumentError, CorruptError, ExistsError, NotFoundError

__all__ = ["JITCompressedLinear"]

_BUFFERS = ("base", "index_map", "data_blob")


class JITCompressedLinear(nn.Linear):
    """A frozen `nn.Linear` whose weight is rebuilt in each forward, used and dropped.

    Output and gradients (to the input and to bias) are those of `nn.Linear` with the original weight, bit for bit.
    The backward pass rebuilds the weight again instead of keeping it.

    Attributes:
        base: buffer [out_features, in_features] of the weight's dtype; None if the weight was packed against nothing.
            Not copied: layers may share one base.
        index_map: buffer [index bytes], uint8.
        data_blob: buffer [blob bytes], uint8.
        bias: parameter [out_features], or None.
        weight: [out_features, in_features]; not stored, each access rebuilds it. Changes to it are lost.

    The digests of base and weight are checked when a layer is made and when a state dict is loaded, not per forward.
    On a CUDA device weights are rebuilt there, on the current stream; the first forward prepares the layer and waits
    for the GPU, later ones do not and can be captured in a CUDA graph. That takes a codec that the GPU decodes ("elias"
    or "raw").

    `.to(device)` works; conversions of the dtype raise TypeError, because the rebuilt bits would not be the weight's.
    """

    base: Tensor | None
    index_map: Tensor
    data_blob: Tensor

    def __init__(
        self,
        output_shape: Sequence[int],
        base_layer_path: PathLike | None,
        index_map_path: PathLike,
        data_blob_path: PathLike,
        bias: Tensor | None = None,
        *,
        device: torch.device | str | None = None,
    ) -> None:
        """Reads a layer from files, such as `save` writes.

        output_shape: (out_features, in_features), checked against the index.
        base_layer_path: a safetensors file with one tensor, "file.safetensors::tensor name", or a .pt file that holds
            a tensor; None if the weight was packed against nothing.
        index_map_path, data_blob_path: the .tpde-index and .tpde-blob files.
        bias: [out_features]; kept as it is if it is a Parameter.

        Raises NotFoundError, ArgumentError, BaseMismatchError, ChecksumError, CorruptError, VersionError.
        """
        super(nn.Linear, self).__init__()
        base = None if base_layer_path is None else _read_base(os.fspath(base_layer_path))
        index_map, data_blob = _tensors.load_bytes(index_map_path), _tensors.load_bytes(data_blob_path)
        self._fill(base, index_map, data_blob, bias, output_shape)
        if device is not None:
            self.to(device)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        base: Tensor | None = None,
        *,
        codec: str = "auto",
        residual: str = "bit",
        level: str = "default",
        workers: int = 0,
    ) -> JITCompressedLinear:
        """Packs linear.weight against base (same shape and dtype; None: against nothing) and returns the layer.

        The new layer is on the device of linear.weight and shares the bias parameter, and base if that is there.
        Options are those of `tpde.encode`.
        Raises ArgumentError, UnsupportedError.
        """
        if not isinstance(linear, nn.Linear):
            raise ArgumentError(f"linear: expected an nn.Linear, got {type(linear).__name__}")
        index_map, data_blob = _tensors.encode(
            base, linear.weight, codec=codec, residual=residual, level=level, workers=workers
        )
        layer = cls.__new__(cls)
        super(nn.Linear, layer).__init__()
        layer._fill(base, index_map, data_blob, linear.bias, linear.weight.shape, linear.weight.device)
        layer.train(linear.training)
        return layer

    def _fill(
        self,
        base: Tensor | None,
        index_map: Tensor,
        data_blob: Tensor,
        bias: Tensor | None,
        shape: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> None:
        if len(shape) != 2:
            raise ArgumentError(f"output_shape: expected (out_features, in_features), got {tuple(shape)}")
        info = _tensors.read_index(index_map)
        if info.shape != list(shape):
            raise ArgumentError(f"output_shape: expected {tuple(info.shape)}, as the index says, got {tuple(shape)}")
        if bias is not None and list(bias.shape) != info.shape[:1]:
            raise ArgumentError(f"bias: expected shape {info.shape[:1]}, got {list(bias.shape)}")
        self.out_features, self.in_features = info.shape
        self.weight_dtype = info.dtype
        base = None if base is None else _memory.as_tensor(base, "base").detach()
        on_host = None if base is None else base.cpu()
        _tensors.reconstruct(on_host, index_map, data_blob)  # checks the digests; the result is dropped
        self.register_buffer("base", None if base is None else base.to(device))
        self.register_buffer("index_map", index_map.to(device))
        self.register_buffer("data_blob", data_blob.to(device))
        if bias is not None and not isinstance(bias, nn.Parameter):
            bias = nn.Parameter(bias)
        self.register_parameter("bias", bias)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight [out_features, in_features], rebuilt by each access."""
        return _ops.reconstruct(
            self.base, self.index_map, self.data_blob, (self.out_features, self.in_features), self.weight_dtype, False
        )

    def forward(self, input: Tensor) -> Tensor:
        """Returns input [..., in_features] @ weight.T + bias, [..., out_features]."""
        if torch.is_grad_enabled() and input.requires_grad:
            shape = (self.out_features, self.in_features)
            out: Tensor = _RebuildLinear.apply(
                input, self.bias, self.base, self.index_map, self.data_blob, shape, self.weight_dtype
            )
            return out
        return F.linear(input, self.weight, self.bias)

    def to_linear(self) -> nn.Linear:
        """Returns an ordinary nn.Linear with the rebuilt weight; it shares the bias parameter."""
        with torch.device("meta"):
            linear = nn.Linear(self.in_features, self.out_features, bias=False)
        linear.weight = nn.Parameter(self.weight, requires_grad=self.weight_dtype.is_floating_point)
        linear.bias = self.bias
        return linear.train(self.training)

    def save(self, stem: PathLike, *, overwrite: bool = False) -> tuple[Path | None, Path, Path]:
        """Writes what the constructor reads: `stem.base.safetensors`, `stem.tpde-index`, `stem.tpde-blob`.

        Returns the three paths, None for a base that there is not. The bias is not written; it belongs to the state
        dict. Raises ExistsError.
        """
        from safetensors.torch import save_file

        base_path = None
        if self.base is not None:
            base_path = Path(f"{os.fspath(stem)}.base.safetensors")
            if base_path.exists() and not overwrite:
                raise ExistsError(f"{base_path}: exists already")
        index_path, blob_path = _tensors.save_tensor(
            stem, self.index_map.cpu(), self.data_blob.cpu(), overwrite=overwrite
        )
        if base_path is not None and self.base is not None:
            temporary = base_path.with_name(f".{base_path.name}.{os.getpid()}.tmp")
            try:
                save_file({"base": self.base.cpu().contiguous()}, temporary)
                os.replace(temporary, base_path)
            finally:
                temporary.unlink(missing_ok=True)
        return base_path, index_path, blob_path

    def extra_repr(self) -> str:
        stored = self.index_map.numel() + self.data_blob.numel()
        ratio = self.out_features * self.in_features * self.weight_dtype.itemsize / stored
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"dtype={self.weight_dtype}, base={self.base is not None}, residual_bytes={stored} ({ratio:.2f} : 1)"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> JITCompressedLinear:
        # .half(), .to(dtype), .type() and the like all come through here. Asking fn what it would do to an empty tensor
        # tells a change of dtype from a change of device before any buffer is touched.
        for dtype in (self.weight_dtype, torch.uint8):
            changed = fn(torch.empty(0, dtype=dtype, device=self.index_map.device)).dtype
            if changed != dtype:
                raise TypeError(
                    f"JITCompressedLinear cannot be converted to {changed}: its weight is {self.weight_dtype}, rebuilt "
                    "bit for bit from base and residual; use to_linear() and convert that, or pack a converted weight"
                )
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        # Index and blob differ in size from weight to weight, so the stock copy into buffers cannot work. The new
        # buffers are checked first and replace the old ones; nothing is written into a base that layers may share.
        new: dict[str, Tensor | None] = {name: state_dict.get(prefix + name, getattr(self, name)) for name in _BUFFERS}
        loaded = [name for name in _BUFFERS if prefix + name in state_dict]
        if loaded and not any(tensor is not None and tensor.is_meta for tensor in new.values()):
            self._check_buffers(new, prefix)
            for name in _BUFFERS:
                tensor = new[name]
                if name in loaded and tensor is not None:
                    tensor = torch.empty_like(tensor, device=self.index_map.device)
                self._buffers[name] = tensor
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def _check_buffers(self, new: dict[str, Tensor | None], prefix: str) -> None:
        """Refuses buffers that do not rebuild a weight of this layer's shape; drops a base that is not needed."""
        base, index_map, data_blob = (None if t is None else t.detach().cpu() for t in new.values())
        assert index_map is not None and data_blob is not None  # only a base may be None
        info = _tensors.read_index(index_map)
        if info.shape != [self.out_features, self.in_features]:
            raise ArgumentError(
                f"{prefix}index_map: expected a weight of shape {[self.out_features, self.in_features]}, "
                f"got {info.shape}"
            )
        if not info.has_base:
            new["base"] = base = None
        _tensors.reconstruct(base, index_map, data_blob)  # checks the digests; the result is dropped
        self.weight_dtype = info.dtype


class _RebuildLinear(torch.autograd.Function):
    """F.linear with a weight that is rebuilt for the forward and again for the backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,
        bias: Tensor | None,
        base: Tensor | None,
        index_map: Tensor,
        data_blob: Tensor,
        shape: tuple[int, int],
        dtype: torch.dtype,
    ) -> Tensor:
        return F.linear(input, _ops.reconstruct(base, index_map, data_blob, shape, dtype, False), bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Apart from forward, so that torch.func.grad and the like work."""
        _, _, base, index_map, data_blob, ctx.shape, ctx.dtype = inputs
        ctx.save_for_backward(base, index_map, data_blob)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        grad_input = grad_bias = None
        if ctx.needs_input_grad[0]:
            weight = _ops.reconstruct(*ctx.saved_tensors, ctx.shape, ctx.dtype, False)
            grad_input = grad.matmul(weight.to(grad.dtype))  # under autocast the forward used grad's dtype, too
        if ctx.needs_input_grad[1]:
            grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0)
        return grad_input, grad_bias, None, None, None, None, None


def _read_base(path: str) -> Tensor:
    """Reads the one tensor that a base_layer_path names."""
    file, separator, name = path.partition("::")
    if not os.path.isfile(file):
        raise NotFoundError(f"{file}: no such file")
    tensors: dict[str, Tensor | None]
    if file.lower().endswith(TORCH_SUFFIXES):
        loaded = load_torch(file)
        tensors = {"": loaded} if isinstance(loaded, Tensor) else dict(loaded) if isinstance(loaded, dict) else {}
    else:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, framework="pt") as opened:
                names = list(opened.keys())
                wanted = [name] if name in names else names if not separator and len(names) == 1 else []
                tensors = {key: opened.get_tensor(key) if key in wanted else None for key in names}
        except SafetensorError as error:
            raise CorruptError(f"{file}: {error}") from None
    if not separator and len(tensors) == 1:
        (name,) = tensors
    base = tensors.get(name)
    if not isinstance(base, Tensor):
        known = ", ".join(tensors)
        if separator:
            raise NotFoundError(f"{file}: has no tensor {name!r}; it has {known}")
        raise ArgumentError(f"{file}: expected one tensor, found {len(tensors)}; name one as {file}::name, of {known}")
    return base
