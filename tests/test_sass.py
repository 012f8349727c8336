"""Machine code: tensor-core instructions are there, as many as a tile needs, and local memory is not."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pytest
import sass
from nvrtc import SHARED_LIMITS
from oracles import installed, nvrtc_library
from sass import Listing, parse

from bench import budget, budget_bwd
from flashcupy.cuda.config_sm80 import MmaConfig
from flashcupy.cuda.table_sm80 import Need, configure
from flashcupy.cuda.table_sm80_bwd import configure_gradient

# Two loops, the inner one with its rare half behind the end; a branch with a second predicate; a subroutine.
TEXT = """
\t.section\t.text.first,"ax",@progbits
first:
.text.first:
        /*0000*/                   S2R R0, SR_TID.X ;
.L_outer:
        /*0010*/                   LDG.E R1, desc[UR4][R2.64] ;
.L_inner:
        /*0020*/              @!PT LDS RZ, [RZ] ;
        /*0030*/               @P1 BRA `(.L_rare) ;
.L_back:
        /*0040*/                   FFMA R1, R1, R1, R1 ;
        /*0050*/              @!P0 BRA P2, `(.L_inner) ;
        /*0060*/                   BSSY B0, `(.L_met) ;
        /*0070*/               @P3 BRA `(.L_skip) ;
        /*0080*/                   CALL.REL.NOINC `($__internal_0_$slow) ;
.L_skip:
        /*0090*/                   BSYNC B0 ;
.L_met:
        /*00a0*/               @P4 BRA `(.L_outer) ;
        /*00b0*/                   EXIT ;
.L_rare:
        /*00c0*/                   MUFU.EX2 R1, R1 ;
        /*00d0*/                   BRA `(.L_back) ;
        .weak           $__internal_0_$slow
$__internal_0_$slow:
        /*00e0*/                   FADD R1, R1, R1 ;
        /*00f0*/                   RET.REL.NODEC R2 `(first) ;
\t.section\t.text.second,"ax",@progbits
second:
        /*0000*/                   EXIT ;
"""

TINY = """
#include <ptx/approximate.cuh>
#include <ptx/barrier.cuh>
#include <ptx/copy_async.cuh>
#include <ptx/ldmatrix.cuh>
#include <ptx/mma.cuh>
#include <ptx/shared_memory.cuh>
#include <ptx/special_registers.cuh>

