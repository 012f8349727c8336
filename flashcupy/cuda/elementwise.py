"""Launches of the elementwise kernels."""

from __future__ import annotations

import math

from flashcupy.cuda import config
from flashcupy.cuda.operands import Layout
from flashcupy.cuda.params import Extents, FillParams, Operand, SumBatchParams
from flashcupy.cuda.plan import PlanBuilder

_MOST_BLOCKS = 4096  # the kernels stride over what is left


def blocks(elements: int, threads: int) -> int:
    return min(-(-elements // threads), _MOST_BLOCKS)


def extents(build: PlanBuilder, layout: Layout) -> Extents:
    """Dims of an array whose last dims are heads, rows and columns as far as it has them."""
    named = dict.fromkeys(("head", "row", "column"), 1)
    dims = layout.dims[len(layout.dims) - min(len(layout.dims), len(layout.shape)) :]
    named.update(zip(dims, layout.shape[len(layout.shape) - len(dims) :], strict=True))
    result = Extents(heads=named["head"], rows=named["row"], columns=named["column"])
    result.batch[:] = build.batch.extents_of(layout)
    return result


def fill(build: PlanBuilder, name: str, value: float, *, values: str | None = None) -> None:
    """Set an array to a value, or to one for each head where `values` is an operand of the call."""
    layout = build.layouts[name]
    params = FillParams(target=build.batch.operand(layout), value=value, extents=extents(build, layout))
    slots = [(FillParams.target.offset + Operand.data.offset, name)]
    if values in build.layouts:
        params.values = build.batch.operand(build.layouts[values])
        slots.append((FillParams.values.offset + Operand.data.offset, values))
    build.launch(config.FILL, blocks(math.prod(layout.shape), config.FILL.threads), params, slots)


def sum_batch(build: PlanBuilder, source: str, target: str) -> None:
    """Sum an array of all batch entries over the batch dims that the target broadcasts."""
    to, whole = build.layouts[target], build.batch.extents
    params = SumBatchParams(
        source=build.batch.operand(build.layouts[source]),
        target=build.batch.operand(to),
        extents=extents(build, to),
    )
    own = build.batch.extents_of(to)
    params.summed[:] = tuple(1 if have == extent else extent for have, extent in zip(own, whole, strict=True))
    slots = [
        (SumBatchParams.source.offset + Operand.data.offset, source),
        (SumBatchParams.target.offset + Operand.data.offset, target),
    ]
    build.launch(config.SUM_BATCH, blocks(math.prod(to.shape), config.SUM_BATCH.threads), params, slots)
