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
    Nothing is hidden: `from_topk` takes the blocks that may be chosen as ``allowed``.

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


def block_mass(
    q: Any,
    k: Any,
    *,
    block_size: BlockSize = 64,
    causal: bool | str = False,
    scale: float | None = None,
    window: tuple[int | None, int | None] | None = None,
    mask: Any = None,
    bias: Any = None,
    alibi_slopes: Any = None,
    softcap: float | None = None,
    sinks: Any = None,
    q_lengths: Any = None,
    kv_lengths: Any = None,
    out: Any = None,
) -> Any:
    """Tell how much attention blocks of queries pay to blocks of keys, in memory linear in the sequence lengths.

    Softmax weights are summed over the keys of a block and averaged over those of its query rows that see any key. No
    selection of as many blocks keeps more of the attention than the best by this; it costs two passes over all scores.

    Parameters
    ----------
    q : array (..., Hq, Sq, D)
        Queries: float16, bfloat16, float32 or float64, any strides. Two-dim operands get one head.
    k : array (..., Hkv, Sk, D)
        Keys. Hq is a multiple of Hkv; batch dims broadcast as in matmul.
    block_size : int or (int, int)
        Rows of a block of queries and of one of keys: 16, 32, 64 or a multiple of 128. The last blocks may be ragged.
    causal, scale, window, mask, bias, alibi_slopes, softcap, sinks, q_lengths, kv_lengths
        As in `attention`. A sink takes its share of each row.
    out : array (..., Hq, nq, nk), optional
        Where to write the result: exact shape and dtype, no overlap with an input.

    Returns
    -------
    array (..., Hq, nq, nk)
        With nq = ceil(Sq / block_size), nk likewise: float32, float64 for float64 inputs. Without head axis if q and k
        are both 2-D. Rows sum to 1, to less with `sinks`, to 0 where no query of the block sees a key.

    Raises
    ------
    TypeError, ValueError, UnsupportedError
        As in `attention`.

    See Also
    --------
    pooled_scores : a cheap guess at it.
    BlockMask.from_topk : the best blocks of each row.

    Examples
    --------
    The best blocks there are, and the share of the attention that they keep:

    >>> import numpy as np
    >>> import flashcupy as fc
    >>> q, k = np.random.default_rng(0).standard_normal((2, 4, 256, 16), dtype=np.float32)
    >>> mass = fc.block_mass(q, k, block_size=64, causal=True)
    >>> bool(np.allclose(mass.sum(-1), 1))
    True
    >>> chosen = np.argsort(-mass)[..., :2]
    >>> recall = np.take_along_axis(mass, chosen, -1).sum(-1)  # of each block of queries
    >>> bool(recall.min() > 0.5)
    True
    >>> bm = fc.BlockMask.from_topk(mass, 2, (256, 256), block_size=64)  # for attention(..., causal=True)
    """
    size = check_block_size(block_size)
    options = Options(
        causal=causal,
        scale=scale,
        window=window,
        mask=mask,
        bias=bias,
        alibi_slopes=alibi_slopes,
        softcap=softcap,
        sinks=sinks,
        q_lengths=q_lengths,
        kv_lengths=kv_lengths,
    )
    return dispatch.block_mass(build.scores_problem(q, k, options), size, out)
