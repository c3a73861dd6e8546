"""tpde.h for Python: see capi/tpde.h for what each function does and python/tpde/_binding.cpp for the conversion.

Pointers are addresses as integers, 0 for NULL; handles are integers. Failures raise the exceptions of tpde._status.
"""

from collections.abc import Sequence
from os import PathLike
from typing import TypedDict

ABI_VERSION: int
SKIP_BASE_DIGEST: int
SKIP_TARGET_DIGEST: int

_Path = str | bytes | PathLike[str] | PathLike[bytes]

class IndexInfo(TypedDict):
    dtype: int
    codec: int
    residual: int
    has_base: bool
    shape: list[int]
    words: int
    target_bytes: int
    blob_bytes: int
    chunks: int
    deltas: int
    base_digest: bytes
    target_digest: bytes

def load(path: _Path) -> None: ...
def version() -> str: ...
def encode(
    base_ptr: int,
    base_bytes: int,
    target_ptr: int,
    target_bytes: int,
    dtype: int,
    shape: Sequence[int],
    codec: int = 0,
    residual: int = 0,
    level: int = 0,
    workers: int = 0,
    num_chunks: int = 0,
    chunk_words: int = 0,
) -> int: ...
def encoded_bytes(encoded: int) -> tuple[int, int]: ...
def encoded_copy(index_ptr: int, index_cap: int, blob_ptr: int, blob_cap: int, encoded: int) -> None: ...
def encoded_free(encoded: int) -> None: ...
def index_read(index_ptr: int, index_bytes: int) -> IndexInfo: ...
def index_records(dst_ptr: int, dst_cap: int, index_ptr: int, index_bytes: int) -> None: ...
def reconstruct(
    dst_ptr: int,
    dst_cap: int,
    base_ptr: int,
    base_bytes: int,
    index_ptr: int,
    index_bytes: int,
    blob_ptr: int,
    blob_bytes: int,
    flags: int = 0,
    workers: int = 0,
) -> None: ...
def scatter_add(
    dst_ptr: int,
    dst_cap: int,
    base_ptr: int,
    base_bytes: int,
    dtype: int,
    indices_ptr: int,
    values_ptr: int,
    deltas: int,
    chunk_starts_ptr: int,
    num_chunks: int,
    workers: int = 0,
) -> None: ...
def digest(data_ptr: int, data_bytes: int, workers: int = 0) -> bytes: ...
def source_open(path: _Path) -> int: ...
def source_new(label: str) -> int: ...
def source_add(source: int, name: str, dtype: int, shape: Sequence[int], data_ptr: int, data_bytes: int) -> None: ...
def source_apply(base: int, deltas: Sequence[_Path]) -> int: ...
def source_manifest(source: int) -> str: ...
def source_read(dst_ptr: int, dst_cap: int, source: int, name: str, workers: int = 0) -> None: ...
def source_free(source: int) -> None: ...
def pack_start(base: int, target: int, out_path: _Path, options: str = "{}") -> int: ...
def unpack_start(base: int, deltas: Sequence[_Path], out_path: _Path, options: str = "{}") -> int: ...
def verify_start(base: int, deltas: Sequence[_Path], target: int = 0, options: str = "{}") -> int: ...
def job_wait(job: int, timeout_ms: int) -> tuple[bool, int, int]: ...
def job_cancel(job: int) -> None: ...
def job_report(job: int) -> str: ...
def job_free(job: int) -> None: ...
def inspect(path: _Path) -> str: ...
