"""What the host does when a model is streamed through a GPU, with a stand-in for the GPU (fake_gpu.py)."""

from __future__ import annotations

import contextlib
import gc
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

import tpde
from support import assert_same_bits
from test_load import packed, saved, without_data
from tiny_models import GPT2, Llama, made, tokens
from tpde import _allocator, _arena, _cuda, _forecast, _load, _stream_pack
from tpde._arena import Arena
from tpde._residency import Residency, aligned, resident_bytes, smallest_budget
from tpde._stream_cuda import CudaMemory
from tpde._stream_memory import base_parts, in_one_piece


class Stream:
    """Notes what it is told."""

    log: ClassVar[list[tuple]] = []

    def __init__(self, name) -> None:
        self.name = name
        self.cuda_stream = id(self)

    def wait_event(self, event) -> None:
        self.log.append(("wait", self.name, event.stream.name))

    def synchronize(self) -> None:
        self.log.append(("synchronize", self.name))


class Event:
    stream = None

    def __init__(self, enable_timing=False) -> None:
        pass

    def record(self, stream) -> None:
        self.stream = stream
        Stream.log.append(("record", stream.name))

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other) -> float:
        return 1.0


@pytest.fixture
def streams(gpu, monkeypatch):
    """CudaMemory on the stand-in. `current` is the stream that is current."""
    state = SimpleNamespace(gpu=gpu, current=Stream("main"), stack=[], recorded=[])
    Stream.log = []

    @contextlib.contextmanager
    def on(stream):
        before, state.current = state.current, stream
        yield
        state.current = before

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("copies"))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: setattr(state, "current", stream))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: state.current)
    monkeypatch.setattr(_cuda, "stream", lambda index: id(state.current))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: state.recorded.append(stream.name))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: Stream.log.append(("synchronize", "all")))
    monkeypatch.setattr(_stream_pack, "_memory", CudaMemory)
    monkeypatch.setattr(_allocator, "blocks", lambda device: {})
    yield state
    gc.collect()


def offloaded(model, share, base="int4", codec="prefix"):
    """share: of the budget between the smallest and what holds everything."""
    runtime = tpde.offload(model, base, device="cpu", reserve=0, codec=codec, workers=1)
    plan = runtime.plan
    smallest = smallest_budget(plan.layers, plan.fixed_bytes)
    whole = plan.fixed_bytes + sum(n.weight_bytes for n in plan.layers)
    runtime.set_vram(smallest + int(share * (whole - smallest)), reserve=0)
    return runtime


@pytest.mark.parametrize("kind", [Llama, GPT2])
@pytest.mark.parametrize("base", ["int4", "none"])
@pytest.mark.parametrize("codec", ["elias", "prefix", "rice", "raw"])
@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_logits(streams, kind, base, codec, share):
    model = made(kind, blocks=2)
    expected = model(tokens()).detach()
    runtime = offloaded(model, share, base, codec)
    for _ in range(3):
        assert_same_bits(model(tokens()).detach(), expected)
    runtime.synchronize()
    tpde.runtime.of(model).set_vram(runtime.vram - 512 if share else runtime.vram, reserve=0)
    assert_same_bits(model(tokens()).detach(), expected)
    runtime.unload()
    assert_same_bits(model(tokens()).detach(), expected)


def test_the_host_waits_for_nothing_in_a_pass(streams):
    model = made(Llama, blocks=2)
    offloaded(model, 0.0)
    model(tokens())
    Stream.log.clear()
    model(tokens())
    assert not [entry for entry in Stream.log if entry[0] == "synchronize"]
    waits = [entry[1:] for entry in Stream.log if entry[0] == "wait"]
    assert set(waits) == {("main", "copies"), ("copies", "main")}, "on one stream no use is waited for"


def test_side_streams_are_waited_for(streams):
    model = made(Llama, blocks=2)
    expected = model(tokens()).detach()
    offloaded(model, 0.0)
    both = Stream("main"), Stream("side")
    Stream.log.clear()
    for number, layer in enumerate([*model.layers, model.lm_head]):
        layer.register_forward_pre_hook(lambda *_, on=both[number % 2]: setattr(streams, "current", on))
    assert_same_bits(model(tokens()).detach(), expected)
    waits = {entry[1:] for entry in Stream.log if entry[0] == "wait"}
    assert ("side", "main") in waits or ("main", "side") in waits
    assert "side" in streams.recorded and "copies" in streams.recorded


