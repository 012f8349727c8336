"""The CUDA backend: `flashcupy.backend.Backend` on the devices of the runtime in use."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from flashcupy.arrays import accumulator
from flashcupy.cuda import bwd_sm80, config, families, first_use
from flashcupy.cuda.calls import Call
from flashcupy.cuda.fallback import first_that_works
from flashcupy.cuda.launch import (
    PlanCache,
    ReadyPlan,
    is_ready,
    keep_new_for_graph,
    make_ready,
    prepare,
    workspace_bytes,
)
from flashcupy.cuda.plan import Plan
from flashcupy.errors import NotWarmedUpError
from flashcupy.results import Explanation
from flashcupy.spec import AttentionProblem

Array = Any

_plans = PlanCache()
_GRADIENTS = {"q": "dq", "k": "dk", "v": "dv", "bias": "dbias", "sinks": "dsinks"}


class Kept(NamedTuple):
    """What a forward leaves for its backward.

    ``stats`` (..., H, Sq, 2) are each row's reference and 1 / sum: with them the backward computes the very P that made
    the output. None where the output was computed elsewhere: then they follow from ``lse``, and carry its rounding.
    """

    lse: Array
    stats: Array | None


def kept_from_lse(lse: Array) -> Kept:
    return Kept(lse, None)


def forward(problem: AttentionProblem, out: Array, lse: Array, keep: bool, family: str | None = None) -> Kept | None:
    """Compute out and lse, by one family alone if it is named; see `flashcupy.backend.Backend`."""
    call = Call(problem)
    with call.device.scope():
        kept = Kept(lse, _new_stats(call)) if keep else None
        _add_results(call, out, lse, None if kept is None else kept.stats)
        keep_new_for_graph(call.device, *(lse,) if kept is None else kept)
        call.add_lists(transposed=False)
        call.run(_ready_forward(call, family))
    return kept


def backward(
    problem: AttentionProblem,
    out: Array,
    kept: Kept,
    dout: Array,
    dlse: Array | None,
    grads: dict[str, Array],
    deterministic: bool,
) -> None:
    """Compute gradients; see `flashcupy.backend.Backend`."""
    if not grads:
        return
    call = Call(problem)
    with call.device.scope():
        _add_upstream(call, out, kept, dout, dlse)
        _add_gradients(call, grads)
        call.add_lists(transposed=False)
        if "k" in grads or "v" in grads:
            call.add_lists(transposed=True)
        call.run(_ready_backward(call, tuple(grads), deterministic))


def forward_workspace(problem: AttentionProblem, out: Array, lse: Array) -> int:
    """Bytes of temporary memory of a forward that keeps nothing, whichever family serves it."""
    call = Call(problem)
    _add_results(call, out, lse, None)
    return _most_workspace(call, "forward", lambda family: family.forward(call.builder(), tails=call.tails))


def backward_workspace(
    problem: AttentionProblem,
    out: Array,
    kept: Kept,
    dout: Array,
    dlse: Array | None,
    grads: dict[str, Array],
    deterministic: bool,
) -> int:
    """Bytes of temporary memory of a backward, whichever family serves it."""
    if not grads:
        return 0
    call = Call(problem)
    _add_upstream(call, out, kept, dout, dlse)
    _add_gradients(call, grads)

    def make(family: families.Family) -> Plan:
        return family.backward(call.builder(), tuple(grads), tails=call.tails, deterministic=deterministic)

    return _most_workspace(call, "backward", make)


def _most_workspace(call: Call, direction: families.Direction, make: Callable[[families.Family], Plan]) -> int:
    plans = [make(families.FAMILIES[name]) for name in families.to_try(call.request(), direction)]
    return max(workspace_bytes(plan, call.host) for plan in plans)


def warmup(problem: AttentionProblem, backward: bool) -> None:
    """Compile, load and check what a call like this needs; nothing is computed.

    So is what brings host arrays over, fills rows in no sequence, and merges: any call may need them later.
    """
    call = Call(problem)
    with call.device.scope():
        if call.device.is_capturing():
            raise NotWarmedUpError(
                "flashcupy.warmup was called while a CUDA graph is captured, when nothing can be compiled or checked: "
                "call it before the capture"
            )
        call.add_lists(transposed=False)
        for keep in (False, True):
            _ready_forward(_standing_in(problem, keep=keep))
        if backward:
            call.add_lists(transposed=True)
            for deterministic in (False, True):
                back_call = _standing_in(problem, keep=True, grads=wanted(problem))
                _ready_backward(back_call, wanted(problem), deterministic)
        acc = config.accumulator(problem.spec)
        make_ready(call.device, (config.UPLOAD, config.FILL, config.combine_config(acc)), acc)


def explain(problem: AttentionProblem) -> Explanation:
    """Tell what would serve a call, without compiling it."""
    call = _standing_in(problem, keep=False)
    family, why = families.choose(call.request(), "forward")
    plan = family.forward(call.builder(), tails=call.tails)
    grads = wanted(problem)
    back_call = _standing_in(problem, keep=True, grads=grads)
    back_family, _ = families.choose(back_call.request(), "backward")
    back = back_family.backward(back_call.builder(), grads, tails=back_call.tails, deterministic=False)
    if back_family is not family:
        why = f"{why}; backward by family {back_family.name}"
    main = next((one for one in reversed(plan.launches) if not isinstance(one.config, config.PlainConfig)), None)
    return Explanation(
        backend="cuda",
        config="nothing to launch" if main is None else main.config.name,
        reason=why,
        threads=0 if main is None else main.config.threads,
        tasks=0 if main is None else main.grid,
        workspace_bytes=workspace_bytes(plan, call.host),
        backward_workspace_bytes=workspace_bytes(back, back_call.host),
        compiled=is_ready(call.device, plan, call.host),
        spec=problem.spec,
    )


def wanted(problem: AttentionProblem) -> tuple[str, ...]:
    """Names of all gradients that a call has."""
    return tuple(name for name in _GRADIENTS if getattr(problem, name) is not None)


def _ready_forward(call: Call, name: str | None = None) -> ReadyPlan:
    return _ready(call, "forward", (), False, lambda family: family.forward(call.builder(), tails=call.tails), name)


def _ready_backward(call: Call, wanted: tuple[str, ...], deterministic: bool) -> ReadyPlan:
    def make(family: families.Family) -> Plan:
        return family.backward(call.builder(), wanted, tails=call.tails, deterministic=deterministic)

    return _ready(call, "backward", wanted, deterministic, make)


def _ready(
    call: Call,
    direction: families.Direction,
    wanted: tuple[str, ...],
    deterministic: bool,
    make: Callable[[families.Family], Plan],
    name: str | None = None,
) -> ReadyPlan:
    spec = call.problem.spec

    def attempt(name: str) -> ReadyPlan:
        family = families.FAMILIES[name]
        plan = make(family)
        # Where it makes no difference to the kernels, it makes none to what is checked.
        one_pass = family is families.GENERIC or bwd_sm80.one_pass(call.request(), wanted, deterministic=deterministic)
        case = first_use.case_of(spec, wanted, family.precision(spec), deterministic=not one_pass)
        with families.only(name):
            check = functools.partial(case.begin, call.device)
            return prepare(call.device, plan, call.host, config.accumulator(spec), check)

    def first() -> ReadyPlan:
        names = families.to_try(call.request(), direction) if name is None else [name]
        return first_that_works(names, attempt, call.device.name)

    # What a check makes is for the check alone: its kernels may prove wrong.
    if families.forced():
        return first()
    return _plans.get(
        (direction, wanted, deterministic, call.tails, name or os.environ.get("FLASHCUPY_FAMILY"), *call.key), first
    )


def _new_stats(call: Call) -> Array:
    spec = call.problem.spec
    return call.device.empty((*spec.lse_shape, 2), accumulator(spec.dtype))


def _add_results(call: Call, out: Array, lse: Array, stats: Array | None) -> None:
    call.add("out", out)
    call.add("lse", lse)
    if stats is not None:
        call.add("stats", stats)


def _add_gradients(call: Call, grads: dict[str, Array]) -> None:
    for name, array in grads.items():
        call.add(_GRADIENTS[name], array)


def _add_upstream(call: Call, out: Array, kept: Kept, dout: Array, dlse: Array | None) -> None:
    call.add("out", out)
    if kept.stats is None:
        call.add("lse", kept.lse)
    else:
        call.add("stats", kept.stats)
    call.add("dout", dout)
    if dlse is not None:
        call.add("dlse", dlse)


class _Metadata(NamedTuple):
    """Shape, strides and dtype of an array that need not exist."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype

    @classmethod
    def like(cls, model: Any, shape: tuple[int, ...], dtype: np.dtype) -> _Metadata:
        """What `empty_like(order="K")` would allocate."""
        axes = list(range(len(shape)))
        if model.ndim == len(shape):
            axes.sort(key=lambda axis: -abs(model.strides[axis]))
        strides, step = [0] * len(shape), dtype.itemsize
        for axis in reversed(axes):
            strides[axis] = step
            step *= shape[axis]
        return cls(shape, tuple(strides), dtype)


def _standing_in(problem: AttentionProblem, *, keep: bool, grads: tuple[str, ...] = ()) -> Call:
    """The call that results allocated by the library would make, with nothing allocated."""
    spec, call = problem.spec, Call(problem)
    acc = accumulator(spec.dtype)
    rows = _Metadata.like(problem.q, spec.lse_shape, acc)
    out = _Metadata.like(problem.q, spec.out_shape(spec.v_dim), problem.q.dtype)
    call.add_metadata("out", out)
    if not grads:
        call.add_metadata("lse", rows._replace(strides=_packed(spec.lse_shape, acc.itemsize)))
    if keep:
        shape = (*spec.lse_shape, 2)
        call.add_metadata("stats", _Metadata(shape, _packed(shape, acc.itemsize), acc))
    if grads:
        call.add_metadata("dout", out)
    for name in grads:
        model = getattr(problem, name)
        call.add_metadata(_GRADIENTS[name], _Metadata.like(model, model.shape, model.dtype))
    return call


def _packed(shape: tuple[int, ...], item: int) -> tuple[int, ...]:
    strides = []
    for extent in reversed(shape):
        strides.append(item)
        item *= extent
    return tuple(reversed(strides))
