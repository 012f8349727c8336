"""A block mask's lists on a device: its own, or copied there at first use and kept with the mask."""

from __future__ import annotations

from flashcupy.block_mask import BlockMask
from flashcupy.blocks.lists import BlockLists
from flashcupy.cuda.device import Device
from flashcupy.cuda.device_lists import DeviceLists
from flashcupy.cuda.launch import keep_for_graph
from flashcupy.cuda.plan import MaskGrid
from flashcupy.cuda.verdicts import check_mode, is_checking
from flashcupy.errors import NotWarmedUpError


def mask_grid(mask: BlockMask) -> MaskGrid:
    # On the host no capacity is ever exceeded.
    may_overflow = mask.capacity is not None and mask.device != "cpu"
    return MaskGrid(
        mask.shape[0], mask.shape[1], mask.num_block_rows, mask.num_block_cols, mask.block_size, may_overflow
    )


def lists_on(device: Device, mask: BlockMask, *, transposed: bool) -> DeviceLists:
    """The lists that kernels get."""
    if mask.device == device.name and check_mode() == "values" and not device.is_capturing() and not is_checking():
        mask.check()
    lists = mask.transposed if transposed else mask.lists
    if isinstance(lists, BlockLists):
        lists = _copied(mask, lists, device, transposed)
    if not lists.of_graph:
        keep_for_graph(device, lists)
    return lists


def _copied(mask: BlockMask, lists: BlockLists, device: Device, transposed: bool) -> DeviceLists:
    def copy() -> DeviceLists:
        if device.is_capturing():
            raise NotWarmedUpError(
                "the block_mask has no copy of its lists on the device yet, and none can be made while a graph is "
                "captured: call flashcupy.warmup with it before"
            )
        copies = DeviceLists.from_host(device, lists, transposed=transposed)
        device.synchronize()  # once: calls on other streams use them too
        return copies

    return mask.device_copy((device.name, transposed), copy)
