"""A score for each block of query rows by keys, on the host."""

from __future__ import annotations

import numpy as np

from flashcupy.arrays import accumulator
from flashcupy.cpu import schedule
from flashcupy.cpu.arithmetic import arithmetic
from flashcupy.cpu.forward import Kept, forward
from flashcupy.cpu.heads import Block, Cells, Heads
from flashcupy.cpu.plan import Task, TaskPlan
from flashcupy.cpu.schedule import BandSchedule, Tile, cut_rows
from flashcupy.cpu.scores import Factors, Scores, TileBuffers, mask_bits, pack
from flashcupy.cpu.threads import Turnstile, run_tasks
from flashcupy.spec import AttentionProblem


def pooled_scores(problem: AttentionProblem, block_size: tuple[int, int], target: np.ndarray) -> None:
    """Compute scale * mean(q rows of a block) . mean(k rows of a block) into `target` (..., H, nq, nk)."""
    spec = problem.spec
    acc = accumulator(spec.dtype)

    def run(index: int, _: Turnstile) -> None:
        batch, kv_head = divmod(index, spec.kv_heads)
        q_heads = slice(kv_head * spec.group, (kv_head + 1) * spec.group)
        queries = _block_means(problem.heads(problem.q, batch)[q_heads], block_size[0])
        keys = _block_means(problem.heads(problem.k, batch)[kv_head], block_size[1])
        with np.errstate(all="ignore"):
            queries *= spec.scale
            problem.heads(target, batch)[q_heads] = queries.astype(acc) @ keys.astype(acc).mT

    run_tasks(run, spec.batch_size * spec.kv_heads)


def _block_means(rows: np.ndarray, block: int) -> np.ndarray:
    """Means of (..., S, D) over blocks of rows, the last of which may be ragged: float64 (..., blocks, D)."""
    *lead, length, columns = rows.shape
    whole = length // block
    means = np.empty((*lead, -(-length // block), columns))
    with np.errstate(all="ignore"):
        # Rows cut into blocks are a view, whatever their strides.
        split = rows[..., : whole * block, :].reshape(*lead, whole, block, columns)
        np.mean(split, axis=-2, dtype=np.float64, out=means[..., :whole, :])
        if length % block:
            np.mean(rows[..., whole * block :, :], axis=-2, dtype=np.float64, out=means[..., whole, :])
    return means


def block_mass(problem: AttentionProblem, block_size: tuple[int, int], target: np.ndarray) -> None:
    """Compute softmax weights summed by block into `target` (..., H, nq, nk): a forward, and a second pass."""
    spec = problem.spec
    acc = accumulator(spec.dtype)
    kept = forward(problem, np.empty(spec.out_shape(0), acc), np.empty(spec.lse_shape, acc), keep=True)
    assert kept is not None
    target[...] = 0
    # A task has whole blocks of rows, so that no two add to one block.
    whole = max(block_size[0], schedule.BLOCK_ROWS // block_size[0] * block_size[0])
    plan = TaskPlan(problem, whole)
    tasks = plan.forward()

    def run(index: int, _: Turnstile) -> None:
        with np.errstate(all="ignore"):
            _MassTask(problem, kept, block_size, tasks[index]).run(plan, target)

    run_tasks(run, len(tasks))


class _MassTask:
    """Strips of rows of one sequence, each some whole blocks of rows, against all keys that they visit."""

    def __init__(self, problem: AttentionProblem, kept: Kept, block_size: tuple[int, int], task: Task) -> None:
        self._problem, self._kept, self._task = problem, kept, task
        self._block_q, self._block_k = block_size
        self._arith = arithmetic(problem.spec.dtype)
        self._keys = pack(task.key_rows(problem, problem.k), self._arith.dtype)
        self._factor = Factors.of(problem, self._arith).query
        self._buffers = TileBuffers(1, self._arith.dtype)

    def run(self, plan: TaskPlan, target: np.ndarray) -> None:
        own = self._problem.heads(target, self._task.sequence.batch)
        for q_heads in self._task.stacks:
            heads = Heads.of(self._problem, self._task.sequence, q_heads, self._task.kv_heads)
            tiles = plan.schedule(self._task.sequence, q_heads.start)
            assert isinstance(tiles, BandSchedule)
            for strip in self._task.blocks(tiles):
                first, end = strip[0] // self._block_q, -(-strip[1] // self._block_q)
                own[q_heads, first:end] = self._mass(heads, tiles, strip)

    def _mass(self, heads: Heads, tiles: BandSchedule, strip: Block) -> np.ndarray:
        """Mass of the blocks of a strip: float64 (G, blocks of rows, blocks of keys)."""
        blocks = -(-(strip[1] - strip[0]) // self._block_q)
        sums = np.zeros((heads.count, blocks, -(-self._problem.spec.kv_len // self._block_k)))
        seen = np.zeros((heads.count, blocks, 1), np.int64)
        for rows in cut_rows(*strip, schedule.BLOCK_ROWS):
            cells = Cells(heads, (rows,))
            first = (rows[0] - strip[0]) // self._block_q
            places = [(first + n, slice(*cut)) for n, cut in enumerate(cut_rows(0, rows[1] - rows[0], self._block_q))]
            sees = self._add_rows(sums, places, cells, tiles)
            for block, place in places:
                seen[:, block, 0] += sees[:, place].sum(axis=1)
        return sums / np.maximum(seen, 1)

    def _add_rows(
        self, sums: np.ndarray, places: list[tuple[int, slice]], cells: Cells, tiles: BandSchedule
    ) -> np.ndarray:
        """Add the weights of some rows, `places` being their blocks; return which see a key, bool (G, rows)."""
        scores, sees = Scores(self._problem, self._arith, cells), np.zeros(cells.shape, np.bool_)
        q, factor = self._packed_queries(cells)
        for tile in tiles.tiles(cells):
            sees |= True if tile.rows_seen is None else tile.rows_seen
            p = self._buffers.view(0, (*cells.shape, tile.width))
            scores.tile(q, self._buffers.take(0, self._keys, tile.columns), tile.columns, p)
            mask_bits(self._arith.exp(p, out=p), scores.keep_bits(tile))
            for block, place in places:
                self._add_columns(sums[:, block], tile, np.matmul(factor[:, None, place], p[:, place])[:, 0])
        return sees

    def _add_columns(self, sums: np.ndarray, tile: Tile, weights: np.ndarray) -> None:
        """Add (G, columns of the tile) to (G, blocks of keys)."""
        assert isinstance(tile.columns, slice)
        start, first = tile.columns.start, tile.columns.start // self._block_k
        edges = np.maximum(np.arange(first * self._block_k, tile.columns.stop, self._block_k) - start, 0)
        sums[:, first : first + len(edges)] += np.add.reduceat(weights, edges, axis=1, dtype=np.float64)

    def _packed_queries(self, cells: Cells) -> tuple[np.ndarray, np.ndarray]:
        """Rows of q with the forward's reference, and what weights relative to it are to be multiplied by (G, rows)."""
        batch = cells.heads.sequence.batch
        assert self._kept.reference is not None
        kept = self._kept.reference, self._kept.lse
        reference, lse = (cells.rows(self._problem.heads(x[..., None], batch)) for x in kept)
        q = pack(cells.rows(cells.heads.q), self._arith.dtype, factor=self._factor)
        q[..., -1:] = -reference
        sum_of_none = np.where(lse == -np.inf, 0, lse)
        factor = self._arith.exp(reference - sum_of_none * self._arith.unit)
        return q, factor[..., 0].astype(self._arith.dtype)
