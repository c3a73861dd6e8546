"""TPDE: lossless, compressed deltas of model weights.

A *base* that the receiver has plus a small *residual* gives the *target*, bit for bit.

    import tpde
    tpde.pack("ckpt/epoch_9", "ckpt/epoch_10", "epoch_10.safetensors")
    tpde.unpack("ckpt/epoch_9", "epoch_10.safetensors", "restored/")
    tpde.compress("model", "compressed", base="int4")
    model = tpde.load("compressed", vram="6GiB")
    layer = tpde.nn.JITCompressedLinear.from_linear(linear, base=base_weight)

Importing this package starts neither the Go core nor CUDA, and does not import torch: names are resolved on first
use. The operators torch.ops.tpde.* exist as soon as a function on tensors or `tpde.nn` was touched.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tpde._status import (
    ArgumentError,
    BaseMismatchError,
    CanceledError,
    ChainError,
    ChecksumError,
    CorruptError,
    DeviceError,
    ExistsError,
    ForkedError,
    HandleError,
    InternalError,
    LimitError,
    NotFoundError,
    ReadWriteError,
    ShortBufferError,
    TargetMismatchError,
    TpdeError,
    UnsupportedError,
    VersionError,
)

if TYPE_CHECKING:
    from tpde import cuda, nn, quant, runtime
    from tpde._api import inspect, pack, pack_chain, unpack, verify
    from tpde._compress import compress
    from tpde._quantised_linear import quantised_linear
    from tpde._reports import CompressedReport, DeltaReport, FileReport, TensorReport, Totals, UnpackReport
    from tpde._speculation import Drafts, SelfSpeculation
    from tpde._tensors import (
        IndexInfo,
        chunk_map,
        encode,
        load_tensor,
        read_index,
        reconstruct,
        save_tensor,
        scatter_add,
    )
    from tpde.quant import QuantizedTensor, quantize
    from tpde.runtime import BudgetError, PackedLayer, load, load_into, offload

    __version__: str

# Where each lazily resolved name lives.
_HOMES = {
    "_api": ("inspect", "pack", "pack_chain", "unpack", "verify"),
    "_compress": ("compress",),
    "_quantised_linear": ("quantised_linear",),
    "_reports": ("CompressedReport", "DeltaReport", "FileReport", "TensorReport", "Totals", "UnpackReport"),
    "_speculation": ("Drafts", "SelfSpeculation"),
    "_tensors": (
        "IndexInfo",
        "chunk_map",
        "encode",
        "load_tensor",
        "read_index",
        "reconstruct",
        "save_tensor",
        "scatter_add",
    ),
    "quant": ("QuantizedTensor", "quantize"),
    "runtime": ("BudgetError", "PackedLayer", "load", "load_into", "offload"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "ArgumentError",
    "BaseMismatchError",
    "BudgetError",
    "CanceledError",
    "ChainError",
    "ChecksumError",
    "CompressedReport",
    "CorruptError",
    "DeltaReport",
    "DeviceError",
    "Drafts",
    "ExistsError",
    "FileReport",
    "ForkedError",
    "HandleError",
    "IndexInfo",
    "InternalError",
    "LimitError",
    "NotFoundError",
    "PackedLayer",
    "QuantizedTensor",
    "ReadWriteError",
    "SelfSpeculation",
    "ShortBufferError",
    "TargetMismatchError",
    "TensorReport",
    "Totals",
    "TpdeError",
    "UnpackReport",
    "UnsupportedError",
    "VersionError",
    "__version__",
    "chunk_map",
    "compress",
    "cuda",
    "encode",
    "inspect",
    "load",
    "load_into",
    "load_tensor",
    "nn",
    "offload",
    "pack",
    "pack_chain",
    "quant",
    "quantised_linear",
    "quantize",
    "read_index",
    "reconstruct",
    "runtime",
    "save_tensor",
    "scatter_add",
    "unpack",
    "verify",
]


def __getattr__(name: str) -> Any:
    value: Any
    if name in _HOME_OF:
        value = getattr(importlib.import_module(f"tpde.{_HOME_OF[name]}"), name)
    elif name in ("cuda", "nn", "quant", "runtime"):
        value = importlib.import_module(f"tpde.{name}")
    elif name == "__version__":
        from importlib.metadata import version

        value = version("tpde")
    else:
        raise AttributeError(f"module 'tpde' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
