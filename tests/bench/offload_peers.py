"""Other ways to run a model that does not fit, for bench_offload.py. Each is a context in which a model can be run."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from llama_shape import empty_model, put
from offload_measure import Settings, done
from torch import Tensor, nn

from tpde._arena import Arena


class HostWeights:
    """All parameters of a model in one piece of host memory, in the order of its blocks, which can be page-locked.

    tensors: by name; model(): an ordinary model whose parameters these are.
    """

    def __init__(self, s: Settings, resident: nn.Module) -> None:
        self.s = s
        named = dict(resident.named_parameters())
        self.arena = Arena(sum(p.nbytes for p in named.values()) + 1024 * len(named) + (1 << 20))
        self.at: dict[str, int] = {}
        self.tensors: dict[str, Tensor] = {}
        for name, p in named.items():
            at = self.at[name] = self.arena.add([p.detach()])[0]
            self.tensors[name] = self.arena.tensor[at : at + p.nbytes].view(p.dtype).view(p.shape)

    def matrix(self, name: str) -> Tensor:
        return self.tensors[f"{name}.weight"]

    def model(self) -> nn.Module:
        model = empty_model(self.s.shape, self.s.kind)
        for name, tensor in self.tensors.items():
            put(model, name.removesuffix(".weight"), tensor)
        return model

    def of(self, s: Settings) -> HostWeights:
        """The same memory, for models of another kind."""
        other = copy.copy(self)
        other.s = s
        return other

    def pin(self) -> None:
        """Page-locks them, once."""
        if not self.arena.pinned:
            self.arena.seal(True, self.s.device)


def place_others(inner: nn.Module, device: torch.device) -> None:
    """Moves all of a model but its blocks."""
    for name, child in inner.named_children():
        if name != "layers":
            child.to(device)


def on(stream: torch.cuda.Stream | None) -> contextlib.AbstractContextManager[Any]:
    """torch.cuda.stream, which wants a driver for None, too."""
    return contextlib.nullcontext() if stream is None else torch.cuda.stream(stream)


# ---- offloading in bf16 -------------------------------------------------------------


@contextlib.contextmanager
def accelerate_offload(s: Settings, weights: HostWeights) -> Iterator[nn.Module]:
    """accelerate's cpu_offload, from pageable memory, as it is."""
    from accelerate import cpu_offload

    if weights.arena.pinned:
        raise RuntimeError("accelerate comes before the weights are page-locked, which it does not do")
    yield cpu_offload(weights.model(), execution_device=s.device)


@contextlib.contextmanager
def diffusers_blocks(s: Settings, weights: HostWeights) -> Iterator[nn.Module]:
    """diffusers' group offloading with streams and pinned memory: a group is a block.

    lm_head stays in VRAM: where a leaf is a root of its own, diffusers (0.42.1) queues its copy and never waits for it.
    The embedding crosses there and back in each forward, from pageable memory: diffusers gives no stream to what is
    beside the blocks.
    """
    yield _diffusers(s, weights, "block_level")


@contextlib.contextmanager
def diffusers_leaves(s: Settings, weights: HostWeights) -> Iterator[nn.Module]:
    """The same; a group is a layer."""
    yield _diffusers(s, weights, "leaf_level")


def _diffusers(s: Settings, weights: HostWeights, level: str) -> nn.Module:
    from diffusers.hooks import apply_group_offloading

    weights.pin()
    model: Any = weights.model()
    options = {"onload_device": s.device, "offload_device": torch.device("cpu"), "use_stream": s.cuda}
    options |= {"non_blocking": True, "record_stream": s.cuda}
    if level == "leaf_level":
        apply_group_offloading(model, offload_type=level, **options)
    else:
        apply_group_offloading(model.model, offload_type=level, num_blocks_per_group=1, **options)
        model.lm_head.to(s.device)
    return model


