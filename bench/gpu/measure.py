"""Measure one row: prepare every candidate, hold its result to the reference, then time all of them in turns."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.gpu import operands as make_operands
from bench.gpu.candidates.base import Candidate, Prepared, UnavailableError
from bench.gpu.device import Gpu, host_sample
from bench.gpu.operands import widen
from bench.gpu.problem import Problem
from bench.gpu.reference import expected
from bench.harness import DETERMINISTIC, OURS, Row, take_turns

ROUNDS = 20

# A result further off than this, relative to the largest value of its tensor, is of another function: some ten units of
# the dtype, and of TF32, which peers use for float32.
LARGEST_ERROR = {"bfloat16": 2.0**-4, "float16": 2.0**-7, "float32": 2.0**-7, "float64": 2.0**-36}


@dataclass(frozen=True)
class GpuRow(Row):
    """A row on a GPU.

    Attributes
    ----------
    problem
        The fields of the `Problem`.
    flops
        The operations that count for it.
    result_bytes
        What the results alone take: the least of "peak".
    errors
        Largest error of each candidate, relative to the tensor's largest value; absent where nothing was compared.
    clocks
        "events" or "host", by candidate.
    kernels
        What served each candidate's call, where its library tells.
    missing
        Why a candidate was not timed.
    state
        Clock and temperature of the device right after the last round.
    """

    problem: dict[str, Any] = field(default_factory=dict)
    flops: float = 0.0
    result_bytes: int = 0
    errors: dict[str, float] = field(default_factory=dict)
    clocks: dict[str, str] = field(default_factory=dict)
    kernels: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    state: dict[str, int] = field(default_factory=dict)

    def tflops(self, candidate: str) -> float:
        """Return the median rate in TFLOP/s."""
        return self.flops / self.median(candidate) * 1e-12

    def best_peer(self) -> str | None:
        """Return the fastest candidate that is not ours; who was asked for more than ours is not one."""
        others = (name for name in self.seconds if name != OURS and not name.endswith(DETERMINISTIC))
        return min(others, key=self.median, default=None)


Timer = Callable[[Gpu, Prepared], Callable[[], float]]


def device_timer(gpu: Gpu, prepared: Prepared) -> Callable[[], float]:
    """Return what times one call on the device, by the clock that suits it."""

    def sample() -> float:
        with prepared.around():
            if prepared.clock == "host":
                return host_sample(prepared.call, prepared.wait)
            return gpu.sample(prepared.call)

    return sample


def measure(
    group: str,
    problem: Problem,
    candidates: Sequence[Candidate],
    gpu: Gpu,
    budget_seconds: float,
    timer: Timer = device_timer,
) -> GpuRow:
    """Measure a row; a candidate that raises is listed as missing with what it said."""
    row = GpuRow(group, problem.name, problem=problem.record(), flops=problem.flops, result_bytes=problem.result_bytes)
    ready = _ready(row, problem, candidates, gpu)
    timers = {name: _guarded(row, name, timer(gpu, prepared)) for name, prepared in ready.items()}
    for sample in timers.values():
        sample()  # warm up: clocks, caches of the libraries
    timers = {name: sample for name, sample in timers.items() if name not in row.missing}
    row.seconds.update({name: [] for name in timers})
    take_turns(timers, row.seconds, ROUNDS, budget_seconds)
    row.state.update(gpu.state())
    for name in row.missing.keys() & row.seconds.keys():
        del row.seconds[name]
    ready.clear()
    gpu.release()
    return row


def _ready(row: GpuRow, problem: Problem, candidates: Sequence[Candidate], gpu: Gpu) -> dict[str, Prepared]:
    """Prepare the candidates whose result is right."""
    shared = make_operands.make(problem, gpu.xp)
    wanted = None
    try:
        wanted = expected(problem, shared)
    except Exception as error:
        row.missing["the reference"] = reason(error)
    ready = {}
    for candidate in candidates:
        try:
            prepared = candidate.prepare(problem, shared, gpu)
            _check(row, candidate.name, prepared, wanted, gpu)
            if prepared.peak is not None:
                with prepared.around():
                    row.peak_bytes[candidate.name] = prepared.peak(prepared.call)
            row.clocks[candidate.name] = prepared.clock
            if prepared.kernel:
                row.kernels[candidate.name] = prepared.kernel
            ready[candidate.name] = prepared
        except Exception as error:  # whatever an optional library raises
            row.missing[candidate.name] = reason(error)
    return ready


def _check(row: GpuRow, name: str, prepared: Prepared, wanted: dict[str, Any] | None, gpu: Gpu) -> None:
    with prepared.around():
        result = prepared.call()
        prepared.wait(result)
    gpu.synchronize()
    if wanted is None:
        return
    error = largest_error(gpu.xp, prepared.head(result), wanted)
    row.errors[name] = error
    limit = LARGEST_ERROR[row.problem["dtype"]]
    if not error <= limit:  # NaN is wrong too
        raise ArithmeticError(f"its result is wrong: largest error {error:.2e} of the largest value, limit {limit:.2e}")


def largest_error(xp: Any, found: dict[str, Any], wanted: dict[str, Any]) -> float:
    """Return the largest error over all tensors, each relative to its largest value; NaN where a result has one.

    A gradient may go on past the keys in use, with zeros that are not compared.
    """
    errors = []
    for name, array in wanted.items():
        difference = abs(widen(xp, found[name])[: len(array)] - array).max()
        errors.append(float(difference / abs(array).max()))
    return float("nan") if any(error != error for error in errors) else max(errors)


def _guarded(row: GpuRow, name: str, sample: Callable[[], float]) -> Callable[[], float]:
    """Turn what a candidate raises while it is timed into the reason of its absence."""

    def guarded() -> float:
        if name in row.missing:
            return float("nan")
        try:
            return sample()
        except Exception as error:
            row.missing[name] = reason(error)
            return float("nan")

    return guarded


def reason(error: BaseException) -> str:
    """Return an exception as one line; what is not just unavailable names its type and the innermost line."""
    text = " ".join(str(error).split())[:300]
    if isinstance(error, UnavailableError):
        return text
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text}{place}"
