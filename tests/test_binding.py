"""The binding: tpde.h with integers for pointers, and failures as exceptions."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tpde import _status
from tpde._core import LIBRARY, core

F32, I64 = 12, 9


def address(array: np.ndarray) -> tuple[int, int]:
    return array.ctypes.data, array.nbytes


def encode(base: np.ndarray | None, target: np.ndarray, **options: int) -> tuple[np.ndarray, np.ndarray]:
    handle = core().encode(
        *(address(base) if base is not None else (0, 0)), *address(target), F32, target.shape, **options
    )
    sizes = core().encoded_bytes(handle)
    index, blob = (np.empty(n, np.uint8) for n in sizes)
    core().encoded_copy(*address(index), *address(blob), handle)
    core().encoded_free(handle)
    return index, blob


@pytest.fixture
def arrays() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((300, 70)).astype(np.float32)
    target = np.where(rng.random(base.shape) < 0.1, base + np.float32(0.01), base)
    return base, target


def test_every_function_of_the_header_is_bound():
    header = re.sub(r"/\*.*?\*/", "", (LIBRARY.parents[1] / "include" / "tpde.h").read_text(), flags=re.DOTALL)
    declared = set(re.findall(r"\btpde_([a-z_]+)\(", header))
    inside = {"abi_version", "status_name", "last_error", "text_bytes", "text_copy", "text_free"}
    bound = {name for name in dir(core()) if callable(getattr(core(), name)) and not name.startswith("_")}
    assert bound == declared - inside | {"load"}


def test_stub_file_names_the_same_functions():
    stub = (LIBRARY.parents[1] / "_binding.pyi").read_text()
    names = set(re.findall(r"^def (\w+)\(", stub, re.MULTILINE))
    assert names == {n for n in dir(core()) if callable(getattr(core(), n)) and not n.startswith("_")}


def test_stub_file_has_the_same_parameters():
    stub = re.sub(r"\s+", " ", (LIBRARY.parents[1] / "_binding.pyi").read_text())
    for name, parameters in re.findall(r"def (\w+)\((.*?)\) ->", stub):
        bound = re.search(rf"{name}\((.*?)\) ->", getattr(core(), name).__doc__)[1]
        assert re.findall(r"(\w+): ", bound) == re.findall(r"(\w+): ", parameters), name


def test_round_trip(arrays):
    base, target = arrays
    index, blob = encode(base, target, num_chunks=7)
    info = core().index_read(*address(index))
    assert info["shape"] == [300, 70] and info["dtype"] == F32 and info["has_base"] is True
    assert info["words"] == 21000 and info["target_bytes"] == 84000 and info["blob_bytes"] == blob.nbytes
    assert info["chunks"] == 7
    assert info["target_digest"] == core().digest(*address(target))
    assert info["base_digest"] == core().digest(*address(base), workers=1)
    records = np.empty((info["chunks"], 32), np.uint8)
    core().index_records(*address(records), *address(index))
    assert records[:, 8:12].copy().view(np.uint32).sum() == blob.nbytes
    out = np.empty_like(base)
    core().reconstruct(*address(out), *address(base), *address(index), *address(blob))
    assert (out.view(np.uint32) == target.view(np.uint32)).all()


def test_no_base(arrays):
    index, blob = encode(None, arrays[1])
    info = core().index_read(*address(index))
    assert info["has_base"] is False and info["base_digest"] == bytes(16)
    out = np.empty_like(arrays[1])
    core().reconstruct(*address(out), 0, 0, *address(index), *address(blob))
    assert (out.view(np.uint32) == arrays[1].view(np.uint32)).all()


def test_scatter_add():
    base = np.arange(10, dtype=np.int64)
    indices, values = np.array([1, 8]), np.array([100, 200])
    starts = np.array([0, 1, 2])
    out = np.empty_like(base)
    core().scatter_add(
        *address(out), *address(base), I64, indices.ctypes.data, values.ctypes.data, 2, starts.ctypes.data, 2
    )
    assert out.tolist() == [0, 101, 2, 3, 4, 5, 6, 7, 208, 9]


def test_failures_are_the_exceptions_of_their_status(arrays, tmp_path):
    base, target = arrays
    index, blob = encode(base, target)
    out = np.empty_like(base)
    with pytest.raises(_status.ChecksumError, match="chunk 0"):
        core().reconstruct(*address(out), *address(base), *address(index), *address(blob ^ 1))
    with pytest.raises(_status.BaseMismatchError, match=r"[0-9a-f]{32}.*[0-9a-f]{32}"):
        core().reconstruct(*address(out), *address(target), *address(index), *address(blob))
    with pytest.raises(_status.ShortBufferError, match="dst"):
        core().reconstruct(out.ctypes.data, out.nbytes - 1, *address(base), *address(index), *address(blob))
    with pytest.raises(_status.CorruptError, match="index"):
        core().index_read(index.ctypes.data, 50)
    with pytest.raises(_status.HandleError, match="is no handle"):
        core().source_free(0)
    with pytest.raises(_status.NotFoundError, match="missing") as caught:
        core().source_open(tmp_path / "missing")
    assert isinstance(caught.value, FileNotFoundError) and caught.value.status == 41


def test_wrong_python_types_are_type_errors():
    with pytest.raises(TypeError):
        core().digest("x", 1)
    with pytest.raises(TypeError):
        core().digest(-1, 1)
    with pytest.raises(TypeError):
        core().source_open(5)
    with pytest.raises(TypeError):
        core().source_free(2**64)


def test_texts_with_zero_bytes_are_refused():
    source = core().source_new("memory")
    data = np.zeros(4, np.float32)
    with pytest.raises(_status.ArgumentError, match="zero byte"):
        core().source_add(source, "a\0b", F32, [4], *address(data))
    with pytest.raises(_status.ArgumentError, match="zero byte"):
        core().source_new("a\0b")
    with pytest.raises(ValueError, match="null"):
        core().source_open("a\0b")
    core().source_free(source)


@pytest.mark.parametrize("kind", ["str", "bytes", "path", "not utf-8"])
def test_paths_of_every_kind(tmp_path, kind):
    folder = os.fsencode(tmp_path)
    path = {
        "str": f"{tmp_path}/größe",
        "bytes": folder + b"/b",
        "path": Path(tmp_path, "p"),
        "not utf-8": os.fsdecode(folder + b"/\xff\xfe"),
    }[kind]
    base, target = core().source_new("base"), core().source_new("target")
    data = np.arange(5000, dtype=np.float32)
    core().source_add(base, "a", F32, [50, 100], *address(data))
    core().source_add(target, "a", F32, [50, 100], *address(data))
    job = core().pack_start(base, target, path)
    while not core().job_wait(job, 100)[0]:
        pass
    assert json.loads(core().job_report(job))["tensors"][0]["kind"] == "unchanged"
    core().job_free(job)
    assert os.path.exists(path)
    applied = core().source_apply(base, [path])
    out = np.zeros_like(data)
    core().source_read(*address(out), applied, "a")
    assert (out == data).all()
    assert json.loads(core().source_manifest(applied))["tensors"] == [
        {"name": "a", "dtype": "F32", "shape": [50, 100], "bytes": 20000}
    ]
    for handle in (applied, base, target):
        core().source_free(handle)


def test_job_progress_and_failure(tmp_path):
    base = core().source_new("base")
    job = core().unpack_start(base, [tmp_path / "missing"], tmp_path / "out")
    with pytest.raises(_status.NotFoundError, match="missing"):
        while not core().job_wait(job, 1000)[0]:
            pass
    with pytest.raises(_status.NotFoundError):
        core().job_report(job)
    core().job_free(job)
    with pytest.raises(_status.ArgumentError, match="colour"):
        core().pack_start(base, base, tmp_path / "out", '{"colour": 1}')
    core().source_free(base)


def test_other_threads_run_during_a_long_call():
    data = np.zeros(1 << 28, np.uint8)  # untouched pages: quick to make, slow to hash
    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    start = time.perf_counter()
    core().digest(*address(data), workers=1)
    end = time.perf_counter()
    stop.set()
    thread.join()
    assert sum(start < t < end for t in ticks) >= 5, f"no other thread ran in {end - start:.3f} s"


def test_failures_of_many_threads_keep_their_texts():
    texts: dict[int, set[str]] = {}

    def fail(number: int) -> None:
        texts[number] = set()
        for _ in range(300):
            try:
                core().source_free(number)
            except _status.HandleError as error:
                texts[number].add(str(error))

    threads = [threading.Thread(target=fail, args=(n,)) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(seen) == 1 and f"{number:#x} is no handle" in seen.pop() for number, seen in texts.items())


def test_functions_before_load_say_so(python):
    result = python(
        "from tpde import _binding, InternalError\n"
        "try:\n    _binding.version()\n"
        "except InternalError as error:\n    assert 'not loaded' in str(error)\n"
        "else:\n    raise SystemExit('no error')\n"
    )
    assert result.returncode == 0, result.stderr


def test_load_refuses_what_is_not_the_core(python, tmp_path):
    (tmp_path / "text.so").write_text("no library")
    result = python("""
