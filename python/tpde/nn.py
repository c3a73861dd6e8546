"""Modules that compute with weights which exist only as base + residual."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tpde import _ops, _quant_file, _quantised_linear, _tensors  # noqa: F401  the operators
from tpde._sources import TORCH_SUFFIXES, PathLike, load_torch
from tpde._status import ArgumentError, CorruptError, ExistsError, NotFoundError
from tpde.quant import QuantizedTensor

__all__ = ["JITCompressedLinear"]

# The buffers of a base: the first alone, or a quantised one in the others, of which zero and code may be None.
_BASES = ("base", "base_packed", "base_scale", "base_zero", "base_code", "base_scheme")
_BUFFERS = (*_BASES, "index_map", "data_blob")

# (kind, bits, group size) of a quantised base
_Scheme = tuple[str, int, int]
# base, the four parts of a quantised one, index_map, data_blob
_Stored = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor, Tensor]


class JITCompressedLinear(nn.Linear):
    """A frozen `nn.Linear` whose weight is rebuilt in each forward, used and dropped.

    Output and gradients (to the input and to bias) are those of `nn.Linear` with the original weight, bit for bit.
    The backward pass rebuilds the weight again instead of keeping it.

    Attributes:
        base: buffer [out_features, in_features] of the weight's dtype; None if the weight was packed against nothing or
            against a quantised base. Not copied: layers may share one base.
        base_packed, base_scale, base_zero, base_code: buffers, the parts of a quantised base (`tpde.QuantizedTensor`);
            None where there are none. base_scheme: buffer, int64 [kind, bits, group size]. `quantized_base` is all of
            them together.
        index_map: buffer [index bytes], uint8.
        data_blob: buffer [blob bytes], uint8.
        bias: parameter [out_features], or None.
        weight: [out_features, in_features]; not stored, each access rebuilds it. Changes to it are lost.

    The digests of base and weight are checked when a layer is made and when a state dict is loaded, not per forward.
    On a CUDA device weights are rebuilt there, on the current stream; the first forward prepares the layer and waits
    for the GPU, later ones do not and can be captured in a CUDA graph. A weight packed with
    codec="zstd" takes nvCOMP there. A quantised base is dequantised by the kernel that rebuilds the weight.

    `.to(device)` works; conversions of the dtype raise TypeError, because the rebuilt bits would not be the weight's.
    """

    base: Tensor | None
    base_packed: Tensor | None
    base_scale: Tensor | None
    base_zero: Tensor | None
    base_code: Tensor | None
    base_scheme: Tensor | None
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
            a tensor; None if the weight was packed against nothing. A safetensors file that `save` wrote may hold a
            quantised base.
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
        base: Tensor | QuantizedTensor | None = None,
        *,
        codec: str = "auto",
        residual: str = "bit",
        level: str = "default",
        workers: int = 0,
    ) -> JITCompressedLinear:
        """Packs linear.weight against base (same shape and dtype; None: against nothing) and returns the layer.

        base: a tensor, or what `tpde.quantize` returns: then the layer keeps a few bits per weight and the residual.

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
        base: Tensor | QuantizedTensor | None,
        index_map: Tensor,
        data_blob: Tensor,
        bias: Tensor | None,
        shape: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> None:
        if not isinstance(shape, Sequence) or len(shape) != 2:
            raise ArgumentError(f"output_shape: expected (out_features, in_features), got {shape}")
        info = _tensors.read_index(index_map)
        if info.shape != list(shape):
            raise ArgumentError(f"output_shape: expected {tuple(info.shape)}, as the index says, got {tuple(shape)}")
        if bias is not None and not isinstance(bias, Tensor):
            raise ArgumentError(f"bias: expected a tensor, got {type(bias).__name__}")
        if bias is not None and list(bias.shape) != info.shape[:1]:
            raise ArgumentError(f"bias: expected shape {info.shape[:1]}, got {list(bias.shape)}")
        self.out_features, self.in_features = info.shape
        self.weight_dtype = info.dtype
        base = _tensors.plain_base(base)
        _tensors.reconstruct(None if base is None else base.to("cpu"), index_map, data_blob)  # checks the digests
        parts: dict[str, Tensor | None] = dict.fromkeys(_BASES)
        self._scheme: _Scheme | None = None
        if isinstance(base, QuantizedTensor):
            scheme = _quant_file.scheme_tensor(base)
            parts["base_scheme"], self._scheme = scheme, _quant_file.read_scheme(scheme, "base_scheme")
            parts |= {f"base_{name}": getattr(base, name) for name in ("packed", "scale", "zero", "code")}
        else:
            parts["base"] = base
        for name, part in parts.items():
            self.register_buffer(name, None if part is None else part.to(device))
        self.register_buffer("index_map", index_map.to(device))
        self.register_buffer("data_blob", data_blob.to(device))
        if bias is not None and not isinstance(bias, nn.Parameter):
            bias = nn.Parameter(bias)
        self.register_parameter("bias", bias)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight [out_features, in_features], rebuilt by each access."""
        return _rebuild(self._stored(), self._scheme, (self.out_features, self.in_features), self.weight_dtype)

    @property
    def quantized_base(self) -> QuantizedTensor | None:
        """The quantised base, sharing the layer's buffers; None if the base is a tensor or there is none."""
        if self._scheme is None or self.base_packed is None or self.base_scale is None:
            return None
        kind, bits, group_size = self._scheme
        shape = (self.out_features, self.in_features)
        return QuantizedTensor(
            self.base_packed, self.base_scale, self.base_zero, bits, group_size, shape, self.weight_dtype, kind,
            self.base_code,
        )  # fmt: skip

    def _stored(self) -> _Stored:
        """What a weight is rebuilt from."""
        quantised = self.base_packed, self.base_scale, self.base_zero, self.base_code
        return self.base, *quantised, self.index_map, self.data_blob

    def forward(self, input: Tensor) -> Tensor:
        """Returns input [..., in_features] @ weight.T + bias, [..., out_features]."""
        if torch.is_grad_enabled() and input.requires_grad:
            shape = (self.out_features, self.in_features)
            out: Tensor = _RebuildLinear.apply(
                input, self.bias, *self._stored(), self._scheme, shape, self.weight_dtype
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

        base = self.quantized_base or self.base
        base_path = None if base is None else Path(f"{os.fspath(stem)}.base.safetensors")
        if base_path is not None and base_path.exists() and not overwrite:
            raise ExistsError(f"{base_path}: exists already")
        index_path, blob_path = _tensors.save_tensor(
            stem, self.index_map.cpu(), self.data_blob.cpu(), overwrite=overwrite
        )
        if base_path is None or base is None:
            return None, index_path, blob_path
        if isinstance(base, QuantizedTensor):
            _quant_file.save(base, base_path)
        else:
            temporary = base_path.with_name(f".{base_path.name}.{os.getpid()}.tmp")
            try:
                save_file({"base": base.cpu().contiguous()}, temporary)
                os.replace(temporary, base_path)
            finally:
                temporary.unlink(missing_ok=True)
        return base_path, index_path, blob_path

    def extra_repr(self) -> str:
        stored = self.index_map.numel() + self.data_blob.numel()
        base: object = self.base is not None
        if self._scheme is not None:
            kind, bits, group_size = self._scheme
            base = f"{kind} {bits} bits in groups of {group_size}"
        ratio = self.out_features * self.in_features * self.weight_dtype.itemsize / stored
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"dtype={self.weight_dtype}, base={base}, residual_bytes={stored} ({ratio:.2f} : 1)"
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
        # Scales and code book define the base bit for bit, whatever the dtype of the weight: they move as bytes.
        exact = [t for t in (self.base_scale, self.base_code) if t is not None]

        def keep_bits(tensor: Tensor) -> Tensor:
            if any(tensor is t for t in exact):
                return fn(tensor.view(torch.uint8)).view(tensor.dtype)
            return fn(tensor)

        super()._apply(keep_bits, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        # Index and blob differ in size from weight to weight, so the stock copy into buffers cannot work. The new
        # buffers are checked first and replace the old ones; nothing is written into a base that layers may share.
        new: dict[str, Tensor | None] = {name: state_dict.get(prefix + name, getattr(self, name)) for name in _BUFFERS}
        loaded = [name for name in _BUFFERS if prefix + name in state_dict]
        if any(name in loaded for name in _BASES):  # one base replaces the other, of whatever kind
            new |= {name: state_dict.get(prefix + name) for name in _BASES}
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
        host = {name: None if t is None else t.detach().cpu() for name, t in new.items()}
        index_map, data_blob = host["index_map"], host["data_blob"]
        assert index_map is not None and data_blob is not None  # only a base may be None
        info = _tensors.read_index(index_map)
        if info.shape != [self.out_features, self.in_features]:
            raise ArgumentError(
                f"{prefix}index_map: expected a weight of shape {[self.out_features, self.in_features]}, "
                f"got {info.shape}"
            )
        base: Tensor | QuantizedTensor | None = None
        scheme = None
        if not info.has_base:
            new |= dict.fromkeys(_BASES)
        elif host["base_scheme"] is None:
            base = host["base"]
        else:
            packed, scale, zero, code = (host[f"base_{name}"] for name in ("packed", "scale", "zero", "code"))
            if packed is None or scale is None or host["base"] is not None:
                raise ArgumentError(f"{prefix}base_scheme: expected base_packed and base_scale with it, and no base")
            scheme = _quant_file.read_scheme(host["base_scheme"], f"{prefix}base_scheme")
            kind, bits, group_size = scheme
            base = QuantizedTensor(packed, scale, zero, bits, group_size, tuple(info.shape), info.dtype, kind, code)
        _tensors.reconstruct(base, index_map, data_blob)  # checks the digests; the result is dropped
        self.weight_dtype, self._scheme = info.dtype, scheme


def _rebuild(stored: _Stored, scheme: _Scheme | None, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Rebuilds a weight through an operator, so that torch.compile sees one."""
    base, packed, scale, zero, code, index_map, data_blob = stored
    if scheme is None:
        return _ops.reconstruct(base, index_map, data_blob, shape, dtype, False)
    return _ops.reconstruct_quantized(packed, scale, zero, code, *scheme, index_map, data_blob, shape, dtype, False)


class _RebuildLinear(torch.autograd.Function):
    """F.linear with a weight that is rebuilt for the forward and again for the backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,
        bias: Tensor | None,
        base: Tensor | None,
        packed: Tensor | None,
        scale: Tensor | None,
        zero: Tensor | None,
        code: Tensor | None,
        index_map: Tensor,
        data_blob: Tensor,
        scheme: _Scheme | None,
        shape: tuple[int, int],
        dtype: torch.dtype,
    ) -> Tensor:
        weight = _rebuild((base, packed, scale, zero, code, index_map, data_blob), scheme, shape, dtype)
        return F.linear(input, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Apart from forward, so that torch.func.grad and the like work."""
        _, _, *stored, ctx.scheme, ctx.shape, ctx.dtype = inputs
        ctx.save_for_backward(*stored)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        grad_input = grad_bias = None
        if ctx.needs_input_grad[0]:
            weight = _rebuild(ctx.saved_tensors, ctx.scheme, ctx.shape, ctx.dtype)
            grad_input = grad.matmul(weight.to(grad.dtype))  # under autocast the forward used grad's dtype, too
        if ctx.needs_input_grad[1]:
            grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0)
        return grad_input, grad_bias, *(None,) * 10


def _read_base(path: str) -> Tensor | QuantizedTensor:
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
                quantised = None if separator else _quant_file.load(opened, file)
                if quantised is not None:
                    return quantised
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
