"""Threads over heads, with BLAS held to one thread while they run.

The BLAS limit is process-wide, so it is counted: the first call that enters sets it, the last one that leaves
restores what the caller had. That setting is also the number of threads we use ourselves, unless the caller chose one.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController

_chosen: int | None = None


def set_num_threads(n: int | None) -> None:
    """Set how many threads a call on host arrays may use.

    Parameters
    ----------
    n : int or None
        At least 1. None goes back to the default: as many as NumPy's BLAS would use, which follows OMP_NUM_THREADS
        and any `threadpoolctl.threadpool_limits` that the caller holds.

    Raises
    ------
    TypeError, ValueError
        If `n` is not an int >= 1.

    Examples
    --------
    >>> import flashcupy as fc
    >>> fc.set_num_threads(1)
    >>> fc.set_num_threads(None)
    """
    global _chosen
    if n is not None:
        if isinstance(n, bool) or not hasattr(n, "__index__"):
            raise TypeError(f"n is {n!r}, expected an int >= 1 or None")
        if int(n) < 1:
            raise ValueError(f"n is {n}, expected an int >= 1 or None")
        n = int(n)
    _chosen = n


def num_threads() -> int:
    """Tell how many threads a call on host arrays made now would use.

    Returns
    -------
    int
        What `set_num_threads` set, or else what NumPy's BLAS would use.

    Examples
    --------
    >>> import flashcupy as fc
    >>> fc.set_num_threads(3)
    >>> fc.num_threads()
    3
    >>> fc.set_num_threads(None)
    """
    return _chosen or _blas().callers_threads() or _affinity()


def _affinity() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


def _limit(library: Any, n: int) -> None:
    """Set the threads of one BLAS library, from whichever thread this is.

    threadpoolctl lets only the first thread that ever set OpenBLAS's process-wide count do so again and ignores the
    others; we count holders ourselves, so each time we take that role and leave it.
    """
    release = getattr(library, "clear_controlling_thread", lambda force: None)
    release(force=True)
    library.set_num_threads(n)
    release(force=True)


class BlasLimit:
    """Reference-counted hold of BLAS at one thread.

    Where the setting is process-wide the first holder sets it and the last restores it. With OpenMP each thread has a
    setting of its own, so there every holder sets and restores his.
    """

    def __init__(self, libraries: list[Any]) -> None:
        self._own = [library for library in libraries if getattr(library, "threading_layer", "") == "openmp"]
        self._shared = [library for library in libraries if library not in self._own]
        self._lock = threading.Lock()
        self._holders = 0
        self._before: list[int | None] = []

    def callers_threads(self) -> int | None:
        """Threads that BLAS has, or had before it was held; None where NumPy's BLAS has no such setting."""
        with self._lock:
            shared = self._before if self._holders else [library.num_threads for library in self._shared]
        counts = [*shared, *(library.num_threads for library in self._own)]
        return max((n for n in counts if n), default=None)

    @contextmanager
    def held(self) -> Iterator[None]:
        own = [library.num_threads for library in self._own]
        with self._lock:
            if self._holders == 0:
                self._before = [library.num_threads for library in self._shared]
                self._set(self._shared, [1] * len(self._shared))
            self._holders += 1
        self._set(self._own, [1] * len(own))
        try:
            yield
        finally:
            self._set(self._own, own)
            with self._lock:
                self._holders -= 1
                if self._holders == 0:
                    self._set(self._shared, self._before)

    @staticmethod
    def _set(libraries: list[Any], counts: Sequence[int | None]) -> None:
        for library, n in zip(libraries, counts, strict=True):
            if n:
                _limit(library, n)


@cache
def _blas() -> BlasLimit:
    # Scanning the loaded libraries takes about a millisecond; NumPy's BLAS does not change after import.
    return BlasLimit(ThreadpoolController().select(user_api="blas").lib_controllers)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=max(32, os.cpu_count() or 1), thread_name_prefix="flashcupy")


def _after_fork() -> None:
    """A forked child has the parent's objects but none of its threads, and perhaps a lock that was held."""
    _pool.cache_clear()
    _blas.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Turnstile:
    """Lets task i pass only after tasks 0..i-1 have: sums are added in one order whatever the threads do."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._next = 0
        self._broken = False

    @contextmanager
    def turn(self, i: int) -> Iterator[None]:
        with self._condition:
            self._condition.wait_for(lambda: self._broken or self._next == i)
            if self._broken:
                raise RuntimeError("another part of this call has failed")
            yield
            self._next += 1
            self._condition.notify_all()

    def break_(self) -> None:
        with self._condition:
            self._broken = True
            self._condition.notify_all()


def run_tasks(task: Callable[[int, Turnstile], None], count: int, *, serial: bool = False) -> None:
    """Run task(0) .. task(count-1), started in that order, on the caller's thread and, unless serial, on others too.

    The first exception of any task is raised here after all have stopped.
    """
    workers = 1 if serial else min(num_threads(), count)
    indices, turnstile = itertools.count(), Turnstile()
    failures: list[BaseException] = []

    def work() -> None:
        while not failures and (i := next(indices)) < count:
            try:
                task(i, turnstile)
            except BaseException as error:  # KeyboardInterrupt too: the others must not wait for this task's turn
                failures.append(error)
                turnstile.break_()

    def help_out() -> None:
        with _blas().held():
            work()

    with _blas().held():
        helpers = [_pool().submit(help_out) for _ in range(workers - 1)]
        work()
        # A cancelled helper counts as done only once a thread has seen it: in a busy pool that would be a wait.
        wait([helper for helper in helpers if not helper.cancel()])
    if failures:
        raise failures[0]