struct Tile { alignas(128) u8 bytes[1024]; };
extern "C" __global__ void __launch_bounds__(32) tiny(const u8* from, float* to, int tiles) {
    Tile& tile = shared_memory<Tile>();
    float d[4][4] = {};
#pragma unroll 1
    for (int n = 0; n < tiles; ++n) {
        copy_async_16(tile.bytes + 16 * thread_index(), from + 512 * n + 16 * thread_index(), 16);
        copy_async_commit();
        copy_async_wait<0>();
        block_sync();
        u32 a[4], b[4];
        load_matrices(a, tile.bytes + 16 * thread_index());
        load_matrices_transposed(b, tile.bytes + 512 + 16 * thread_index());
#pragma unroll
        for (int m = 0; m < 4; ++m) MULTIPLY(d[m][0], d[m][1], d[m][2], d[m][3], a, b[m], b[3 - m]);
        block_sync();
    }
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
        for (int n = 0; n < 4; ++n) to[(4 * m + n) * 32 + thread_index()] = exp2_approximate(d[m][n]);
}
"""

SPILLS = (Path(__file__).parent / "data" / "spills.cu").read_text()

HMMA = {
    "f16": "HMMA.16816.F32",
    "bf16": "HMMA.16816.F32.BF16",
    "tf32": "HMMA.1688.F32.TF32",
    "split_tf32": "HMMA.1688.F32.TF32",
}
ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120")
MULTIPLICATIONS = {
    "mma_f16": "HMMA.16816.F32",
    "mma_bf16": "HMMA.16816.F32.BF16",
    "mma_tf32": "HMMA.1688.F32.TF32",
}


def sm80(kind: str, head_dim: int, v_dim: int, arch: str, features: tuple[str, ...] = ()) -> MmaConfig:
    return configure(Need(kind, head_dim, v_dim, features, None, SHARED_LIMITS[arch]))


def divisors(count: int) -> list[int]:
    return [divisor for divisor in range(1, count + 1) if count % divisor == 0]


def require_products(config: MmaConfig, arch: str) -> Listing:
    """All products of a tile are there, or the part of them that a loop over their steps repeats, and no others."""
    listing = listing_of(config.translation_unit(), config.name, arch)
    counts = {kind: count for kind, count in listing.counts().items() if kind.startswith("HMMA")}
    tiles = config.tiles
    with_keys, with_values = budget.products(tiles)
    steps = tiles.head_dim * tiles.item // 32
    # Two steps stand before a loop over the rest, of which some are unrolled, and what they do not divide follows.
    rolled = {2 + own + (steps - 2) % own for own in range(1, steps - 1)}
    there = itertools.product({*divisors(steps), *rolled}, divisors(tiles.walk * tiles.item // 32))
    expected = [{HMMA[tiles.kind]: with_keys * some // steps + with_values // n} for some, n in there]
    assert counts in expected, sass.table(config.name, arch, listing, {})
    return listing


def listing_of(source: str, entry: str, arch: str, *options: str) -> Listing:
    installed(sass.disassembler)
    return sass.disassemble(nvrtc_library(12).compile(source, arch, options).cubin)[entry]


def test_loops_are_found_with_what_lies_behind_the_end():
    found = parse(TEXT)
    assert list(found) == ["first", "second"]
    outer, inner = found["first"].loops
    assert (outer.head, outer.depth, inner.head, inner.depth) == (1, 1, 2, 2)
    assert inner.own == inner.inside == {2, 3, 4, 5, 12, 13}
    assert outer.own == {1, 6, 7, 8, 9, 10}
    assert outer.inside == outer.own | inner.own
    assert not found["second"].loops


def test_instructions_are_counted_by_kind():
    first = parse(TEXT)["first"]
    assert first.counts() == {"S2R": 1, "LDG": 1, "NOP": 1, "FFMA": 1, "MUFU.EX2": 1, "FADD": 1, "BRA": 10}
    assert first.counts(first.loops[1].own) == {"NOP": 1, "FFMA": 1, "MUFU.EX2": 1, "BRA": 3}


def test_the_shortest_way_round_a_loop_with_its_products():
    text = TEXT.replace("FFMA R1, R1, R1, R1", "HMMA.16816.F32 R4, R8, R12, R4").replace("MUFU.EX2 R1", "LDGSTS [R1]")
    listing = parse(text)["first"]
    inner = listing.loops[1]
    assert listing.way_round(inner, 1, 0) == [2, 3, 4, 5]
    assert listing.way_round(inner, 1, 1) == [2, 3, 12, 13, 4, 5]
    assert listing.way_round(inner, 2, 0) is None
    assert listing.way_round(listing.loops[0], 1, 0) == [1, 2, 3, 4, 5, 6, 7, 9, 10]


def test_inner_loops_are_passed_as_often_as_the_products_ask_for():
    text = TEXT.replace("FFMA R1, R1, R1, R1", "HMMA.16816.F32 R4, R8, R12, R4").replace("FADD", "HMMA.16816.F32")
    listing = parse(text)["first"]
    outer = listing.loops[0]
    once, thrice = (sass.tile_counts(listing, outer, products, 0) for products in (1, 3))
    assert once == listing.counts([1, 2, 3, 4, 5, 6, 7, 9, 10])
    assert thrice["HMMA.16816.F32"] == 3
    assert thrice["LDG"] == 1
    assert thrice["BRA"] == once["BRA"] + 2 * listing.counts(listing.loops[1].inside)["BRA"]


def test_a_line_tells_what_a_tile_has_more_than_its_budget():
    text = TEXT.replace("FFMA R1, R1, R1, R1", "HMMA.16816.F32 R4, R8, R12, R4")
    expected = {"HMMA.16816.F32": 1, "LDGSTS": 0, "LDSM": 0, "BRA": 1}
    line = sass.tile_line("first", "sm_80", parse(text)["first"], expected).split()
    # The innermost way round: two branches, a product, and what fills time.
    assert line == ["first", "sm_80", "4", "2", "+100", "%", "0", "0", "1", "1", "0"]
    missing = sass.tile_line("first", "sm_80", parse(text)["first"], expected | {"HMMA.16816.F32": 99})
    assert "no way round a tile" in missing


def test_the_backward_has_a_budget_as_well():
    for kernel in ("dkvq", "dq"):
        config = configure_gradient(kernel, Need("bf16", 64, 64, (), None, SHARED_LIMITS["sm_90a"]))
        for arch, red in (("sm_90a", 1), ("sm_80", 4)):
            expected = sass.expectation(config, arch)
            assert expected == budget_bwd.instructions(kernel, config.tiles, red_instructions=red)


def test_the_table_has_a_column_for_each_loop_that_computes():
    listing = listing_of(TINY, "tiny", "sm_80", "-DMULTIPLY=mma_f16")
    lines = sass.table("tiny", "sm_80", listing, {"HMMA.16816.F32": 4, "LDGSTS": 1}).splitlines()
    assert lines[1].split() == ["kernel", ">0", "tile", "budget"]
    assert ["HMMA.16816.F32", "4", "4", "4", "4"] in [line.split() for line in lines]
    assert ["MUFU.EX2", "16"] in [line.split() for line in lines]


@pytest.mark.parametrize(
    "arch", [pytest.param(arch, marks=() if arch == "sm_90a" else pytest.mark.slow) for arch in ARCHS]
)
@pytest.mark.parametrize("name", MULTIPLICATIONS)
def test_each_wrapper_is_its_instruction(name, arch):
    listing = listing_of(TINY, "tiny", arch, f"-DMULTIPLY={name}")
    (loop,) = listing.loops
    counts = listing.counts(loop.own)
    wanted = {MULTIPLICATIONS[name]: 4, "LDSM": 2, "LDGSTS": 1, "BAR": 2, "LDGDEPBAR": 2}
    assert {kind: counts[kind] for kind in wanted} == wanted
    assert sum(counts[kind] for kind in sass.KINDS if kind.startswith("HMMA")) == 4
    assert listing.counts()["MUFU.EX2"] == 16
    assert not listing.local_memory


def test_local_memory_is_seen():
    assert listing_of(SPILLS, "spills", "sm_80").local_memory > 0


@pytest.mark.parametrize(
    ("kind", "head_dim", "v_dim", "arch"),
    [
        ("f16", 64, 64, "sm_80"),
        pytest.param("tf32", 64, 32, "sm_90a", marks=pytest.mark.slow),
        pytest.param("split_tf32", 64, 64, "sm_80", marks=pytest.mark.slow),
    ],
)
def test_a_kernel_makes_the_products_of_a_tile(kind, head_dim, v_dim, arch):
    config = sm80(kind, head_dim, v_dim, arch)
    listing = require_products(config, arch)
    assert not listing.local_memory, sass.table(config.name, arch, listing, {})


def test_a_tile_is_copied_and_weighed_as_the_budget_says():
    config = sm80("bf16", 128, 128, "sm_90a")
    listing, expected = require_products(config, "sm_90a"), budget.instructions(config.tiles)
    assert not listing.local_memory
    # The innermost loop: beside it stand copies of rows that are no whole pieces.
    loop = min(
        (loop for loop in listing.loops if listing.counts(loop.inside)["MUFU.EX2"]), key=lambda loop: len(loop.inside)
    )
    counts = sass.tile_counts(listing, loop, sum(budget.products(config.tiles)), expected["LDGSTS"])
    assert counts is not None
    exact = {kind: expected[kind] for kind in ("LDGSTS", "SHFL", "FMNMX", "FFMA", "MUFU.EX2")}
    assert {kind: counts[kind] for kind in exact} == exact


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "arch"),
    # float16's are bfloat16's with another instruction
    [*((kind, "sm_90a") for kind in HMMA if kind != "f16"), ("split_tf32", "sm_80"), ("bf16", "sm_120")],
)
def test_kernels_of_every_head_dim_make_the_products_of_a_tile(kind, arch):
    for head_dim in (32, 64, 96, 128, 192, 256):
        config = sm80(kind, head_dim, head_dim, arch)
        listing = require_products(config, arch)
        assert not listing.local_memory, sass.table(config.name, arch, listing, {})


@pytest.mark.slow
def test_options_compute_what_the_budget_says():
    """softcap: ex2 and a reciprocal for each score, its products unchanged."""
    plain, capped = (sm80("f16", 64, 64, "sm_90a", features) for features in ((), ("softcap",)))
    before, after = (require_products(config, "sm_90a").counts() for config in (plain, capped))
    scores = budget.scores_of_lane(plain.tiles)
    for kind, count in budget.OF_SCORE["softcap"].items():
        assert after[kind] - before[kind] == pytest.approx(count * scores, abs=4), kind


@pytest.mark.slow
def test_far_scores_are_rounded_before_their_reference_is_subtracted():
    """A product, a sum and a product for each score, which the compiler would make a multiply-add and a product of."""
    f16, bf16 = (sm80(kind, 64, 64, "sm_90a") for kind in ("f16", "bf16"))
    stems = [_stems(listing_of(one.translation_unit(), one.name, "sm_90a")) for one in (f16, bf16)]
    scores = f16.tiles.owner * f16.tiles.walk // f16.threads
    assert {stem: stems[0][stem] - stems[1][stem] for stem in ("FMUL", "FADD", "FFMA")} == {
        "FMUL": 2 * scores,
        "FADD": scores,
        "FFMA": 0,
    }


def _stems(listing: Listing) -> Counter[str]:
    return Counter(one.opcode.partition(".")[0] for one in listing.instructions)
