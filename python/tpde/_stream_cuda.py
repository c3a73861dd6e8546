"""The memory of a streamed model on a CUDA device: copies on a stream of their own, decoding on the current one.

The schedule says what waits for what (`_stream_schedule`); here that becomes events. The host waits only when the plan
changes and when somebody asks for figures or failures.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Hashable, Sequence
from typing import Any

import torch

from tpde import _allocator, _core, _cuda, _cuda_base
from tpde._arena import Arena
from tpde._residency import ALIGN, Plan, aligned
from tpde._status import UnsupportedError
from tpde._stream_memory import AnyBase, Memory, base_parts
from tpde._stream_schedule import Item, Move
from tpde.quant import QuantizedTensor


class StreamSlot(_cuda.Slot):
    """What the device holds of a packed weight between two uses: a word of status for each chunk.

    It stands among the slots of `tpde._cuda`, so that `tpde.cuda.synchronize` finds failures. The image of the index,
    which other slots keep on the device, is streamed with the blob.
    """

    def __init__(self, name: str, index_map: torch.Tensor, device: torch.device) -> None:
        self.name = name
        self.prepared = _cuda.Prepared(index_map)
        self.handle = self.prepared.handle
        self.zstd = self.prepared.info["codec"] == _cuda._ZSTD
        self.status = torch.zeros(self.prepared.chunks, dtype=torch.int32, device=device)
        self.status_ptr = self.status.data_ptr()

    def take_image(self) -> torch.Tensor:
        """Returns the image, uint8 in host memory, and forgets it."""
        image, self.prepared.image = self.prepared.image, torch.empty(0, dtype=torch.uint8, device="cpu")
        return image

    def expired(self) -> bool:
        return False  # who made it takes it out


class CudaMemory(Memory):
    """See `Memory`."""

    def __init__(self, device: torch.device, arena: Arena) -> None:
        self._blocks: dict[int, int] = {}  # of torch's allocator, by address
        super().__init__(device, arena)
        self._slots: list[StreamSlot] = []
        self._bases: list[_cuda_base.Base | None] = []
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # Buffers and arena are given back after the last copy is done: the arena is an argument for that.
        self._end = weakref.finalize(self, _end, self._copies, self._slots, arena)

    def _head(self, name: str, index_map: torch.Tensor) -> tuple[torch.Tensor, int]:
        slot = StreamSlot(name, index_map, self.device)
        if slot.zstd:
            raise UnsupportedError(
                f"{name}: is packed with zstd, whose decoder on GPUs takes several times a weight of VRAM; "
                "pack it with another codec"
            )
        self._slots.append(slot)
        self._bases.append(None)
        with _cuda.lock:
            _cuda._slots["stream", id(slot)] = slot
        return slot.take_image(), aligned(slot.status.nbytes)

    def _descriptor_bytes(self, base: AnyBase) -> int:
        return ALIGN if isinstance(base, QuantizedTensor) else 0

    # ---- sizes --------------------------------------------------------------------

    def most_bytes(self, n: int) -> int:
        return _allocator.most_bytes(n)

    def taken_bytes(self, tensor: torch.Tensor, nbytes: int | None = None) -> int:
        nbytes = tensor.nbytes if nbytes is None else nbytes
        most = _allocator.most_bytes(nbytes)
        with contextlib.suppress(NotImplementedError, RuntimeError):  # subclasses without a storage
            storage = tensor.untyped_storage()
            found = self._blocks.get(storage.data_ptr(), 0)
            if storage.nbytes() <= aligned(nbytes) <= found <= most:
                return found
        return most

    def survey(self) -> bool:
        self._blocks = _allocator.blocks(self.device)
        return True

    def fixed_bytes(self) -> int:
        # Ring and buffers are one allocation, which is rounded up as all are.
        rooms = sum(layer.weight_bytes + 2 * layer.record_bytes for layer in self.layers)
        return super().fixed_bytes() + self.most_bytes(rooms) - aligned(rooms)

    # ---- plans --------------------------------------------------------------------

    def _drop_rooms(self) -> None:
        super()._drop_rooms()
        self._streams: dict[int, torch.cuda.Stream] = {}  # that use ring and buffers, by name

    def _rooms_made(self, plan: Plan) -> None:
        if plan.buffer_bytes:
            self._rooms.record_stream(self._copies)

    def _move_base(self, number: int, device: torch.device) -> None:
        before = self.layers[number].base
        super()._move_base(number, device)
        if before is not self.layers[number].base:
            self._bases[number] = None
            for part in base_parts(before):  # another tensor may get the address
                self._blocks.pop(part.untyped_storage().data_ptr(), None)

    # ---- weights ------------------------------------------------------------------

    def _base(self, number: int) -> _cuda_base.Base:
        """The base of a layer as kernels read it. Its descriptor, if it has one, lives as long as it does."""
        found = self._bases[number]
        if found is None:
            base = self.layers[number].base
            if isinstance(base, QuantizedTensor):
                made = _cuda_base.Descriptor(base)
                found = _cuda_base.Base(made.pointer, _cuda_base._QUANTISED, (base, made))
            elif base is None:
                found = _cuda_base.Base(0, 0, None)
            else:
                base = base.contiguous()
                found = _cuda_base.Base(base.data_ptr(), 0, base)
            self._bases[number] = found
        return found

    def _decode(self, items: Sequence[tuple[int, torch.Tensor, torch.Tensor]]) -> None:
        self._launch([(number, out.data_ptr(), record.data_ptr()) for number, out, record in items])

    def _decode_items(self, buffer: int | None, items: Sequence[Item]) -> None:
        ring = self.ring.data_ptr()
        filled = 0 if buffer is None else self.buffers[buffer].data_ptr()
        todo = []
        for number, to, source in items:
            if source is None:
                resident = self.resident[number]
                assert resident is not None
                todo.append((number, ring + to, resident.data_ptr()))
            else:
                todo.append((number, ring + to, filled + source))
        self._launch(todo)

    def _launch(self, todo: Sequence[tuple[int, int, int]]) -> None:
        """Rebuilds layers to addresses, from the addresses of their records. One launch for each kind of kernel."""
        items = []
        for number, to, record in todo:
            slot, base = self._slots[number], self._base(number)
            blob = record + self.layers[number].blob_at
            items.append((slot.handle, base.pointer, to, blob, record, slot.status_ptr, base.flags))
        with torch.cuda.device(self.device.index):
            _core.gpu_core().gpu_reconstruct(items, 0, 0, _cuda.stream(self.device.index))

    # ---- Backend ------------------------------------------------------------------
    # Dozens of calls a pass go through here: torch's current_stream, and its contexts, take longer than CUDA does.

    def queue(self) -> int:
        name: int = _cuda.stream(self.device.index)
        if name not in self._streams:
            self._streams[name] = torch.cuda.current_stream(self.device)
            if self._rooms.numel():
                self._rooms.record_stream(self._streams[name])
        return name

    def copy(self, buffer: int, moves: Sequence[Move]) -> None:
        before = self._stream(False)
        with torch.cuda.device(self.device.index):
            torch.cuda.set_stream(self._copies)
            try:
                super().copy(buffer, moves)
            finally:
                torch.cuda.set_stream(before)

    def record(self, copies: bool, queue: Hashable = None) -> Any:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream(copies, queue))
        return event

    def wait(self, copies: bool, mark: Any) -> None:
        self._stream(copies).wait_event(mark)

    def _stream(self, copies: bool, queue: Hashable = None) -> torch.cuda.Stream:
        if copies:
            return self._copies
        return self._streams[self.queue() if queue is None else queue]  # type: ignore[index]

    # ---- time and end ---------------------------------------------------------------

    def capturing(self) -> bool:
        return torch.cuda.is_current_stream_capturing()

    def map_host(self, table: torch.Tensor) -> torch.Tensor | None:
        if not self.arena.pinned or not table.numel():
            return None
        # What is page-locked has the same address on the device. torch takes a foreign address as this interface.
        with contextlib.suppress(RuntimeError, TypeError, ValueError), torch.cuda.device(self.device):
            seen = torch.as_tensor(_Foreign(table), device=self.device)
            if seen.data_ptr() == table.data_ptr():
                return seen.view(table.dtype).view(table.shape)
        return None

    def wait_for_all(self) -> None:
        torch.cuda.synchronize(self.device)

    def check(self) -> None:
        torch.cuda.synchronize(self.device)
        for slot in self._slots:  # one by one: gathering the words first would take memory of the device
            if slot.status.cpu().any():
                for failure in slot.failures():
                    raise failure

    def stamp(self, copies: bool) -> Any:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self._stream(copies))
        return event

    def seconds(self, begin: Any, end: Any) -> float:
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def close(self) -> None:
        self._end()
        self._bases.clear()
        super().close()


class _Foreign:
    """Memory of a contiguous tensor in host memory as bytes on a device."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor  # keeps the memory
        data = tensor.data_ptr(), False
        self.__cuda_array_interface__ = {"shape": (tensor.nbytes,), "typestr": "|u1", "data": data, "version": 2}


def _end(copies: Any, slots: list[StreamSlot], arena: Arena) -> None:
    with contextlib.suppress(Exception):  # the process may be ending, CUDA with it
        copies.synchronize()
    with _cuda.lock:
        for slot in slots:
            _cuda._slots.pop(("stream", id(slot)), None)
    slots.clear()
