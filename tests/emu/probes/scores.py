"""Probes of scores of blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
from backends import EmuBackend
from cases import Sizes
from naive import assert_close

from emu.probes.agree import Probe, problem
from flashcupy import reference_blocks
from flashcupy.cuda.config import use_tiles

_SIZES = Sizes(batch=(), q_heads=4, kv_heads=2, q_len=70, kv_len=77, head_dim=4, v_dim=1)
_BLOCK_SIZES = ((16, 16), (128, 16))  # cells of one tile, and of rows of several tiles


def mass(*features: str, **options: Any) -> Probe:
    """In real tiles: small ones have one row of cells."""

    def run(backend: EmuBackend) -> None:
        p = problem(features, _SIZES, options)
        with use_tiles("real"):
            for size in _BLOCK_SIZES:
                got = backend.api.block_mass(p.q, p.k, block_size=size, **p.options)
                want = reference_blocks.block_mass(p.q, p.k, block_size=size, **p.options)
                assert_close(got, want, None, num_keys=_SIZES.kv_len)

    return run


def pooled(backend: EmuBackend) -> None:
    p = problem((), _SIZES, {})
    for size in _BLOCK_SIZES:
        got = backend.api.pooled_scores(p.q, p.k, block_size=size)
        want = reference_blocks.pooled_scores(p.q, p.k, block_size=size)
        assert_close(got, want, None, num_keys=_SIZES.kv_len)


SCORES: dict[str, Probe] = {
    # The first 20 rows see nothing.
    "block mass": mass("causal", kv_lengths=50),
    # Where exp2 of a score overflows that no reference is subtracted from.
    "block mass of a steep slope": mass(alibi_slopes=np.full(4, -500.0)),
    "pooled scores": pooled,
}
