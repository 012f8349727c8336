"""Attention on sequences of different lengths packed without padding."""

from __future__ import annotations

from typing import Any

from flashcupy import build, dispatch
from flashcupy.options import Options
from flashcupy.residuals import AttentionResiduals
from flashcupy.results import AttentionGrads


def attention_varlen(
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    *,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    causal: bool | str = False,
    scale: float | None = None,
    window: tuple[int | None, int | None] | None = None,
    mask: Any = None,
    bias: Any = None,
    alibi_slopes: Any = None,
    softcap: float | None = None,
    sinks: Any = None,
    block_mask: Any = None,
    dropout: float = 0.0,
    seed: Any = None,
    q_lengths: Any = None,
    kv_lengths: Any = None,
    precision: str = "highest",
    return_lse: bool = False,
    out: Any = None,
) -> Any:
    """`attention` for each of several sequences that lie one after the other in one axis.

    Sequence s has the rows ``cu_seqlens_q[s]:cu_seqlens_q[s + 1]`` of q, and those of k and v by ``cu_seqlens_k``.
    Everything that has coordinates (diagonals, window, mask, bias, ALiBi, block_mask, dropout) is local to a sequence.

    Parameters
    ----------
    q : array (Hq, total_q, D)
        Data kept as (total, H, D) is passed as the transposed view. Two-dim operands get one head.
    k : array (Hkv, total_k, D)
    v : array (Hkv, total_k, Dv)
    cu_seqlens_q, cu_seqlens_k : int array (sequences + 1,)
        Cumulative lengths, int32 or int64, starting at 0. Rows after the last are in no sequence: never read, out 0.
    max_seqlen_q, max_seqlen_k : int, optional
        At least the longest sequence; the sequence-local extents of mask, bias and block_mask. Default: the longest;
        required where cu_seqlens are on a device, since they are not read back.
    mask, bias : arrays, broadcastable to (sequences, Hq, max_seqlen_q, max_seqlen_k), optional
    alibi_slopes : array (Hq,) or (sequences, Hq), optional
    block_mask : BlockMask of shape (1 or sequences, H, max_seqlen_q, max_seqlen_k), optional
    q_lengths, kv_lengths : int array, broadcastable to (sequences,), optional
        Used rows of each sequence, at most its length.
    causal, scale, window, softcap, sinks, dropout, seed, precision, return_lse, out
        As in `attention`.

    Returns
    -------
    out : array (Hq, total_q, Dv)
    lse : array (Hq, total_q), only if `return_lse`

    Raises
    ------
    TypeError, ValueError, UnsupportedError
        As in `attention`.

    Examples
    --------
    >>> import numpy as np
    >>> import flashcupy as fc
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 2, 7, 8))
    >>> out = fc.attention_varlen(q, k, v, [0, 3, 7], [0, 3, 7], causal=True)
    >>> bool(np.allclose(out[:, 3:], fc.attention(q[:, 3:], k[:, 3:], v[:, 3:], causal=True)))
    True
    """
    cu, longest = (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k)
    problem = build.varlen_problem(q, k, v, cu, longest, Options.of(locals()))
    out, lse = dispatch.compute(problem, out)
    return (out, lse) if return_lse else out


def attention_varlen_fwd(
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    *,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    causal: bool | str = False,
    scale: float | None = None,
    window: tuple[int | None, int | None] | None = None,
    mask: Any = None,
    bias: Any = None,
    alibi_slopes: Any = None,
    softcap: float | None = None,
    sinks: Any = None,
    block_mask: Any = None,
    dropout: float = 0.0,
    seed: Any = None,
    q_lengths: Any = None,
    kv_lengths: Any = None,
    precision: str = "highest",
    out: Any = None,
    lse_out: Any = None,
) -> tuple[Any, AttentionResiduals]:
    """`attention_varlen` that keeps what its backward needs.

    Parameters
    ----------
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, and all options
        As in `attention_varlen`.
    out, lse_out : arrays, optional
        Where to write the output and lse.

    Returns
    -------
    out : array (Hq, total_q, Dv)
    residuals : AttentionResiduals

    Raises
    ------
    TypeError, ValueError, UnsupportedError
        As in `attention`.

    Examples
    --------
    >>> import numpy as np
    >>> import flashcupy as fc
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 2, 7, 8))
    >>> out, residuals = fc.attention_varlen_fwd(q, k, v, [0, 3, 7], [0, 3, 7])
    >>> fc.attention_varlen_bwd(out, residuals).dk.shape
    (2, 7, 8)
    """
    cu, longest = (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k)
    problem = build.varlen_problem(q, k, v, cu, longest, Options.of(locals()))
    residuals = dispatch.run_forward(problem, (q, k, v), out, lse_out)
    return residuals.out, residuals


def attention_varlen_bwd(
    dout: Any,
    residuals: AttentionResiduals,
    *,
    wrt: tuple[str, ...] = ("q", "k", "v"),
    dlse: Any = None,
    deterministic: bool = False,
    out: AttentionGrads | None = None,
) -> AttentionGrads:
    """Gradients of `attention_varlen_fwd`; the residuals know the packing, so it is `attention_bwd` by another name.

    Parameters
    ----------
    dout, residuals, wrt, dlse, deterministic, out
        As in `attention_bwd`.

    Returns
    -------
    AttentionGrads

    Raises
    ------
    TypeError, ValueError
        As in `attention_bwd`; also for residuals of a call on dense arrays.

    Examples
    --------
    See `attention_varlen_fwd`.
    """
    if isinstance(residuals, AttentionResiduals) and not residuals.spec.varlen:
        raise ValueError("residuals come from attention_fwd, expected those of attention_varlen_fwd: use attention_bwd")
    return dispatch.run_backward(residuals, dout, dlse, wrt, deterministic, out)
