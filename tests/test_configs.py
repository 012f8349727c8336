"""Configurations and the tables that choose them: every choice is one that a kernel, and the GPU, can have."""

from __future__ import annotations

import dataclasses
import itertools
import re
from types import SimpleNamespace

import pytest
from nvrtc import (
    REGISTERS,
    SHARED_LIMITS,
    SHARED_OF_BLOCK,
    SHARED_OF_MULTIPROCESSOR,
    THREADS_OF_MULTIPROCESSOR,
)

from flashcupy.cuda import config, config_generic, matrix, table_sm80, table_sm80_bwd
from flashcupy.cuda.config_sm80 import BUCKETS, MmaConfig, MmaTiles
from flashcupy.cuda.table_sm80 import Choice, Need
from flashcupy.errors import UnsupportedError

KINDS = ("f16", "bf16", "tf32", "split_tf32")
SM80_ARCHS = [arch for arch in SHARED_LIMITS if arch not in ("sm_70", "sm_75")]
DIMS = (1, 8, 31, 32, 40, 64, 72, 96, 128, 136, 192, 200, 256)
BLOCKS = (None, 16, 64, 128, 384)
A100 = 163 << 10


def test_names_tell_configurations_apart():
    found = {one for arch in SHARED_LIMITS for what in ("plain", "all") for one in matrix.compile_configs(what, arch)}
    names = {one.name for one in found}
    assert len(names) == len({one.translation_unit() for one in found}) == len(found)
    assert all(name.isidentifier() for name in names)


@pytest.mark.parametrize("arch", ["sm_70", "sm_75"])
def test_gpus_without_these_tensor_cores_are_not_compiled_for(arch):
    for what in ("plain", "all"):
        assert not any("sm80" in one.name for one in matrix.compile_configs(what, arch))
        assert any("sm80" in one.name for one in matrix.compile_configs(what, "compute_80"))


def blocks_asked_for(unit, arch):
    """What a kernel's bounds say that a multiprocessor shall hold."""
    (blocks,) = re.findall(r"__launch_bounds__\(\d+(?:, ([^)]*))?\)", unit)
    asked = re.fullmatch(r"(?:__CUDA_ARCH__ (<|==) (\d+) \? (\d) : )?(\d)", blocks or "1")
    if asked[1] is None:
        return int(asked[4])
    own, limit = 10 * int(re.sub(r"\D", "", arch)), int(asked[2])
    return int(asked[3] if (own < limit if asked[1] == "<" else own == limit) else asked[4])


@pytest.mark.parametrize("arch", SHARED_LIMITS)
def test_a_multiprocessor_has_room_for_the_blocks_that_bounds_ask_for(arch):
    """Registers for more blocks than there is room for are taken from threads for nothing."""
    several = 0
    for one in (one for what in ("plain", "all") for one in matrix.compile_configs(what, arch)):
        blocks = blocks_asked_for(one.translation_unit(), arch)
        assert blocks * (one.shared_bytes + SHARED_OF_BLOCK[arch]) <= SHARED_OF_MULTIPROCESSOR[arch], one.name
        assert blocks * one.threads <= THREADS_OF_MULTIPROCESSOR[arch], one.name
        several += blocks > 1
    assert several


def test_a_misspelt_table_is_refused():
    with pytest.raises(ValueError, match="'smal'"), config.use_tiles("smal"):
        pass


# ---- generic ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [{"owner": 24}, {"walk": 80}, {"walk": 24}, {"lanes": 12}, {"thread_rows": 3}, {"depth": 6}, {"owner": 512}],
)
def test_generic_tiles_that_no_kernel_can_have_are_refused(change):
    good = {"acc": "float", "owner": 64, "walk": 64, "depth": 32, "thread_rows": 16, "lanes": 16, "groups": 1}
    config_generic.Tiles(**good)
    with pytest.raises(ValueError, match="got"):
        config_generic.Tiles(**{**good, **change})


def spec(dtype, dim, block):
    """What the choice reads of a spec."""
    size = None if block is None else (block, block)
    options = {"softcap": None, "dropout": 0.0, "operands": (), "precision": "highest", "listed_together": 1}
    return SimpleNamespace(dtype=dtype, head_dim=dim, v_dim=dim, block_size=size, **options)


