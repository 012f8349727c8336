"""Results of a call: the caller's arrays, checked, or new ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from flashcupy import arrays
from flashcupy.arrays import Array
from flashcupy.operands import companion, output, require
from flashcupy.overlap import require_no_overlap
from flashcupy.results import AttentionGrads
from flashcupy.spec import AttentionProblem

_GRAD_OF = {"q": "dq", "k": "dk", "v": "dv", "bias": "dbias", "sinks": "dsinks"}


def out_array(problem: AttentionProblem, given: Any, name: str = "out") -> Array:
    """Where out goes: shape (..., Hq, Sq, Dv), q's dtype, or float32 for 16-bit inputs if the caller gave such."""
    shape = problem.spec.out_shape(problem.spec.v_dim)
    if given is None:
        return arrays.empty_like(problem.q, shape, arrays.native(problem.q), problem.library)
    return _writable(problem, given, name, shape, _out_dtypes(problem.q.dtype))


def lse_array(problem: AttentionProblem, given: Any) -> Array:
    shape, dtype = problem.spec.lse_shape, arrays.accumulator(problem.spec.dtype)
    if given is None:
        return arrays.empty(problem.q, shape, dtype, problem.library)
    return _writable(problem, given, "lse_out", shape, (dtype.name,))


def block_scores_array(problem: AttentionProblem, block_size: tuple[int, int], given: Any) -> Array:
    """Where a score for each block goes: shape (..., Hq, nq, nk), float32 (float64 for float64 inputs)."""
    spec, (block_q, block_k) = problem.spec, block_size
    shape = (*spec.lse_shape[:-1], -(-spec.q_len // block_q), -(-spec.kv_len // block_k))
    dtype = arrays.accumulator(spec.dtype)
    if given is None:
        return arrays.empty(problem.q, shape, dtype, problem.library)
    return _writable(problem, given, "out", shape, (dtype.name,))


def results_given(problem: AttentionProblem, out: Any, lse: Any) -> tuple[Array, Array]:
    """Check results of an earlier forward."""
    spec = problem.spec
    out_result = companion(out, "out", problem.library, problem.spec.device)
    require(out_result, "out", spec.out_shape(spec.v_dim), _out_dtypes(problem.q.dtype))
    lse_result = companion(lse, "lse", problem.library, problem.spec.device)
    require(lse_result, "lse", spec.lse_shape, (arrays.accumulator(spec.dtype).name,))
    return out_result, lse_result


def upstream_given(problem: AttentionProblem, dout: Any, dlse: Any) -> tuple[Array, Array | None]:
    """Check the gradients that flow into a backward."""
    spec = problem.spec
    dout_array = companion(dout, "dout", problem.library, problem.spec.device)
    require(dout_array, "dout", spec.out_shape(spec.v_dim), _out_dtypes(problem.q.dtype))
    if dlse is None:
        return dout_array, None
    dlse_array = companion(dlse, "dlse", problem.library, problem.spec.device)
    require(dlse_array, "dlse", spec.lse_shape, (arrays.accumulator(spec.dtype).name,))
    return dout_array, dlse_array


def wanted_grads(problem: AttentionProblem, wrt: Any) -> tuple[str, ...]:
    """Check `wrt`: names of inputs that the call had."""
    names = tuple(wrt) if isinstance(wrt, Iterable) and not isinstance(wrt, str) else (None,)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"wrt is {wrt!r}, expected a tuple of names out of {', '.join(_GRAD_OF)}")
    for name in names:
        if name not in _GRAD_OF:
            raise ValueError(f"wrt names {name!r}, expected names out of {', '.join(_GRAD_OF)}")
        if getattr(problem, name) is None:
            raise ValueError(f"wrt names {name!r}, but the forward was called without {name}=")
    return tuple(dict.fromkeys(names))


def grad_arrays(
    problem: AttentionProblem, wanted: tuple[str, ...], given: Any, others: list[tuple[str, Array | None]]
) -> dict[str, Array]:
    """Where gradients go, by the name of their input; each in its input's shape, dtype and memory order."""
    if given is None:
        given = AttentionGrads()
    elif not isinstance(given, AttentionGrads):
        raise TypeError(f"out is a {type(given).__name__}, expected flashcupy.AttentionGrads of arrays or None")
    result: dict[str, Array] = {}
    for name, grad_name in _GRAD_OF.items():
        array = getattr(given, grad_name)
        if name not in wanted:
            if array is not None:
                raise ValueError(f"out.{grad_name} is given, but wrt does not name {name!r}")
            continue
        model = getattr(problem, name)
        if array is None and name == "sinks":  # which may have come from the host: results are where q is
            result[name] = arrays.empty(problem.q, model.shape, arrays.native(model), problem.library)
            continue
        if array is None:
            result[name] = arrays.empty_like(model, model.shape, arrays.native(model), problem.library)
            continue
        dtypes = _out_dtypes(model.dtype)
        result[name] = _writable(problem, array, f"out.{grad_name}", model.shape, dtypes)
        earlier = [(f"out.{_GRAD_OF[n]}", a) for n, a in result.items() if n != name]
        require_no_overlap(result[name], f"out.{grad_name}", [*others, *earlier])
    return result


def grads_out(problem: AttentionProblem, result: dict[str, Array], given: Any) -> AttentionGrads:
    """The caller's own objects where he gave them."""
    # Those are handed over too: that is when torch's own stream learns to wait for ours.
    handed = {_GRAD_OF[name]: arrays.write_back(array, problem.library) for name, array in result.items()}
    own = {} if given is None else {name: x for name, x in given._asdict().items() if x is not None}
    return AttentionGrads(**{**handed, **own})


def _writable(
    problem: AttentionProblem, given: Any, name: str, shape: tuple[int, ...], dtypes: tuple[str, ...]
) -> Array:
    array = output(given, name, problem.library, problem.spec.device)
    require(array, name, shape, dtypes)
    require_no_overlap(array, name, problem.inputs())
    return array


def _out_dtypes(dtype: np.dtype) -> tuple[str, ...]:
    name = arrays.dtype_name(dtype)
    return (name, "float32") if dtype.itemsize == 2 else (name,)
