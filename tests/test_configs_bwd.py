"""Configurations of the tensor-core backward, and the table that chooses them."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from nvrtc import REGISTERS, SHARED_LIMITS

from flashcupy.cuda import config, table_sm80_bwd
from flashcupy.cuda.config_sm80 import BUCKETS
from flashcupy.cuda.config_sm80_bwd import GradientConfig, GradientTiles, QuerySumsConfig
from flashcupy.cuda.table_sm80 import Choice, Need
from flashcupy.errors import UnsupportedError

KINDS = ("f16", "bf16", "tf32", "split_tf32")
KERNELS = ("dkvq", "dkv", "dq", "dbias")
SM80_ARCHS = [arch for arch in SHARED_LIMITS if arch not in ("sm_70", "sm_75")]
DIMS = (1, 31, 32, 40, 64, 65, 72, 96, 100, 128, 136, 192, 200, 256)
A100 = 163 << 10

GOOD = GradientTiles("f16", owner=64, walk=32, head_dim=64, v_dim=96, warps=4, stages=2, head_chunk=64, v_chunk=96)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "f64"},
        {"owner": 32},
        {"owner": 0},
        {"walk": 24},
        {"walk": 128, "kind": "split_tf32"},
        {"head_dim": 48},
        {"v_dim": 8},
        {"head_chunk": 48},
        {"v_chunk": 8},
        {"warps": 0},
        {"warps": 33, "owner": 33 * 16},
        {"stages": 3},
    ],
)
def test_tiles_that_no_kernel_can_have_are_refused(change):
    with pytest.raises(ValueError, match="got"):
        dataclasses.replace(GOOD, **change)


def test_sums_that_registers_cannot_hold_are_refused():
    wide = dataclasses.replace(GOOD, head_dim=256, v_dim=256, head_chunk=256, v_chunk=128)
    GradientConfig("dq", wide, 1, "band", ())
    with pytest.raises(ValueError, match="a thread would hold 256 sums"):
        GradientConfig("dkv", dataclasses.replace(wide, walk=64), 1, "band", ())


def test_only_queries_own_tiles_of_several_heads():
    two = dataclasses.replace(GOOD, heads=2)
    assert GradientConfig("dq", two, 1, "list", ()).name == "dq_sm80_f16_o64h2k32_d64c64v96c96_w4s2b1_list"
    for kernel in ("dkv", "dkvq", "dbias"):
        with pytest.raises(ValueError, match="tiles of several heads are for dq"):
            GradientConfig(kernel, two, 1, "list", ())


def test_sums_of_a_thread_by_hand():
    """Two products of scores, and the results; split_tf32 keeps what sums lose in half as many registers again."""
    assert GOOD.accumulators("dkv") == (2 * 64 * 32 + 64 * (64 + 96)) // 128
    assert GOOD.accumulators("dkvq") == GOOD.accumulators("dkv")
    assert GOOD.accumulators("dq") == (2 * 64 * 32 + 64 * 64) // 128
    assert GOOD.accumulators("dbias") == (2 * 64 * 32 + 64 * 32) // 128
    split = dataclasses.replace(GOOD, kind="split_tf32")
    assert split.accumulators("dq") == (2 * 64 * 32 + 64 * 64 * 3 // 2) // 128


def test_shared_memory_by_hand():
    """Rows of 128 and of 256 bytes; 12 bytes of terms a query; dS and a flag for each key; 116 bytes more."""

    def nbytes(kernel, schedule="band"):
        return GradientConfig(kernel, GOOD, 1, schedule, ()).shared_bytes

    operands = (64 + 2 * 32) * (128 + 256)
    terms, shared = 2 * 32 * 12, 64 * (64 + 2)
    assert nbytes("dkv") == -(-(operands + terms + 16 + 116) // 128) * 128
    assert nbytes("dkvq") == -(-(operands + terms + shared + 116) // 128) * 128
    assert nbytes("dkvq", "list") == -(-(operands + terms + shared + 116 + 3 * 2 * 12) // 128) * 128
    assert nbytes("dq") == nbytes("dbias") == -(-(operands + 80) // 128) * 128


def test_the_translation_unit():
    one = GradientConfig("dkvq", GOOD, 2, "list", ("softcap",))
    assert one.name == "dkvq_sm80_f16_o64k32_d64c64v96c96_w4s2b2_list_softcap"
    assert one.translation_unit() == (
        "#include <bwd_sm80.cu>\n"
        "using Tiles = MmaGradientTiles<F16, 64, 32, 64, 96, 4, 2, 64, 96, 1>;\n"
        "using Schedule = ListSchedule<32, 3, true>;\n"
        f"static_assert(sizeof(MmaKeyShared<Tiles, Schedule, true>) == {one.shared_bytes}, "
        '"the host\'s shared_bytes");\n'
        f'extern "C" __global__ void __launch_bounds__(128, 2) {one.name}('
        "const __grid_constant__ AttentionParams params) {\n"
        "    bwd_dkv_sm80<Tiles, Schedule, Hooks<Softcap<Tiles>>, true>(params);\n"
        "}\n"
    )
    assert ", false>(params)" in dataclasses.replace(one, kernel="dkv").translation_unit()
    assert "bwd_dq_sums<Tiles>(params)" in QuerySumsConfig("f16", 64).translation_unit()


def needs(arch):
    """Kernels, and what they may be needed for."""
    for kernel, kind, dim, v_dim, block in itertools.product(
        KERNELS, KINDS, DIMS, (0, 1, 64, 96, 136, 256), (None, 16, 64, 128, 384)
    ):
        too_wide = kind == "split_tf32" and max(dim, v_dim) > table_sm80_bwd.WIDEST_SPLIT
        if not too_wide and (kernel != "dkvq" or kind in table_sm80_bwd.ADDS_QUERIES):
            yield kernel, Need(kind, dim, v_dim, (), block, SHARED_LIMITS[arch])


# Tests have small tiles on an A100 alone.
_TABLES = [*(("real", arch) for arch in SM80_ARCHS), ("small", "sm_80")]


@pytest.mark.parametrize(("table", "arch"), _TABLES)
def test_every_choice_fits_the_gpu(arch, table):
    with config.use_tiles(table):
        for kernel, need in needs(arch):
            one = table_sm80_bwd.configure_gradient(kernel, need)
            tiles = one.tiles
            assert need.block is None or need.block % tiles.owner == 0
            # A kibibyte is taken by the system for each block.
            assert one.blocks * (one.shared_bytes + 1024) <= SHARED_LIMITS[arch] + 1024, one.name
            registers = min(255, REGISTERS // (one.blocks * one.threads))
            assert tiles.accumulators(kernel) + 24 <= registers, one.name


@pytest.mark.parametrize("table", ["real", "small"])
def test_chunks_cover_the_columns_and_lie_in_the_rows(table):
    with config.use_tiles(table):
        for kernel, need in needs("sm_80"):
            if kernel == "dbias":
                continue
            tiles = table_sm80_bwd.configure_gradient(kernel, need).tiles
            chunks = -(-need.head_dim // tiles.head_chunk)
            if kernel != "dq":
                chunks = max(chunks, -(-need.v_dim // tiles.v_chunk))
                assert chunks * tiles.v_chunk <= tiles.v_dim
                assert need.v_dim <= chunks * tiles.v_chunk
            assert need.head_dim <= chunks * tiles.head_chunk <= tiles.head_dim


def test_heads_of_usual_models_are_one_chunk():
    for kind, dim in itertools.product(("f16", "bf16", "tf32"), (32, 64, 96, 128)):
        for kernel in ("dkv", "dq"):
            tiles = table_sm80_bwd.configure_gradient(kernel, Need(kind, dim, dim, (), None, A100)).tiles
            assert tiles.head_chunk == dim


def test_small_tiles_have_both_stages_and_several_chunks():
    with config.use_tiles("small"):
        tiles = [
            table_sm80_bwd.configure_gradient("dkv", Need(kind, dim, 72, (), None, A100)).tiles
            for kind, dim in itertools.product(KINDS, BUCKETS)
        ]
    assert {one.stages for one in tiles} == {1, 2}
    assert {one.head_chunk for one in tiles} == {one.v_chunk for one in tiles} == {32}


def test_every_row_of_the_tables_is_taken_somewhere(monkeypatch):
    listed, taken = set(), set()
    real = table_sm80_bwd._candidates

    def watched(kernel, need):
        choices = real(kernel, need)
        listed.update((id(choices), choice) for choice in choices)
        for choice in choices:
            taken.add((id(choices), choice))
            yield choice

    monkeypatch.setattr(table_sm80_bwd, "_candidates", watched)
    for arch in SM80_ARCHS:
        for kernel, need in needs(arch):
            table_sm80_bwd.configure_gradient(kernel, need)
    assert listed == taken


def test_a_choice_can_be_tried_in_place_of_the_table():
    need = Need("f16", 64, 64, (), None, A100)
    with config.use_tiles(Choice(32, 16, 2, 1, 1)):
        tiles = table_sm80_bwd.configure_gradient("dq", need).tiles
        assert (tiles.owner, tiles.walk, tiles.warps, tiles.stages) == (32, 16, 2, 1)
    with config.use_tiles(Choice(128, 64, 4, 2, 3)), pytest.raises(UnsupportedError, match="166912 bytes"):
        table_sm80_bwd.configure_gradient("dq", need)
