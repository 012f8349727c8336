"""The naive computation in a storage dtype, and the error bound it sets for every backend.

It runs the oracle's formulas with matmuls accumulated in float32 (float64 for float64) and with S, P and their
gradients rounded to the dtype, as arrays of that dtype would hold them. With precision "tf32" it rounds what float32
matmuls multiply instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from flashcupy import reference
from flashcupy.bound import allowed_error, coarse
from flashcupy.results import AttentionGrads

Array = npt.NDArray[Any]


def naive(
    q: Array, k: Array, v: Array, dtype: npt.DTypeLike, precision: str = "highest", **options: Any
) -> tuple[Array, Array]:
    """Like `reference.attention`; out in ``dtype``, lse in float32 (float64)."""
    out, lse = reference.attention(q, k, v, **options, arithmetic=coarse(dtype, precision))
    return out.astype(dtype), lse


def naive_bwd(
    dout: Array, q: Array, k: Array, v: Array, dtype: npt.DTypeLike, precision: str = "highest", **options: Any
) -> AttentionGrads:
    """Like `reference.attention_bwd`; dq, dk, dv in ``dtype``, dbias and dsinks in the dtype of their inputs."""
    return _store(
        reference.attention_bwd(dout, q, k, v, **options, arithmetic=coarse(dtype, precision)), dtype, **options
    )


def naive_varlen(
    q: Array,
    k: Array,
    v: Array,
    cu_seqlens_q: Array,
    cu_seqlens_k: Array,
    dtype: npt.DTypeLike,
    precision: str = "highest",
    **options: Any,
) -> tuple[Array, Array]:
    """Like `reference.attention_varlen`, in the dtypes of `naive`."""
    out, lse = reference.attention_varlen(
        q, k, v, cu_seqlens_q, cu_seqlens_k, **options, arithmetic=coarse(dtype, precision)
    )
    return out.astype(dtype), lse


def naive_varlen_bwd(
    dout: Array,
    q: Array,
    k: Array,
    v: Array,
    cu_seqlens_q: Array,
    cu_seqlens_k: Array,
    dtype: npt.DTypeLike,
    precision: str = "highest",
    **options: Any,
) -> AttentionGrads:
    """Like `reference.attention_varlen_bwd`, in the dtypes of `naive_bwd`."""
    operands = dout, q, k, v, cu_seqlens_q, cu_seqlens_k
    return _store(
        reference.attention_varlen_bwd(*operands, **options, arithmetic=coarse(dtype, precision)), dtype, **options
    )


def assert_close(
    actual: npt.ArrayLike,
    expected: Array,
    naive: Array | None,
    *,
    grad: bool = False,
    num_keys: int = 1,
    precision: str = "highest",
) -> None:
    """Hold one tensor to the contract's bound; its own dtype says which.

    Parameters
    ----------
    actual : array
        What a backend computed.
    expected : array of float64
        From the oracle.
    naive : array or None
        From the naive computation in the dtype under test; None will do for float64.
    grad : bool
        3 times the error of ``naive`` is allowed instead of 2.
    num_keys : int
        Sk, for the float64 bound; the default is the strictest.
    precision : str
        That of ``naive``: "tf32" for a float32 call that permits it.
    """
    actual = np.asarray(actual)
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    got = actual.astype(np.float64)
    finite = np.isfinite(expected)
    odd = ~finite & ~((got == expected) | (np.isnan(got) & np.isnan(expected))) | (finite & ~np.isfinite(got))
    if odd.any():
        _fail("inf and nan lie elsewhere", odd, got, expected)
    bound = allowed_error(expected, naive, actual.dtype, grad=grad, num_keys=num_keys, precision=precision)
    error = np.abs(np.where(finite, got, 0) - np.where(finite, expected, 0))
    if (error > bound).any():
        _fail(f"error {error.max():.3e} is above the bound {bound:.3e} ({actual.dtype})", error, got, expected)


def _store(grads: AttentionGrads, dtype: npt.DTypeLike, **options: Any) -> AttentionGrads:
    return AttentionGrads(
        *(x.astype(dtype) for x in grads[:3]),
        *(
            None if grad is None else grad.astype(np.asarray(options[name]).dtype)
            for name, grad in (("bias", grads.dbias), ("sinks", grads.dsinks))
        ),
    )


def _fail(what: str, badness: Array, got: Array, expected: Array) -> None:
    worst = tuple(int(n) for n in np.unravel_index(np.argmax(badness), badness.shape))
    raise AssertionError(f"{what}; at {worst}: got {got[worst]}, expected {expected[worst]}")
