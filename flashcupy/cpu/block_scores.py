"""A score for each block of query rows by keys, on the host."""

from __future__ import annotations

import numpy as np

from flashcupy.arrays import accumulator
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
