"""Threads: the caller's limits hold and come back, calls may overlap, results do not depend on any of it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cases import Case, Sizes
from threadpoolctl import threadpool_info, threadpool_limits

import flashcupy as fc
from flashcupy.cpu import threads


@pytest.fixture(autouse=True)
def _default_threads():
    yield
    fc.set_num_threads(None)


def _blas_threads() -> int:
    """Threads of NumPy's BLAS; other tests load SciPy, which brings another."""
    blas = [library for library in threadpool_info() if library["user_api"] == "blas"]
    own = [library for library in blas if "numpy" in library["filepath"]] or blas
    return max(library["num_threads"] for library in own)


def _call(**options):
    x = np.random.default_rng(0).standard_normal((4, 300, 16), dtype=np.float32)
    out, residuals = fc.attention_fwd(x, x, x, causal=True, **options)
    return out, residuals.lse, *fc.attention_bwd(out, residuals)[:3]


def test_the_callers_blas_limit_is_honoured_and_restored():
    for limit in (1, 2):
        with threadpool_limits(limit, user_api="blas"):
            assert fc.num_threads() == limit
            _call()
            assert _blas_threads() == limit


def test_the_limit_is_restored_after_an_error():
    before = _blas_threads()

    def fail(index, turnstile):
        raise KeyError(index)

    with pytest.raises(KeyError):
        threads.run_tasks(fail, 5)
    assert _blas_threads() == before


def test_blas_is_held_to_one_thread_inside():
    seen = []
    threads.run_tasks(lambda index, turnstile: seen.append(_blas_threads()), 3)
    assert seen == [1, 1, 1]


class _OwnSetting:
    """A BLAS whose setting each thread has to itself, as with OpenMP."""

    threading_layer = "openmp"

    def __init__(self):
        self._counts = threading.local()

    @property
    def num_threads(self):
        return getattr(self._counts, "n", 4)

    def set_num_threads(self, n):
        self._counts.n = n


def test_a_setting_per_thread_is_held_in_every_thread():
    library = _OwnSetting()
    limit = threads.BlasLimit([library])

    def hold():
        with limit.held():
            return library.num_threads

    with limit.held(), ThreadPoolExecutor(1) as pool:
        assert library.num_threads == 1
        assert pool.submit(hold).result() == 1
        assert pool.submit(lambda: library.num_threads).result() == 4
    assert limit.callers_threads() == 4


def test_set_num_threads():
    fc.set_num_threads(3)
    assert fc.num_threads() == 3
    used = set()
    barrier = threading.Barrier(3)

    def task(index, turnstile):
        barrier.wait(timeout=30)
        used.add(threading.get_ident())

    threads.run_tasks(task, 3)
    assert len(used) == 3
    assert threading.get_ident() in used
    for bad, error in ((0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="n is"):
            fc.set_num_threads(bad)
    assert fc.num_threads() == 3


def test_results_do_not_depend_on_the_number_of_threads():
    fc.set_num_threads(1)
    expected = _call(alibi_slopes=np.ones(4, np.float32))
    for n in (2, 3, 8):
        fc.set_num_threads(n)
        for got, want in zip(_call(alibi_slopes=np.ones(4, np.float32)), expected, strict=True):
            assert np.array_equal(got, want)


def test_deterministic_gradient_of_a_shared_bias():
    fc.set_num_threads(4)
    problem = Case(("bias",), "float32", Sizes(batch=(6,), q_heads=4, kv_heads=2, q_len=60, kv_len=60)).make()
    _, residuals = fc.attention_fwd(problem.q, problem.k, problem.v, **problem.options)
    runs = [fc.attention_bwd(problem.dout, residuals, wrt=("bias",), deterministic=True).dbias for _ in range(8)]
    assert all(np.array_equal(run, runs[0]) for run in runs)


def test_calls_may_overlap():
    expected, before = _call(), _blas_threads()
    with ThreadPoolExecutor(6) as pool:
        for results in pool.map(lambda _: _call(), range(24)):
            for got, want in zip(results, expected, strict=True):
                assert np.array_equal(got, want)
    assert _blas_threads() == before


def test_a_failing_task_wakes_those_that_wait_for_their_turn():
    fc.set_num_threads(4)

    def task(index, turnstile):
        if index == 1:
            raise ValueError("task 1")
        with turnstile.turn(index):
            pass

    with pytest.raises(ValueError, match="task 1"):
        threads.run_tasks(task, 8)


def test_turns_come_in_order():
    fc.set_num_threads(4)
    order = []

    def task(index, turnstile):
        with turnstile.turn(index):
            order.append(index)

    threads.run_tasks(task, 50)
    assert order == list(range(50))


_FORKING = """
import os
import numpy as np
import flashcupy as fc
fc.set_num_threads(2)
x = np.random.default_rng(0).standard_normal((4, 300, 16), dtype=np.float32)
expected = fc.attention(x, x, x)
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(fc.attention(x, x, x), expected) else 3)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_forked_child_can_call():
    # In a process of its own: other tests load libraries that object to fork.
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", _FORKING], timeout=120, check=False).returncode == 0
