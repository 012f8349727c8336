"""The benchmark for GPUs, as far as it goes without one: NumPy stands for the device's array module."""

from __future__ import annotations

import json
import math
import os
import re
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from host_gpu import HostGpu

import flashcupy
from bench.gpu import __main__ as command
from bench.gpu import limits, operands, report, small
from bench.gpu.candidates import naive, ours
from bench.gpu.candidates.base import Candidate, Prepared, UnavailableError
from bench.gpu.measure import GpuRow, largest_error, measure
from bench.gpu.pattern import Pattern
from bench.gpu.problem import Problem, square
from bench.gpu.sections import SECTIONS, Item, shrunk
from bench.harness import OURS, OURS_DETERMINISTIC

TINY = Problem("forward", "float32", 2, 4, 48, 48, 16, 4)


def ready(call, **fields):
    """A candidate's `prepare` around a call of the shared operands."""
    return lambda problem, shared, gpu: Prepared(lambda: call(shared), lambda out: {"out": out[-1, -1]}, **fields)


def right(shared):
    return flashcupy.attention(shared.q, shared.k, shared.v)


# Counting


def test_flops_are_counted_as_usual():
    assert square("forward", "bfloat16", 128, 8192).flops == 4 * 2 * 16 * 8192 * 8192 * 128
    assert square("forward", "bfloat16", 128, 8192, causal=True).flops == 2 * 2 * 16 * 8192 * 8192 * 128
    assert square("backward", "bfloat16", 64, 512).flops == 2.5 * 4 * 32 * 32 * 512 * 512 * 64
    assert square("forward + backward", "bfloat16", 64, 512).flops == 3.5 * 4 * 32 * 32 * 512 * 512 * 64
    assert square("forward", "float16", 96, 16384).heads == 21


def test_flops_of_what_is_visible():
    per_pair = 4 * 4 * 16
    assert replace(TINY, batch=1, sequences=(16, 32)).flops == per_pair * (16**2 + 32**2)
    assert replace(TINY, options=("window",)).flops == pytest.approx(per_pair * 2 * 48 * 7)
    assert replace(TINY, options=("kv_lengths",)).flops == pytest.approx(per_pair * 48 * (48 + 24))
    assert replace(TINY, pattern=Pattern("random", 1 / 3, 16)).flops == pytest.approx(per_pair * 2 * 48 * 16)


def test_a_pattern_has_the_blocks_of_its_mask():
    for pattern in (Pattern("random", 0.4, 16), Pattern("window", 0.3, 16), Pattern("skewed", 0.2, 16)):
        full, partial = pattern.grids(96, 96)
        dense = pattern.block_mask(96, 96).to_dense().reshape(6, 16, 6, 16)
        np.testing.assert_array_equal(full, dense.all((1, 3)))
        np.testing.assert_array_equal(full | partial, dense.any((1, 3)))
        visible = pattern.visible(np.arange(96), np.arange(96), 96, np)
        np.testing.assert_array_equal(visible, dense.reshape(96, 96))


# Rows


@pytest.mark.parametrize("section", SECTIONS)
def test_rows_are_told_apart_and_quick_ones_are_small(section):
    rows = [item.name for item in SECTIONS[section](False)]
    assert len(rows) == len(set(rows)) > 5
    for item in SECTIONS[section](True):
        assert item.problem.batch * item.problem.q_length * item.problem.kv_length <= 2 * 256**2


def test_the_most_telling_rows_come_first():
    for section, direction in (("fwd", "forward"), ("bwd", "backward"), ("peers", "forward")):
        first = next(iter(SECTIONS[section](False)))
        assert first.problem == square(direction, "bfloat16", 128, 8192, causal=True)
        assert (OURS in [candidate.name for candidate in first.candidates]) == (section != "peers")
    first_eight = [item.problem for item in SECTIONS["fwd"](False)][:8]
    assert {problem.head_dim for problem in first_eight} == {64, 128, 256}
    assert {problem.dtype for problem in first_eight} == {"bfloat16", "float16", "float32", "float64"}


