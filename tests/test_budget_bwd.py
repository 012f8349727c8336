"""The model of the tensor-core backward against counts by hand, and against the kernels' own."""

from __future__ import annotations

from dataclasses import replace

import pytest
from oracles import nvrtc_library
from test_sass import listing_of

import flashcupy
from bench import budget, budget_tables
from bench.budget import GPUS
from bench.budget_bwd import Units, chunks, cycles, instructions, multiply_adds, predict, products, query_units
from flashcupy.cuda.config_sm80 import BUCKETS
from flashcupy.cuda.config_sm80_bwd import GradientTiles
from flashcupy.cuda.table_sm80_bwd import adds_queries

A100, H100, ADA = GPUS
TILES = GradientTiles("bf16", 128, 64, 128, 128, 8, 2, 128, 128)  # 16 keys a warp, 32 scores a thread
KERNELS = ("dkvq", "dkv", "dq")


def test_products_are_counted_by_hand():
    # 8 of 8 queries x 8 steps of 16 columns, twice; 16 of 8 columns x 4 steps of 16 queries, twice; and for dq, of 64
    # queries and 128 columns, 32 x 32 a warp: 2 of 16 queries x 4 of 8 columns x 8 steps of 16 keys.
    assert products("dkvq", TILES) == (2 * 8 * 8, 2 * 16 * 4, 2 * 4 * 8)
    assert products("dkv", TILES) == (128, 128, 0)
    assert products("dq", TILES) == (128, 64, 0)
    assert products("dkv", replace(TILES, kind="tf32")) == (256, 256, 0)
    assert products("dq", replace(TILES, kind="split_tf32", owner=64, warps=4)) == (3 * 256, 3 * 128, 0)
    assert products("dkv", replace(TILES, head_dim=256, v_dim=256)) == (256, 128, 0)  # a chunk of two


def test_five_products_four_and_three():
    one = 128 * 64 * 128
    assert [multiply_adds(kernel, TILES) for kernel in KERNELS] == [5 * one, 4 * one, 3 * one]
    wide = replace(TILES, head_dim=256, v_dim=256)
    assert chunks("dkv", wide) == chunks("dq", wide) == 2
    # Of two chunks each computes P and dP over all columns: 2 x (4 + 3) halves rather than 5 x 2.
    assert 2 * multiply_adds("dkvq", wide) == 14 * one
    assert chunks("dq", replace(TILES, v_dim=256, v_chunk=64)) == 1
    for kernel in KERNELS:
        assert cycles(kernel, TILES, A100)["tensor"] == multiply_adds(kernel, TILES) / 1024


def test_instructions_of_a_tile():
    found = instructions("dkvq", TILES)
    own, walked = 16 * 256 // 512, 64 * 256 // 512
    # k, v, and q, dout twice; of dq a step of 16 keys is two of dS and two of k.
    assert found["LDSM"] == 2 * own + 4 * walked + 8 * (2 + 2)
    assert [found[kind] for kind in ("FFMA", "MUFU.EX2", "FMUL", "F2FP", "STS")] == [64, 32, 32, 32, 16]
    assert found["RED"] == 32 * 32 // 128
    assert instructions("dkvq", TILES, red_instructions=4)["RED"] == 4 * found["RED"]
    assert found["LDGSTS"] == 64 * 512 // (16 * 256) + 1  # and the terms
    alone = instructions("dq", TILES)
    assert alone["LDSM"] == 2 * own + 3 * walked
    assert alone["F2FP"] == 16
    assert not {"STS", "RED", "LDS.128"} & set(+alone)


def test_pipes():
    found = cycles("dkvq", TILES, H100)
    assert found["mufu"] == 128 * 64 / 16
    assert found["red"] == 4 * 64 * 128 / 16
    assert cycles("dkv", TILES, H100)["red"] == 0
    assert found["l2"] == 64 * (512 + 12) / H100.l2_bytes
    own = 8 * 512 * instructions("dkvq", TILES)["LDSM"]
    dS, terms, copies = 2 * 128 * 64, 8 * (8 * 512 + 2 * 128), 64 * (512 + 12)
    assert found["shared"] == (own + dS + terms + copies) / 128
    assert predict("dkvq", TILES, H100).bound == "shared"
    edge = predict("dkvq", TILES, H100, masked=True).cycles
    assert edge["integer"] - found["integer"] == 8 * 32 * 6 * 32 / 64  # six more a score


