"""Block-sparse attention against our own dense call, the price of uneven rows, and what building a mask costs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

import flashcupy
from bench.bench_bwd import forward_backward
from bench.harness import OURS, Case
from bench.peers import qkv
from flashcupy import BlockMask
from flashcupy.blocks.lists import transpose

BLOCK = 64
BLOCKS = (64, 128, 32, 16)
DENSITIES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02)


def cases(quick: bool) -> Iterator[Case]:
    """Yield H = 2, D = 64: densities by block size (S = 8192), uneven rows (S = 16384), mask building (S = 131072)."""
    yield from density_cases(1024 if quick else 8192)
    yield from skewed_cases(2048 if quick else 16384)
    yield from building_cases(8192 if quick else 131072)


def density_cases(length: int) -> Iterator[Case]:
    """Yield one forward and one forward + backward row per density and block size."""
    for block, density in itertools.product(BLOCKS, DENSITIES):
        mask = random_blocks(length, density, block)
        masks = {OURS: {"block_mask": mask}, "our dense": {}}
        yield from both_ways(f"S={length} block {block} density {density:g}", length, masks)


def skewed_cases(length: int) -> Iterator[Case]:
    """Yield rows of a mask like BigBird's, in which one block row is many times longer than the mean."""
    shape, n = (length, length), length // BLOCK
    skewed = BlockMask.bigbird(shape, window=1, n_global=1, n_random=0, rng=0, block_size=BLOCK)
    stats = skewed.stats()
    even = random_blocks(length, stats["density"], BLOCK)
    masks = {OURS: {"block_mask": skewed}, "even rows": {"block_mask": even}}
    name = f"S={length} {stats['full']} blocks, {stats['longest_row']} of {n} in one row"
    yield from both_ways(name, length, masks)


def both_ways(name: str, length: int, options: Mapping[str, dict[str, Any]]) -> Iterator[Case]:
    """Yield the forward, and forward + backward, of each candidate's options on the same operands."""
    q, k, v = qkv(1, 2, length)
    dout = v[..., ::-1].copy()
    forward = {who: partial(flashcupy.attention, q, k, v, **own) for who, own in options.items()}
    yield Case("block-sparse forward", name, forward)
    both = {who: partial(forward_backward, q, k, v, dout, **own) for who, own in options.items()}
    yield Case("block-sparse forward + backward", name, both, rounds=3)


def random_blocks(length: int, density: float, block: int = BLOCK) -> BlockMask:
    """Return a mask of FULL blocks, equally many in each row of blocks, drawn at random."""
    return BlockMask.from_blocks(random_grid(length // block, density), (length, length), block_size=block)


def random_grid(n: int, density: float) -> np.ndarray:
    """Return bool (n, n), equally many True in each row."""
    order = np.random.default_rng(0).permuted(np.broadcast_to(np.arange(n), (n, n)), axis=1)
    return order < max(1, round(density * n))


def building_cases(length: int) -> Iterator[Case]:
    """Yield one row per constructor, and one for the lists that a backward walks."""
    shape, n = (length, length), length // BLOCK
    grid, mask = random_grid(n, 0.02), random_blocks(length, 0.02)
    scores = np.random.default_rng(0).standard_normal((n, n), dtype=np.float32)
    patterns: dict[str, Callable[[], object]] = {
        "causal": partial(BlockMask.causal, shape, block_size=BLOCK),
        "sliding window": partial(BlockMask.sliding_window, shape, 2048, 2048, block_size=BLOCK),
        "bigbird": partial(BlockMask.bigbird, shape, window=3, n_global=2, n_random=3, rng=0, block_size=BLOCK),
        "document": partial(BlockMask.document, np.arange(length) // 1000, block_size=BLOCK),
        "from_blocks, 2 % of them": partial(BlockMask.from_blocks, grid, shape, block_size=BLOCK),
        "from_topk, 2 % of the scores": partial(BlockMask.from_topk, scores, n // 50, shape, block_size=BLOCK),
        "transposed lists, 2 % of the blocks": partial(transpose, mask.lists),
    }
    for name, build in patterns.items():
        yield Case("mask building", f"S={length} {name}", {OURS: build})