def test_the_matrix_looks_at_everything_before_it_looks_at_every_length():
    problems = [item.problem for item in SECTIONS["matrix"](False)]
    assert len(problems) == 4 * 3 * 2 * 6
    assert {(problem.q_length, problem.batch) for problem in problems} == {(512 << i, 32 >> i) for i in range(6)}
    first = problems[: len(problems) // 3]
    assert {(problem.dtype, problem.precision, problem.head_dim, problem.causal) for problem in first} == {
        (problem.dtype, problem.precision, problem.head_dim, problem.causal) for problem in problems
    }
    assert first[0] == square("forward", "bfloat16", 128, 8192, causal=True)


def test_a_short_loan_has_time_for_every_sort_of_backward():
    items = list(SECTIONS["bwd-matrix"](False))
    first = [item.problem for item in items][:11]
    assert first[0] == square("backward", "bfloat16", 128, 8192, causal=True)
    assert {problem.direction for problem in first} == {"backward", "forward + backward"}
    for field, values in (("head_dim", {64, 128, 256}), ("dtype", {"bfloat16", "float16", "float32"})):
        assert {getattr(problem, field) for problem in first} == values
    assert {(problem.heads, problem.kv_heads) for problem in first if problem.heads != problem.kv_heads} == {
        (32, 8),
        (32, 1),
    }
    assert {(problem.dtype, problem.precision) for problem in first} >= {("float32", "highest"), ("float32", "tf32")}
    assert len(items) == 4 * 3 * 2 * 6 + 3 + 2
    assert {problem.batch * problem.q_length for problem in (item.problem for item in items)} == {16384}


@pytest.mark.parametrize("section", ["bwd", "bwd-matrix"])
def test_deterministic_backwards_take_turns_with_the_default(section):
    for item in SECTIONS[section](False):
        names = [candidate.name for candidate in item.candidates]
        assert names[:2] == [OURS, OURS_DETERMINISTIC]
        assert {"torch flash", "torch cuDNN", "torch efficient"} <= set(names)
    if section == "bwd":
        assert {"torch flex", "JAX cuDNN"} <= {
            candidate.name for candidate in next(iter(SECTIONS[section](False))).candidates
        }


def test_shrinking_keeps_what_a_row_is_about():
    problem = replace(square("forward", "float16", 64, 8192), kv_heads=4, causal=True)
    assert shrunk(problem) == Problem("forward", "float16", 2, 16, 256, 256, 64, 2, causal=True)
    packed = replace(problem, batch=1, sequences=(4096, 4096))
    assert shrunk(packed).sequences == (64, 64)
    assert shrunk(packed).q_length == 128


# Measuring one row


def test_a_row_holds_who_was_right_and_why_others_are_missing():
    def refuses(problem, shared, gpu):
        raise UnavailableError("takes no such thing")

    def breaks(problem, shared, gpu):
        raise RuntimeError("no kernel\nfor this")

    candidates = [
        Candidate(OURS, ready(right, peak=lambda call: 5)),
        Candidate("wrong", ready(lambda shared: right(shared) + 0.1)),
        Candidate("not a number", ready(lambda shared: right(shared) * math.nan)),
        Candidate("refuses", refuses),
        Candidate("breaks", breaks),
        Candidate("host", ready(right, clock="host")),
    ]
    row = measure("group", TINY, candidates, HostGpu(), 0.0)
    assert {name: len(samples) for name, samples in row.seconds.items()} == {OURS: 3, "host": 3}
    assert row.clocks == {OURS: "events", "host": "host"}
    assert row.peak_bytes == {OURS: 5}
    assert row.errors[OURS] < 1e-5 < 1e-2 < row.errors["wrong"]
    assert row.missing["wrong"].startswith("ArithmeticError: its result is wrong: largest error")
    assert row.missing["not a number"].startswith("ArithmeticError: its result is wrong: largest error nan")
    assert row.missing["refuses"] == "takes no such thing"
    assert row.missing["breaks"].startswith("RuntimeError: no kernel for this (test_bench_gpu.py:")


def test_who_fails_while_being_timed_is_missing_and_the_others_go_on():
    calls = []

    def fails_later(shared):
        calls.append(None)
        if len(calls) > 3:
            raise MemoryError("gone")
        return right(shared)

    row = measure("g", TINY, [Candidate("later", ready(fails_later)), Candidate(OURS, ready(right))], HostGpu(), 0.0)
    assert list(row.seconds) == [OURS]
    assert row.missing["later"].startswith("MemoryError: gone")


def test_a_call_runs_inside_its_context_outside_the_clock():
    log = []

    @contextmanager
    def around():
        log.append("in")
        yield
        log.append("out")

    class Gpu(HostGpu):
        def sample(self, call):
            log.append("clock")
            return super().sample(call)

    measure("g", TINY, [Candidate(OURS, ready(right, around=around))], Gpu(), 0.0)
    assert log == ["in", "out"] + ["in", "clock", "out"] * 4


def test_without_a_reference_nothing_is_compared():
    row = measure("g", replace(TINY, options=("dropout",)), ours.candidates(), HostGpu(), 0.0)
    assert list(row.seconds) == [OURS]
    assert not row.errors


def test_errors_are_relative_and_zeros_past_the_keys_in_use_are_ignored():
    wanted = {"dk": np.array([[1.0, -4.0]])}
    assert largest_error(np, {"dk": np.array([[1.5, -4.0], [7.0, 7.0]])}, wanted) == 0.125
    assert math.isnan(
        largest_error(np, {"a": np.array([math.nan]), "b": np.array([1.0])}, {"a": np.ones(1), "b": np.ones(1)})
    )


def test_operands_are_normal_and_differ():
    for dtype in ("bfloat16", "float16", "float32", "float64"):
        shared = operands.make(replace(TINY, dtype=dtype), np)
        wide = [operands.widen(np, x) for x in (shared.q, shared.k, shared.v, shared.dout)]
        assert str(shared.q.dtype) == dtype
        assert all(abs(x.std() - 1) < 0.1 for x in wide)
        assert len({float(x.flat[0]) for x in wide}) == 4


# A section


@pytest.fixture
def section(monkeypatch, tmp_path):
    """Run a section of tiny rows; returns rows and the result file."""
    monkeypatch.setattr(limits, "matmul_rates", lambda gpu, names: dict.fromkeys(names, 0.5))
    monkeypatch.setattr(command, "ROW_SECONDS", 0.0)

    def run(items, seconds=60.0):
        rows = command.run(items, HostGpu(), tmp_path, time.monotonic() + seconds)
        return rows, json.loads((tmp_path / "result.json").read_text())

    return run


def items(*lengths, timer=None):
    candidates = [*ours.candidates(), *naive.candidates()]
    problems = [replace(TINY, q_length=length, kv_length=length) for length in lengths]
    return [Item("forward", problem, candidates, **({"timer": timer} if timer else {})) for problem in problems]


def test_a_section_writes_samples_table_and_plot(section, tmp_path):
    rows, written = section(items(16, 32))
    assert [GpuRow(**{**row, "problem": rows[0].problem}).seconds for row in written["rows"]] == [
        row.seconds for row in rows
    ]
    assert written["left_out"] == []
    assert written["environment"]["matmul_tflops"] == {"float32": 0.5}
    assert written["environment"]["commit"]
    text = (tmp_path / "table.md").read_text()
    assert "**float32 D=16 B=2 H=4 S=32**: " in text
    assert "of the speed of the best peer, naive CuPy" in text
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_what_the_time_did_not_reach_is_left_out(section, monkeypatch, tmp_path, capsys):
    clock = iter(range(1000, 1100))
    monkeypatch.setattr(command.time, "monotonic", lambda: float(next(clock)))
    rows = command.run(items(16, 24, 32), HostGpu(), tmp_path, 1004.0)
    assert re.match(r" +\d\.\d s  forward: float32 D=16 ", capsys.readouterr().out)
    written = json.loads((tmp_path / "result.json").read_text())
    assert 1 <= len(rows) < 3
    assert len(rows) + len(written["left_out"]) == 3
    assert written["left_out"][-1] == "forward: float32 D=16 B=2 H=4 S=32"
    assert "- left out for time: forward: float32 D=16 B=2 H=4 S=32" in (tmp_path / "table.md").read_text()


def test_finished_rows_survive_a_crash(section, monkeypatch, tmp_path):
    real, seen = command.measure, []

    def second_one_crashes(*arguments):
        seen.append(None)
        if len(seen) == 2:
            raise SystemError("the device is gone")
        return real(*arguments)

    monkeypatch.setattr(command, "measure", second_one_crashes)
    with pytest.raises(SystemError):
        section(items(16, 32))
    written = json.loads((tmp_path / "result.json").read_text())
    assert [row["name"] for row in written["rows"]] == ["float32 D=16 B=2 H=4 S=16"]
    assert len(written["left_out"]) == 1


def test_clocks_of_small_calls(section):
    for timer in small.TIMERS.values():
        rows, _ = section(items(16, timer=timer))
        # naive CuPy is not captured in graphs
        assert set(rows[0].seconds) >= {OURS}
        assert set(rows[0].seconds) | set(rows[0].missing) == {OURS, "naive CuPy"}


def test_a_row_in_the_table():
    row = GpuRow("g", "n", {OURS: [2e-3] * 3, "a": [1e-3] * 3, "b": [4e-3] * 3}, {"a": 1 << 20}, TINY.record(), 1e9)
    row.errors["a"] = 1e-3
    row.clocks["b"] = "host"
    row.kernels[OURS] = "fwd_sm80"
    lines = report.table([row], {"float32": 2.0}).splitlines()
    assert lines[2:4] == ["**n**: 0.50 of the speed of the best peer, a  ", "flashcupy runs fwd_sm80"]
    assert lines[7:] == [
        "| a | 1.000 | 1.000..1.000 | 1 | 50 | 0.50 | 1.0 | 1.0e-03 |",
        "| flashcupy | 2.000 | 2.000..2.000 | 0.5 | 25 | 1.00 | not known | not compared |",
        "| b (host clock) | 4.000 | 4.000..4.000 | 0.25 | 12 | 2.00 | not known | not compared |",
    ]


def test_a_row_says_what_the_device_was_like():
    row = GpuRow("g", "n", {OURS: [1e-3] * 3}, {}, TINY.record(), 1e9, state={"sm_mhz": 1980, "celsius": 45})
    assert report.table([row], {}).splitlines()[2:4] == [
        "**n**  ",
        "after it the device was at 1980 MHz and 45 degrees Celsius",
    ]


def test_results_alone_stand_beside_the_peak():
    row = GpuRow("g", "n", {OURS: [1e-3] * 3}, {OURS: 3 << 20}, TINY.record(), 1e9, result_bytes=3 << 19)
    lines = report.table([row], {}).splitlines()
    assert lines[2] == "**n**; results alone take 1.5 MiB"
    assert lines[-1].split(" | ")[-2] == "3.0"


def test_missing_ones_are_listed_once_with_their_reasons():
    first = GpuRow("g", "first", missing={"a": "not here", "b": "broke"})
    second = GpuRow("g", "second", missing={"a": "not here"})
    assert report.remainder([first, second], []).splitlines()[-2:] == [
        "- a: not here (all rows)",
        "- b: broke (1 row)",
    ]
    assert report.remainder([GpuRow("g", "n")], []) == ""


def test_peers_have_a_rate_of_their_own_precision():
    assert report.rate_name(TINY.record()) == "float32"
    assert report.rate_name(replace(TINY, precision="tf32").record()) == "tf32"


def test_the_list_needs_no_gpu(capsys):
    assert command.main(["sparse", "--list"]) == 0
    assert capsys.readouterr().out.startswith("block-sparse forward: bfloat16 D=128")


@pytest.mark.parametrize(("given", "used"), [(None, "error"), ("warn", "warn")])
def test_another_family_does_not_serve_in_the_place_of_the_one_a_row_names(monkeypatch, tmp_path, given, used):
    monkeypatch.setenv("FLASHCUPY_FALLBACK", given or "")
    if given is None:
        monkeypatch.delenv("FLASHCUPY_FALLBACK")
    monkeypatch.setattr(command, "CupyGpu", HostGpu)
    monkeypatch.setattr(command, "run", lambda *arguments: [])
    assert command.main(["fwd", "--output", str(tmp_path)]) == 0
    assert os.environ["FLASHCUPY_FALLBACK"] == used


def test_rows_are_chosen_by_their_names(capsys):
    assert command.main(["matrix", "--list", "--match", "float32 D=64.*S=512 causal"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"matrix: float32 D=64 B=32 H=32 S=512 causal{precision}" for precision in ("", " tf32")
    ]
    with pytest.raises(SystemExit):
        command.main(["limits", "--output", "x", "--match", "bfloat16"])
    assert "limits has no rows" in capsys.readouterr().err


def test_the_output_folder_must_be_named(capsys):
    with pytest.raises(SystemExit):
        command.main(["fwd"])
    assert "--output names no folder" in capsys.readouterr().err
