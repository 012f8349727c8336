"""Peak memory of one causal call as the sequence grows, result included."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import flashcupy
from bench.bench_bwd import forward_backward
from bench.harness import OURS, Call, Case
from bench.peers import frugal_forward, frugal_forward_backward, qkv

NAIVE_UP_TO = 16384  # one head's scores are 1 GiB there, and 16 GiB at 65536


def cases(quick: bool) -> Iterator[Case]:
    """Yield H = 1, D = 64, float32, causal, lengths 4096, 16384 and 65536."""
    for length in (2048,) if quick else (4096, 16384, 65536):
        q, k, v = qkv(1, 1, length)
        forward: dict[str, Call] = {OURS: partial(flashcupy.attention, q, k, v, causal=True)}
        both: dict[str, Call] = {OURS: partial(forward_backward, q, k, v, v, causal=True)}
        if length <= NAIVE_UP_TO:
            forward["NumPy in place"] = partial(frugal_forward, q, k, v, True)
            both["NumPy in place"] = partial(frugal_forward_backward, q, k, v, v, True)
        yield Case("memory", f"forward, S={length}", forward, rounds=0)
        yield Case("memory", f"forward + backward, S={length}", both, rounds=0)
