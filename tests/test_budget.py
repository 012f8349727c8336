"""The model of the tensor-core forward against counts by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench import budget, budget_tables
from bench.budget import GPUS, cycles, gpu_of, instructions, predict, products
from bench.gpu.predicted import Ran

A100, H100, ADA = GPUS
TILES = Ran("bf16", 128, 64, 128, 128, 4)  # 32 rows a warp, 64 scores and 128 results a thread


def test_products_are_counted_by_hand():
    # 2 tiles of 16 rows x 8 of 8 keys x 8 steps of 16; 2 x 16 of 8 columns x 4 steps of 16.
    assert products(TILES) == (2 * 8 * 8, 2 * 16 * 4)
    assert products(replace(TILES, kind="tf32")) == (2 * 8 * 16, 2 * 16 * 8)
    assert products(replace(TILES, kind="split_tf32")) == (3 * 2 * 8 * 16, 3 * 2 * 16 * 8)
    assert products(replace(TILES, v_dim=64)) == (128, 64)
    assert products(Ran("f16", 16, 32, 32, 64, 1)) == (4 * 2, 8 * 2)


def test_instructions_of_a_tile():
    found = instructions(TILES)
    assert found["HMMA.16816.F32.BF16"] == 256
    assert found["LDSM"] == (32 * 256 + 64 * 256 + 64 * 256) // 512
    assert found["LDGSTS"] == 2 * 64 * 256 // (16 * 128)
    assert {kind: found[kind] for kind in ("FFMA", "MUFU.EX2", "F2FP")} == {"FFMA": 64, "MUFU.EX2": 64, "F2FP": 32}
    assert found["FMNMX"] == 64 + 4 * 2  # and two shuffles for each of four rows
    assert "LDS" not in +found
    words = instructions(replace(TILES, kind="tf32"))
    assert words["LDS"] == 64 * 128 // 32
    # Each of 128 threads rounds its share of keys and values, four words a piece, and then its 64 weights.
    assert words["LDS.128"] == words["STS.128"] == 2 * 64 * 128 // (4 * 128)
    assert words["FSETP"] == 2 * 64 * 128 // 128 + 64 + 2 * 4
    split = instructions(replace(TILES, kind="split_tf32"))
    assert split["FSETP"] == (32 + 64) * 128 // 32 + split["LDS"] + 64 + 2 * 4 + 64 + 128
    assert "F2FP" not in words


def test_tensor_cores_set_the_floor():
    multiply_adds = 128 * 64 * (128 + 128)
    assert cycles(TILES, A100)["tensor"] == multiply_adds / 1024
    assert cycles(replace(TILES, kind="tf32"), A100)["tensor"] == multiply_adds / 512
    assert cycles(replace(TILES, kind="split_tf32"), A100)["tensor"] == 3 * multiply_adds / 512
    assert cycles(TILES, ADA)["tensor"] == multiply_adds / 256


def test_other_pipes():
    found = cycles(TILES, A100)
    assert found["mufu"] == 128 * 64 / 16
    assert found["float"] == 4 * 32 * (64 + 72 + 4) / 64
    assert found["shared"] == (80 * 4 * 512 + 2 * 64 * 256) / 128
    assert found["l2"] == 2 * 64 * 256 / A100.l2_bytes
    assert found["issue"] == 4 * sum(instructions(TILES).values()) / 4
    assert cycles(TILES, H100)["float"] == found["float"] / 2


def test_rates_are_those_of_the_data_sheets():
    for gpu, kind, tflops in ((A100, "16", 312), (A100, "tf32", 156), (ADA, "16", 165.2), (ADA, "tf32", 82.6)):
        assert 2 * gpu.mma[kind] * gpu.multiprocessors * gpu.ghz * 1e-3 == pytest.approx(tflops, rel=0.01)
    assert 2 * 2048 * H100.multiprocessors * H100.ghz * 1e-3 == pytest.approx(989.4, rel=0.01)


def test_the_slowest_pipe_bounds():
    wide = predict(Ran("bf16", 64, 64, 256, 256, 4), H100)  # 16 rows a warp: k and v are read by each of four
    assert wide.bound == "shared"
    assert wide.best == wide.cycles["shared"]
    plain = predict(TILES, A100)
    assert plain.bound == "tensor"
    least, most = plain.shares
    assert most == 1
    assert least == plain.cycles["tensor"] / plain.in_turn
    assert plain.in_turn == plain.cycles["tensor"] + 128 * 64 / 16


def test_features_add_what_they_must():
    plain = instructions(TILES)
    added = {kind: count - plain[kind] for kind, count in instructions(TILES, ("softcap",)).items()}
    assert added["MUFU.EX2"] == added["MUFU"] == added["FFMA"] == added["FADD"] == 64
    assert added["FMUL"] == 128
    assert sum(added.values()) == 6 * 64
    hides, edge = instructions(TILES, ("mask",)), instructions(TILES, masked=True)
    assert hides["LDG"] == 64
    assert hides["FSEL"] == edge["FSEL"] == plain["FSEL"] + 64
    assert instructions(TILES, ("mask",), masked=True) == hides
    assert cycles(TILES, A100, ("bias",))["l2"] == (2 * 64 * 256 + 2 * 128 * 64) / A100.l2_bytes
    assert cycles(TILES, A100, ("softcap",))["mufu"] == 3 * cycles(TILES, A100)["mufu"]


def test_every_kind_of_instruction_has_a_pipe():
    others = {"LDSM", "LDS", "LDS.128", "STS.128", "LDG", "LDGSTS", "SHFL"}
    known = {*budget._FLOAT, *budget._INTEGER, *budget._MUFU, *others}
    for kind in ("f16", "bf16", "tf32", "split_tf32"):
        found = instructions(replace(TILES, kind=kind), tuple(budget.OF_SCORE))
        assert {name for name in found if not name.startswith("HMMA")} <= known


def test_gpus_stand_for_a_compute_capability():
    assert [gpu_of(capability) for capability in ("8.0", "9.0", "8.9", "7.5")] == [A100, H100, ADA, None]


def test_the_written_budget_follows_the_table_of_tiles():
    text = budget_tables.FILE.read_text()
    assert text == budget_tables.written(text), "python -m bench.budget_tables --write"
    forward, backward, gradients = 3 * 6, 6, 3 * 6 * len(("dkvq", "dkv", "dq"))
    assert text.count("| f16, bf16") == forward + backward + gradients


def test_a_chunk_of_values_counts_useful_work_only():
    config = budget_tables.config_for("split_tf32", 256, A100)
    row = budget_tables._tile_row("", config, A100)
    assert config.tiles.v_dim == 128
    found = predict(config.tiles, A100)
    rows, keys = config.tiles.owner, config.tiles.walk
    # Two chunks together: each q k^T of 256, and half of the 256 columns of values.
    most = 2 * rows * keys * (256 + 256) / (2 * found.best) * 108 * 1.41e-3
    assert row[-1].split(" to ")[1] == f"{most:.0f}"
