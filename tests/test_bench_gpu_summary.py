"""Tables over many rows of the GPU benchmark, and the model's say on a whole problem."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bench import budget_bwd
from bench.budget import GPUS, predict
from bench.gpu import summary
from bench.gpu.measure import GpuRow
from bench.gpu.pattern import Pattern
from bench.gpu.predicted import RanBackward, predicted_clocks, ran, ran_backward, visited
from bench.gpu.problem import Problem, square
from bench.gpu.sections import SECTIONS, SKEWED_AND_EVEN
from bench.harness import OURS, OURS_DETERMINISTIC

A100 = GPUS[0]
TOGETHER = "dkvq_sm80_bf16_o128k64_d128c128v128c128_w8s2b1_band"
APART = "dkv_sm80_bf16_o128k64_d128c128v128c128_w8s2b1_band + dq_sm80_bf16_o128k32_d128c128v128c32_w4s2b1_band"
KERNEL = "fwd_sm80_bf16_o128k64_d128v128_w4s1b2_band"
PLAIN = Problem("forward", "bfloat16", 2, 4, 1000, 1300, 128, 4)


def row(group, problem, seconds, kernel=KERNEL):
    samples = {name: [second] * 3 for name, second in seconds.items()}
    return GpuRow(group, problem.name, samples, {}, problem.record(), problem.flops, kernels={OURS: kernel})


def counted(problem, owner, walk):
    """Tiles of one head, looked at score by score."""
    full = partial = 0
    pairs = [(length, length) for length in problem.sequences] or [
        (problem.q_length, problem.kv_length)
    ] * problem.batch
    for entry, (q_length, kv_length) in enumerate(pairs):
        if "kv_lengths" in problem.options and entry % 2:
            kv_length //= 2
        distance = np.arange(q_length)[:, None] + (kv_length - q_length) - np.arange(-(-kv_length // walk) * walk)
        visible = np.broadcast_to(np.arange(distance.shape[1]) < kv_length, distance.shape).copy()
        if problem.causal or "window" in problem.options:
            visible &= distance >= 0
        if "window" in problem.options:
            visible &= distance <= problem.kv_length // 8
        for start in range(0, q_length, owner):
            tiles = visible[start : start + owner].reshape(-1, distance.shape[1] // walk, walk)
            full += int(tiles.all((0, 2)).sum())
            partial += int((tiles.any((0, 2)) & ~tiles.all((0, 2))).sum())
    return full, partial


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"causal": True},
        {"options": ("window",)},
        {"options": ("kv_lengths",)},
        {"causal": True, "q_length": 1300, "kv_length": 1000},
        {"batch": 1, "sequences": (300, 700, 300), "q_length": 1300, "causal": True},
    ],
)
def test_visited_tiles(changes):
    problem = replace(PLAIN, **changes)
    for owner, walk in ((128, 64), (64, 32), (64, 128)):
        assert visited(problem, owner, walk) == counted(problem, owner, walk)


def test_kernels_are_told_by_their_name():
    tiles = ran("fwd_sm80_split_tf32_o64k32_d256v128_w4s2b1_band_softcap_dropout")
    assert (tiles.kind, tiles.owner, tiles.walk, tiles.head_dim, tiles.v_dim, tiles.warps) == (
        *("split_tf32", 64, 32, 256, 128, 4),
    )
    assert tiles.features == ("softcap", "dropout")
    assert ran(KERNEL).features == ()
    for other in ("fwd_generic_f32_o64w64d32_t16x16g1_band", KERNEL.replace("band", "list"), ""):
        assert ran(other) is None


def test_names_are_those_of_the_table():
    from flashcupy.cuda.table_sm80 import Need, configure

    config = configure(Need("bf16", 128, 128, ("softcap", "dropout"), None, 227 << 10))
    tiles = ran(config.name)
    for field in ("kind", "owner", "walk", "head_dim", "v_dim", "warps"):
        assert getattr(tiles, field) == getattr(config.tiles, field)
    assert tiles.features == config.features


def test_a_problem_takes_the_time_of_its_tiles():
    plain, causal = square("forward", "bfloat16", 128, 4096), square("forward", "bfloat16", 128, 4096, causal=True)
    best, in_turn = predicted_clocks(plain.record(), KERNEL, A100)
    tile = predict(ran(KERNEL), A100)
    assert best == pytest.approx(16 * 4 * 32 * 64 * tile.best)
    assert in_turn == pytest.approx(best / tile.best * tile.in_turn)
    assert 0.5 < predicted_clocks(causal.record(), KERNEL, A100)[0] / best < 0.6
    assert predicted_clocks(plain.record(), "fwd_generic", A100) is None
    assert predicted_clocks(plain.record(), KERNEL, None) is None


def test_gradient_kernels_are_told_by_their_name():
    from flashcupy.cuda.table_sm80 import Need
    from flashcupy.cuda.table_sm80_bwd import configure_gradient

    config = configure_gradient("dkvq", Need("bf16", 128, 128, (), None, 227 << 10))
    tiles = ran_backward(config.name)
    assert tiles == RanBackward("dkvq", *(getattr(config.tiles, field) for field in list(vars(tiles))[1:]))
    for other in (KERNEL, f"{TOGETHER}_softcap", TOGETHER.replace("band", "list"), ""):
        assert ran_backward(other) is None


def test_a_backward_takes_the_time_of_its_tiles():
    plain, causal = square("backward", "bfloat16", 128, 4096), square("backward", "bfloat16", 128, 4096, causal=True)
    best, in_turn = predicted_clocks(plain.record(), TOGETHER, A100)
    tile = budget_bwd.predict("dkvq", ran_backward(TOGETHER), A100)
    assert best == pytest.approx(16 * 4 * 64 * 32 * tile.best)
    assert in_turn == pytest.approx(best / tile.best * tile.in_turn)
    assert 0.5 < predicted_clocks(causal.record(), TOGETHER, A100)[0] / best < 0.6
    dkv, dq = (predicted_clocks(plain.record(), name, A100)[0] for name in APART.split(" + "))
    assert predicted_clocks(plain.record(), APART, A100)[0] == dkv + dq
    assert predicted_clocks(plain.record(), f"{TOGETHER} + fwd_generic", A100) is None
    wide = TOGETHER.replace("d128c128v128c128", "d256c128v256c128")
    chunk = budget_bwd.predict("dkvq", ran_backward(wide), A100)
    twice = predicted_clocks(square("backward", "bfloat16", 256, 4096).record(), wide, A100)
    assert twice[0] == pytest.approx(2 * 8 * 4 * 64 * 32 * chunk.best)


def test_a_grid_of_tiles_is_the_same_from_either_side():
    for changes in ({"causal": True}, {"causal": True, "q_length": 1300, "kv_length": 1000}, {"options": ("window",)}):
        problem = replace(PLAIN, **changes)
        assert visited(problem, 64, 128) == counted(problem, 64, 128)


def test_determinism_and_memory_stand_beside_the_model():
    problem = square("backward", "bfloat16", 128, 4096, causal=True)
    shared = replace(problem, kv_heads=2)
    both = replace(problem, direction="forward + backward")
    rows = []
    for group, one, kernel in (
        ("backward", problem, TOGETHER),
        ("backward", shared, ""),
        ("forward + backward", both, f"{KERNEL} + {TOGETHER}"),
    ):
        measured = row(group, one, {OURS: 2e-3, OURS_DETERMINISTIC: 3e-3, "torch flash": 4e-3}, kernel)
        measured.peak_bytes[OURS] = one.result_bytes * 5 // 3
        measured.kernels[OURS_DETERMINISTIC] = APART if one is problem else ""
        rows.append(replace(measured, result_bytes=one.result_bytes))
    facts = {"gpu": {"compute_capability": "8.0"}}
    glance, alone, steps = (part for part in summary.summaries(rows, facts) if part)
    assert glance.startswith("## Backward at a glance")
    assert [line.split(" | ")[2] for line in glance.splitlines()[-2:]] == ["causal", "causal H=16/2"]
    assert glance.splitlines()[-1].endswith("(2.00) |")
    first, second = ([cell.strip() for cell in line.split("|")[1:-1]] for line in alone.splitlines()[-2:])
    assert (first[0], first[1], first[3], first[5], first[6]) == (problem.name, "344", "1.50", "1.67", TOGETHER)
    at_best, in_turn = map(float, first[2].split(", "))
    assert 150 < in_turn <= at_best < 312
    assert all(1.2 < float(price) < 1.5 for price in first[4].split(", "))
    assert second[2] == second[4] == "none"
    assert steps.splitlines()[-1].split(" | ")[2] != "none"


def test_options_stand_beside_what_the_model_says():
    plain = square("forward", "bfloat16", 128, 4096)
    capped = replace(plain, options=("softcap",))
    rows = [
        row("options forward", plain, {OURS: 1e-3, "torch flash": 1e-3}),
        row("options forward", capped, {OURS: 1.5e-3}, f"{KERNEL}_softcap"),
        row("options forward", replace(plain, options=("mask",)), {OURS: 2e-3}, "fwd_generic"),
    ]
    facts = {"gpu": {"compute_capability": "8.0"}}
    (text,) = (part for part in summary.summaries(rows, facts) if part)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert lines[2] == [plain.name, "1.00", "1.00, 1.00", KERNEL]
    assert lines[3][1] == "1.50"
    at_best, in_turn = map(float, lines[3][2].split(", "))
    assert 1 <= at_best < in_turn < 1.6
    assert lines[4][1:] == ["2.00", "none", "fwd_generic"]
    assert "none" in summary.options(rows, None).splitlines()[-3]


def test_the_matrix_at_a_glance():
    rows = [
        row("matrix", square("forward", dtype, 128, length, causal=True), seconds)
        for dtype, length, seconds in (
            ("bfloat16", 8192, {OURS: 2e-3, "torch flash": 1e-3, "torch cuDNN": 5e-4}),
            ("bfloat16", 512, {OURS: 1e-3}),
            ("float32", 512, {OURS: 1e-3, "torch efficient": 3e-3}),
        )
    ]
    lines = summary.matrix(rows, "Forward").splitlines()
    assert lines[4] == "| dtype | D |  | 512 | 8192 |"
    assert lines[6] == "| bfloat16 | 128 | causal | 34.4 | 275 (0.50) |"
    assert lines[7] == "| float32 | 128 | causal | 34.4 (3.00) |  |"


def test_the_best_tiles_stand_beside_the_choice():
    problem = square("forward", "bfloat16", 128, 4096)
    rows = [row("tiles", problem, {OURS: 2e-3, "o128k64_w4s2b2": 1e-3, "o64k64_w4s1b2": 4e-3})]
    assert summary.tiles(rows).splitlines()[-1] == (
        f"| {problem.name} | {KERNEL} | 2.000 | o128k64_w4s2b2 1.000, o64k64_w4s1b2 4.000 | 2.00 |"
    )
    assert not any(summary.summaries([], {"gpu": {}}))


def test_results_alone_grow_with_the_length():
    out = 2 * 16 * 8192 * 128 * 2
    assert square("forward", "bfloat16", 128, 8192).result_bytes == out
    assert square("backward", "bfloat16", 128, 8192).result_bytes == 3 * out
    assert square("forward + backward", "float32", 128, 8192).result_bytes == 4 * 2 * out
    assert square("backward", "bfloat16", 128, 8192, kv_heads=2).result_bytes == out + 2 * out // 8
    assert square("backward", "bfloat16", 128, 8192, tokens=8192).result_bytes == 3 * out // 2


def test_deterministic_backwards_are_no_peers():
    seconds = {OURS: 2e-3, OURS_DETERMINISTIC: 1e-3, "a": 3e-3, "a deterministic": 2e-3}
    row = GpuRow("g", "n", {name: [second] * 3 for name, second in seconds.items()})
    assert row.best_peer() == "a"
    assert row.ratio(OURS_DETERMINISTIC) == 0.5


def test_sparse_calls_are_held_against_the_dense_one_and_the_peer():
    base = square("forward", "bfloat16", 128, 1024)
    patterns = (Pattern("random", 0.25, 64), Pattern("random", 0.25, 128), Pattern("window", 1 / 16, 64))
    rows = [row("block-sparse forward", base, {OURS: 8.0, "torch flex": 16.0})]
    rows += [row("block-sparse forward", replace(base, pattern=pattern), {OURS: 4.0}) for pattern in patterns]
    rows[1].seconds["torch flex"] = [6.0] * 3
    assert summary.sparse(rows, "Sparse").splitlines()[-4:] == [
        "| pattern | block 64 | block 128 |",
        "| --- | --- | --- |",
        "| random 0.25 | 0.500 of 0.250 (1.50) | 0.500 of 0.250 |",
        "| window 0.0625 | 0.500 of 0.121 |  |",
    ]
    assert summary.sparse(rows[1:], "Sparse") == summary.sparse(rows[:1], "Sparse") == ""


def test_uneven_rows_are_measured_beside_as_many_blocks_in_even_ones():
    skewed, even = (pattern.block_mask(16384, 16384).stats() for pattern in SKEWED_AND_EVEN)
    assert skewed["row_imbalance"] > 50
    assert even["row_imbalance"] == 1.0
    assert skewed["full"] == pytest.approx(even["full"], rel=0.01)


def test_sparse_rows_begin_with_one_of_each_sort():
    patterns = [item.problem.pattern for item in SECTIONS["sparse"](False) if item.problem.direction == "forward"]
    assert patterns[0] is None
    assert [pattern.kind for pattern in patterns[1:5]] == ["random", "window", "skewed", "random"]
    asked = {(pattern.size, pattern.block) for pattern in patterns[1:] if pattern.kind == "random"}
    assert asked >= {(size, block) for size in (1, 0.5, 0.2, 0.1, 0.05, 0.02) for block in (16, 32, 64, 128)}
