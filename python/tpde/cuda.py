"""Rebuilding on CUDA devices: batches, and when to hear of failures.

`tpde.reconstruct`, `tpde.scatter_add` and `tpde.nn.JITCompressedLinear` take CUDA tensors like CPU tensors. They run on
the current stream of the tensors' device and wait for nothing: what a GPU finds out about the data (a wrong checksum, a
chunk that violates the format) is raised by the next `synchronize`, or at once by a call with check=True. The result of
a failed tensor is undefined inside the failed chunks, and right everywhere else. Each call with the same index map and
blob replaces what is known of the call before; a graph that is replayed counts as calls.

The first call with an index map copies it, and loads a kernel, which waits for the GPU; the calls after it do not, and
can be captured in a CUDA graph. So make the same calls once before a capture, and keep index maps and blobs alive for
as long as the graph is replayed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tpde import _cuda, _cuda_rebuild, _memory, _tensors
from tpde._status import ArgumentError, UnsupportedError
from tpde.quant import QuantizedTensor

__all__ = ["reconstruct_many", "synchronize"]


def synchronize(device: torch.device | str | int | None = None) -> None:
    """Waits for all work on a CUDA device (None: the current one) and raises what went wrong there since the last call.

    Raises CorruptError or ChecksumError, which name tensor and chunk; ArgumentError for indices of a scatter_add that
    are out of range or not strictly increasing; UnsupportedError without a GPU.
    """
    _cuda.synchronize(require_device(device))


def reconstruct_many(
    items: Sequence[tuple[torch.Tensor | QuantizedTensor | None, torch.Tensor, torch.Tensor]],
    *,
    out: Sequence[torch.Tensor | None] | None = None,
    in_place: bool = False,
    verify: bool = True,
    verified: bool = False,
    check: bool = False,
    names: Sequence[str] | None = None,
) -> list[torch.Tensor]:
    """Rebuilds many tensors at once, faster than one by one: up to 56 tensors share a launch.

    items: (base, index_map, data_blob) of each, as for `tpde.reconstruct`; the blobs on CUDA devices.
    out: a contiguous tensor to write to for each item; its base itself rebuilds in place, None makes a new tensor. It
        must not share memory with another item's output, base or blob.
    in_place: write every tensor to its base, which must be a contiguous tensor. The same as out=[the bases].
    verify: compare the checksums of all chunks first.
    verified: with verify=False: zstd blobs, whose checksums are otherwise compared whatever verify says, are
        decompressed without. Only for blobs in which an earlier call found no damage, and which have not changed since:
        what a GPU does with a damaged zstd frame is undefined. Other codecs need no such promise.
    check: wait, and raise failures now; also compare bases and results with the recorded digests, if verify is set.
    names: what to call the tensors in failures.

    Returns the tensors. Raises what `tpde.reconstruct` does; nothing is launched if an argument is refused.
    """
    for what, values in (("names", names), ("out", out)):
        if values is not None and len(values) != len(items):
            raise ArgumentError(f"{what}: expected {len(items)}, one for each item, got {len(values)}")
    if verified and verify:
        raise ArgumentError("verified: expected verify=False with it; one says that checksums need not be compared")
    for i, (_, _, data_blob) in enumerate(items):
        if not isinstance(data_blob, torch.Tensor) or not data_blob.is_cuda:
            where = data_blob.device if isinstance(data_blob, torch.Tensor) else type(data_blob).__name__
            raise ArgumentError(f"data_blob of item {i}: expected a tensor on a CUDA device, got {where}")
    packed: list[_cuda_rebuild.Packed] = []
    for base, index_map, data_blob in items:
        if not (isinstance(index_map, torch.Tensor) and index_map.is_cuda):
            index_map = _memory.require_bytes(index_map, "index_map")
        packed.append((_tensors.plain_base(base), index_map, data_blob))
    outs = _outputs(items, out, in_place)
    if verify and check:
        for item in packed:
            _cuda_rebuild.check_base(*item)
    results = _cuda_rebuild.reconstruct_many(packed, verify, names, outs, verified)
    if check:
        _cuda_rebuild.check_results(
            ((out, index_map, data_blob) for out, (_, index_map, data_blob) in zip(results, packed, strict=True)),
            digests=verify,
        )
    return results


def _outputs(
    items: Sequence[tuple[torch.Tensor | QuantizedTensor | None, torch.Tensor, torch.Tensor]],
    out: Sequence[torch.Tensor | None] | None,
    in_place: bool,
) -> Sequence[torch.Tensor | None] | None:
    """Returns the tensors to write to, checked as far as one alone can be."""
    if in_place:
        if out is not None:
            raise ArgumentError("out, in_place: expected one of them at most; in_place writes to the bases")
        out = []
        for i, (base, _, _) in enumerate(items):
            if not isinstance(base, torch.Tensor):
                raise ArgumentError(
                    f"base of item {i}: is {'None' if base is None else 'a ' + type(base).__name__}, expected a tensor "
                    "to be changed in place"
                )
            out.append(base)
    if out is None:
        return None
    for i, tensor in enumerate(out):
        if tensor is not None:
            try:
                _tensors.output(tensor)
            except ArgumentError as error:
                raise ArgumentError(f"item {i}: {error}") from None
    return out


def require_device(device: torch.device | str | int | None) -> torch.device:
    """Returns a CUDA device with its number; None is the current one. Raises ArgumentError, UnsupportedError."""
    if not torch.cuda.is_available():
        built = "this torch was built without CUDA" if torch.version.cuda is None else "torch finds no CUDA device"
        raise UnsupportedError(f"tpde.cuda needs a GPU, but {built}; `tpde info` shows what is there")
    if device is None:
        return torch.device("cuda", torch.cuda.current_device())
    chosen = torch.device("cuda", device) if isinstance(device, int) else _memory.parse_device(device, "a CUDA device")
    if chosen.type != "cuda":
        raise ArgumentError(f"device: expected a CUDA device, got {chosen}")
    return chosen if chosen.index is not None else torch.device("cuda", torch.cuda.current_device())
