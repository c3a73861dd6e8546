"""Streams, threads and CUDA graphs; and what a call costs."""

from __future__ import annotations

import threading
import time

import pytest
import torch

import tpde
from gpu_support import CODECS, NEEDS_GPU, packed_on_gpu, weights
from support import assert_same_bits

pytestmark = NEEDS_GPU


def delay(stream: torch.cuda.Stream) -> None:
    """Keeps a stream busy for some milliseconds."""
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)


def test_runs_on_the_current_stream_behind_a_base_that_is_still_written():
    base, target = weights(1 << 20)
    source, index_map, data_blob = packed_on_gpu(base, target)
    tpde.reconstruct(source, index_map, data_blob, check=True)
    for _ in range(5):
        live = torch.zeros_like(source)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        delay(side)
        with torch.cuda.stream(side):
            live.copy_(source)
            got = tpde.reconstruct(live, index_map, data_blob)
        assert not side.query(), "the call waited for the stream"
        side.synchronize()
        assert_same_bits(got.cpu(), target)
    tpde.cuda.synchronize()


def test_does_not_wait():
    packed = packed_on_gpu(*weights(1 << 20))
    tpde.reconstruct(*packed, check=True)
    indices, values = torch.arange(0, 1 << 20, 9, device="cuda"), torch.ones(116509, device="cuda")
    base = torch.zeros(1 << 20, device="cuda")
    tpde.scatter_add(base, indices, values)
    stream = torch.cuda.current_stream()
    delay(stream)
    for _ in range(3):
        tpde.reconstruct(*packed)
        tpde.reconstruct(packed[0], *packed[1:], out=torch.empty_like(packed[0]))
        tpde.cuda.reconstruct_many([packed] * 3)
        tpde.scatter_add(base, indices, values)
    assert not stream.query()
    tpde.cuda.synchronize()


def test_buffers_that_are_dropped_early_are_not_given_away():
    """Index map and blob may go as soon as the call returns, on any stream."""
    base, target = weights(1 << 18)
    live = base.cuda()
    index_map, data_blob = tpde.encode(base, target, codec="elias")
    sides = [torch.cuda.Stream() for _ in range(3)]
    results = []
    for i in range(60):
        side = sides[i % 3]
        with torch.cuda.stream(side):
            packed = live, index_map.cuda(), data_blob.cuda()
            side.wait_stream(torch.cuda.default_stream())
            results.append(tpde.reconstruct(*packed))
            del packed
            torch.full((4096,), 255, dtype=torch.uint8, device="cuda")
    tpde.cuda.synchronize()
    for result in results:
        assert_same_bits(result.cpu(), target)


def test_eight_threads():
    packed = [packed_on_gpu(*weights(50_000 + 7 * i, seed=i), CODECS[i % 3]) for i in range(8)]
    targets = [weights(50_000 + 7 * i, seed=i)[1] for i in range(8)]
    shared = packed_on_gpu(*weights(33_333, torch.float32))
    shared_target = weights(33_333, torch.float32)[1]
    problems = []
    torch.cuda.synchronize()

    def work(i: int) -> None:
        try:
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                for _ in range(20):
                    mine, same = tpde.reconstruct(*packed[i]), tpde.reconstruct(*shared)
                    assert_same_bits(mine.cpu(), targets[i])
                    assert_same_bits(same.cpu(), shared_target)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    tpde.cuda.synchronize()


@pytest.mark.parametrize("codec", CODECS)
def test_graph_capture_and_replay(codec):
    base, target = weights(100_001)
    source, index_map, data_blob = packed_on_gpu(base, target, codec)
    live = source.clone()
    tpde.reconstruct(live, index_map, data_blob)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = tpde.reconstruct(live, index_map, data_blob)
        many = tpde.cuda.reconstruct_many([(live, index_map, data_blob)] * 2)
    for _ in range(3):
        live.zero_()
        out.zero_()
        live.copy_(source)
        graph.replay()
        torch.cuda.synchronize()
        for got in (out, *many):
            assert_same_bits(got.cpu(), target)
    tpde.cuda.synchronize()
    data_blob[data_blob.numel() // 2] ^= 1
    graph.replay()
    with pytest.raises((tpde.ChecksumError, tpde.CorruptError)):
        tpde.cuda.synchronize()
    data_blob[data_blob.numel() // 2] ^= 1
    graph.replay()
    tpde.cuda.synchronize()
    assert_same_bits(out.cpu(), target)


def test_in_place_graph():
    base, target = weights(100_001)
    live, index_map, data_blob = packed_on_gpu(base, target)
    tpde.reconstruct(live.clone(), index_map, data_blob)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tpde.reconstruct(live, index_map, data_blob, out=live)
    graph.replay()
    tpde.cuda.synchronize()
    assert_same_bits(live.cpu(), target)


def test_capture_without_a_warm_up_is_refused():
    packed = packed_on_gpu(*weights(1000))
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(tpde.UnsupportedError, match="once before the capture"):  # noqa: SIM117
        with torch.cuda.graph(graph):
            torch.empty(1, device="cuda").zero_()
            tpde.reconstruct(*packed)
    torch.cuda.synchronize()
    tpde.reconstruct(*packed, check=True)


def test_cost_of_a_call(capsys):
    """Prints; the bounds only catch what is out of all proportion (a synchronisation, a compilation)."""
    base, target = weights(256)
    packed = packed_on_gpu(base, target)
    out = torch.empty_like(packed[0])
    tpde.reconstruct(*packed, check=True)

    def measure(call, n=300):
        for _ in range(20):
            call()
        torch.cuda.synchronize()
        times = []
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(n):
                call()
            times.append((time.perf_counter() - start) / n * 1e6)
            torch.cuda.synchronize()
        return sorted(times)[2]

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(20):
            tpde.reconstruct(*packed, verify=False)

    def replay():
        graph.replay()
        torch.cuda.synchronize()

    lines = {
        "reconstruct": measure(lambda: tpde.reconstruct(*packed)),
        "reconstruct, verify=False": measure(lambda: tpde.reconstruct(*packed, verify=False)),
        "reconstruct, verify=False, out=": measure(lambda: tpde.reconstruct(*packed, verify=False, out=out)),
        "one of 20 in a replayed graph": measure(replay, 30) / 20,
        "torch.add": measure(lambda: torch.add(packed[0], 1)),
    }
    with capsys.disabled():
        print(f"\n{torch.cuda.get_device_name()}, 256 elements, microseconds a call on the host:")
        for name, micros in lines.items():
            print(f"  {name:<34}{micros:8.2f}")
    assert lines["reconstruct"] < 200