@pytest.mark.parametrize("block", [16, 32, 64, 128, 384])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_an_owner_tile_lies_in_one_block_of_a_list(block, dtype):
    for dim, table in itertools.product((8, 64, 200), ("real", "small")):
        with config.use_tiles(table):
            own = spec(dtype, dim, block)
            chosen = [config_generic.generic_config(own, kernel) for kernel in ("fwd", "dq", "dkv", "dbias")]
            if dtype != "float64":
                chosen.append(table_sm80.sm80_config(own, A100))
        assert all(block % one.tiles.owner == 0 for one in chosen)
        assert all(one.schedule == "list" for one in chosen)


# ---- sm80 ------------------------------------------------------------------------------------------------------------

GOOD = MmaTiles("f16", owner=64, walk=64, head_dim=64, v_dim=64, warps=4, stages=2)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "f64"},
        {"heads": 0},
        {"heads": 3},
        {"heads": 8},
        {"owner": 32},
        {"owner": 72},
        {"owner": 0},
        {"walk": 24},
        {"walk": 0},
        {"walk": 80},
        {"walk": 128, "kind": "split_tf32"},
        {"head_dim": 48},
        {"head_dim": 512},
        {"v_dim": 8},
        {"v_dim": 192, "kind": "split_tf32"},
        {"warps": 0},
        {"warps": 33, "owner": 33 * 16},
        {"stages": 0},
        {"stages": 3},
        {"owner": 128, "walk": 128, "v_dim": 128},
    ],
)
def test_mma_tiles_that_no_kernel_can_have_are_refused(change):
    with pytest.raises(ValueError, match="got"):
        dataclasses.replace(GOOD, **change)


def test_sums_that_fill_the_registers_are_counted():
    assert GOOD.accumulators == 64 * (64 + 64) // 128
    split = dataclasses.replace(GOOD, kind="split_tf32")
    assert split.accumulators == 64 * (64 + 2 * 64) // 128


def test_shared_memory_by_hand():
    """Rows of 64 or whole 128 bytes; keys and values in each stage; 12 bytes a segment; 80 more."""
    band = MmaConfig("fwd", dataclasses.replace(GOOD, head_dim=96), 2, "band", ())
    rows = 64 * 256 + 2 * 64 * (256 + 128)
    assert band.shared_bytes == rows + 128
    assert dataclasses.replace(band, schedule="list").shared_bytes == rows + 2 * 128  # for 80 + 3 * 4 * 12 bytes
    wide = MmaConfig("fwd", MmaTiles("tf32", 32, 16, 96, 32, 2, 1), 1, "band", ())
    assert wide.shared_bytes == 32 * 384 + 16 * (384 + 128) + 128
    narrow = MmaConfig("fwd", MmaTiles("f16", 32, 16, 32, 64, 2, 1), 1, "band", ())
    assert narrow.shared_bytes == 32 * 64 + 16 * (64 + 128) + 128


def test_the_translation_unit():
    tiles = MmaTiles("split_tf32", owner=32, walk=64, head_dim=128, v_dim=96, warps=2, stages=2)
    one = MmaConfig("fwd", tiles, 1, "list", ("softcap", "dropout"))
    assert one.name == "fwd_sm80_split_tf32_o32k64_d128v96_w2s2b1_list_softcap_dropout"
    assert one.translation_unit() == (
        "#include <fwd_sm80.cu>\n"
        "using Tiles = MmaTiles<SplitTF32, 32, 64, 128, 96, 2, 2, 1>;\n"
        "using Schedule = ListSchedule<64, 3, true>;\n"
        'static_assert(sizeof(MmaShared<Tiles, Schedule>) == 131328, "the host\'s shared_bytes");\n'
        f'extern "C" __global__ void __launch_bounds__(64, 1) {one.name}('
        "const __grid_constant__ AttentionParams params) {\n"
        "    fwd_sm80<Tiles, Schedule, Hooks<Softcap<Tiles>, Dropout<Tiles>>>(params);\n"
        "}\n"
    )
    plain = MmaConfig("fwd", GOOD, 2, "band", ()).translation_unit()
    assert "using Schedule = BandSchedule<64, true>;\n" in plain
    assert "Hooks<Scale<Tiles>>>" in plain