def test_a_launch_is_for_a_batch(streams):
    model = made(Llama, blocks=2)
    runtime = offloaded(model, 0.0)
    model(tokens())
    streams.gpu.calls.clear()
    model(tokens())
    launches = [n for name, n in streams.gpu.calls if name == "reconstruct"]
    decoded = sum(kind is not Residency.WHOLE for kind in runtime.plan.residency)
    assert sum(launches) == decoded and len(launches) < decoded


def test_damage_is_reported(streams):
    model = made(Llama, blocks=2)
    runtime = offloaded(model, 0.0)
    number = next(i for i, kind in enumerate(runtime.plan.residency) if kind is Residency.STREAMED)
    memory = runtime._engine().memory
    layer = memory.layers[number]
    memory.host_record(number)[layer.blob_at : layer.record_bytes].fill_(0xFF)
    for _ in range(2):
        with contextlib.suppress(tpde.TpdeError):
            model(tokens())
    with pytest.raises(tpde.TpdeError, match=layer.name):
        runtime.synchronize()
    model(tokens())
    with pytest.raises(tpde.TpdeError, match=layer.name):
        tpde.cuda._cuda.synchronize(memory.device)


@pytest.fixture
def capturing(streams, monkeypatch):
    """A context in which a CUDA graph is captured, of models whose arena is page-locked, as they are told."""
    monkeypatch.setattr(Arena, "seal", lambda self, pin, device: setattr(self, "pinned", True))

    @contextlib.contextmanager
    def capture():
        streams.gpu.capturing = True
        try:
            yield
        finally:
            streams.gpu.capturing = False

    return capture


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_a_pass_is_captured(streams, capturing, share):
    model = made(Llama, blocks=2)
    expected = model(tokens()).detach()
    runtime = offloaded(model, share)
    model(tokens())
    for passes in range(2):
        Stream.log.clear()
        with capturing():
            assert_same_bits(model(tokens()).detach(), expected)
        copies = [entry for entry in Stream.log if "copies" in entry]
        if runtime.plan.streamed_bytes:
            assert copies[0] == ("wait", "copies", "main"), "the stream of copies is part of the graph"
            assert copies[-1] == ("wait", "main", "copies"), "the graph ends with it"
        else:
            assert not copies
        assert runtime.measured().passes == passes, "figures are of passes that run"
        assert_same_bits(model(tokens()).detach(), expected)
    model(tokens())
    assert runtime.measured().copied_bytes == runtime.plan.streamed_bytes
    runtime.synchronize()


def test_what_cannot_be_captured(streams, capturing):
    model = made(Llama, blocks=2)
    expected = model(tokens()).detach()
    runtime = offloaded(model, 0.0)
    with capturing(), pytest.raises(tpde.UnsupportedError, match="once before"):
        model(tokens())
    model(tokens())
    with capturing(), pytest.raises(tpde.UnsupportedError, match="whole model"):
        model.layers[0].q_proj(torch.zeros(1, 64, dtype=torch.bfloat16))
    with capturing(), pytest.raises(tpde.UnsupportedError, match="rebuilding"):
        model.layers[0].q_proj.weight + 1
    runtime._engine().memory.arena.pinned = False
    with capturing(), pytest.raises(tpde.UnsupportedError, match="page-locked"):
        model(tokens())
    assert_same_bits(model(tokens()).detach(), expected)
    runtime.set_vram(None, reserve=0)
    with capturing():
        assert_same_bits(model(tokens()).detach(), expected)


def test_a_captured_pass_that_fails_ends(streams, capturing):
    model = made(Llama, blocks=2)
    expected = model(tokens()).detach()
    offloaded(model, 0.0)
    model(tokens())

    def fail(module, args):
        raise RuntimeError("in the middle")

    handle = model.layers[1].register_forward_pre_hook(fail)
    Stream.log.clear()
    with capturing(), pytest.raises(RuntimeError, match="middle"):
        model(tokens())
    assert Stream.log[-1] == ("wait", "main", "copies"), "nothing is left beside the graph"
    handle.remove()
    with capturing(), pytest.raises(tpde.UnsupportedError, match="whole model"):
        model.layers[0].q_proj(torch.zeros(1, 64, dtype=torch.bfloat16))
    assert_same_bits(model(tokens()).detach(), expected)


