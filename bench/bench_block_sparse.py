"""Block-sparse attention against our own dense call, and what building a mask costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

import flashcupy
from bench.bench_bwd import forward_backward
from bench.harness import OURS, Case
from bench.peers import qkv
from flashcupy import BlockMask

BLOCK = 64
DENSITIES = (1.0, 0.5, 0.2, 0.1, 0.05)


def cases(quick: bool) -> Iterator[Case]:
    """Yield the block-sparse rows (H = 8, D = 64, S = 8192, block 64), then the mask-building rows (S = 131072)."""
    yield from density_cases(1024 if quick else 8192)
    yield from building_cases(8192 if quick else 131072)


def density_cases(length: int) -> Iterator[Case]:
    """Yield one forward and one forward + backward row per density."""
    q, k, v = qkv(1, 8, length)
    dout = v[..., ::-1].copy()
    for density in DENSITIES:
        mask = random_blocks(length, density)
        name = f"S={length} density {density:g}"
        forward = {
            OURS: partial(flashcupy.attention, q, k, v, block_mask=mask),
            "our dense": partial(flashcupy.attention, q, k, v),
        }
        yield Case("block-sparse forward", name, forward)
        both = {
            OURS: partial(forward_backward, q, k, v, dout, block_mask=mask),
            "our dense": partial(forward_backward, q, k, v, dout),
        }
        yield Case("block-sparse forward + backward", name, both, rounds=3)


def random_blocks(length: int, density: float) -> BlockMask:
    """Return a mask of FULL blocks, equally many in each row of blocks, drawn at random."""
    n = length // BLOCK
    order = np.random.default_rng(0).permuted(np.broadcast_to(np.arange(n), (n, n)), axis=1)
    return BlockMask.from_blocks(order < max(1, round(density * n)), (length, length), block_size=BLOCK)


def building_cases(length: int) -> Iterator[Case]:
    """Yield one row per pattern."""
    shape = (length, length)
    patterns: dict[str, Callable[[], BlockMask]] = {
        "causal": partial(BlockMask.causal, shape, block_size=BLOCK),
        "sliding window": partial(BlockMask.sliding_window, shape, 2048, 2048, block_size=BLOCK),
        "bigbird": partial(BlockMask.bigbird, shape, window=3, n_global=2, n_random=3, rng=0, block_size=BLOCK),
        "document": partial(BlockMask.document, np.arange(length) // 1000, block_size=BLOCK),
    }
    for name, build in patterns.items():
        yield Case("mask building", f"S={length} {name}", {OURS: build})
