"""Merging attention over parts of the keys, on the device."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from flashcupy.cuda import config
from flashcupy.cuda.device import runtime
from flashcupy.cuda.elementwise import blocks
from flashcupy.cuda.launch import prepare
from flashcupy.cuda.operands import MATRIX, ROWS, Batch, Layout
from flashcupy.cuda.params import CombineParams, Extents, Operand
from flashcupy.cuda.plan import LaunchRecord, Plan

Array = Any


def merge(parts: list[Array], logs: list[Array], target: Array, lse: Array) -> None:
    """Combine outputs (..., Sq, Dv) and lse (..., Sq) of disjoint sets of keys into `target` and `lse`."""
    memory = runtime()
    device = memory.device_of(parts[0])
    arrays = [*parts, *logs, target, lse]
    dims = [MATRIX] * len(parts) + [ROWS] * len(logs) + [MATRIX, ROWS]
    layouts = [
        Layout.of(array, _trailing(array, own), memory.pointer(array)) for array, own in zip(arrays, dims, strict=True)
    ]
    batch = Batch(target.shape[:-3], layouts)
    operands = [batch.operand(layout) for layout in layouts]
    for operand, array in zip(operands, arrays, strict=True):
        operand.data = memory.pointer(array)
    count = len(parts)
    table = np.frombuffer(b"".join(map(bytes, operands[: 2 * count])), np.uint8)
    params = CombineParams(out=operands[-2], lse=operands[-1], parts=count, extents=_extents(batch, target))
    if target.size == 0:
        params.out = Operand()
    slots = ((CombineParams.outs.offset, "outs"), (CombineParams.lses.offset, "lses"))
    elements = math.prod(lse.shape) * max(1, target.shape[-1])
    if elements == 0:
        return
    acc: Literal["float", "double"] = "double" if lse.dtype == np.float64 else "float"
    kernel = config.combine_config(acc)
    host = [("outs", table[: table.size // 2]), ("lses", table[table.size // 2 :])]
    with device.scope():
        launch = LaunchRecord(kernel, blocks(elements, kernel.threads), bytes(params), slots)
        prepare(device, Plan((launch,), {}, 0), host, acc).run(device, {}, host)
        device.keep_until_done(arrays)


def _trailing(array: Array, dims: tuple[str, ...]) -> tuple[str, ...]:
    return dims[len(dims) - min(len(dims), array.ndim) :]


def _extents(batch: Batch, target: Array) -> Extents:
    heads, rows, columns = (1,) * max(0, 3 - target.ndim) + target.shape[-3:]
    result = Extents(heads=heads, rows=rows, columns=max(1, columns))
    result.batch[:] = batch.extents
    return result
