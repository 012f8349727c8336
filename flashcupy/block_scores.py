"""Scores of whole blocks: what a block-sparse selection is chosen by, and what it is judged by."""

from __future__ import annotations

from typing import Any

from flashcupy import build, dispatch
from flashcupy.blocks.grid import BlockSize, check_block_size
from flashcupy.options import Options


def pooled_scores(q: Any, k: Any, *, block_size: BlockSize = 64, scale: float | None = None, out: Any = None) -> Any:
    """Score blocks by their mean rows, scale * mean(q rows of block i) . mean(k rows of block j).

    The cheap way to choose blocks, as MoBA and NSA do: it reads q and k once. `BlockMask.from_topk` takes the result.

    Parameters
    ----------
    q : array (..., Hq, Sq, D)
        Queries: float16, bfloat16, float32 or float64, any strides. Two-dim operands get one head.
    k : array (..., Hkv, Sk, D)
        Keys. Hq is a multiple of Hkv; batch dims broadcast as in matmul.
    block_size : int or (int, int)
        Rows of a block of queries and of one of keys: 16, 32, 64 or a multiple of 128. The last block of either may be
        ragged: it is the mean of the rows that it has.
    scale : float, optional
        Default 1 / sqrt(D).
    out : array (..., Hq, nq, nk), optional
        Where to write the result: exact shape and dtype, no overlap with an input.

    Returns
    -------
    array (..., Hq, nq, nk)
        With nq = ceil(Sq / block_size), nk likewise: float32, float64 for float64 inputs. Without head axis if q and k
        are both 2-D.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit, before anything is computed. The message names the argument.
    UnsupportedError
        As in `attention`.

    See Also
    --------
    BlockMask.from_topk : the best blocks of each row.

    Notes
    -----
    Nothing is hidden: give `from_topk` a causal ``allowed``, or join its mask with `BlockMask.causal`.

    Examples
    --------
    >>> import numpy as np
    >>> import flashcupy as fc
    >>> q, k = np.random.default_rng(0).standard_normal((2, 4, 200, 16), dtype=np.float32)
    >>> scores = fc.pooled_scores(q, k, block_size=64)
    >>> scores.shape
    (4, 4, 4)
    >>> bool(abs(scores[0, 1, 3] - q[0, 64:128].mean(0) @ k[0, 192:].mean(0) / 4) < 1e-6)
    True
    >>> bm = fc.BlockMask.from_topk(scores, 2, (200, 200), block_size=64)
    """
    size = check_block_size(block_size)
    return dispatch.pooled_scores(build.scores_problem(q, k, Options(scale=scale)), size, out)
