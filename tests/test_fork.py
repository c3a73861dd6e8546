"""Forks: threads of the core do not exist in a child, so a child gets an error and never hangs."""

from __future__ import annotations

import multiprocessing

import pytest

import tpde
from tpde._core import core

# A child that hangs is killed by SIGALRM, which the parent sees.
FORK = """
import os, signal, sys, numpy as np, tpde
from tpde._core import core
data = np.arange(1 << 20, dtype=np.uint8)
def use():
    return core().digest(data.ctypes.data, data.nbytes)
def in_child(f):
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        try:
            f()
        except BaseException as error:
            print(type(error).__name__, error, file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
def refused():
    try:
        use()
    except tpde.ForkedError as error:
        assert 'spawn' in str(error), error
    else:
        raise AssertionError('no ForkedError')
"""


def test_child_of_a_process_that_only_imported_works(python):
    result = python(FORK + "assert in_child(use) == 0\nassert in_child(use) == 0\nuse()\n")
    assert result.returncode == 0, result.stderr


def test_child_of_a_process_that_loaded_the_core_is_refused(python):
    result = python(FORK + "use()\nfor _ in range(20):\n    assert in_child(refused) == 0\nuse()\n")
    assert result.returncode == 0, result.stderr


def test_child_is_refused_while_the_core_is_at_work(python):
    """The core may hold any of its locks when the process forks."""
    result = python(
        FORK + "import threading\n"
        "stop = threading.Event()\n"
        "def work():\n"
        "    while not stop.is_set():\n"
        "        use()\n"
        "threads = [threading.Thread(target=work) for _ in range(4)]\n"
        "for t in threads: t.start()\n"
        "codes = [in_child(refused) for _ in range(20)]\n"
        "stop.set()\n"
        "for t in threads: t.join()\n"
        "assert codes == [0] * 20, codes\n"
    )
    assert result.returncode == 0, result.stderr


def test_grandchild_of_a_child_that_loaded_the_core_is_refused(python):
    result = python(FORK + "def child():\n    use()\n    assert in_child(refused) == 0\nassert in_child(child) == 0\n")
    assert result.returncode == 0, result.stderr


def test_child_of_a_refused_child_is_refused(python):
    result = python(
        FORK + "use()\ndef child():\n    refused()\n    assert in_child(refused) == 0\nassert in_child(child) == 0\n"
    )
    assert result.returncode == 0, result.stderr


EVERY_CALL = """
from tpde import _binding as b
source = core().source_new("memory")
CALLS = [
    lambda: b.encode(0, 0, data.ctypes.data, 4, 2, [4]),
    lambda: b.encoded_bytes(1),
    lambda: b.encoded_copy(0, 0, 0, 0, 1),
    lambda: b.encoded_free(1),
    lambda: b.index_read(0, 0),
    lambda: b.index_records(0, 0, 0, 0),
    lambda: b.reconstruct(0, 0, 0, 0, 0, 0, 0, 0),
    lambda: b.scatter_add(0, 0, 0, 0, 2, 0, 0, 0, 0, 0),
    lambda: b.digest(data.ctypes.data, data.nbytes),
    lambda: b.source_open("x"),
    lambda: b.source_open_base("x"),
    lambda: b.source_new("x"),
    lambda: b.source_add(source, "x", 2, [4], 0, 0),
    lambda: b.source_apply(source, []),
    lambda: b.source_manifest(source),
    lambda: b.source_read(0, 0, source, "x"),
    lambda: b.source_free(source),
    lambda: b.parts_open(source),
    lambda: b.parts_list(1),
    lambda: b.parts_gather(0, 0, 1, []),
    lambda: b.parts_free(1),
    lambda: b.pack_start(source, source, "x"),
    lambda: b.compress_start(source, "x"),
    lambda: b.unpack_start(source, [], "x"),
    lambda: b.unpack_supplied_start(source, [], "x"),
    lambda: b.job_supply(1, "x", 0, 0),
    lambda: b.verify_start(source, []),
    lambda: b.job_wait(1, 0),
    lambda: b.job_cancel(1),
    lambda: b.job_report(1),
    lambda: b.job_free(1),
    lambda: b.inspect("x"),
    lambda: b.device_search([]),
    lambda: b.device_info(),
    lambda: b.prepare(0, 0),
    lambda: b.prepared_image_bytes(1),
    lambda: b.prepared_image(0, 0, 1),
    lambda: b.prepared_free(1),
    lambda: b.gpu_scratch_bytes([]),
    lambda: b.gpu_reconstruct([], 0, 0, 0),
    lambda: b.gpu_verify([], 0),
    lambda: b.gpu_scatter_add(0, 0, 0, 12, 0, 0, 0, 0, 0),
    lambda: b.gpu_quantised_linear(0, 0, 0, 0, [0] * 9, 0, 0, 0, 0),
    lambda: b.gpu_dequantise(0, [0] * 9, 0, 0, 0, 0),
]
public = {name for name in dir(b) if name.islower() and not name.startswith("_")}
assert len(CALLS) == len(public - {"load", "version"}), "a call is missing here"
def every():
    for call in CALLS:
        try:
            call()
        except tpde.ForkedError:
            continue
        raise AssertionError(f"no ForkedError from {call.__code__.co_names}")
assert in_child(every) == 0
core().source_free(source)
"""


def test_every_call_is_refused_in_a_child(python):
    result = python(FORK + EVERY_CALL)
    assert result.returncode == 0, result.stderr


def _digest(_: int) -> bytes:
    data = bytes(4096)
    import numpy as np

    array = np.frombuffer(data, np.uint8)
    return core().digest(array.ctypes.data, array.nbytes)


def test_spawned_workers_work():
    expected = _digest(0)  # loads the core here, too
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map_async(_digest, range(4)).get(timeout=120) == [expected] * 4


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked_pool_gets_the_error_and_not_a_hang():
    core()
    with multiprocessing.get_context("fork").Pool(1) as pool, pytest.raises(tpde.ForkedError, match="spawn"):
        pool.apply_async(_digest, (0,)).get(timeout=60)


def test_subprocess_is_not_a_forked_child(python):
    """Commands started from a process that uses the core start with fork or vfork, and must not be disturbed."""
    result = python(
        FORK + "import subprocess\nuse()\n"
        "assert subprocess.run(['true']).returncode == 0\n"
        "assert subprocess.run(['true'], preexec_fn=lambda: None).returncode == 0\n"
        "use()\n"
    )
    assert result.returncode == 0, result.stderr
