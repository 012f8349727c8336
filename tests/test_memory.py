"""Peak memory grows with S, not S x S."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import flashcupy as fc

_BLOCK_BYTES = 4 << 20  # tiles, whatever the length


def _peak(call) -> int:
    call()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _gradients(x, **options):
    out, residuals = fc.attention_fwd(x, x, x, **options)
    return fc.attention_bwd(out, residuals)


@pytest.fixture(autouse=True)
def _two_threads():
    fc.set_num_threads(2)
    yield
    fc.set_num_threads(None)


@pytest.mark.parametrize(
    "features",
    [
        {},
        pytest.param({"alibi_slopes": np.ones(2, np.float32), "softcap": 3.0}, marks=pytest.mark.slow),
        {"dropout": 0.2, "seed": 1},
    ],
)
@pytest.mark.parametrize("run", [lambda x, **o: fc.attention(x, x, x, **o), _gradients], ids=["forward", "backward"])
def test_extra_memory_is_linear(run, features):
    def at(length):
        x = np.zeros((2, length, 16), np.float32)
        return _peak(lambda: run(x, window=(200, 0), **features)) / x.nbytes

    short, long = at(2048), at(16384)
    # Bytes per byte of one operand: falls as tiles are amortised, and would be eight times larger at S x S.
    assert long <= short
    assert long * 16384 * 2 * 16 * 4 < 16384**2


def test_a_broadcast_mask_is_never_expanded():
    x = np.zeros((4, 4, 1024, 8), np.float32)
    mask = np.ones((1024, 1024), np.bool_)
    assert _peak(lambda: fc.attention(x, x, x, mask=mask)) < 2 * x.nbytes + 2 * _BLOCK_BYTES


def test_large_partial_blocks_cost_no_more_than_a_tile():
    x = np.zeros((1, 8192, 16), np.float32)

    def peak(size):
        mask = fc.BlockMask.causal((8192, 8192), block_size=size)
        return _peak(lambda: fc.attention(x, x, x, block_mask=mask))

    # 8192 x 8192 elements unpacked would be 64 MiB.
    assert peak(8192) < peak(128) + 4 * _BLOCK_BYTES


@pytest.mark.parametrize("shape", [(2, 16384, 32), (1, 256, 128, 64), (16, 16, 128, 64)])
def test_explain_is_close_to_the_truth(shape):
    x = np.zeros(shape, np.float32)
    told = fc.explain(x, x, x, window=(64, 0))
    lse_bytes = x.nbytes // shape[-1]
    measured = _peak(lambda: fc.attention(x, x, x, window=(64, 0))) - x.nbytes - lse_bytes
    assert 0.5 < measured / told.workspace_bytes < 1.5
    out, residuals = fc.attention_fwd(x, x, x, window=(64, 0))
    measured = _peak(lambda: fc.attention_bwd(out, residuals)) - 3 * x.nbytes
    assert 0.5 < measured / told.backward_workspace_bytes < 1.5
