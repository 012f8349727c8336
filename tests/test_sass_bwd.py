"""Machine code of the tensor-core backward: its products, the additions to dq, and no local memory."""

from __future__ import annotations

from collections import Counter

import pytest
import sass
from nvrtc import SHARED_LIMITS
from test_sass import HMMA, listing_of

from flashcupy.cuda.table_sm80 import Need
from flashcupy.cuda.table_sm80_bwd import configure_gradient


def _counts(kernel, kind, dim, arch):
    config = configure_gradient(kernel, Need(kind, dim, dim, (), None, SHARED_LIMITS[arch]))
    listing = listing_of(config.translation_unit(), config.name, arch)
    assert not listing.local_memory, sass.table(config.name, arch, listing, {})
    stems = Counter(one.opcode.partition(".")[0] for one in listing.instructions)
    return config.tiles, listing.counts(), stems, {one.opcode for one in listing.instructions}


def _products(tiles):
    """Of one warp and tile: scores and upstream gradients; one result of `head_chunk` columns."""
    rows = tiles.owner // (16 * tiles.warps)
    depth = tiles.item * tiles.head_dim // 32
    return 2 * rows * depth * tiles.walk // 8, rows * (tiles.walk * tiles.item // 32) * tiles.head_chunk // 8


@pytest.mark.parametrize(("kind", "arch"), [("bf16", "sm_90a"), pytest.param("f16", "sm_80", marks=pytest.mark.slow)])
def test_five_products_and_the_additions_to_dq(kind, arch):
    tiles, counts, stems, opcodes = _counts("dkvq", kind, 64, arch)
    scores, result = _products(tiles)
    # dq: as many products as dk takes, once each by all warps together.
    assert counts[HMMA[kind]] == scores + 3 * result
    sums = tiles.walk * tiles.head_chunk // (128 * tiles.warps)  # of 128 numbers a warp
    additions = sum(count for stem, count in stems.items() if stem.startswith("RED"))
    assert additions == (sums if arch == "sm_90a" else 4 * sums)
    assert any("F32x4" in opcode for opcode in opcodes if opcode.startswith("RED")) == (arch == "sm_90a")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "kind", "arch", "results"),
    [
        ("dkv", "bf16", "sm_90a", 2),
        ("dq", "bf16", "sm_90a", 1),
        ("dkv", "tf32", "sm_80", 2),
        ("dq", "tf32", "sm_120", 1),
    ],
)
def test_without_dq_there_are_four_products_and_for_dq_alone_three(kernel, kind, arch, results):
    tiles, counts, stems, _ = _counts(kernel, kind, 32, arch)
    scores, result = _products(tiles)
    assert counts[HMMA[kind]] == scores + results * result
    assert not any(stem.startswith(("RED", "ATOM")) for stem in stems)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["dkv", "dq"])
def test_full_accuracy_takes_three_products_for_one(kernel):
    tiles, counts, _, _ = _counts(kernel, "split_tf32", 32, "sm_80")
    scores, result = _products(tiles)
    whole = 3 * (scores + (2 if kernel == "dkv" else 1) * result)
    # The steps of q k^T are a loop of two.
    assert counts[HMMA["split_tf32"]] in (whole, whole - 3 * scores // 2)
