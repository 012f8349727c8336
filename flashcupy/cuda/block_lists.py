"""A block mask's lists on a device: copied there at first use, and kept with the mask."""

from __future__ import annotations

from typing import Any

import numpy as np

from flashcupy.block_mask import BlockMask
from flashcupy.cuda.device import Device, runtime
from flashcupy.cuda.launch import keep_for_graph
from flashcupy.cuda.plan import LIST_SLOTS, MaskGrid
from flashcupy.errors import NotWarmedUpError


def mask_grid(mask: BlockMask) -> MaskGrid:
    return MaskGrid(mask.shape[0], mask.shape[1], mask.num_block_rows, mask.num_block_cols, mask.block_size)


def list_addresses(mask: BlockMask, device: Device, *, transposed: bool) -> dict[str, int]:
    """Addresses of the lists by slot name, on `device`."""
    name = "transposed_lists" if transposed else "lists"

    def copy() -> dict[str, Any]:
        if device.is_capturing():
            raise NotWarmedUpError(
                "the block_mask has no copy of its lists on the device yet, and none can be made while a graph is "
                "captured: call flashcupy.warmup with it before"
            )
        lists = (mask.transposed if transposed else mask.lists).trimmed()
        copies = {slot: device.from_host(np.ascontiguousarray(getattr(lists, slot))) for slot in LIST_SLOTS}
        device.synchronize()  # once: calls on other streams use them too
        return copies

    copies = mask.device_copy((device.name, name), copy)
    keep_for_graph(device, copies)
    return {f"{name}.{slot}": runtime().pointer(copies[slot]) for slot in LIST_SLOTS}