def test_units_of_dq():
    assert query_units(TILES) == Units(2, 32, 8)
    assert query_units(replace(TILES, walk=32, warps=4, head_chunk=64)) == Units(2, 16, 4)
    assert query_units(replace(TILES, walk=16, owner=16, warps=1, head_chunk=96)) == Units(1, 48, 2)
    uneven = replace(TILES, walk=16, owner=112, warps=7, head_chunk=32)
    assert query_units(uneven) == Units(1, 32, 1)
    assert query_units(uneven).of_warp(7) == 1


def test_units_are_those_of_the_kernel():
    chosen = {budget_tables.gradient_config_for("dkvq", "bf16", dim, gpu).tiles for gpu in GPUS for dim in BUCKETS}
    lines = ["#include <tile/mma_reduce.cuh>"]
    for tiles in chosen:
        units, of = query_units(tiles), f"QueryUnits<{tiles.cpp}>"
        pairs = zip(("kRowTiles", "kColumns", "kUnits"), units, strict=True)
        lines += [f'static_assert({of}::{name} == {number}, "{tiles}");' for name, number in pairs]
    lines.append('extern "C" __global__ void units() {}')
    assert nvrtc_library(12).compile("\n".join(lines), "sm_90a").usage


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_a_tile_is_as_the_machine_code_has_it(arch):
    gpu = {one.arch: one for one in GPUS}[arch]
    config = budget_tables.gradient_config_for("dkvq", "bf16", 64, gpu)
    listing = listing_of(config.translation_unit(), config.name, arch)
    counts = listing.counts()
    expected = instructions("dkvq", config.tiles, red_instructions=gpu.red_instructions)
    for kind in ("HMMA.16816.F32.BF16", "LDSM"):  # in the loop over tiles alone
        assert counts[kind] == expected[kind]
    # Scores with and without hidden ones have code of their own, of which a tile takes one.
    for kind in ("MUFU.EX2", "FFMA"):
        assert counts[kind] == 2 * expected[kind]
    assert sum(one.opcode.startswith("RED") for one in listing.instructions) == expected["RED"]


def test_every_kind_of_instruction_has_a_pipe():
    others = {"LDSM", "LDS", "LDS.128", "STS", "STS.128", "LDGSTS", "RED"}
    known = {*budget._FLOAT, *budget._INTEGER, *budget._MUFU, *others}
    for kind in ("bf16", "tf32", "split_tf32"):
        for kernel in KERNELS if kind == "bf16" else ("dkv", "dq"):
            found = instructions(kernel, replace(TILES, kind=kind), masked=True)
            assert {name for name in found if not name.startswith("HMMA")} <= known


def test_kernels_are_those_of_a_plan():
    for kind, dtype, precision in (("bf16", "bfloat16", "highest"), ("tf32", "float32", "tf32")):
        shape = ((1, 64, 64), dtype)
        spec = flashcupy.explain(shape, shape, shape, precision=precision).spec
        together = budget_tables.kernels_of(kind, deterministic=False) == ("dkvq",)
        assert together == adds_queries(spec)
    assert budget_tables.kernels_of("bf16", deterministic=True) == ("dkv", "dq")


def test_what_a_deterministic_backward_costs():
    """Seven products for five, where tensor cores bound."""
    best, _ = budget_tables.backward_clocks("bf16", 64, ADA, deterministic=False)
    slower, _ = budget_tables.backward_clocks("bf16", 64, ADA, deterministic=True)
    assert slower / best == pytest.approx(7 / 5)
    assert best == pytest.approx(5 * 64 / 256)
    assert budget_tables._backward_cells("bf16", 64, ADA)[2].endswith(" 1.40")
    assert budget_tables._backward_cells("tf32", 64, ADA)[1:] == ("the same", "the same")
    assert budget_tables._backward_cells("split_tf32", 64, ADA) == ("", "", "")


def test_the_rate_counts_five_products_of_the_columns_that_there_are():
    # 96 columns at full accuracy take tiles of 128.
    assert budget_tables.gradient_config_for("dkv", "split_tf32", 96, A100).tiles.head_dim == 128
    _, in_turn = budget_tables.backward_clocks("split_tf32", 96, A100, deterministic=False)
    least = budget_tables._backward_cells("split_tf32", 96, A100)[0].split(" to ")[0]
    assert least == f"{10 * 96 / in_turn * 108 * 1.41e-3:.0f}"
