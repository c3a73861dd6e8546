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

from tpde import _cuda, _memory
from tpde._status import ArgumentError, UnsupportedError

__all__ = ["reconstruct_many", "synchronize"]


def synchronize(device: torch.device | str | int | None = None) -> None:
    """Waits for all work on a CUDA device (None: the current one) and raises what went wrong there since the last call.

    Raises CorruptError or ChecksumError, which name tensor and chunk; ArgumentError for indices of a scatter_add that
    are out of range or not strictly increasing; UnsupportedError without a GPU.
    """
    _cuda.synchronize(_device(device))


def reconstruct_many(
    items: Sequence[tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]],
    *,
    verify: bool = True,
    check: bool = False,
    names: Sequence[str] | None = None,
) -> list[torch.Tensor]:
    """Rebuilds many tensors at once, faster than one by one: up to 56 tensors share a launch.

    items: (base, index_map, data_blob) of each, as for `tpde.reconstruct`; the blobs on CUDA devices.
    verify: compare the checksums of all chunks first.
    check: wait, and raise failures now; also compare bases and results with the recorded digests, if verify is set.
    names: what to call the tensors in failures.

    Returns the tensors. Raises what `tpde.reconstruct` does.
    """
    if names is not None and len(names) != len(items):
        raise ArgumentError(f"names: expected {len(items)}, one for each item, got {len(names)}")
    for i, (_, _, data_blob) in enumerate(items):
        if not isinstance(data_blob, torch.Tensor) or not data_blob.is_cuda:
            where = data_blob.device if isinstance(data_blob, torch.Tensor) else type(data_blob).__name__
            raise ArgumentError(f"data_blob of item {i}: expected a tensor on a CUDA device, got {where}")
    packed: list[_cuda.Packed] = []
    for base, index_map, data_blob in items:
        if not index_map.is_cuda:
            index_map = _memory.require_bytes(index_map, "index_map")
        packed.append((base, index_map, data_blob))
    if verify and check:
        for item in packed:
            _cuda.check_base(*item)
    results = _cuda.reconstruct_many(packed, verify, names)
    if check:
        _cuda.check_results(
            ((out, index_map, data_blob) for out, (_, index_map, data_blob) in zip(results, packed, strict=True)),
            digests=verify,
        )
    return results


def _device(device: torch.device | str | int | None) -> torch.device:
    if not torch.cuda.is_available():
        built = "this torch was built without CUDA" if torch.version.cuda is None else "torch finds no CUDA device"
        raise UnsupportedError(f"tpde.cuda needs a GPU, but {built}; `tpde info` shows what is there")
    if device is None:
        return torch.device("cuda", torch.cuda.current_device())
    chosen = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if chosen.type != "cuda":
        raise ArgumentError(f"device: expected a CUDA device, got {chosen}")
    return chosen if chosen.index is not None else torch.device("cuda", torch.cuda.current_device())
