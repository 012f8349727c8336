"""Merging attention over parts of the keys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from flashcupy import arrays, backend
from flashcupy.arrays import Array
from flashcupy.operands import output, require
from flashcupy.overlap import require_no_overlap


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
    parts, logs, library, device = _read_parts(list(outs), list(lses))
    acc = np.result_type(arrays.accumulator(parts[0].dtype), *(log.dtype for log in logs))
    target = _target(parts, logs, out, library, device)
    lse = arrays.empty_like(logs[0], logs[0].shape, acc, library)
    backend.serving(device).merge(parts, logs, target, lse)
    return (arrays.write_back(target, library) if out is None else out), arrays.write_back(lse, library)


def _read_parts(outs: list[Any], lses: list[Any]) -> tuple[list[Array], list[Array], str, str]:
    """Check parts and logs, and tell their library and device."""
    if len(outs) == 0 or len(outs) != len(lses):
        raise ValueError(f"outs has {len(outs)} parts and lses {len(lses)}, expected as many of both, at least one")
    read = [
        arrays.read(x, f"{name}[{i}]") for name, given in (("outs", outs), ("lses", lses)) for i, x in enumerate(given)
    ]
    devices, libraries = {arrays.device_name(array) for array, _ in read}, {library for _, library in read}
    if len(devices) > 1:
        raise ValueError(f"outs and lses are on {sorted(devices)}, expected one device")
    if len(libraries) > 1:
        raise TypeError(f"outs and lses come from {sorted(libraries)}, expected one library")
    parts, logs = [array for array, _ in read[: len(outs)]], [array for array, _ in read[len(outs) :]]
    for i, (part, log) in enumerate(zip(parts, logs, strict=True)):
        _check_part(i, part, log, parts[0])
    return parts, logs, libraries.pop(), devices.pop()


def _check_part(i: int, part: Array, log: Array, first: Array) -> None:
    arrays.require_float(part, f"outs[{i}]")
    if part.ndim == 0:
        raise ValueError(f"outs[{i}] has shape (), expected (..., Sq, Dv)")
    if part.shape != first.shape:
        raise ValueError(f"outs[{i}] has shape {part.shape}, expected {first.shape} as outs[0] has")
    if part.dtype.name != first.dtype.name:
        raise TypeError(f"outs[{i}] has dtype {part.dtype}, expected {first.dtype} as outs[0] has")
    if log.shape != first.shape[:-1]:
        raise ValueError(f"lses[{i}] has shape {log.shape}, expected {first.shape[:-1]}")
    if log.dtype.name not in ("float32", "float64"):
        raise TypeError(f"lses[{i}] has dtype {log.dtype}, expected float32 or float64")


def _target(parts: list[Array], logs: list[Array], out: Any, library: str, device: str) -> Array:
    if out is None:
        return arrays.empty_like(parts[0], parts[0].shape, arrays.native(parts[0]), library)
    array = output(out, "out", library, device)
    require(array, "out", parts[0].shape, arrays.FLOAT_DTYPES)
    require_no_overlap(array, "out", [(f"outs[{i}]", part) for i, part in enumerate(parts)])
    require_no_overlap(array, "out", [(f"lses[{i}]", log) for i, log in enumerate(logs)])
    return array
