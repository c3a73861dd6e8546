"""What runs on the host when tensors are on a GPU: preparing, and the bookkeeping of tpde._cuda.

These tests need no GPU: where one would decode, a stand-in decodes on the CPU (fake_gpu.py).
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tpde
from gpu_support import DTYPES, changed, weights
from support import assert_same_bits, random_bits
from tpde import _cuda, _cuda_rebuild, _memory
from tpde._core import core, gpu_core, site_packages


def packed(seed: int = 0, codec: str = "elias", n: int = 4096):
    base, target = weights(n, seed=seed)
    return base, target, *tpde.encode(base, target, codec=codec, chunk_words=1024)


def synchronize() -> None:
    _cuda.synchronize(torch.device("cpu"))


@pytest.mark.parametrize("codec", ["elias", "raw", "prefix"])
def test_an_image_is_tables_and_flat_records(codec):
    _, _, index_map, _ = packed(codec=codec)
    binding = core()
    handle = binding.prepare(*_memory.pointer(index_map))
    image = torch.empty(binding.prepared_image_bytes(handle), dtype=torch.uint8)
    binding.prepared_image(*_memory.pointer(image), handle)
    records = torch.empty(32 * tpde.read_index(index_map).chunks, dtype=torch.uint8)
    binding.index_records(*_memory.pointer(records), *_memory.pointer(index_map))
    assert torch.equal(image[-records.numel() :], records)
    tables = image.numel() - records.numel()
    assert tables % 512 == 0
    assert {"elias": tables == 512, "raw": tables == 0, "prefix": tables >= 512}[codec]
    with pytest.raises(tpde.ShortBufferError):
        binding.prepared_image(image.data_ptr(), image.numel() - 1, handle)
    binding.prepared_free(handle)
    for call in (
        lambda: binding.prepared_free(handle),
        lambda: binding.prepared_image_bytes(handle),
        lambda: binding.gpu_verify([(handle, 0, 0, 0, 0, 0, 0)], 0),
    ):
        with pytest.raises(tpde.HandleError, match="was freed"):
            call()


def test_preparing_refuses_what_reading_refuses():
    _, _, index_map, _ = packed()
    damaged = index_map.clone()
    damaged[90] ^= 1
    with pytest.raises(tpde.ChecksumError):
        core().prepare(*_memory.pointer(damaged))
    with pytest.raises(tpde.CorruptError):
        core().prepare(index_map.data_ptr(), 5)


def test_a_slot_is_made_once(gpu):
    base, target, index_map, data_blob = packed()
    for _ in range(3):
        assert_same_bits(_cuda_rebuild.reconstruct(base, index_map, data_blob, True), target)
    assert len(_cuda._slots) == 1
    assert gpu.calls == [("verify", 1), ("reconstruct", 1)] * 3
    _cuda_rebuild.reconstruct(base, index_map, data_blob, False)
    assert gpu.calls[6:] == [("reconstruct", 1)]
    _cuda_rebuild.reconstruct(base, index_map, data_blob.clone(), False)
    assert len(_cuda._slots) == 2
    live = base.clone()
    assert _cuda_rebuild.reconstruct(live, index_map, data_blob, True, out=live) is live
    assert_same_bits(live, target)
    synchronize()


def test_every_dtype_has_its_shape(gpu):
    for dtype in DTYPES:
        base = random_bits(dtype, (6, 10))
        target = changed(base, 0.5)
        index_map, data_blob = tpde.encode(base, target, codec="raw")
        assert_same_bits(_cuda_rebuild.reconstruct(base, index_map, data_blob, False), target)
        index_map, data_blob = tpde.encode(None, target, codec="raw")
        assert_same_bits(_cuda_rebuild.reconstruct(None, index_map, data_blob, False), target)


def test_an_index_map_that_is_written_to_is_read_again(gpu):
    base, target, index_map, data_blob = packed(codec="raw")
    _, other, index_2, blob_2 = packed(seed=5, codec="raw")
    live = index_map.clone()
    assert_same_bits(_cuda_rebuild.reconstruct(base, live, data_blob, False), target)
    live.resize_(index_2.numel()).copy_(index_2)
    assert_same_bits(_cuda_rebuild.reconstruct(weights(4096, seed=5)[0], live, blob_2, False), other)


def test_slots_go_with_their_tensors(gpu):
    base, target, index_map, data_blob = packed()
    for _ in range(100):
        assert_same_bits(_cuda_rebuild.reconstruct(base, index_map.clone(), data_blob, False), target)
    assert len(_cuda._slots) <= 256
    synchronize()
    assert _cuda._slots == {}
    gc.collect()
    assert gpu.index == {}


def test_failures_are_told_once_and_survive_their_tensors(gpu):
    base, target, index_map, data_blob = packed()
    bad = data_blob.clone()
    bad[bad.numel() - 9] ^= 8
    _cuda_rebuild.reconstruct(base, index_map, bad, True)
    assert_same_bits(_cuda_rebuild.reconstruct(base, index_map, data_blob, True), target)
    with pytest.raises(tpde.ChecksumError, match=r"bfloat16 tensor of shape \[4096\] on cpu: chunk 3: "):
        synchronize()
    synchronize()
    _cuda_rebuild.reconstruct(base, index_map, bad, True)
    del bad
    gc.collect()
    with pytest.raises(tpde.ChecksumError):
        synchronize()
    synchronize()
    many = [packed(seed) for seed in range(3)]
    for _, _, _, blob in many[1:]:
        blob[20] ^= 8
    _cuda_rebuild.reconstruct_many([(b, i, d) for b, _, i, d in many], True, ["a", "b", "c"])
    with pytest.raises(tpde.TpdeError, match=r"b on cpu: chunk .*1 more tensors failed: .*c on cpu"):
        synchronize()


def test_many_share_a_call(gpu):
    many = [packed(seed, codec) for seed in range(4) for codec in ("elias", "raw")]
    results = _cuda_rebuild.reconstruct_many([(b, i, d) for b, _, i, d in many], True, None)
    for (_, target, _, _), result in zip(many, results, strict=True):
        assert_same_bits(result, target)
    assert gpu.calls == [("verify", 8), ("reconstruct", 8)]


def test_digests_are_checked_on_request(gpu):
    base, target, index_map, data_blob = packed()
    _cuda_rebuild.check_base(base, index_map, data_blob)
    with pytest.raises(tpde.BaseMismatchError):
        _cuda_rebuild.check_base(target, index_map, data_blob)
    out = _cuda_rebuild.reconstruct(base, index_map, data_blob, True)
    _cuda_rebuild.check_results([(out, index_map, data_blob)], digests=True)
    out[5] += 1
    with pytest.raises(tpde.TargetMismatchError):
        _cuda_rebuild.check_results([(out, index_map, data_blob)], digests=True)


def test_capture_needs_a_warm_up(gpu):
    base, target, index_map, data_blob = packed()
    gpu.capturing = True
    with pytest.raises(tpde.UnsupportedError, match="once before the capture"):
        _cuda_rebuild.reconstruct(base, index_map, data_blob, False)
    gpu.capturing = False
    _cuda_rebuild.reconstruct(base, index_map, data_blob, False)
    gpu.capturing = True
    assert_same_bits(_cuda_rebuild.reconstruct(base, index_map, data_blob, False), target)
    with pytest.raises(tpde.UnsupportedError, match="once before the capture"):
        _cuda_rebuild.reconstruct(base, index_map, data_blob, True)


def test_arguments_are_checked(gpu):
    base, _, index_map, data_blob = packed()
    for arguments, message in [
        ((base.float(), index_map, data_blob), "float32"),
        ((base[:-1], index_map, data_blob), "shape"),
        ((None, index_map, data_blob), "base: is None"),
        ((base, index_map, data_blob[:-1]), "data_blob: expected"),
        ((base, index_map.view(-1, 1), data_blob), "index_map"),
        ((base, index_map, data_blob.view(torch.int8)), "data_blob"),
    ]:
        with pytest.raises(tpde.ArgumentError, match=message):
            _cuda_rebuild.reconstruct(*arguments, True)
    with pytest.raises(tpde.ArgumentError, match="expected None"):
        _cuda_rebuild.reconstruct(base, *tpde.encode(None, base, codec="raw"), True)


def test_blobs_are_aligned_for_kernels(gpu):
    base, target, index_map, data_blob = packed()
    arena = torch.empty(data_blob.numel() + 8, dtype=torch.uint8)
    for offset in range(1, 8):
        blob = arena[offset : offset + data_blob.numel()].copy_(data_blob)
        assert _cuda_rebuild._aligned(blob).data_ptr() % 8 == 0
        assert_same_bits(_cuda_rebuild.reconstruct(base, index_map, blob, True), target)
    assert _cuda_rebuild._aligned(data_blob) is data_blob


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_the_errors_say_so():
    base, _, index_map, data_blob = packed()
    for call in (tpde.cuda.synchronize, lambda: tpde.cuda.synchronize(0)):
        with pytest.raises(tpde.UnsupportedError, match=r"needs a GPU.*tpde info"):
            call()
    with pytest.raises(tpde.ArgumentError, match="item 0: expected a tensor on a CUDA device, got cpu"):
        tpde.cuda.reconstruct_many([(base, index_map, data_blob)])
    handle = core().prepare(*_memory.pointer(index_map))
    with pytest.raises(tpde.UnsupportedError, match="NVIDIA driver"):
        gpu_core().gpu_reconstruct([(handle, 8, 8, 8, 16, 4, 0)], 0, 0, 0)
    core().prepared_free(handle)


def test_info(tpde_cli):
    result = tpde_cli("info", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert set(found) == {"driver", "gpus", "nvrtc", "nvcomp", "nvml"}
    for library in ("driver", "nvrtc", "nvcomp", "nvml"):
        assert found[library]["found"] or found[library]["error"]
    text = tpde_cli("info")
    assert text.returncode == 0, text.stderr
    assert "NVRTC" in text.stdout
    assert ("GPU 0" in text.stdout) == bool(found["gpus"])


def test_wheels_are_searched_beside_torch_first():
    folders = site_packages()
    assert folders[0] == str(_memory.torch.__path__[0].rsplit("/", 1)[0])
    assert len(set(folders)) == len(folders)


def test_in_place_operator_on_the_cpu():
    base, target, index_map, data_blob = packed()
    torch.library.opcheck(torch.ops.tpde.reconstruct_, (base.clone(), index_map, data_blob))
    assert torch.ops.tpde.reconstruct_(base, index_map, data_blob) is None
    assert_same_bits(base, target)
    assert struct.calcsize("QPPPPPQQ") == 64  # tpde_gpu_item, as other bindings lay it out


FAKE_DRIVER = Path(__file__).parents[1] / "core" / "device" / "engine" / "testdata" / "fakecuda.c"

LAUNCH = """
import torch, tpde
from tpde import _memory
from tpde._core import gpu_core
core = gpu_core()
base = torch.zeros(4096, dtype=torch.bfloat16)
target = base.clone()
target[::7] = 1
index_map, data_blob = tpde.encode(base, target, codec="elias", chunk_words=1024)
handle = core.prepare(*_memory.pointer(index_map))
at = 1 << 40
item = handle, at, at + 0x10000, at + 0x20000, at + 0x30000, at + 0x40000, 0
core.gpu_verify([item], 0x77)
core.gpu_reconstruct([item] * 3, 0, 0, 0x77)
core.gpu_reconstruct([(*item[:6], core.GPU_QUANTISED_BASE | core.GPU_VERIFIED_BLOB)], 0, 0, 0x77)
core.gpu_scatter_add(at, at + 0x10000, 100, 12, at + 0x20000, at + 0x30000, 5, at + 0x40000, 0x77)
weight = at, at + 0x10000, 0, 0, 64, 1, 4, 11, 11
core.gpu_quantised_linear(at + 0x20000, at + 0x30000, 128, 9, weight, 33, 128, 0, 0x77)
core.gpu_dequantise(at + 0x20000, weight, 33 * 128, 64, 4000, 0x77)
assert core.gpu_scratch_bytes([item]) == 0
wrong = [
    (*item[:6], 4),
    (*item[:1], at + 4, *item[2:6], 1),
    (0, *item[1:]),
    (*item[:2], 0, *item[3:]),
    (*item[:3], at + 4, *item[4:]),
    (*item[:2], 12 << 40, *item[3:]),
]
for bad in wrong:
    try:
        core.gpu_reconstruct([item, bad] if bad[2] >> 40 < 3 else [bad], 0, 0, 0x77)
    except tpde.TpdeError as error:
        print(type(error).__name__, error)
