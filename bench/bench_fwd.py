"""Forward: flashcupy, naive NumPy, torch's flash kernel for CPUs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import flashcupy
from bench.harness import OURS, Call, Case
from bench.peers import frugal_forward, naive_forward, qkv, torch_forward


def cases(quick: bool) -> Iterator[Case]:
    """Yield H = 8, D = 64, float32, lengths 1024 and 4096, causal or not; then a batch of short sequences."""
    for length in (512,) if quick else (1024, 4096):
        for causal in (False, True):
            yield case(f"S={length}{' causal' if causal else ''}", (1, 8, length, 64), causal)
    for length in (32, 128):
        yield case(f"B=32 H=12 S={length} D=32", (32, 12, length, 32), causal=False)


def case(name: str, shape: tuple[int, int, int, int], causal: bool) -> Case:
    """Return one row on operands of a shape (B, H, S, D)."""
    q, k, v = qkv(*shape)
    candidates: dict[str, Call] = {
        OURS: partial(flashcupy.attention, q, k, v, causal=causal),
        "naive NumPy": partial(naive_forward, q, k, v, causal),
        "NumPy in place": partial(frugal_forward, q, k, v, causal),
        **torch_forward(q, k, v, causal),
    }
    return Case("forward", name, candidates)
