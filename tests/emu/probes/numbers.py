"""Probes of arithmetic: long sums, special values, other ways to the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
from backends import EmuBackend
from cases import Case, Sizes
from harness import check
from naive import assert_close, naive

from emu.probes.agree import SIZES, Probe, agree, gradients_agree, problem
from flashcupy import reference
from flashcupy.cuda.config import use_tiles


def long_rows(backend: EmuBackend) -> None:
    """Sums over 16384 keys, out of few rows: the tiles are real, and races are for others to find."""
    sizes = Sizes(batch=(), q_heads=1, kv_heads=1, q_len=16, kv_len=16384, head_dim=16, v_dim=64)
    with use_tiles("real"), backend.device.using(detect_races=False):
        check(Case((), "float32", sizes), backend, pooled_size=1)


def dropout_of_everything(backend: EmuBackend) -> None:
    with pytest.warns(UserWarning, match="drops everything"):
        agree(backend, problem((), SIZES, {"dropout": 0.999, "seed": 1}))


def infinite_values(backend: EmuBackend) -> None:
    p = Case((), "float32", SIZES).make()
    p.v[..., 20, :] = np.inf
    want, coarse = reference.attention(p.q, p.k, p.v), naive(p.q, p.k, p.v, np.float32)
    assert_close(backend.api.attention(p.q, p.k, p.v), want[0], coarse[0])


def from_lse(backend: EmuBackend) -> None:
    """A backward without the forward's statistics, and a row that saw only the sink."""
    mask = np.ones((45, 77), np.bool_)
    mask[3] = False
    p = problem(("sinks",), SIZES, {"mask": mask})
    out, lse = reference.attention(p.q, p.k, p.v, **p.options)
    residuals = backend.api.AttentionResiduals.from_arrays(p.q, p.k, p.v, out, lse, **p.options)
    gradients_agree(backend, p, residuals, p.wrt)


def merge(backend: EmuBackend) -> None:
    rng = np.random.default_rng(0)
    outs, lses = list(rng.standard_normal((3, 2, 9, 5))), list(rng.standard_normal((3, 2, 9)))
    lses[1][:, 2:5], outs[1][:, 2:5] = -np.inf, np.nan
    for lse in lses:
        lse[:, 7] = -np.inf
    weights = np.exp(np.array(lses))
    total = weights.sum(axis=0)
    parts = np.where(weights[..., None] > 0, weights[..., None] * np.array(outs), 0.0).sum(axis=0)
    with np.errstate(divide="ignore"):
        merged, lse = backend.api.merge_attention(outs, lses)
        assert_close(merged, parts / np.where(total == 0, 1, total)[..., None], None)
        assert_close(lse, np.log(total), None)


def real_tiles(dtype: str, *features: str) -> Probe:
    """More than one tile of either side, more than one group of columns."""
    sizes = Sizes(batch=(), q_heads=2, kv_heads=1, q_len=70, kv_len=100, head_dim=40, v_dim=72)

    def run(backend: EmuBackend) -> None:
        with use_tiles("real"):
            if dtype == "float64":
                agree(backend, problem(features, sizes, {}))
            else:
                check(Case(features, dtype, sizes), backend, pooled_size=1)

    return run