"""


@pytest.mark.skipif(shutil.which("gcc") is None or not FAKE_DRIVER.exists(), reason="needs gcc and the source tree")
def test_launches_reach_the_driver(tmp_path):
    """From the binding to the driver's calls, with a driver that only writes them down."""
    if not json.loads(gpu_core().device_info())["nvrtc"]["found"]:
        pytest.skip("needs NVRTC")
    log = tmp_path / "log"
    # NVRTC looks for the driver, too, and asks it for tools that trace compilations.
    tools = tmp_path / "tools.c"
    tools.write_text("int cuGetExportTable(const void **table, const void *id) { return *table = 0, 1; }\n")
    flags = ["-shared", "-fPIC", "-w", f'-DLOG="{log}"', "-o", str(tmp_path / "libcuda.so.1")]
    subprocess.run(["gcc", *flags, str(FAKE_DRIVER), str(tools)], check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", LAUNCH], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    errors = [line.split()[0] for line in result.stdout.splitlines()]
    assert errors == ["ArgumentError"] * 2 + ["HandleError"] + ["ArgumentError"] * 3, result.stdout
    assert "flags of item 1 are 0x4" in result.stdout and "expected a multiple of 8" in result.stdout
    launches = [line for line in log.read_text().splitlines() if line.startswith("launch")]
    assert [line.split()[1] for line in launches] == ["crc32c_check", "elias_decode", "elias_decode", "scatter_add",
                                                      "matvec_tiles", "dequantise"]  # fmt: skip
    assert all("stream 77 " in line and "context c0 " in line for line in launches)
    arguments = bytes.fromhex(launches[1].split("arguments ")[1])
    items, _, *first = struct.unpack_from("<II6QII", arguments)
    at = 1 << 40
    assert items == 3
    tables = at + 0x30000
    assert first == [at, at + 0x10000, at + 0x20000, tables + 512, tables, at + 0x40000, 4, 0]
