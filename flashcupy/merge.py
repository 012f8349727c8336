"""Merging attention over parts of the keys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from flashcupy import arrays


def merge_attention(outs: Iterable[Any], lses: Iterable[Any], *, out: Any = None) -> tuple[Any, Any]:
    """Combine attention over disjoint sets of keys into attention over their union.

    Parameters
    ----------
    outs : sequence of arrays (..., Sq, Dv)
        One for each part, of equal shape, dtype and library. For 16-bit inputs let the partial calls write float32
        (``out=``): rounding each part to 16 bits would be felt in the sum.
    lses : sequence of arrays (..., Sq), float32 or float64
        Natural-log row sums of the parts; -inf marks a row that saw no key in that part. Give `sinks` to one part only.
    out : array, optional
        Where the merged output goes: shape of a part, any floating dtype.

    Returns
    -------
    out : array (..., Sq, Dv)
        In the parts' dtype unless `out` was given.
    lse : array (..., Sq)

    Raises
    ------
    TypeError, ValueError
        If there are no parts, if their shapes, dtypes or libraries differ, or if `out` overlaps a part.

    Notes
    -----
    With lse = log(sum_p exp(lse_p)) and w_p = exp(lse_p - lse), out = sum_p w_p out_p. Arithmetic is float32
    (float64 for float64 parts). To differentiate: given dout and dlse of the merged result, call `attention_bwd` for
    part p with the merged results and the merged upstream gradients, ``attention_bwd(dout,
    AttentionResiduals.from_arrays(q, k_p, v_p, out, lse, ...), dlse=dlse)``: the weights w_p are contained in lse.

    Examples
    --------
    >>> import numpy as np
    >>> import flashcupy as fc
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 2, 6, 4))
    >>> parts = [fc.attention(q, k[:, s], v[:, s], return_lse=True) for s in (slice(0, 2), slice(2, 6))]
    >>> out, lse = fc.merge_attention(*zip(*parts))
    >>> bool(np.allclose(out, fc.attention(q, k, v)))
    True
    """
    parts, logs, library = _read_parts(list(outs), list(lses))
    acc = np.result_type(arrays.accumulator(parts[0].dtype), *logs)
    target = _target(parts, logs, out, library)
    lse = arrays.empty_like(logs[0], logs[0].shape, acc, library)
    with np.errstate(all="ignore"):
        highest = np.maximum.reduce(logs).astype(acc)
        shift = np.where(highest == -np.inf, 0, highest)
        weights = [np.exp(log.astype(acc) - shift)[..., None] for log in logs]
        total = np.add.reduce(weights)
        merged = np.zeros(parts[0].shape, acc)
        for part, weight in zip(parts, weights, strict=True):
            # A part that saw nothing has weight 0 and may hold anything.
            merged += np.where(weight == 0, 0, weight / total * part.astype(acc))
        target[...] = merged
        lse[...] = shift + np.log(total[..., 0])
    return (arrays.write_back(target, library) if out is None else out), arrays.write_back(lse, library)


def _read_parts(outs: list[Any], lses: list[Any]) -> tuple[list[np.ndarray], list[np.ndarray], str]:
    if len(outs) == 0 or len(outs) != len(lses):
        raise ValueError(f"outs has {len(outs)} parts and lses {len(lses)}, expected as many of both, at least one")
    read = [arrays.read_float(part, f"outs[{i}]") for i, part in enumerate(outs)]
    read += [arrays.read_float(log, f"lses[{i}]") for i, log in enumerate(lses)]
    if len({library for _, library in read}) > 1:
        raise TypeError(f"outs and lses come from {sorted({library for _, library in read})}, expected one library")
    parts, logs = [a for a, _ in read[: len(outs)]], [a for a, _ in read[len(outs) :]]
    first = parts[0]
    if first.ndim == 0:
        raise ValueError("outs[0] has shape (), expected (..., Sq, Dv)")
    for i, (part, log) in enumerate(zip(parts, logs, strict=True)):
        if part.shape != first.shape:
            raise ValueError(f"outs[{i}] has shape {part.shape}, expected {first.shape} as outs[0] has")
        if part.dtype.name != first.dtype.name:
            raise TypeError(f"outs[{i}] has dtype {part.dtype}, expected {first.dtype} as outs[0] has")
        if log.shape != first.shape[:-1]:
            raise ValueError(f"lses[{i}] has shape {log.shape}, expected {first.shape[:-1]}")
        if log.dtype.name not in ("float32", "float64"):
            raise TypeError(f"lses[{i}] has dtype {log.dtype}, expected float32 or float64")
    return parts, logs, read[0][1]


def _target(parts: list[np.ndarray], logs: list[np.ndarray], out: Any, library: str) -> np.ndarray:
    if out is None:
        return arrays.empty_like(parts[0], parts[0].shape, arrays.native(parts[0]), library)
    array = arrays.read_output(out, "out", library, parts[0].shape, arrays.FLOAT_DTYPES)
    arrays.require_no_overlap(array, "out", [(f"outs[{i}]", part) for i, part in enumerate(parts)])
    arrays.require_no_overlap(array, "out", [(f"lses[{i}]", log) for i, log in enumerate(logs)])
    return array
