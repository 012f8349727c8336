"""Block masks from arrays on a device: what `flashcupy.blocks.build` is for arrays on the host.

Shapes and dtypes are checked before anything is launched. Values are out of reach: kernels leave out what is no block.
"""

from __future__ import annotations

import re
from typing import Any

from flashcupy import arrays
from flashcupy.blocks.grid import INT32_MAX, Grid, batch_and_heads, check_count
from flashcupy.blocks.host import check_shape
from flashcupy.blocks.lists import BlockLists
from flashcupy.cuda.device import Device, runtime
from flashcupy.cuda.device_lists import DeviceLists
from flashcupy.cuda.mask_buffers import DeviceBuffers
from flashcupy.cuda.mask_plan import Kind, Source, dims_of
from flashcupy.cuda.operands import Layout
from flashcupy.errors import NotWarmedUpError, UnsupportedError
from flashcupy.metadata import broadcasts

Array = Any

_INTEGERS = ("int32", "int64")
_SCORES = (*arrays.FLOAT_DTYPES, *_INTEGERS)
_WANTED = {
    ("bool",): "bool (True = visible)",
    _INTEGERS: "int32 or int64",
    _SCORES: f"one of {', '.join(_SCORES)}",
}


def device_named(name: str) -> Device:
    """Return the device called "cuda" or "cuda:n".

    Raises
    ------
    ValueError
        If there is none.
    """
    named = re.fullmatch(r"cuda(?::(\d+))?", name)
    if named is None:
        raise ValueError(f"device must be None, 'cpu' or a CUDA device such as 'cuda:0', got {name!r}")
    number, count = int(named[1] or 0), runtime().count()
    if number >= count:
        there = f"there are {count}" if count else "there is none, or no driver that CuPy can use"
        raise ValueError(f"device is {name!r}, expected a CUDA device: {there}")
    return runtime().device(number)


def empty(device: str, grid: Grid, capacity: int, partial_capacity: int, transposed: bool) -> DeviceBuffers:
    """Make a mask that lists nothing, at fixed addresses."""
    own = device_named(device)
    with own.scope():
        if own.is_capturing():
            raise NotWarmedUpError(
                "a block_mask of fixed addresses cannot be made while a graph is captured: make it before the capture"
            )
        return DeviceBuffers(own, grid, capacity, partial_capacity, transposed=transposed, fixed=True)


def upload(lists: BlockLists, device: str, *, transposed: bool = False) -> DeviceLists:
    """Copy lists of the host to a device, and wait: calls on any stream may use them.

    Raises
    ------
    NotWarmedUpError
        While a graph is captured.
    """
    own = device_named(device)
    with own.scope():
        if own.is_capturing():
            raise NotWarmedUpError(
                "lists of a block_mask would have to be copied to the device, which a graph that is captured does not "
                "permit: make the mask there, and call flashcupy.warmup with it, before the capture"
            )
        copies = DeviceLists.from_host(own, lists, transposed=transposed)
        own.synchronize()
        return copies


def from_blocks(out: DeviceBuffers | None, blocks: Any, shape: Any, block_size: Any) -> DeviceBuffers:
    """Build a mask from bool (..., nq, nk)."""
    table = _read("blocks", blocks, ("bool",))
    grid = Grid.make(shape, block_size, *batch_and_heads("blocks", table.shape[:-2]))
    check_shape("blocks", table, (*table.shape[:-2], grid.nq, grid.nk))
    return _build(out, "blocks", grid, {"blocks": table}, capacity=grid.cells)


def from_ids(out: DeviceBuffers | None, ids: Any, shape: Any, counts: Any, block_size: Any) -> DeviceBuffers:
    """Build a mask from block ids (..., nq, K) in any order, negative where unused."""
    table = _read("ids", ids, _INTEGERS)
    grid = Grid.make(shape, block_size, *batch_and_heads("ids", table.shape[:-2]))
    check_shape("ids", table, (*table.shape[:-2], grid.nq, *table.shape[-1:]))
    operands = {"ids": table}
    if counts is not None:
        operands["counts"] = _read("counts", counts, _INTEGERS)
        check_shape("counts", operands["counts"], table.shape[:-1])
    slots = table.shape[-1]
    return _build(out, "ids", grid, operands, capacity=grid.rows * min(slots, grid.nk), slots=slots)