def test_zstd_is_refused(streams):
    model = made(Llama, blocks=1)
    expected = model(tokens()).detach()
    with pytest.raises(tpde.UnsupportedError, match="another codec"):
        tpde.offload(model, codec="zstd", device="cpu")
    assert_same_bits(model(tokens()).detach(), expected)


def test_auto_takes_a_codec_that_the_gpu_decodes(streams, monkeypatch):
    model = made(Llama, blocks=1)
    expected = model(tokens()).detach()
    codecs = []
    encode = tpde._tensors.encode

    def watched(base, target, *, codec, **options):
        codecs.append(codec)
        return encode(base, target, codec="zstd" if codec == "auto" else "elias", **options)

    monkeypatch.setattr(tpde._tensors, "encode", watched)
    tpde.offload(model, vram="64MiB", device="cpu", workers=1)
    assert codecs == ["auto", *["prefix"] * 8]
    assert_same_bits(model(tokens()).detach(), expected)


def test_everything_is_given_back(streams):
    model = made(Llama, blocks=2)
    offloaded(model, 0.3)
    model(tokens())
    assert streams.gpu.index and _cuda._slots
    Stream.log.clear()
    del model
    gc.collect()
    assert not streams.gpu.index and not _cuda._slots
    assert ("synchronize", "copies") in Stream.log, "before memory goes that is copied to"


# ---- the arena --------------------------------------------------------------------


class Runtime:
    """CUDA's, as far as an arena needs it."""

    def __init__(self, code: int = 0) -> None:
        self.code, self.locked = code, {}

    def cudaHostRegister(self, address, n, flags):
        if self.code == 0:
            self.locked[address] = n
        return self.code

    def cudaHostUnregister(self, address):
        del self.locked[address]


