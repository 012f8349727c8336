"""Specs are remembered by metadata: the same object for the same call, never a stale answer, no array kept alive."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import flashcupy as fc
from flashcupy import build, metadata
from flashcupy.options import Options
from flashcupy.spec import OperandSpec

Q = np.ones((2, 4, 5, 8), np.float32)


def _spec(q=Q, k=Q, v=Q, **options):
    return build.dense_problem(q, k, v, Options(**options)).spec


def test_the_same_metadata_gives_the_same_spec():
    assert _spec(causal=True, window=(3, 0)) is _spec(Q.copy(), Q + 1, causal=True, window=[3, 0])


_OTHERS = {
    "shape": {"q": Q[:, :, :4]},
    "dtype": {"q": Q.astype(np.float64), "k": Q.astype(np.float64), "v": Q.astype(np.float64)},
    "strides": {"k": np.ones((2, 5, 4, 8), np.float32).swapaxes(1, 2)},
    "mask": {"mask": np.ones((5, 5), np.bool_)},
    "mask's shape": {"mask": np.ones((1, 5), np.bool_)},
    "bias": {"bias": np.ones((5, 5), np.float32)},
    "slopes": {"alibi_slopes": np.ones(4, np.float32)},
    "sinks": {"sinks": np.ones(4, np.float32)},
    "sinks' dtype": {"sinks": np.ones(4)},
    "causal": {"causal": True},
    "top-left": {"causal": "top-left"},
    "scale": {"scale": 0.5},
    "softcap": {"softcap": 2.0},
    "window": {"window": (1, 2)},
    "dropout": {"dropout": 0.5},
    "precision": {"precision": "tf32"},
    "block_mask": {"block_mask": fc.BlockMask.causal((5, 5), block_size=16)},
    "block size": {"block_mask": fc.BlockMask.causal((5, 5), block_size=32)},
}


def test_whatever_differs_is_told_apart():
    specs = [_spec(), *(_spec(**change) for change in _OTHERS.values())]
    assert len(set(specs)) == len(specs)
    assert [_spec(), *(_spec(**change) for change in _OTHERS.values())] == specs


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ({"causal": True}, {"causal": 1}),
        ({"causal": False}, {"causal": 0}),
        ({"scale": 1.0}, {"scale": True}),
        ({"softcap": 1}, {"softcap": True}),
        ({"dropout": 0.0}, {"dropout": False}),
        ({"window": (1, 0)}, {"window": (True, 0)}),
        ({"window": (1, 0)}, {"window": (1.0, 0)}),
    ],
)
def test_values_that_compare_equal_are_told_apart(good, bad):
    for _ in range(2):
        _spec(**good)
        with pytest.raises((TypeError, ValueError), match=f"{next(iter(bad))} is"):
            _spec(**bad)


def test_options_without_a_hash_are_served():
    assert _spec(scale=np.array(0.25)).scale == 0.25
    with pytest.raises(ValueError, match="precision is array"):
        _spec(precision=np.ones(2))


def test_values_of_lengths_are_checked_every_time():
    _spec(kv_lengths=[5, 5])
    with pytest.raises(ValueError, match="kv_lengths runs from 5 to 6"):
        _spec(kv_lengths=[5, 6])
    cu, none = np.array([0, 5]), (None, None)
    build.varlen_problem(Q[0], Q[0], Q[0], (cu, cu), none, Options())
    cu[1] = 6
    with pytest.raises(ValueError, match="cu_seqlens_q ends at 6"):
        build.varlen_problem(Q[0], Q[0], Q[0], (cu, cu), none, Options())


def test_seeds_are_drawn_and_warnings_given_every_time():
    assert len({build.dense_problem(Q, Q, Q, Options(dropout=0.5)).seed for _ in range(8)}) == 8
    for _ in range(2):
        with pytest.warns(UserWarning, match="drops nothing"):
            _spec(dropout=0.001)


def test_no_array_is_kept_alive():
    q, mask = np.ones((2, 4, 6, 8), np.float32), np.ones((6, 6), np.bool_)
    blocks = fc.BlockMask.causal((6, 6), block_size=16)
    seen = [weakref.ref(x) for x in (q, mask, blocks)]
    _spec(q, q, q, mask=mask, block_mask=blocks)
    del q, mask, blocks
    gc.collect()
    assert [ref() for ref in seen] == [None] * 3


def test_what_is_remembered_is_bounded():
    most = metadata._remembered.cache_info().maxsize
    for length in range(1, most + 50):
        x = np.broadcast_to(np.float32(1), (1, length, 1))
        _spec(x, x, x)
    assert metadata._remembered.cache_info().currsize <= most


def test_threads_may_ask_at_once():
    shapes = [(1, 1 + n % 50, 4) for n in range(2000)]

    def ask(shape):
        x = np.broadcast_to(np.float32(1), shape)
        return _spec(x, x, x).q_len

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, shapes)) == [shape[1] for shape in shapes]


@pytest.mark.parametrize(
    "array",
    [
        np.ones((3, 4)),
        np.ones((3, 4)).T,
        np.ones((3, 1)).T,
        np.ones((3, 8))[:, ::2],
        np.ones((3, 8))[:, :4],
        np.ones((3, 8))[:, :1],
        np.ones((3, 4))[::-1],
        np.ones((1, 4))[::-1],
        np.ones((0, 4))[:, ::2],
        np.broadcast_to(1.0, (3, 4)),
        np.ones(()),
        np.ones((2, 3, 4)).swapaxes(0, 1),
    ],
)
def test_classes_of_strides(array):
    kind = OperandSpec.of(array.shape, array.strides, array.dtype).strides
    assert (kind == "contiguous") == array.flags.c_contiguous
    if kind == "rows":
        assert array.shape[-1] == 1 or array.strides[-1] == array.itemsize