from tpde import _binding, UnsupportedError, VersionError
others = {"./text.so": UnsupportedError, "./none.so": UnsupportedError, "libm.so.6": VersionError}
for name, expected in others.items():
    try:
        _binding.load(name)
    except expected as error:
        assert name in str(error), error
    else:
        raise SystemExit(name)
""")
    assert result.returncode == 0, result.stderr


def test_library_that_is_missing(python):
    result = python("""
import pathlib, tpde
from tpde import _core
_core.LIBRARY = pathlib.Path("/nonexistent/libtpde.so")
try:
    _core.core()
except tpde.NotFoundError as error:
    assert "/nonexistent/libtpde.so" in str(error) and "make build" in str(error)
else:
    raise SystemExit("no error")
""")
    assert result.returncode == 0, result.stderr


def test_ld_bind_now_is_a_clear_error(python, monkeypatch):
    monkeypatch.setenv("LD_BIND_NOW", "1")
    result = python(
        "import tpde\nfrom tpde._core import core\n"
        "try:\n    core()\n"
        "except tpde.UnsupportedError as error:\n    assert 'unset LD_BIND_NOW' in str(error)\n"
        "else:\n    raise SystemExit('no error')\n"
    )
    assert result.returncode == 0, result.stderr


def test_core_is_bound_lazily_and_privately():
    """The core must not offer Go's symbols to other libraries, and must be opened lazily."""
    import ctypes

    core()
    with pytest.raises(AttributeError):
        ctypes.CDLL(None).tpde_abi_version  # noqa: B018  RTLD_LOCAL: not in the global scope
