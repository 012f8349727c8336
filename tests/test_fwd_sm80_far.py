"""Scores so large that what a softmax's reference is rounded by is no small number: on tensor cores, both ways."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensor_cores
from backends import EmuBackend
from cases import DTYPES, NUMBERS
from naive import assert_close

_NUMBERS = ("float16", *(pytest.param(one, marks=pytest.mark.slow) for one in ("bfloat16", "tf32", "float32")))

backend = tensor_cores.fixture()


def _operands(numbers):
    """Places for 48 queries and 64 keys, and random values that float16 has, which TF32 does not round."""
    dtype = DTYPES[NUMBERS[numbers]["dtype"]]
    v = np.random.default_rng(0).standard_normal((1, 64, 24)).astype(np.float16).astype(dtype)
    return np.zeros((2, 48, 64), dtype), np.zeros((1, 64, 64), dtype), v


def _options(numbers):
    return {"precision": NUMBERS[numbers].get("precision", "highest")}


@pytest.mark.parametrize("numbers", _NUMBERS)
def test_scores_beyond_what_references_resolve(backend, numbers):
    """Each query has one large score: its weight is 1 whatever the score's logarithm rounds to."""
    q, k, v = _operands(numbers)
    one_hot = np.eye(64, dtype=np.float32)
    for sign, size in itertools.product((1, -1), (100, 3000, 20000, 30000)):
        q[...] = (size + 16 * np.arange(48)[:, None]) * one_hot[:48]
        k[...] = sign * size * one_hot
        out = backend.api.attention(q, k, v, scale=sign, **_options(numbers))
        chosen = np.broadcast_to(v[:, :48], out.shape)
        _require_close(out, chosen, numbers)
    # And where all are that small.
    q[...], k[...], v[...] = -30000 * one_hot[3], 30000 * one_hot[3], v[:, :1]
    out = backend.api.attention(q, k, v, scale=1.0, **_options(numbers))
    _require_close(out, np.broadcast_to(v[:, :1], out.shape), numbers)


def test_far_scores_one_step_apart(backend):
    """The next number above a reference beyond 2^27 is more than what weights may grow to."""
    q, k, v = np.zeros((3, 1, 64, 64), np.float16)
    q[..., 0], q[..., 1], v[...] = 16384, 8, 1
    k[..., 0], k[:, :32, 1], k[:, 32:, 1], k[:, 40, 1] = 6000, 1, -2000, 2
    np.testing.assert_array_equal(backend.api.attention(q, k, v, scale=1.0), v)


def test_rows_beside_far_ones_have_their_own_gradients(backend):
    """Rows 0 and 8 are of the same lanes."""
    rng = np.random.default_rng(0)
    q, k, v, dout = rng.standard_normal((4, 1, 64, 64)).astype(np.float16)
    k[..., 0], q[..., 0] = 4000, 12896
    found = []
    for first in (12896, 60000):
        q[:, 0, 0] = first
        _, residuals = backend.api.attention_fwd(q, k, v, scale=1.0)
        found.append(backend.api.attention_bwd(dout, residuals, wrt=("q",), deterministic=True).dq[:, 1:])
    np.testing.assert_array_equal(*found)
    assert np.isfinite(found[1]).all()


@pytest.mark.slow
def test_scores_are_rounded_where_a_compiler_might_not(monkeypatch):
    monkeypatch.setenv("FLASHCUPY_EMU_BUILD", "contracted")
    backend = EmuBackend("sm80")
    with backend.active():
        test_scores_beyond_what_references_resolve(backend, "float16")


def test_gradients_of_far_scores_are_refused_in_float16(backend):
    """The forward rounds such scores, the backward does not: NaN, and not numbers that are off by powers of two."""
    q, k, v = _operands("float16")
    q[...], k[...] = 3000 * np.eye(48, 64), 3000 * np.eye(64)
    q[:, 3] *= 10
    k[:, 3] *= 10
    out, residuals = backend.api.attention_fwd(q, k, v, scale=1.0)
    assert np.isfinite(out).all()
    grads = backend.api.attention_bwd(out, residuals)
    assert np.isnan(grads.dv).all()  # the far row sees every key
    assert np.isfinite(np.delete(grads.dq, 3, 1)).all()


def _require_close(out, chosen, numbers):
    """TF32 rounds a row's weights, but not their sum."""
    rounded = chosen * np.float32(1 - 2.0**-11) if numbers == "tf32" else chosen
    assert_close(out, chosen.astype(np.float64), rounded, num_keys=64)
