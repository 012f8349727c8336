"""Peak memory of a long block-sparse call, step by step: nothing in it has a score a byte."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import flashcupy
from bench.bench_block_sparse import BLOCK, random_blocks, random_grid
from bench.bench_bwd import forward_backward
from bench.harness import OURS, Call, Case
from bench.peers import qkv
from flashcupy import BlockMask
from flashcupy.blocks.lists import transpose

DENSITY = 0.02
HEAD_DIM = 16


def cases(quick: bool) -> Iterator[Case]:
    """Yield H = 1, D = 16, float32, S = 131072 at a density of 2 %, where bool scores would take 16 GiB."""
    length = 8192 if quick else 131072
    q, k, v = qkv(1, 1, length, HEAD_DIM)
    grid, mask = random_grid(length // BLOCK, DENSITY), random_blocks(length, DENSITY)
    steps: dict[str, Call] = {
        "build the mask": partial(BlockMask.from_blocks, grid, (length, length), block_size=BLOCK),
        "transpose it": partial(transpose, mask.lists),
        "forward": partial(flashcupy.attention, q, k, v, block_mask=mask),
        "forward + backward": partial(forward_backward, q, k, v, v, block_mask=mask),
    }
    for name, call in steps.items():
        yield Case("block-sparse memory", f"S={length} density {DENSITY:g}, {name}", {OURS: call}, rounds=0)
