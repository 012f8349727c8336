"""Backward: P is recomputed from lse tile by tile (Dao et al. 2022, algorithm 4), five products a tile, O(S) memory.

A task walks some rows of one query head with sums of its own and adds them to the call's in task order, so that the
result does not depend on how threads were scheduled. Only a dbias that several tasks share is added tile by tile.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import nullcontext

import numpy as np

from flashcupy.arrays import accumulator
from flashcupy.cpu.arithmetic import Arithmetic, arithmetic
from flashcupy.cpu.forward import Kept
from flashcupy.cpu.heads import Block, Cells, Columns, Heads
from flashcupy.cpu.plan import Task, TaskPlan
from flashcupy.cpu.schedule import Tile
from flashcupy.cpu.scores import Dropout, Factors, Scores, TileBuffers, mask_bits, pack, without_hidden
from flashcupy.cpu.threads import Turnstile, run_tasks
from flashcupy.spec import AttentionProblem

Grads = Mapping[str, np.ndarray]


class Upstream:
    """What the backward gets besides the problem: what the forward left, and the gradients flowing in."""

    def __init__(self, out: np.ndarray, kept: Kept, dout: np.ndarray, dlse: np.ndarray | None) -> None:
        self.out, self.dout, self.lse = out, dout, kept.lse[..., None]
        self.reference = None if kept.reference is None else kept.reference[..., None]
        self.dlse = None if dlse is None else dlse[..., None]


def backward(
    problem: AttentionProblem,
    out: np.ndarray,
    kept: Kept,
    dout: np.ndarray,
    dlse: np.ndarray | None,
    grads: Grads,
    deterministic: bool,
) -> None:
    """Compute the gradients named by the keys of `grads` ("q", "k", "v", "bias", "sinks") into its arrays."""
    upstream = Upstream(out, kept, dout, dlse)
    sums = _Sums(problem, grads)
    plan = TaskPlan(problem)
    tasks = plan.backward()

    def run(index: int, turnstile: Turnstile) -> None:
        with np.errstate(all="ignore"):
            worker = _Worker(problem, plan, tasks[index], upstream, sums)
            worker.run()
            with turnstile.turn(index):
                worker.deliver()

    run_tasks(run, len(tasks), serial=deterministic and sums.dbias_is_shared)
    with np.errstate(all="ignore"):
        sums.store()


class _Sums:
    """Gradient sums of the whole call in the accumulation dtype, each in its input's own shape."""

    def __init__(self, problem: AttentionProblem, grads: Grads) -> None:
        self._problem, self._grads = problem, grads
        self.dtype = accumulator(problem.spec.dtype)
        self._arrays = {name: self._zeros(array) for name, array in grads.items() if name != "sinks"}
        # d sinks is a sum over rows: each row's share is kept and summed at the end, in one order.
        self.sink_rows = np.zeros((*problem.spec.lse_shape, 1), self.dtype) if "sinks" in grads else None
        self.dbias_is_shared = "bias" in grads and self._is_shared(grads["bias"])
        self._dbias_lock = threading.Lock() if self.dbias_is_shared else nullcontext()

    def wants(self, *names: str) -> bool:
        return any(name in self._grads for name in names)

    def array(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def add_dbias(self, cells: Cells, columns: Columns, ds: np.ndarray) -> None:
        for place, block, own in cells.pieces(columns):
            self._add_dbias(cells.heads, block, own, ds[place])

    def _add_dbias(self, heads: Heads, block: Block, columns: Columns, ds: np.ndarray) -> None:
        dbias = self._problem.score_heads(self._arrays["bias"], heads.sequence.batch)
        where = heads.q_heads, slice(*block), columns
        broadcast = tuple(axis for axis in range(3) if dbias.shape[axis] == 1)
        index = tuple(slice(None) if axis in broadcast else where[axis] for axis in range(3))
        ds = ds.sum(axis=broadcast, keepdims=True)
        with self._dbias_lock:
            dbias[index] += ds

    def store(self) -> None:
        for name, array in self._arrays.items():
            if array is not self._grads[name]:
                self._grads[name][...] = array
        if self.sink_rows is not None:
            heads = self.sink_rows[None] if self._problem.spec.headless else self.sink_rows
            self._grads["sinks"][...] = heads.sum(axis=tuple(a for a in range(heads.ndim) if a != heads.ndim - 3))

    def _zeros(self, array: np.ndarray) -> np.ndarray:
        """The output itself where it can hold the sums."""
        sums = array if array.dtype == self.dtype else np.empty(array.shape, self.dtype)
        sums[...] = 0
        return sums

    def _is_shared(self, dbias: np.ndarray) -> bool:
        spec = self._problem.spec
        target = (*spec.batch, spec.q_heads, spec.q_len)
        own = (1,) * (len(target) + 1 - dbias.ndim) + dbias.shape[:-1]
        return own != target


class _Worker:
    """One task: rows of one stack of heads against all keys they visit."""

    def __init__(self, problem: AttentionProblem, plan: TaskPlan, task: Task, upstream: Upstream, sums: _Sums) -> None:
        self._problem, self._task, self._upstream, self._sums = problem, task, upstream, sums
        self._arith = arithmetic(problem.spec.dtype)
        self._heads = Heads.of(problem, task.sequence, task.stacks[0], task.kv_heads)
        self._schedule = plan.schedule(task.sequence, self._heads.q_heads.start)
        self._keys, self._values = (pack(task.key_rows(problem, x), self._arith.dtype) for x in (problem.k, problem.v))
        self._dk, self._dv = (np.zeros_like(packed[..., :-1], order="C") for packed in (self._keys, self._values))
        self._dq: list[tuple[Cells, np.ndarray]] = []
        self._factors = Factors.of(problem, self._arith)
        self._buffers = TileBuffers(3 if problem.spec.softcap else 2, self._arith.dtype)

    def run(self) -> None:
        for cells in self._schedule.stacks(self._heads, self._task.blocks(self._schedule)):
            rows = _Rows(self._problem, self._upstream, self._factors, cells, self._arith)
            for tile in self._schedule.tiles(cells):
                self._visit(rows, tile)
            self._dq.append((cells, rows.dq))
            if self._sums.sink_rows is not None:
                cells.store(self._query_heads(self._sums.sink_rows), rows.dsink()[..., None])

    def deliver(self) -> None:
        """Add this task's sums to the call's; called in task order, one at a time."""
        for cells, dq in self._dq if self._sums.wants("q") else ():
            cells.add(self._query_heads(self._sums.array("q")), dq * self._arith.dtype.type(self._factors.dq))
        if self._sums.wants("k"):
            self._dk *= self._arith.dtype.type(self._factors.dk)
            target = self._task.key_rows(self._problem, self._sums.array("k"))
            target += self._dk
        if self._sums.wants("v"):
            if self._problem.spec.dropout:
                self._dv *= self._arith.dtype.type(self._factors.survivors)
            target = self._task.key_rows(self._problem, self._sums.array("v"))
            target += self._dv

    def _query_heads(self, array: np.ndarray) -> np.ndarray:
        return self._problem.heads(array, self._task.sequence.batch)

    def _visit(self, rows: _Rows, tile: Tile) -> None:
        keep, grouped = rows.scores.keep_bits(tile), rows.cells.grouped
        keys = self._buffers.take(0, self._keys, tile.columns)
        values = self._buffers.take(1, self._values, tile.columns)
        shape, gain = (*rows.cells.shape, tile.width), None
        if self._problem.spec.softcap is not None:
            gain = self._buffers.view(2, shape)
        p = self._buffers.view(0, shape)
        rows.scores.tile(rows.q, keys, tile.columns, p, gain)
        mask_bits(self._arith.exp(p, out=p), keep)
        if gain is not None:
            mask_bits(gain, keep)
        drop = None if rows.dropout is None else rows.dropout.keep_bits(tile.columns)
        seen = tile.rows_seen
        rows.see(seen)
        if self._sums.wants("q", "k", "bias"):
            ds = self._dscores(rows, p, values, keep, drop)
            self._spread(rows, tile, ds, keys, gain)
        if self._sums.wants("v"):
            mask_bits(p, drop)
            dv = grouped(p).mT @ grouped(without_hidden(rows.dout, seen))[..., :-1]
            add_columns(self._dv, rows.cells, tile.columns, dv)

    def _dscores(
        self, rows: _Rows, p: np.ndarray, values: np.ndarray, keep: np.ndarray | None, drop: np.ndarray | None
    ) -> np.ndarray:
        """dS = P * (dP - delta); the packed last columns deliver dP - delta in one product."""
        ds, grouped = self._buffers.view(1, p.shape), rows.cells.grouped
        if drop is None:
            np.matmul(grouped(rows.dout), values.mT, out=grouped(ds))
        else:
            np.matmul(grouped(rows.dout)[..., :-1], values[..., :-1].mT, out=grouped(ds))
            mask_bits(ds, drop)
            ds *= ds.dtype.type(self._factors.survivors)
            ds += rows.dout[..., -1:]
        ds *= p
        mask_bits(ds, keep)
        return ds

    def _spread(
        self,
        rows: _Rows,
        tile: Tile,
        ds: np.ndarray,
        keys: np.ndarray,
        gain: np.ndarray | None,
    ) -> None:
        """Add what dS contributes to dbias, dq and dk."""
        grouped = rows.cells.grouped
        if self._sums.wants("bias"):
            self._sums.add_dbias(rows.cells, tile.columns, ds)
        if gain is not None:
            ds *= gain
        if self._sums.wants("q"):
            keys = without_hidden(keys, rows.cells.keys_seen(tile.columns_seen))
            rows.dq += (grouped(ds) @ keys[..., :-1]).reshape(rows.dq.shape)
        if self._sums.wants("k"):
            dk = grouped(ds).mT @ grouped(without_hidden(rows.q, tile.rows_seen))[..., :-1]
            add_columns(self._dk, rows.cells, tile.columns, dk)


class _Rows:
    """Packed operands of a stack of cells: [q * factor, -reference] and [dout, -delta] * exp(reference - lse).

    A factor on a whole row of P is one on that row of dS and of P^T dout, so it may sit on the packed dout instead, and
    the reference is free. The forward's is best, see `Kept`. Without it, halfway between lse and lse - log(keys) the
    arguments of the exponential are small whether attention is spread or sharp, and with them their rounding errors.
    What the reference loses when it is itself rounded goes into the factor.
    """

    def __init__(
        self, problem: AttentionProblem, upstream: Upstream, factors: Factors, cells: Cells, arith: Arithmetic
    ) -> None:
        def rows(array: np.ndarray) -> np.ndarray:
            return cells.rows(problem.heads(array, cells.heads.sequence.batch))

        self.cells = cells
        self.scores = Scores(problem, arith, cells)
        self.dropout = Dropout.of(problem, arith, cells)
        self._lse = rows(upstream.lse)[..., 0].astype(np.float64)
        self.q = pack(cells.rows(cells.heads.q), arith.dtype, factor=factors.query)
        lse = np.where(self._lse == -np.inf, 0, self._lse)
        if upstream.reference is not None:
            self.q[..., -1:] = -rows(upstream.reference)
        else:
            self.q[..., -1] = (0.5 * np.log(max(1, cells.heads.sequence.k_len)) - lse) * arith.unit
        self.dout = pack(rows(upstream.dout), arith.dtype)
        # In float64: where a row sees few keys dP - delta is pure cancellation, and delta's error all that is left.
        self._minus_delta = -np.multiply(self.dout[..., :-1], rows(upstream.out), dtype=np.float64).sum(axis=-1)
        if upstream.dlse is not None:
            self._minus_delta += rows(upstream.dlse)[..., 0]
        self.dout[..., -1] = self._minus_delta
        self.dout *= arith.exp(-self.q[..., -1] - lse * arith.unit).astype(arith.dtype)[..., None]
        self.dq = np.zeros((*cells.shape, problem.spec.head_dim), arith.dtype)
        self._seen = np.zeros(cells.shape, np.bool_)

    def see(self, seen: np.ndarray | None) -> None:
        """Note the rows that saw a key in a tile; None is all."""
        self._seen |= True if seen is None else seen

    def dsink(self) -> np.ndarray:
        """Each row's share of the sink's gradient: exp(sink - lse) * (-delta), 0 through rows that see no key."""
        sinks = self.cells.heads.sinks
        assert sinks is not None
        return np.where(self._seen, np.exp(sinks - self._lse) * self._minus_delta, 0)


def add_columns(sums: np.ndarray, cells: Cells, columns: Columns, parts: np.ndarray) -> None:
    """Add (stacks of keys, columns, X) to the rows of `sums` (key/value heads, keys, X) that the columns stand for.

    Cells with columns of their own may share a key: they are added one after the other.
    """
    for place, _, own in cells.pieces(columns):
        sums[:, own] += parts[place]