def needs(arch):
    for kind, dim, v_dim, block in itertools.product(KINDS, DIMS, (1, 64, 96, 136, 256, 264, 600), BLOCKS):
        for features in ((), ("dropout",)):
            yield Need(kind, dim, v_dim, features, block, SHARED_LIMITS[arch])


@pytest.mark.parametrize("arch", SM80_ARCHS)
@pytest.mark.parametrize("table", ["real", "small"])
def test_every_choice_fits_the_gpu(arch, table):
    with config.use_tiles(table):
        for need in needs(arch):
            one = table_sm80.configure(need)
            tiles = one.tiles
            assert one.features == need.features
            assert tiles.head_dim == next(size for size in BUCKETS if size >= need.head_dim)
            assert need.block is None or need.block % tiles.owner == 0
            # A kibibyte is taken by the system for each block.
            assert one.blocks * (one.shared_bytes + 1024) <= SHARED_LIMITS[arch] + 1024, one.name
            registers = min(255, REGISTERS // (one.blocks * one.threads))
            assert tiles.accumulators + 24 <= registers, one.name


@pytest.mark.parametrize("arch", SM80_ARCHS)
def test_usual_blocks_of_a_list_are_one_tile_or_whole_tiles(arch):
    for kind, dim in itertools.product(KINDS, BUCKETS):
        for block in (16, 32, 64):
            tiles = table_sm80.configure(Need(kind, dim, dim, (), block, SHARED_LIMITS[arch])).tiles
            assert (tiles.owner, tiles.warps) == (block, block // 16)


@pytest.mark.parametrize(
    ("block", "together", "expected"),
    [
        (16, 2, (32, 2, 2)),
        (16, 3, (48, 3, 3)),
        (16, 7, (112, 7, 7)),
        (16, 8, (128, 8, 8)),  # two rows of a block in a warp would be two heads'
        (16, 12, (96, 6, 6)),
        (16, 64, (128, 8, 8)),
        (16, 71, (16, 1, 1)),
        (32, 2, (64, 2, 4)),
        (32, 3, (96, 3, 6)),
        (32, 8, (128, 4, 4)),
        (64, 6, (128, 2, 4)),
        (64, 3, (64, 1, 4)),
        (128, 8, (128, 1, 4)),
        (384, 8, (128, 1, 4)),
        (None, 1, (128, 1, 4)),
    ],
)
def test_heads_that_share_lists_fill_a_tile(block, together, expected):
    need = Need("f16", 64, 64, (), block, A100, together)
    assert table_sm80.owners(need, Choice(128, 64, 4, 2, 2)) == expected


@pytest.mark.parametrize("together", [2, 3, 5, 6, 7, 8, 64])
def test_tiles_of_several_heads_fit_the_gpu(together):
    """They are valid, lie in one block, and leave registers for more than sums."""
    for kind, dim, block, own in itertools.product(KINDS, BUCKETS, (16, 32, 64), ((), tuple(config.FEATURES))):
        need = Need(kind, dim, dim, own, block, A100, together)
        chosen = [table_sm80.configure(need)]
        sums = [chosen[0].tiles.accumulators]
        if kind != "split_tf32" or dim <= table_sm80_bwd.WIDEST_SPLIT:
            chosen.append(table_sm80_bwd.configure_gradient("dq", need))
            sums.append(chosen[1].tiles.accumulators("dq"))
        for one, most in zip(chosen, sums, strict=True):
            assert block % one.tiles.head_rows == 0
            assert together % one.tiles.heads == 0
            assert one.blocks * (one.shared_bytes + 1024) <= A100 + 1024, one.name
            assert most + 24 <= min(255, REGISTERS // (one.blocks * one.threads)), one.name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("v_dim", [0, 1, 64, 96, 136, 192, 256, 257, 300, 520, 1000])
def test_wide_values_are_cut_into_as_few_chunks_as_fit(kind, v_dim):
    most = 128 if kind == "split_tf32" else 256
    chunk = table_sm80.configure(Need(kind, 64, v_dim, (), None, A100)).tiles.chunk
    assert chunk <= most
    assert max(1, -(-v_dim // chunk)) == max(1, -(-v_dim // most))


def test_small_tiles_have_both_stages_and_several_chunks():
    with config.use_tiles("small"):
        tiles = [table_sm80.configure(Need(kind, dim, 72, (), None, A100)).tiles for kind in KINDS for dim in BUCKETS]
    assert {one.stages for one in tiles} == {1, 2}
    assert {one.chunk for one in tiles} == {32}


def test_every_row_of_the_tables_is_taken_somewhere(monkeypatch):
    listed, taken = set(), set()
    real = table_sm80._real

    def watched(need):
        choices = real(need)
        listed.update((id(choices), choice) for choice in choices)
        for choice in choices:
            taken.add((id(choices), choice))
            yield choice

    monkeypatch.setattr(table_sm80, "_real", watched)
    for arch, kind, dim, features in itertools.product(SM80_ARCHS, KINDS, BUCKETS, ((), ("dropout",))):
        for v_dim, block in itertools.product(BUCKETS, (None, 16, 128)):
            table_sm80.configure(Need(kind, dim, v_dim, features, block, SHARED_LIMITS[arch]))
    assert listed == taken


def one_stage_choices(arch):
    """Configurations with one stage that the tables lead to, and their twins with two."""
    for kernel, kind, dim, block in itertools.product(("fwd", "dkvq", "dkv", "dq"), KINDS, BUCKETS, (*BLOCKS, 32)):
        need = Need(kind, dim, dim, (), block, SHARED_LIMITS[arch])
        if kernel == "fwd":
            yield need, table_sm80.configure(need)
        elif kind in table_sm80_bwd.ADDS_QUERIES or (kernel != "dkvq" and dim <= table_sm80_bwd.WIDEST_SPLIT):
            yield need, table_sm80_bwd.configure_gradient(kernel, need)


@pytest.mark.parametrize("arch", SM80_ARCHS)
def test_one_stage_is_taken_only_where_two_do_not_fit(arch):
    """Shared memory of a multiprocessor, a kibibyte of it a block, and registers: more than 128 a thread."""
    seen = 0
    for need, one in one_stage_choices(arch):
        if one.tiles.stages == 2 or (need.kind, need.head_dim, need.schedule) in table_sm80.SPILL_AHEAD:
            continue
        seen += 1
        two = dataclasses.replace(one, tiles=dataclasses.replace(one.tiles, stages=2))
        by_registers = max(one.blocks, REGISTERS // (136 * one.threads))
        fit = [(SHARED_LIMITS[arch] + 1024) // (each.shared_bytes + 1024) for each in (one, two)]
        assert min(fit[1], by_registers) < max(one.blocks, min(fit[0], by_registers)), one.name
    assert seen


def test_what_would_spill_looks_no_further_ahead():
    for kind, dim, schedule in table_sm80.SPILL_AHEAD:
        need = Need(kind, dim, dim, (), None if schedule == "band" else 64, A100)
        assert table_sm80.configure(need).tiles.stages == 1


def test_a_second_stage_costs_no_resident_block():
    """16 rows of a list have one warp: of those, half as many would be resident."""
    few, many = (table_sm80.configure(Need("f16", 192, 192, (), block, A100)) for block in (16, None))
    assert (few.tiles.stages, many.tiles.stages) == (1, 2)
    assert (few.tiles.warps, many.tiles.warps) == (1, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_has_no_larger_tiles(kind):
    for dim in BUCKETS:
        plain, drops = (table_sm80.configure(Need(kind, dim, dim, own, None, A100)) for own in ((), ("dropout",)))
        assert drops.tiles.owner * drops.tiles.walk <= plain.tiles.owner * plain.tiles.walk


def test_a_choice_can_be_tried_in_place_of_the_table():
    need = Need("f16", 64, 64, (), None, A100)
    with config.use_tiles(Choice(32, 16, 2, 1, 1)):
        assert table_sm80.configure(need).tiles == MmaTiles("f16", 32, 16, 64, 64, 2, 1)
        generic = config_generic.generic_config(spec("float32", 64, None), "dq")
    assert generic == config_generic.generic_config(spec("float32", 64, None), "dq")
    with config.use_tiles(Choice(64, 128, 4, 2, 3)), pytest.raises(UnsupportedError, match="166912 bytes"):
        table_sm80.configure(need)
    with config.use_tiles(Choice(40, 64, 2, 1, 1)), pytest.raises(ValueError, match="owner"):
        table_sm80.configure(need)