def from_topk(
    out: DeviceBuffers | None, scores: Any, k: Any, shape: Any, block_size: Any, allowed: Any, include: Any
) -> DeviceBuffers:
    """Build a mask of the k best of `scores` (..., nq, nk) in each row."""
    table = _read("scores", scores, _SCORES)
    grid = Grid.make(shape, block_size, *batch_and_heads("scores", table.shape[:-2]))
    check_shape("scores", table, (*table.shape[:-2], grid.nq, grid.nk))
    k = min(check_count("k", k), INT32_MAX)
    operands = {"scores": table}
    for name, flags in (("allowed", allowed), ("include", include)):
        if flags is not None:
            operands[name] = _read(name, flags, ("bool",))
            if not broadcasts(operands[name].shape, table.shape):
                got = operands[name].shape
                raise ValueError(f"{name} must broadcast to the shape {table.shape} of scores, got {got}")
    return _build(out, "topk", grid, operands, capacity=grid.rows * min(k, grid.nk), k=k)


def from_dense(out: DeviceBuffers | None, mask: Any, block_size: Any) -> DeviceBuffers:
    """Build a mask from bool (..., Sq, Sk)."""
    table = _read("mask", mask, ("bool",))
    if table.ndim < 2:
        raise ValueError(f"mask must be (..., Sq, Sk), got shape {table.shape}")
    grid = Grid.make(table.shape[-2:], block_size, *batch_and_heads("mask", table.shape[:-2]))
    return _build(out, "dense", grid, {"mask": table}, capacity=grid.cells, partial_capacity=grid.cells)


def _read(name: str, array: Any, dtypes: tuple[str, ...]) -> Array:
    if not arrays.in_device_memory(array):
        raise ValueError(f"{name} is in host memory, expected it on the device of the other arrays and of out")
    result, _ = arrays.read(array, name)
    if result.dtype.name not in dtypes:
        raise TypeError(f"{name} must be {_WANTED[dtypes]}, got dtype {result.dtype}")
    return result


def _build(
    out: DeviceBuffers | None,
    kind: Kind,
    grid: Grid,
    operands: dict[str, Array],
    *,
    capacity: int,
    partial_capacity: int = 0,
    **numbers: int,
) -> DeviceBuffers:
    device = _common_device(operands)
    if out is not None:
        _require_fits(out, device, grid)
    if grid.rows > INT32_MAX or partial_capacity > INT32_MAX:
        raise UnsupportedError(
            f"a mask of {grid.rows} rows and {partial_capacity} patterns cannot be built on a device"
        )
    layouts = {name: Layout.of(x, dims_of(name), runtime().pointer(x)) for name, x in operands.items()}
    with device.scope():
        buffers = out or DeviceBuffers(device, grid, capacity, partial_capacity, transposed=True, fixed=False)
        buffers.write(Source(kind, layouts, numbers), operands)
    return buffers


def _common_device(operands: dict[str, Array]) -> Device:
    first, *_ = operands.values()
    device = runtime().device_of(first)
    for name, array in operands.items():
        other = runtime().device_of(array)
        if other is not device:
            raise ValueError(f"{name} is on {other.name}, expected {device.name}, where the other arrays are")
    return device


def _require_fits(out: DeviceBuffers, device: Device, grid: Grid) -> None:
    if out.device is not device:
        raise ValueError(f"out is on {out.device.name}, expected {device.name}, where the arrays are")
    if out.grid != grid:
        raise ValueError(
            f"out must be a mask of shape {grid.shape} and block_size {grid.block_size}, "
            f"got {out.grid.shape} and {out.grid.block_size}"
        )
