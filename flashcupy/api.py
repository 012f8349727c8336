"""Attention on dense arrays. `attention` documents every option; the other calls take the same ones."""

from __future__ import annotations

from typing import Any

from flashcupy import build, dispatch
from flashcupy.options import Options
from flashcupy.residuals import AttentionResiduals
from flashcupy.results import AttentionGrads, Explanation
from flashcupy.standins import arrays_or_standins


def attention(
    q: Any,
    k: Any,
    v: Any,
    *,
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
    """Exact attention, softmax(scale * q k^T + ...) v, in memory linear in the sequence lengths.

    With off = kv_length - q_length (used lengths), query i, key j and head h have the score
    ``softcap(scale * q_i . k_j) + bias_ij - alibi_slopes_h * |i + off - j|``. Visibility is applied to scores, then
    softmax, then dropout. A query that sees no key gets output 0 and lse -inf (or its sink).

    Parameters
    ----------
    q : array (..., Hq, Sq, D)
        Queries: float16, bfloat16, float32 or float64, any strides. Data kept as (B, S, H, D) is passed as the
        transposed view. Two-dim operands get one head.
    k : array (..., Hkv, Sk, D)
        Keys. Hq is a multiple of Hkv (grouped-query attention); batch dims broadcast as in matmul.
    v : array (..., Hkv, Sk, Dv)
    causal : bool or {"bottom-right", "top-left"}
        Hide keys after the diagonal: j <= i + off (True, "bottom-right") or j <= i ("top-left", where off is 0).
    scale : float, optional
        Default 1 / sqrt(D).
    window : (int or None, int or None), optional
        Sliding window (left, right): i + off - left <= j <= i + off + right; None is unbounded.
    mask : bool array, broadcastable to (..., Hq, Sq, Sk), optional
        True = attend. Never expanded.
    bias : floating array, broadcastable to (..., Hq, Sq, Sk), optional
        Added to the scores; -inf hides, NaN does not.
    alibi_slopes : float array (Hq,) or (..., Hq), optional
    softcap : float, optional
        c > 0: scaled products become c * tanh(s / c).
    sinks : float array (Hq,), optional
        Natural-log logits that join each row's sum, untouched by scale and softcap.
    block_mask : BlockMask, optional
        Blocks that are visited at all; everything else costs nothing.
    dropout : float, optional
        Probability 0 <= p < 1 of dropping an attention weight, rounded to a multiple of 1/256 (a warning where that
        makes it nothing or everything); survivors are scaled up.
    seed : int or (int, int) or uint64 array of 2, optional
        (seed, offset) of the dropout mask, a pure function of them, batch entry, head, row and column. None draws one.
        Kernels read an array on a device when they run, so that a replayed CUDA graph can draw anew.
    q_lengths, kv_lengths : int array, broadcastable to the batch dims, optional
        Used rows of q and of k, v (int32 or int64). Rows beyond them are never read.
    precision : {"highest", "tf32"}
        Lowest accuracy permitted for float32 products. "tf32" lets tensor cores of a GPU round what they multiply to 10
        bits of mantissa, which is faster; NumPy always gives "highest".
    return_lse : bool
        Also return the log-sum-exp of each row's scores (natural log, sinks included).
    out : array, optional
        Where to write the output: exact shape, q's dtype (or float32 for 16-bit inputs), no overlap with an input.

    Returns
    -------
    out : array (..., Hq, Sq, Dv)
        q's dtype, memory order, device and library (NumPy, CuPy, torch or JAX). Without head axis if q, k and v are all
        2-D.
    lse : array (..., Hq, Sq), only if `return_lse`
        float32; float64 for float64 inputs.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit, before anything is computed. The message names the argument.
    UnsupportedError
        For arrays that are neither in host memory nor on a CUDA device. There also for 2**28 rows or more, and for more
        than four batch dims that do not merge.
    KernelCompileError, FirstUseError, NotWarmedUpError
        On a GPU: a kernel that does not compile, that failed its check there, or that is new under graph capture.

    See Also
    --------
    attention_fwd, attention_bwd : with gradients.
    attention_varlen : sequences packed without padding.
    reference.attention : the same in a few lines of float64 NumPy.

    Notes
    -----
    Tiling with an online softmax: Dao et al., FlashAttention (2022) and FlashAttention-2 (2023).

    All arrays are on one device, except that `alibi_slopes`, `sinks`, `seed` and lengths may be on the host where q is
    on a GPU. What is in GPU memory is never read back: lengths there are clamped by the kernels instead of checked.
    ``FLASHCUPY_CHECK=1`` has them checked all the same, which waits for the device.

    Examples
    --------
    >>> import numpy as np
    >>> import flashcupy as fc
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 2, 4, 128, 64), dtype=np.float32)
    >>> out = fc.attention(q, k, v, causal=True)
    >>> out.shape
    (2, 4, 128, 64)
    >>> expected, _ = fc.reference.attention(q, k, v, causal=True)
    >>> bool(np.abs(out - expected).max() < 1e-5)
    True
    """
    problem = build.dense_problem(q, k, v, Options.of(locals()))
    out, lse = dispatch.compute(problem, out)
    return (out, lse) if return_lse else out


def attention_fwd(
    q: Any,
    k: Any,
    v: Any,
    *,
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
    """`attention` that keeps what its backward needs.

    Parameters
    ----------
    q, k, v, and all options
        As in `attention`.
    out, lse_out : arrays, optional
        Where to write the output and lse.

    Returns
    -------
    out : array (..., Hq, Sq, Dv)
    residuals : AttentionResiduals
        For `attention_bwd`; ``residuals.lse`` is (..., Hq, Sq).

    Raises
    ------
    TypeError, ValueError, UnsupportedError
        As in `attention`.

    Examples
    --------
    >>> import numpy as np
    >>> import flashcupy as fc
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 4, 32, 16))
    >>> out, residuals = fc.attention_fwd(q, k, v, causal=True)
    >>> dq, dk, dv, *_ = fc.attention_bwd(np.ones_like(out), residuals)
    >>> dq.shape, bool(abs(dv.sum() - out.size) < 1e-9)
    ((4, 32, 16), True)
    """
    problem = build.dense_problem(q, k, v, Options.of(locals()))
    residuals = dispatch.run_forward(problem, (q, k, v), out, lse_out)
    return residuals.out, residuals


def attention_bwd(
    dout: Any,
    residuals: AttentionResiduals,
    *,
    wrt: tuple[str, ...] = ("q", "k", "v"),
    dlse: Any = None,
    deterministic: bool = False,
    out: AttentionGrads | None = None,
) -> AttentionGrads:
    """Gradients of `attention_fwd` or `attention_varlen_fwd`.

    Parameters
    ----------
    dout : array, shape of the forward's output
        Gradient of the loss with respect to it, in its dtype (16-bit calls also take float32).
    residuals : AttentionResiduals
        From the forward, or `AttentionResiduals.from_arrays`.
    wrt : tuple of {"q", "k", "v", "bias", "sinks"}
        Inputs to differentiate with respect to.
    dlse : array, shape and dtype of lse, optional
        Gradient with respect to the log-sum-exp, where the loss uses it.
    deterministic : bool
        Bitwise equal results from run to run, in the same memory. Without it results may differ in the last bits: on a
        GPU dq of float16 and bfloat16, which blocks of keys add to in any order (with it, P is computed twice, seven
        products in place of five); in NumPy the gradient of a bias that broadcasts over batch, heads or rows (with it,
        the call runs on one thread).
    out : AttentionGrads of arrays or None, optional
        Where to write gradients: exact shape, dtype of the input (or float32 for 16-bit inputs).

    Returns
    -------
    AttentionGrads
        (dq, dk, dv, dbias, dsinks); None where not asked for. Each has its input's shape, dtype and memory order,
        summed over broadcast dims in float32 (float64).

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit, before anything is computed.

    Notes
    -----
    P is recomputed from the scores and lse, so a score s carries its rounding error, about eps * abs(s), into P: in
    float32, scores beyond some thousands cost gradients their accuracy.

    Examples
    --------
    >>> import numpy as np
    >>> import flashcupy as fc
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.standard_normal((3, 2, 8, 4))
    >>> bias = rng.standard_normal((8, 8))
    >>> out, residuals = fc.attention_fwd(q, k, v, bias=bias)
    >>> grads = fc.attention_bwd(out, residuals, wrt=("q", "bias"))
    >>> grads.dbias.shape, grads.dk is None
    ((8, 8), True)
    """
    return dispatch.run_backward(residuals, dout, dlse, wrt, deterministic, out)


def explain(
    q: Any,
    k: Any,
    v: Any,
    *,
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
) -> Explanation:
    """Tell how `attention` would serve a call, without computing it.

    Parameters
    ----------
    q, k, v, and all options
        As in `attention`; q, k, v may be (shape, dtype) pairs in place of host arrays.

    Returns
    -------
    Explanation
        Backend, configuration, why not a faster one, threads, workspace bytes, compiled or not; print it.

    Raises
    ------
    TypeError, ValueError, UnsupportedError
        As in `attention`.

    Examples
    --------
    >>> import flashcupy as fc
    >>> shape = ((8, 4096, 64), "float32")
    >>> fc.explain(shape, shape, shape, causal=True).backend
    'numpy'
    """
    q, k, v = arrays_or_standins(q, k, v)
    return dispatch.explain(build.dense_problem(q, k, v, Options.of(locals())))


def warmup(
    q: Any,
    k: Any,
    v: Any,
    *,
    backward: bool = False,
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
) -> None:
    """Do ahead what the first call of a kind would do: validate, and compile where there is something to compile.

    On host arrays nothing is compiled, in either direction: there the call only validates.

    Parameters
    ----------
    q, k, v, and all options
        As in `attention`; q, k, v may be (shape, dtype) pairs in place of host arrays.
    backward : bool
        Also compile what `attention_bwd` needs.

    Raises
    ------
    TypeError, ValueError, UnsupportedError
        As in `attention`.

    Examples
    --------
    >>> import flashcupy as fc
    >>> shape = ((8, 4096, 64), "float32")
    >>> fc.warmup(shape, shape, shape, causal=True, backward=True)
    """
    q, k, v = arrays_or_standins(q, k, v)
    dispatch.warmup(build.dense_problem(q, k, v, Options.of(locals())), backward)
