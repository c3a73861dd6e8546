"""What torch's caching allocator takes of a CUDA device for a tensor, which is what a budget has to pay for.

It rounds requests up to 512 bytes. A request for more than 1 MiB may get a block that is up to 1 MiB larger: a block is
only split if more than that is left. How large a block is, a snapshot tells once it is there.
"""

from __future__ import annotations

import torch

from tpde._residency import aligned

UNSPLIT = 1 << 20
"""What the allocator may leave unused of a block, and the size up to which it does not."""


def most_bytes(n: int) -> int:
    """Returns what a request for n bytes takes at most, with the allocator's default settings."""
    return aligned(n) + (UNSPLIT if n > UNSPLIT else 0)


def blocks(device: torch.device) -> dict[int, int]:
    """Returns the sizes of all blocks that are in use on a device, by address. Waits for nothing."""
    found: dict[int, int] = {}
    for segment in torch.cuda.memory_snapshot():  # type: ignore[no-untyped-call]
        if segment["device"] != device.index:
            continue
        address = segment["address"]
        for block in segment["blocks"]:
            address = block.get("address", address)
            if block["state"].startswith("active"):
                found[address] = block["size"]
            address += block["size"]
    return found
