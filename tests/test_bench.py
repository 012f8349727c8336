"""The benchmark harness: what it counts, and that a result file holds it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bench import bench_block_sparse, bench_sparse_memory, report
from bench.harness import OURS, Case, Row, measure, peak_bytes
from bench.peers import frugal_forward, frugal_forward_backward, naive_forward, naive_forward_backward, qkv
from flashcupy import reference


def test_ratio_is_taken_within_rounds():
    row = Row("g", "n", seconds={OURS: [1.0, 2.0, 4.0], "peer": [3.0, 6.0, 4.0]})
    assert row.ratio("peer") == 3.0
    assert row.median("peer") == 4.0


def test_measure_interleaves_and_counts_memory():
    order = []
    case = Case("g", "n", {OURS: lambda: order.append("a"), "torch": lambda: order.append("b")}, rounds=3)
    row = measure(case, budget_seconds=60)
    assert order == ["a", "b"] * 4
    assert [len(samples) for samples in row.seconds.values()] == [3, 3]
    assert list(row.peak_bytes) == [OURS]


def test_budget_cuts_rounds_but_keeps_three():
    row = measure(Case("g", "n", {OURS: lambda: None}, rounds=7), budget_seconds=0)
    assert len(row.seconds[OURS]) == 3


def test_peak_bytes_sees_numpy_arrays_that_are_gone_again():
    assert peak_bytes(lambda: np.ones(1 << 20, np.uint8).sum()) >= 1 << 20


def test_result_files_hold_every_sample(tmp_path):
    rows = [Row("time", "case", {OURS: [1.0, 2.0, 3.0]}, {OURS: 1024}), Row("memory", "case", {}, {OURS: 2 << 20})]
    facts = {"cpu": "some", "threads": 2, "commit": "0" * 40}
    written, text, picture = report.write(rows, facts, tmp_path / "new" / "cpu-1.5-c")
    loaded = json.loads(written.read_text())
    assert [Row(**row) for row in loaded["rows"]] == rows
    assert loaded["environment"] == facts
    assert "2000.00" in text.read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("forward", "both"), [(naive_forward, naive_forward_backward), (frugal_forward, frugal_forward_backward)]
)
def test_the_naive_peers_compute_attention(forward, both, causal):
    q, k, v = qkv(1, 2, 17, 8)
    out, _ = reference.attention(q, k, v, causal=causal)
    np.testing.assert_allclose(forward(q, k, v, causal)[0], out, rtol=0, atol=1e-5)
    expected = reference.attention_bwd(v, q, k, v, causal=causal)
    for name, gradient in zip("qkv", both(q, k, v, v, causal), strict=True):
        np.testing.assert_allclose(gradient, getattr(expected, f"d{name}"), rtol=0, atol=1e-5)


def test_block_sparse_rows_are_told_apart_and_their_calls_agree():
    cases = list(bench_block_sparse.cases(quick=True))
    assert len({(case.group, case.name) for case in cases}) == len(cases) == 2 * 4 * 6 + 2 + 7
    full = next(case for case in cases if case.name == "S=1024 block 128 density 1")
    ours, dense = (call() for call in full.candidates.values())
    np.testing.assert_allclose(ours, dense, rtol=0, atol=1e-6)
    (skewed,) = (case for case in cases if case.group == "block-sparse forward" and "in one row" in case.name)
    ours, even = (call.keywords["block_mask"].stats() for call in skewed.candidates.values())
    assert ours["longest_row"] == 32
    assert ours["full"] == pytest.approx(even["full"], rel=0.1)
    assert even["row_imbalance"] == 1.0


def test_a_long_sparse_call_holds_no_score_a_byte():
    for case in bench_sparse_memory.cases(quick=True):
        row = measure(case, budget_seconds=0)
        assert 0 < row.peak_bytes[OURS] < 8192**2 / 2, case.name
