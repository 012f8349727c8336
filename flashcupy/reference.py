"""The oracle: attention and its gradients in naive float64 NumPy, to be read from top to bottom.

It states what every backend has to compute, and the tests hold them to it. It builds the whole score matrix, takes the
options of `flashcupy.attention` and validates next to nothing (the public functions of the package do): wrong arguments
give NumPy's errors or wrong results. Arrays of any float dtype are converted to float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flashcupy.philox import keep_mask, keep_scale, keep_threshold
from flashcupy.results import AttentionGrads

__all__ = ["attention", "attention_bwd", "attention_varlen", "attention_varlen_bwd", "attention_weights"]

Array = npt.NDArray[Any]
ArrayLike = npt.ArrayLike
MaybeArray = npt.ArrayLike | None
Window = tuple[int | None, int | None] | None
Seed = int | tuple[int, int] | Array | None


class Options(NamedTuple):
    """The options of one call, as the caller gave them."""

    causal: bool | str = False
    scale: float | None = None
    window: Window = None
    mask: MaybeArray = None
    bias: MaybeArray = None
    alibi_slopes: MaybeArray = None
    softcap: float | None = None
    sinks: MaybeArray = None
    block_mask: Any = None
    q_lengths: MaybeArray = None
    kv_lengths: MaybeArray = None
    dropout: float = 0.0
    seed: Seed = None


class Arithmetic(NamedTuple):
    """What to compute in; how to round S, P, dP, dS; how to round operands of matmuls (the tests compute coarsely)."""

    dtype: npt.DTypeLike
    rounded: Callable[[Array], Array]
    operand: Callable[[Array], Array]


FLOAT64 = Arithmetic(np.float64, lambda x: x, lambda x: x)


class Forward(NamedTuple):
    """What the forward pass knows, at full batch and with Hq heads everywhere."""

    q: Array  # rows that see no key, and keys and values that no row sees, are zeroed here: they may hold NaN
    k: Array
    v: Array
    scale: float
    visible: Array  # (..., Hq, rows, Sk)
    sees: Array  # (..., Hq, rows): the row sees at least one key
    cap_slope: Array | float  # derivative of the softcap
    p: Array  # (..., Hq, rows, Sk): softmax, before dropout
    lse: Array  # (..., Hq, rows)


# ---- formulas, on q, k, v of shape (..., H, S, D) --------------------------------------------------------------------


def forward(q: Array, k: Array, v: Array, o: Options, arithmetic: Arithmetic, rows: slice = slice(None)) -> Forward:
    """Compute the softmax of the scores, and its lse, for the query rows in ``rows``."""
    batch = np.broadcast_shapes(q.shape[:-3], k.shape[:-3], v.shape[:-3])
    sizes = (*q.shape[-3:-1], k.shape[-2])
    k, v = (np.repeat(x, sizes[0] // max(x.shape[-3], 1), axis=-3) for x in (k, v))
    visible, distance = visibility(o, batch, sizes, rows)
    sees, seen = np.any(visible, axis=-1, keepdims=True), np.any(visible, axis=-2, keepdims=True).mT
    q, k, v = np.where(sees, q[..., rows, :], 0), np.where(seen, k, 0), np.where(seen, v, 0)

    scale = 1 / math.sqrt(q.shape[-1]) if o.scale is None else float(o.scale)
    s, cap_slope = q @ k.mT * scale, 1.0
    if o.softcap is not None:
        t = np.tanh(s / float(o.softcap))
        s, cap_slope = float(o.softcap) * t, 1 - t * t
    if o.bias is not None:
        s = s + np.broadcast_to(np.asarray(o.bias, arithmetic.dtype), (*batch, *sizes))[..., rows, :]
    if o.alibi_slopes is not None:
        slopes = np.asarray(o.alibi_slopes, arithmetic.dtype)[..., None, None]
        s = s - slopes * np.abs(distance).astype(arithmetic.dtype)
    s = np.where(visible, arithmetic.rounded(s), -np.inf)

    sink = np.asarray(-np.inf if o.sinks is None else o.sinks, arithmetic.dtype)[..., None]
    top = np.maximum(s.max(axis=-1, initial=-np.inf), sink)
    top = np.where(top == -np.inf, 0, top)
    e = np.exp(s - top[..., None])
    total = e.sum(axis=-1) + np.exp(sink - top)
    p = arithmetic.rounded(e / np.where(total == 0, 1, total)[..., None])
    return Forward(q, k, v, scale, visible, sees[..., 0], cap_slope, p, lse=top + np.log(total))


def visibility(o: Options, batch: tuple[int, ...], sizes: tuple[int, int, int], rows: slice) -> tuple[Array, Array]:
    """Return the keys that each row sees, (..., Hq, rows, Sk), and i + off - j, which broadcasts to it."""
    _, sq, sk = sizes
    i, j = np.arange(sq)[rows, None], np.arange(sk)
    q_length = np.broadcast_to(np.int64(sq) if o.q_lengths is None else o.q_lengths, batch)[..., None, None, None]
    kv_length = np.broadcast_to(np.int64(sk) if o.kv_lengths is None else o.kv_lengths, batch)[..., None, None, None]
    off = 0 if o.causal == "top-left" else kv_length - q_length
    distance = i + off - j
    visible = listed(o, batch, sizes)[..., rows, :] & (i < q_length) & (j < kv_length)
    left, right = o.window or (None, None)
    right = 0 if o.causal else right  # the tightest that a window can be there
    if left is not None:
        visible = visible & (distance <= left)
    if right is not None:
        visible = visible & (distance >= -right)
    if o.bias is not None:
        visible = visible & np.broadcast_to(np.asarray(o.bias, np.float64) != -np.inf, (*batch, *sizes))[..., rows, :]
    return visible, distance


def listed(o: Options, batch: tuple[int, ...], sizes: tuple[int, int, int]) -> Array:
    """Return mask AND block_mask, (..., Hq, Sq, Sk)."""
    visible = np.broadcast_to(True if o.mask is None else np.asarray(o.mask), (*batch, *sizes))
    if o.block_mask is None:
        return visible
    blocks = np.asarray(o.block_mask.to_dense())
    if blocks.shape[1] not in (1, sizes[0]):
        blocks = np.repeat(blocks, sizes[0] // blocks.shape[1], axis=1)
    return visible & (blocks[0] if len(blocks) == 1 else blocks.reshape(*batch, *blocks.shape[1:]))


def dropout_factor(f: Forward, o: Options, arithmetic: Arithmetic) -> Array | float:
    """Return what dropout multiplies P with: 0 or 256 / k, (..., Hq, Sq, Sk)."""
    if o.dropout == 0:
        return 1.0
    if o.seed is None:
        raise ValueError(f"seed: got None with dropout={o.dropout}, the reference wants an int or (seed, offset)")
    seed, offset = (o.seed, 0) if isinstance(o.seed, int | np.integer) else (int(word) for word in o.seed)
    (*batch, hq, sq, sk), k = f.p.shape, keep_threshold(o.dropout)
    heads = np.ndindex(math.prod(batch), hq)
    keep = np.array([keep_mask(k, seed, offset, b, h, (0, sq), (0, sk)) for b, h in heads], dtype=arithmetic.dtype)
    return keep.reshape(f.p.shape) * keep_scale(k)


def backward(dout: Array, dlse: Array, f: Forward, o: Options, arithmetic: Arithmetic) -> tuple[Array, ...]:
    """Return dq, dk, dv, dbias (..., Hq, Sq, Sk) and dsinks (..., Hq), at full batch and with Hq heads everywhere."""
    z = dropout_factor(f, o, arithmetic)
    dout, dlse = np.where(f.sees[..., None], dout, 0), np.where(f.sees, dlse, 0)
    dv = arithmetic.operand(f.p * z).mT @ dout
    dp = np.where(f.visible, arithmetic.rounded(dout @ f.v.mT) * z, 0)
    delta = np.sum(f.p * dp, axis=-1) - dlse  # dlse/ds = P, so dlse joins here
    ds = arithmetic.rounded(f.p * (dp - delta[..., None]))
    dqk = arithmetic.operand(ds * f.cap_slope)
    sink = np.asarray(-np.inf if o.sinks is None else o.sinks, arithmetic.dtype)[..., None]
    p_sink = np.exp(np.where(f.sees, sink - f.lse, -np.inf))
    return dqk @ f.k * f.scale, dqk.mT @ f.q * f.scale, dv, ds, -np.sum(p_sink * delta, axis=-1)


def sum_to(x: Array, shape: tuple[int, ...]) -> Array:
    """Undo broadcasting: sum over the dims that ``shape`` lacks or has as 1."""
    x = x.sum(axis=tuple(range(x.ndim - len(shape))))
    return x.sum(axis=tuple(axis for axis, size in enumerate(shape) if size == 1), keepdims=True)


def sum_group(x: Array, like: Array) -> Array:
    """Sum (..., Hq, S, D) over the query heads that share a head of ``like`` and over its broadcast dims."""
    *batch, hq, s, d = x.shape
    heads = like.shape[-3]
    return sum_to(x.reshape(*batch, heads, hq // max(heads, 1), s, d).sum(axis=-3), like.shape)


def with_heads(arrays: tuple[ArrayLike, ...], arithmetic: Arithmetic) -> list[Array]:
    """Convert, and give 2-D operands a head axis of 1."""
    wide = [arithmetic.operand(np.asarray(x, arithmetic.dtype)) for x in arrays]
    return [x[None] if x.ndim == 2 else x for x in wide]


def unpack(x: Array, cu_seqlens: ArrayLike, longest: int | None) -> tuple[Array, Array, Array]:
    """Lay packed (H, total, D) out as (n_seq, H, longest, D); return it, the token at each place, and the lengths."""
    starts = np.asarray(cu_seqlens, dtype=np.int64)
    lengths = np.diff(starts)
    position = np.arange(lengths.max(initial=0) if longest is None else longest)
    tokens = np.where(position < lengths[:, None], starts[:-1, None] + position, x.shape[1])  # or a token of zeros
    padded = np.append(x, np.zeros_like(x, shape=(len(x), 1, x.shape[2])), axis=1)
    return np.moveaxis(padded[:, tokens], 1, 0), tokens, lengths


def pack(x: Array, tokens: Array, total: int, fill: npt.ArrayLike = 0.0) -> Array:
    """Gather (n_seq, H, longest, ...) into packed (H, total, ...); tokens of no sequence get ``fill``."""
    packed = np.full((x.shape[1], total + 1, *x.shape[3:]), fill, dtype=x.dtype)
    packed[:, tokens] = np.moveaxis(x, 0, 1)
    return packed[:, :total]


# fmt: off
# ---- the public functions: the same options everywhere, kept on lines of their own -----------------------------------

@np.errstate(invalid="ignore", over="ignore", divide="ignore")  # log(0), and non-finite keys on their way to np.where
def attention(
    q: ArrayLike, k: ArrayLike, v: ArrayLike, *,
    causal: bool | str = False, scale: float | None = None, window: Window = None, mask: MaybeArray = None,
    bias: MaybeArray = None, alibi_slopes: MaybeArray = None, softcap: float | None = None, sinks: MaybeArray = None,
    block_mask: Any = None, dropout: float = 0.0, seed: Seed = None, q_lengths: MaybeArray = None,
    kv_lengths: MaybeArray = None, arithmetic: Arithmetic = FLOAT64,
) -> tuple[Array, Array]:
    """Compute attention naively in float64.

    Parameters
    ----------
    q, k, v : array_like (..., Hq, Sq, D), (..., Hkv, Sk, D), (..., Hkv, Sk, Dv)
        Of any float dtype. Batch dims broadcast; a 2-D operand has one head.
    causal, scale, window, mask, bias, alibi_slopes, softcap, sinks, block_mask, dropout, seed, q_lengths, kv_lengths
        The options of `flashcupy.attention`. Of ``block_mask`` only ``to_dense()`` is used; dropout > 0 needs a seed.
    arithmetic : Arithmetic
        Anything but float64 makes this the naive computation that bounds the error of others.

    Returns
    -------
    out, lse : arrays of float64 (..., Hq, Sq, Dv), (..., Hq, Sq)
        Without the head axis where q, k and v are all 2-D.

    Raises
    ------
    ValueError
        If ``dropout`` > 0 comes without ``seed``.

    Examples
    --------
    >>> out, lse = attention(np.zeros((2, 1)), np.zeros((2, 1)), np.array([[1.0], [3.0]]), causal=True)
    >>> out.ravel(), np.exp(lse)
    (array([1., 2.]), array([1., 2.]))
    """
    o = Options(causal, scale, window, mask, bias, alibi_slopes, softcap, sinks, block_mask, q_lengths, kv_lengths,
                dropout, seed)
    q4, k4, v4 = with_heads((q, k, v), arithmetic)
    f = forward(q4, k4, v4, o, arithmetic)
    out = arithmetic.operand(f.p * dropout_factor(f, o, arithmetic)) @ f.v
    return (out[0], f.lse[0]) if np.ndim(q) == np.ndim(k) == np.ndim(v) == 2 else (out, f.lse)


@np.errstate(invalid="ignore", over="ignore", divide="ignore")
def attention_bwd(
    dout: ArrayLike, q: ArrayLike, k: ArrayLike, v: ArrayLike, *,
    causal: bool | str = False, scale: float | None = None, window: Window = None, mask: MaybeArray = None,
    bias: MaybeArray = None, alibi_slopes: MaybeArray = None, softcap: float | None = None, sinks: MaybeArray = None,
    block_mask: Any = None, dropout: float = 0.0, seed: Seed = None, q_lengths: MaybeArray = None,
    kv_lengths: MaybeArray = None, dlse: MaybeArray = None, arithmetic: Arithmetic = FLOAT64,
) -> AttentionGrads:
    """Compute the gradients of `attention` analytically, in float64.

    Parameters
    ----------
    dout, dlse : array_like (..., Hq, Sq, Dv), (..., Hq, Sq)
        Gradients with respect to out and lse; None is 0.
    q, k, v and the options
        As in `attention`.

    Returns
    -------
    AttentionGrads of float64
        Each in the shape of its input, summed over what was broadcast; dbias and dsinks are None without bias, sinks.

    Examples
    --------
    >>> grads = attention_bwd(np.ones((2, 1)), np.zeros((2, 1)), np.zeros((2, 1)), np.ones((2, 1)), causal=True)
    >>> grads.dv.ravel()
    array([1.5, 0.5])
    """
    o = Options(causal, scale, window, mask, bias, alibi_slopes, softcap, sinks, block_mask, q_lengths, kv_lengths,
                dropout, seed)
    q4, k4, v4, dout4 = with_heads((q, k, v, dout), arithmetic)
    dlse4 = np.asarray(0 if dlse is None else dlse, dtype=arithmetic.dtype)
    dq, dk, dv, dbias, dsinks = backward(dout4, dlse4, forward(q4, k4, v4, o, arithmetic), o, arithmetic)
    return AttentionGrads(
        dq=sum_to(dq, q4.shape).reshape(np.shape(q)),
        dk=sum_group(dk, k4).reshape(np.shape(k)),
        dv=sum_group(dv, v4).reshape(np.shape(v)),
        dbias=None if bias is None else sum_to(dbias, np.shape(bias)),
        dsinks=None if sinks is None else sum_to(dsinks, np.shape(sinks)),
    )


@np.errstate(invalid="ignore", over="ignore", divide="ignore")
def attention_weights(
    q: ArrayLike, k: ArrayLike, *,
    causal: bool | str = False, scale: float | None = None, window: Window = None, mask: MaybeArray = None,
    bias: MaybeArray = None, alibi_slopes: MaybeArray = None, softcap: float | None = None, sinks: MaybeArray = None,
    block_mask: Any = None, q_lengths: MaybeArray = None, kv_lengths: MaybeArray = None, rows: slice | None = None,
) -> Array:
    """Compute the attention probabilities of some query rows, for people who want to look at them.

    Parameters
    ----------
    q, k and the options
        As in `attention`. Dropout, which comes after the softmax, is not among them.
    rows : slice, optional
        Query rows to compute; all by default.

    Returns
    -------
    array of float64 (..., Hq, n_rows, Sk)
        Rows sum to 1, to less with ``sinks``, to 0 without a visible key. 2-D where q and k both are.

    Examples
    --------
    >>> attention_weights(np.zeros((4, 8)), np.zeros((4, 8)), causal=True, rows=slice(1, 2))
    array([[0.5, 0.5, 0. , 0. ]])
    """
    o = Options(causal, scale, window, mask, bias, alibi_slopes, softcap, sinks, block_mask, q_lengths, kv_lengths)
    q4, k4 = with_heads((q, k), FLOAT64)
    p = forward(q4, k4, k4, o, FLOAT64, rows or slice(None)).p
    return p[0] if np.ndim(q) == np.ndim(k) == 2 else p


def attention_varlen(
    q: ArrayLike, k: ArrayLike, v: ArrayLike, cu_seqlens_q: ArrayLike, cu_seqlens_k: ArrayLike, *,
    max_seqlen_q: int | None = None, max_seqlen_k: int | None = None,
    causal: bool | str = False, scale: float | None = None, window: Window = None, mask: MaybeArray = None,
    bias: MaybeArray = None, alibi_slopes: MaybeArray = None, softcap: float | None = None, sinks: MaybeArray = None,
    block_mask: Any = None, dropout: float = 0.0, seed: Seed = None, q_lengths: MaybeArray = None,
    kv_lengths: MaybeArray = None, arithmetic: Arithmetic = FLOAT64,
) -> tuple[Array, Array]:
    """Compute attention within sequences packed along the token axis, as a padded batch with lengths.

    Parameters
    ----------
    q, k, v : array_like (Hq, total_q, D), (Hkv, total_k, D), (Hkv, total_k, Dv)
    cu_seqlens_q, cu_seqlens_k : array_like of int (n_seq + 1,)
        Where sequences start and end. Tokens outside all of them are never read; they see no key.
    max_seqlen_q, max_seqlen_k : int, optional
        The longest sequence by default. ``mask`` and ``bias`` broadcast to (n_seq, Hq, max_seqlen_q, max_seqlen_k).
    the options
        As in `attention`, local to the sequence; lengths (n_seq,) are used lengths.

    Returns
    -------
    out, lse : arrays of float64 (Hq, total_q, Dv), (Hq, total_q)

    Examples
    --------
    >>> out, _ = attention_varlen(*np.zeros((2, 1, 4, 1)), np.arange(4.0).reshape(1, 4, 1), [0, 1, 4], [0, 1, 4])
    >>> out.ravel()
    array([0., 2., 2., 2.])
    """
    q3, k3, v3 = with_heads((q, k, v), arithmetic)
    q4, tokens, all_q = unpack(q3, cu_seqlens_q, max_seqlen_q)
    (k4, _, all_kv), (v4, _, _) = (unpack(x, cu_seqlens_k, max_seqlen_k) for x in (k3, v3))
    used_q, used_kv = all_q if q_lengths is None else q_lengths, all_kv if kv_lengths is None else kv_lengths
    out, lse = attention(
        q4, k4, v4, causal=causal, scale=scale, window=window, mask=mask, bias=bias, alibi_slopes=alibi_slopes,
        softcap=softcap, sinks=sinks, block_mask=block_mask, dropout=dropout, seed=seed, q_lengths=used_q,
        kv_lengths=used_kv, arithmetic=arithmetic,
    )
    empty_row = -np.inf if sinks is None else np.asarray(sinks, arithmetic.dtype)[:, None]
    out, lse = pack(out, tokens, q3.shape[1]), pack(lse, tokens, q3.shape[1], fill=empty_row)
    return (out[0], lse[0]) if np.ndim(q) == np.ndim(k) == np.ndim(v) == 2 else (out, lse)


def attention_varlen_bwd(
    dout: ArrayLike, q: ArrayLike, k: ArrayLike, v: ArrayLike, cu_seqlens_q: ArrayLike, cu_seqlens_k: ArrayLike, *,
    max_seqlen_q: int | None = None, max_seqlen_k: int | None = None,
    causal: bool | str = False, scale: float | None = None, window: Window = None, mask: MaybeArray = None,
    bias: MaybeArray = None, alibi_slopes: MaybeArray = None, softcap: float | None = None, sinks: MaybeArray = None,
    block_mask: Any = None, dropout: float = 0.0, seed: Seed = None, q_lengths: MaybeArray = None,
    kv_lengths: MaybeArray = None, dlse: MaybeArray = None, arithmetic: Arithmetic = FLOAT64,
) -> AttentionGrads:
    """Compute the gradients of `attention_varlen`; those of tokens outside every sequence are 0.

    Parameters
    ----------
    dout, dlse : array_like (Hq, total_q, Dv), (Hq, total_q)
    everything else
        As in `attention_varlen`.

    Returns
    -------
    AttentionGrads of float64

    Examples
    --------
    >>> grads = attention_varlen_bwd(*np.ones((4, 1, 4, 1)), [0, 1, 4], [0, 1, 3], causal=True)
    >>> grads.dv.ravel()  # the first row of the second sequence sees no key
    array([1. , 1.5, 0.5, 0. ])
    """
    dout3, q3, k3, v3 = with_heads((dout, q, k, v), arithmetic)
    dlse3 = np.zeros((*q3.shape[:2], 1)) if dlse is None else np.reshape(dlse, (*q3.shape[:2], 1))
    by_q = (unpack(x, cu_seqlens_q, max_seqlen_q) for x in (q3, dout3, dlse3))
    (q4, q_tokens, all_q), (dout4, _, _), (dlse4, _, _) = by_q
    (k4, k_tokens, all_kv), (v4, _, _) = (unpack(x, cu_seqlens_k, max_seqlen_k) for x in (k3, v3))
    used_q, used_kv = all_q if q_lengths is None else q_lengths, all_kv if kv_lengths is None else kv_lengths
    grads = attention_bwd(
        dout4, q4, k4, v4, causal=causal, scale=scale, window=window, mask=mask, bias=bias, alibi_slopes=alibi_slopes,
        softcap=softcap, sinks=sinks, block_mask=block_mask, dropout=dropout, seed=seed, q_lengths=used_q,
        kv_lengths=used_kv, dlse=dlse4[..., 0], arithmetic=arithmetic,
    )
    dq = pack(grads.dq, q_tokens, q3.shape[1]).reshape(np.shape(q))
    dk, dv = (pack(x, k_tokens, k3.shape[1]) for x in (grads.dk, grads.dv))
    return grads._replace(dq=dq, dk=dk.reshape(np.shape(k)), dv=dv.reshape(np.shape(v)))
