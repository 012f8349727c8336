"""Forward: tiles with an online softmax (Milakov and Gimelshein 2018; Dao 2023), O(S) memory.

The running maximum is replaced by a running *reference*: any value near the row's maximum serves, since it cancels.
It is set from a few scores of the first tile and moves only when a tile's row sum shows that scores have grown far
beyond it, so that most tiles need neither a maximum nor a subtraction of their own.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from flashcupy.cpu.arithmetic import Arithmetic, arithmetic
from flashcupy.cpu.heads import Cells, Heads
from flashcupy.cpu.plan import Task, TaskPlan
from flashcupy.cpu.schedule import Tile
from flashcupy.cpu.scores import Dropout, Factors, Scores, TileBuffers, mask_bits, pack, without_hidden
from flashcupy.cpu.threads import Turnstile, run_tasks
from flashcupy.spec import AttentionProblem

# Keys whose scores set the first reference of a row. Too few only make the slow path more frequent, never wrong.
_SAMPLE = 16
# Scores in a tile from which on that sample costs less than the maximum and the subtraction it saves (measured).
_LEAST_SETTLED = 1 << 16


class Kept(NamedTuple):
    """What a forward leaves for its backward, both (..., H, Sq).

    ``lse`` in float64: rounded to float32, lse = 8 alone would put an error of 2e-7 on all of P. ``reference`` in
    units, as the scores were taken relative to it: with the same one the backward computes the very P that made the
    output, and their rounding errors cancel in dP - delta. None where the output was computed elsewhere.
    """

    lse: np.ndarray
    reference: np.ndarray | None


def kept_from_lse(lse: np.ndarray) -> Kept:
    return Kept(lse, None)


def forward(problem: AttentionProblem, out: np.ndarray, lse: np.ndarray, keep: bool) -> Kept | None:
    """Compute attention into `out` (..., H, Sq, Dv) and `lse` (..., H, Sq), shaped as the caller sees them."""
    kept = Kept(np.empty(lse.shape, np.float64), np.zeros(lse.shape, lse.dtype)) if keep else Kept(lse, None)
    _fill_unvisited(problem, out, kept.lse)
    plan = TaskPlan(problem)
    tasks = plan.forward()

    def run(index: int, _: Turnstile) -> None:
        with np.errstate(all="ignore"):
            _run(problem, plan, tasks[index], out, kept)

    run_tasks(run, len(tasks))
    if not keep:
        return None
    with np.errstate(over="ignore"):
        lse[...] = kept.lse
    return kept


def _fill_unvisited(problem: AttentionProblem, out: np.ndarray, lse: np.ndarray) -> None:
    """Rows outside every used sequence see no key; rows inside are all written by their tasks."""
    if problem.q_lengths is None and problem.cu_seqlens_q is None:
        return
    out[...] = 0
    with np.errstate(over="ignore"):
        lse[...] = -np.inf if problem.sinks is None else np.asarray(problem.sinks, np.float64)[:, None]


def _run(problem: AttentionProblem, plan: TaskPlan, task: Task, out: np.ndarray, kept: Kept) -> None:
    arith = arithmetic(problem.spec.dtype)
    sequence = task.sequence
    keys, values = (pack(task.key_rows(problem, x), arith.dtype) for x in (problem.k, problem.v))
    buffers = TileBuffers(1, arith.dtype)
    targets = [problem.heads(x, sequence.batch) for x in (out, *(x[..., None] for x in kept if x is not None))]
    for q_heads in task.stacks:
        schedule = plan.schedule(sequence, q_heads.start)
        for cells in schedule.stacks(Heads.of(problem, sequence, q_heads, task.kv_heads), task.blocks(schedule)):
            rows = _Rows(problem, arith, cells, buffers)
            for tile in schedule.tiles(cells):
                rows.visit(tile, buffers.take(0, keys, tile.columns), buffers.take(1, values, tile.columns))
            for target, result in zip(
                targets, rows.finish(), strict=False
            ):  # without the reference if that is not kept
                cells.store(target, result)


class _Rows:
    """Running softmax of a stack of cells.

    ``total`` is the sum over the keys seen of exp(score - reference) * [value, 1], scores and reference in units. A
    row that has seen no key has reference -inf; while any row has, tiles take the exact path.
    """

    def __init__(self, problem: AttentionProblem, arith: Arithmetic, cells: Cells, buffers: TileBuffers) -> None:
        self._arith, self._cells, self._buffers = arith, cells, buffers
        factors = Factors.of(problem, arith)
        self._survivors = arith.dtype.type(factors.survivors)
        self._scores = Scores(problem, arith, cells)
        self._dropout = Dropout.of(problem, arith, cells)
        self._q = pack(cells.rows(cells.heads.q), arith.dtype, last=0.0, factor=factors.query)
        self._total = np.zeros((*cells.shape, problem.spec.v_dim + 1), arith.dtype)
        self._reference = np.full(cells.shape, -np.inf, arith.dtype)
        self._settled = False

    def visit(self, tile: Tile, keys: np.ndarray, values: np.ndarray) -> None:
        keep = self._scores.keep_bits(tile)
        values = without_hidden(values, self._cells.keys_seen(tile.columns_seen))
        if not self._settled and math.prod(self._cells.shape) * tile.width >= _LEAST_SETTLED:
            self._settle(tile, keys)
        if self._settled:
            p = self._relative_scores(tile, keys)
            mask_bits(self._arith.exp(p, out=p), keep)
            partial = self._weigh(p, tile, values)
            if partial[..., -1].max() <= self._arith.growth_limit:
                self._total += partial
                return
        self._exact(tile, keys, values, keep)

    def finish(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Normalised rows, lse and reference; rows that have seen no key give 0, the sink or -inf, and 0."""
        arith = self._arith
        seen, reference = self._reference != -np.inf, -self._q[..., -1:]
        if self._cells.heads.sinks is not None:
            self._add_sinks(self._cells.heads.sinks * arith.unit)
        sums = self._total[..., -1:]
        out = self._total[..., :-1]
        out /= sums if self._dropout is None else sums / self._survivors
        if not seen.all():
            out[~seen] = 0
        return out, (self._reference[..., None] + arith.log(sums.astype(np.float64))) / arith.unit, reference

    def _add_sinks(self, sinks: np.ndarray) -> None:
        arith = self._arith
        raised = np.maximum(self._reference, sinks.astype(arith.dtype))
        finite = np.where(raised == -np.inf, 0, raised)  # neither a key nor a sink: 0 stays 0
        self._total *= arith.exp(self._reference - finite)[..., None]
        self._total[..., -1] += arith.exp(sinks - finite)
        self._reference = raised

    def _relative_scores(self, tile: Tile, keys: np.ndarray) -> np.ndarray:
        """Scores minus the references (minus 0 where there is none yet)."""
        out = self._buffers.view(0, (*self._cells.shape, tile.width))
        return self._scores.tile(self._q, keys, tile.columns, out)

    def _refer_to(self, reference: np.ndarray) -> None:
        self._reference = reference
        self._q[..., -1] = np.where(reference == -np.inf, 0, -reference)
        self._settled = bool(np.all(reference > -np.inf))

    def _settle(self, tile: Tile, keys: np.ndarray) -> None:
        """Set the references that are still missing from scores that the rows see in this tile."""
        if tile.visible is None:
            columns = tile.columns
            few = columns[..., :_SAMPLE] if isinstance(columns, np.ndarray) else _first(columns, _SAMPLE)
            sample = self._relative_scores(Tile(few, None), keys[:, :_SAMPLE]).max(axis=2)
        elif self._scores.plain:
            sample = self._first_visible(tile.visible, keys)
        else:
            return
        self._refer_to(np.where(self._reference == -np.inf, sample, self._reference))

    def _first_visible(self, visible: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Score of the first key that each row sees, -inf where it sees none."""
        first = visible.argmax(axis=2)
        owner = np.arange(len(self._q)) * len(keys) // len(self._q)
        scores = np.einsum("gnd,gnd->gn", self._q, keys[owner[:, None], first])
        return np.where(np.take_along_axis(visible, first[..., None], axis=2)[..., 0], scores, -np.inf)

    def _exact(self, tile: Tile, keys: np.ndarray, values: np.ndarray, keep: np.ndarray | None) -> None:
        """One step of the online softmax as published: new maximum, rescale what was summed, add."""
        p = self._relative_scores(tile, keys)
        if keep is not None:
            mask_bits(p, keep)
            minus_inf = np.array(-np.inf, p.dtype).view(keep.dtype)
            bits = p.view(keep.dtype)
            np.bitwise_or(bits, np.bitwise_and(np.invert(keep), minus_inf), out=bits)
        seen = self._reference != -np.inf
        grown = np.maximum(p.max(axis=2), np.where(seen, 0, -np.inf).astype(p.dtype))
        shift = np.where(grown == -np.inf, 0, grown)
        p -= shift[..., None]
        self._arith.exp(p, out=p)
        self._total *= np.where(seen, self._arith.exp(-shift), 1)[..., None]
        self._total += self._weigh(p, tile, values)
        self._refer_to(np.where(grown == -np.inf, -np.inf, shift - self._q[..., -1]))

    def _weigh(self, p: np.ndarray, tile: Tile, values: np.ndarray) -> np.ndarray:
        """P times [V, 1]; dropout takes entries from P for the product but not for the row sums."""
        grouped = self._cells.grouped(p)
        if self._dropout is None:
            return (grouped @ values).reshape(*self._cells.shape, -1)
        sums = p @ np.ones(tile.width, p.dtype)
        mask_bits(p, self._dropout.keep_bits(tile.columns))
        product = (grouped @ values).reshape(*self._cells.shape, -1)
        product[..., -1] = sums
        return product


def _first(span: slice, count: int) -> slice:
    return slice(span.start, min(span.start + count, span.stop))
