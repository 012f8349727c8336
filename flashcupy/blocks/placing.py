"""Where a mask lives: on the host, or on a device through `flashcupy.cuda.mask_build`, loaded when it is needed."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from flashcupy import arrays
from flashcupy.blocks.buffers import Buffers
from flashcupy.blocks.grid import Grid
from flashcupy.blocks.lists import BlockLists, Lists

if TYPE_CHECKING:
    from flashcupy.cuda.mask_buffers import DeviceBuffers

HOST = arrays.HOST


def builder() -> Any:
    """Return `flashcupy.cuda.mask_build`."""
    return importlib.import_module("flashcupy.cuda.mask_build")


def check_device(device: Any) -> str:
    """Return "cpu", or the name of a CUDA device that is there.

    Raises
    ------
    ValueError
        For anything else.
    """
    name = HOST if device is None else str(device)
    if name == HOST:
        return HOST
    if not name.startswith("cuda"):
        raise ValueError(f"device must be None, 'cpu' or a CUDA device such as 'cuda:0', got {device!r}")
    return builder().device_named(name).name


def placed(lists: BlockLists, device: Any) -> Lists:
    """Return lists on a device: themselves on the host."""
    name = check_device(device)
    return lists if name == HOST else builder().upload(lists, name)


def empty_buffers(
    device: Any, grid: Grid, capacity: int, partial_capacity: int, transposed: bool
) -> Buffers | DeviceBuffers:
    """Make lists of fixed address that list nothing."""
    name = check_device(device)
    if name == HOST:
        return Buffers(grid, capacity, partial_capacity, transposed)
    return builder().empty(name, grid, capacity, partial_capacity, transposed)


def on_device(*sources: Any) -> bool:
    """Whether a mask is to be built on a device: some of its sources are there."""
    return any(source is not None and arrays.in_device_memory(source) for source in sources)
