"""Forward and backward: flashcupy, naive NumPy, torch's flash kernel for CPUs through autograd."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import flashcupy
from bench.harness import OURS, Call, Case
from bench.peers import Array, frugal_forward_backward, naive_forward_backward, qkv, torch_forward_backward


def forward_backward(q: Array, k: Array, v: Array, dout: Array, **options: Any) -> flashcupy.AttentionGrads:
    """Run both calls of a training step; `options` are those of ``attention_fwd``."""
    _, residuals = flashcupy.attention_fwd(q, k, v, **options)
    return flashcupy.attention_bwd(dout, residuals)


def cases(quick: bool) -> Iterator[Case]:
    """Yield H = 8, D = 64, float32, lengths 1024 and 4096, causal or not."""
    for length in (512,) if quick else (1024, 4096):
        q, k, v = qkv(1, 8, length)
        dout = v[..., ::-1].copy()
        for causal in (False, True):
            candidates: dict[str, Call] = {
                OURS: partial(forward_backward, q, k, v, dout, causal=causal),
                "naive NumPy": partial(naive_forward_backward, q, k, v, dout, causal),
                "NumPy in place": partial(frugal_forward_backward, q, k, v, dout, causal),
                **torch_forward_backward(q, k, v, dout, causal),
            }
            yield Case("forward + backward", f"S={length}{' causal' if causal else ''}", candidates)
