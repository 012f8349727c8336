"""Measure cases: time side by side, peak memory, raw samples kept."""

from __future__ import annotations

import gc
import statistics
import time
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

Call = Callable[[], object]

OURS = "flashcupy"
DETERMINISTIC = " deterministic"  # behind the name of who gives the same bits in every run
OURS_DETERMINISTIC = OURS + DETERMINISTIC
# Worker threads of OpenBLAS and OpenMP spin for some milliseconds after a call and would slow down the next candidate.
SETTLE_SECONDS = 0.03
MIN_ROUNDS = 3


@dataclass(frozen=True)
class Case:
    """One row to measure.

    Attributes
    ----------
    candidates
        What to call, by name; one of them is `OURS`.
    rounds
        How often each is timed; 0 measures memory only.
    untraced
        Names whose memory tracemalloc cannot see, because they do not allocate through Python or NumPy.
    """

    group: str
    name: str
    candidates: Mapping[str, Call]
    rounds: int = 7
    untraced: frozenset[str] = frozenset({"torch"})


@dataclass(frozen=True)
class Row:
    """What was measured of one case: seconds of every timed call, peak bytes of one call beyond what stood before."""

    group: str
    name: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)

    def median(self, candidate: str) -> float:
        """Return the median of the timed calls in seconds."""
        return statistics.median(self.seconds[candidate])

    def ratio(self, candidate: str) -> float:
        """Return time over ours: the median of the ratios within a round, which a drifting clock rate cancels from."""
        pairs = zip(self.seconds[candidate], self.seconds[OURS], strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)


def measure(case: Case, budget_seconds: float) -> Row:
    """Measure a case; rounds beyond the third are dropped once `budget_seconds` are spent."""
    row = Row(case.group, case.name, {name: [] for name in case.candidates} if case.rounds else {})
    # The memory pass comes first and doubles as warm-up.
    for name, call in case.candidates.items():
        if name in case.untraced:
            call()
        else:
            row.peak_bytes[name] = peak_bytes(call)

    timers = {name: partial(seconds, call) for name, call in case.candidates.items()}
    take_turns(timers, row.seconds, case.rounds, budget_seconds)
    return row


def take_turns(
    timers: Mapping[str, Callable[[], float]], samples: dict[str, list[float]], rounds: int, budget_seconds: float
) -> None:
    """Append what each timer returns to its samples, once a round; no round past the third starts over the budget."""
    start = time.perf_counter()
    for done in range(rounds):
        if done >= MIN_ROUNDS and time.perf_counter() - start > budget_seconds:
            break
        for name, timer in timers.items():
            samples[name].append(timer())


def seconds(call: Call) -> float:
    """Time one call."""
    time.sleep(SETTLE_SECONDS)
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak_bytes(call: Call) -> int:
    """Return the most memory that one call held, its result included, beyond what stood before."""
    gc.collect()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