class PinnedStream:
    """The best that can be done without compression: blocks lie in pinned memory as they are copied, one copy each, to
    two buffers in turn, on a side stream; events only. lm_head is a block, the embedding stays in VRAM."""

    def __init__(self, s: Settings, weights: HostWeights) -> None:
        weights.pin()
        self.model: Any = weights.model()
        self._cuda, self._arena = s.cuda, weights.arena.tensor
        place_others(self.model.model, s.device)
        names = {id(p): name for name, p in self.model.named_parameters()}
        self._blocks = []
        for block in (*self.model.model.layers, self.model.lm_head):
            places = [(p, weights.at[names[id(p)]], p.shape, p.nbytes) for p in block.parameters()]
            begin = min(at for _, at, _, _ in places)
            end = max(at + size for _, at, _, size in places)
            self._blocks.append((begin, end, [(p, at - begin, shape, size) for p, at, shape, size in places]))
            number = len(self._blocks) - 1
            block.register_forward_pre_hook(lambda *_, number=number: self._before(number))
            block.register_forward_hook(lambda *_: self._after())
        room = max(end - begin for begin, end, _ in self._blocks)
        self._buffers = [torch.empty(room, dtype=torch.uint8, device=s.device) for _ in range(2)]
        self._stream = torch.cuda.Stream(s.device) if s.cuda else None
        self._copied: list[Any] = [None, None]
        self._used: list[Any] = [None, None]
        self._next = 0  # buffer of the block that runs next
        done(s.device)
        self._copy(0, 0)

    def _event(self, stream: Any) -> Any:
        event = torch.cuda.Event()
        event.record(stream)
        return event

    def _copy(self, number: int, buffer: int) -> None:
        begin, end, _ = self._blocks[number]
        with on(self._stream):
            if self._stream is not None and self._used[buffer] is not None:
                self._stream.wait_event(self._used[buffer])
            self._buffers[buffer][: end - begin].copy_(self._arena[begin:end], non_blocking=True)
            if self._stream is not None:
                self._copied[buffer] = self._event(self._stream)

    def _before(self, number: int) -> None:
        buffer = self._next
        self._copy((number + 1) % len(self._blocks), 1 - buffer)
        if self._cuda:
            torch.cuda.current_stream().wait_event(self._copied[buffer])
        for p, at, shape, size in self._blocks[number][2]:
            p.data = self._buffers[buffer][at : at + size].view(torch.bfloat16).view(shape)

    def _after(self) -> None:
        if self._cuda:
            self._used[self._next] = self._event(torch.cuda.current_stream())
        self._next = 1 - self._next


@contextlib.contextmanager
def pinned_stream(s: Settings, weights: HostWeights) -> Iterator[nn.Module]:
    """See PinnedStream."""
    yield PinnedStream(s, weights).model


# ---- everything in VRAM, smaller ------------------------------------------------------


@contextlib.contextmanager
def bitsandbytes_8bit(s: Settings, weights: HostWeights) -> Iterator[nn.Module]:
    """LLM.int8(), lm_head left as it is, as transformers does it."""
    import bitsandbytes as bnb

    def made(weight: Tensor) -> nn.Module:
        out = bnb.nn.Linear8bitLt(weight.shape[1], weight.shape[0], bias=False, has_fp16_weights=False)
        out.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        return out.to(s.device)

    yield _replaced(s, weights, made)


@contextlib.contextmanager
def bitsandbytes_4bit(s: Settings, weights: HostWeights) -> Iterator[nn.Module]:
    """NF4, lm_head left as it is."""
    import bitsandbytes as bnb

    def made(weight: Tensor) -> nn.Module:
        out = bnb.nn.Linear4bit(
            weight.shape[1], weight.shape[0], bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
        )
        out.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
        return out.to(s.device)

    yield _replaced(s, weights, made)


def _replaced(s: Settings, weights: HostWeights, made: Callable[[Tensor], nn.Module]) -> nn.Module:
    model = weights.model()
    for i in range(s.shape.layers):
        for name in s.shape.modules():
            parent, _, child = f"model.layers.{i}.{name}".rpartition(".")
            setattr(model.get_submodule(parent), child, made(weights.matrix(f"{parent}.{child}")))
    return model.to(s.device)


@contextlib.contextmanager
def dfloat11(s: Settings, weights: HostWeights) -> Iterator[nn.Module]:
    """DFloat11's own hook and kernel, a decode per block as in its models of Llama's shape, embedding and lm_head
    included. Its encoder is a loop in Python; dfloat11_encode writes the same bytes."""
    import dfloat11_encode

    hook = dfloat11_encode.decode_hook()
    model: Any = weights.model()
    original = packed = 0
    for name, parts in dfloat11_encode.groups(s.shape).items():
        some = [weights.matrix(f"{name}.{part}" if part else name) for part in parts]
        buffers, shared_bytes = dfloat11_encode.encoded(some, s.device)
        module: Any = model.get_submodule(name)
        original += sum(w.nbytes for w in some)
        packed += sum(b.nbytes for b in buffers.values())
        targets = [module.get_submodule(part) for part in parts if part]
        for target in targets or [module]:
            del target.weight
        for key, buffer in buffers.items():
            module.register_buffer(key, buffer)
        if targets:
            module.weight_injection_modules = targets
            module.split_positions = torch.tensor([w.numel() for w in some]).cumsum(0)[:-1].tolist()
        module.shared_mem_size = shared_bytes
        module.register_forward_pre_hook(hook)
    model.to(s.device)
    model.ratio = original / packed
    try:
        yield model
    finally:
        if "dfloat11.dfloat11" in sys.modules:
            sys.modules["dfloat11.dfloat11"].TensorManager._tensors.clear()  # one buffer per device, kept for ever