@pytest.fixture
def locking(monkeypatch):
    runtime = Runtime()
    monkeypatch.setattr(_arena, "_runtime", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CudaError", lambda code: RuntimeError(f"out of memory ({code})"))
    return runtime


def filled() -> Arena:
    arena = Arena(1 << 30)
    arena.add([torch.arange(5000), torch.zeros(3, dtype=torch.uint8)])
    return arena


def test_an_arena_locks_what_is_used(locking):
    arena = filled()
    assert [one % 256 for one in arena.add([torch.ones(3), torch.ones(1)])] == [0, 0]
    assert arena.tensor[40_000 + 192 : 40_000 + 195].tolist() == [0, 0, 0]
    arena.seal(None, torch.device("cuda"))
    assert arena.pinned and list(locking.locked.values()) == [40960]
    del arena
    gc.collect()
    assert not locking.locked


def test_an_arena_says_why_it_is_pageable(locking):
    locking.code = 2
    arena = filled()
    arena.seal(None, torch.device("cuda"))
    assert not arena.pinned and "out of memory" in arena.why_not and "ulimit" in arena.why_not
    with pytest.raises(tpde.UnsupportedError, match="GB/s"):
        filled().seal(True, torch.device("cuda"))
    quiet = filled()
    quiet.seal(False, torch.device("cuda"))
    assert not quiet.pinned and not quiet.why_not


@pytest.mark.parametrize("load", [False, True])
def test_a_model_is_as_it_was_if_nothing_can_be_locked(streams, monkeypatch, load):
    def refuse(self, pin, device):
        raise tpde.UnsupportedError("cannot page-lock")

    model = made(Llama, blocks=1, tied=True)
    expected = model(tokens()).detach()
    layers = []
    for name, module in model.named_modules():
        if "proj" in name:
            layers.append((name, None, *tpde.encode(None, module.weight, codec="elias")))
    monkeypatch.setattr(Arena, "seal", refuse)
    with pytest.raises(tpde.UnsupportedError, match="page-lock"):
        if load:
            tpde.load_into(model, layers, pin=True, device="cpu")
        else:
            tpde.offload(model, pin=True, device="cpu", workers=1, codec="elias")
    assert model.lm_head.weight is model.embed_tokens.weight and type(model.lm_head) is torch.nn.Linear
    assert_same_bits(model(tokens()).detach(), expected)


def test_an_arena_has_an_end():
    arena = Arena(8192)
    with pytest.raises(tpde.LimitError, match="reserved"):
        arena.add([torch.zeros(3000)])
    with pytest.raises(tpde.LimitError, match="addresses"):
        Arena(1 << 62)
    assert arena.add([torch.zeros(0)]) == [0]


@pytest.fixture
def allocator(streams, monkeypatch):
    """An allocator that takes more than it is asked for: up to 4 KiB for what is larger than 4 KiB."""
    memories = []

    def blocks(device):
        sizes = {}
        for memory in memories:
            parts = [part for layer in memory.layers for part in base_parts(layer.base)]
            for tensor in (*memory.whole, *memory.resident, memory._rooms, *parts):
                if tensor is not None and tensor.numel():
                    sizes[tensor.untyped_storage().data_ptr()] = taken(tensor.untyped_storage().nbytes())
        return sizes

    def taken(n):
        return aligned(n) + (n * 7919 // 512 % 9 * 512 if n > 4096 else 0)

    def memory(device, arena):
        memories.append(CudaMemory(device, arena))
        return memories[-1]

    monkeypatch.setattr(_allocator, "UNSPLIT", 4096)
    monkeypatch.setattr(_allocator, "blocks", blocks)
    monkeypatch.setattr(_stream_pack, "_memory", memory)
    yield SimpleNamespace(memories=memories, blocks=blocks)
    memories.clear()


def test_what_the_allocator_takes_is_paid_for(allocator):
    model = made(Llama)
    runtime = offloaded(model, 0.0)
    (memory,) = allocator.memories
    unused = []
    for share in (0.0, 0.2, 0.5, 0.8, 0.4):
        plan = runtime.plan
        smallest = smallest_budget(plan.layers, plan.fixed_bytes)
        everything = plan.fixed_bytes + sum(resident_bytes(n, Residency.WHOLE) for n in plan.layers)
        plan = runtime.set_vram(smallest + int(share * (everything - smallest)), reserve=0)
        blocks = allocator.blocks(None)
        rooms = blocks.get(memory._rooms.data_ptr(), 0)
        here = [t for t in (*memory.whole, *memory.resident) if t is not None]
        for layer, whole in zip(memory.layers, memory.whole, strict=True):
            here += base_parts(layer.base) if whole is None else []
            rooms += layer.descriptor_bytes if whole is None else 0
        took = sum(aligned(t.nbytes) if t.nbytes <= 4096 else blocks[t.data_ptr()] for t in here)
        took += plan.fixed_bytes - 4096 + rooms
        assert took <= runtime.vram
        unused.append(runtime.vram - took)
        model(tokens())
    assert max(unused) < 3 * 24576, "more than what the largest weights take is left"


def test_a_base_is_one_allocation_on_its_device():
    weight = torch.randn(7, 100).bfloat16()
    for base in (tpde.quantize(weight, 3, symmetric=False), tpde.quantize(weight, 4)):
        moved = in_one_piece(base, torch.device("cpu"))
        assert len({part.untyped_storage().data_ptr() for part in moved.parts()}) == 1
        assert all(part.data_ptr() % 64 == 0 for part in moved.parts())
        assert_same_bits(moved.dequantize(), base.dequantize())


@pytest.mark.parametrize("base", ["int3", "none"])
def test_what_is_planned_without_loading_is_what_is_loaded(streams, tmp_path, base):
    model = made(GPT2, hidden=128, vocabulary=160)
    out = packed(model, tmp_path, base)
    other = without_data(GPT2, {"hidden": 128, "vocabulary": 160})
    with _load.opened(out) as opened:
        sizes = _forecast.sizes_of(opened, (_load.Matched(other, opened), other), True, cuda=True)
    plan = tpde.load_into(other, out, device="cpu", reserve=0).plan
    assert sorted(sizes.layers, key=str) == sorted(plan.layers, key=str)
    assert sizes.fixed_bytes == plan.fixed_bytes


def test_what_the_gpu_does_not_decode_is_packed_again(streams, tmp_path):
    """auto takes zstd for a weight that repeats; loading it takes a codec that is decoded there."""
    model = made(Llama, hidden=128)
    model.layers[0].gate_proj.weight.data.view(-1)[:] = torch.randn(64).bfloat16().repeat(128 * 384 // 64)
    saved(model, tmp_path / "model")
    tpde.compress(tmp_path / "model", tmp_path / "out", base="none", codec="zstd", progress=False)
    other = without_data(Llama, {"hidden": 128})
    tpde.load_into(other, tmp_path / "out", device="cpu", reserve=0)
    assert_same_bits(other(tokens()).detach(), model(tokens()).detach())
