"""Query heads that share keys and block lists share tiles: each has the bits that it has in tiles of its own."""

from __future__ import annotations

import numpy as np
import pytest
import tensor_cores
from cases import DTYPES, NUMBERS
from naive import assert_close, naive, naive_bwd

import flashcupy as fc
from flashcupy import reference
from flashcupy.build import dense_problem, varlen_problem
from flashcupy.cuda.config import use_tiles
from flashcupy.cuda.table_sm80 import Choice
from flashcupy.options import Options

_Q_LEN, _KV_LEN = 45, 77

backend = tensor_cores.fixture()


def _operands(numbers, heads=(4, 2), *, batch=(), rows=(_Q_LEN, _KV_LEN)):
    """q, k, v, dout; rows of v and of k are not equally long."""
    rng, dtype = np.random.default_rng(0), DTYPES[NUMBERS[numbers]["dtype"]]
    queries, keys = (*batch, heads[0], rows[0]), (*batch, heads[1], rows[1])
    shapes = (*queries, 24), (*keys, 24), (*keys, 16), (*queries, 16)
    return [(rng.standard_normal(shape) + 0.25).astype(dtype) for shape in shapes]


def _dense(kv_heads=2, block=16):
    """FULL, empty and PARTIAL blocks of every key/value head, and a row of blocks that sees nothing."""
    rng = np.random.default_rng(1)
    kinds = rng.integers(0, 3, (kv_heads, -(-_Q_LEN // block), -(-_KV_LEN // block)))
    kinds[:, 1] = 0
    spread = np.kron(kinds, np.ones((block, block), int))[:, :_Q_LEN, :_KV_LEN]
    return (spread == 1) | ((spread == 2) & (rng.random(spread.shape) < 0.5))


def _lists(dense, block=16):
    return fc.BlockMask.from_dense(dense, block_size=block)


_DROPOUT = {"dropout": 0.3, "seed": 5}  # the least that heads differ in


def _every_option():
    """All that differs between heads, and what cuts tiles."""
    rng = np.random.default_rng(2)
    scores = 4, _Q_LEN, _KV_LEN
    return {
        "mask": rng.random(scores) < 0.8,
        "bias": rng.standard_normal(scores).astype(np.float32),
        "alibi_slopes": np.array([0.5, 0.25, 0.125, 0], np.float32),
        "sinks": np.array([0.5, -1, 2, 0], np.float32),
        **_DROPOUT,
        "softcap": 2.0,
        "window": (50, 9),
    }


_OPTIONS = {
    "none": dict,
    "every": _every_option,
    "dropout": lambda: _DROPOUT | {"scale": -0.4},
    "sinks": lambda: _DROPOUT | {"sinks": np.array([0.5, -1, 2, 0], np.float32), "causal": True},
    "lengths": lambda: _DROPOUT | {"q_lengths": np.array([45, 0, 20]), "kv_lengths": np.array([60, 77, 17])},
}


def _results(api, operands, lists, numbers, **options):
    """Out, lse, dq of dq's own kernel, and dsinks, which that kernel knows where lse alone is kept."""
    q, k, v, dout = operands
    own = {"block_mask": lists, **_precision(numbers), **options}
    out, residuals = api.attention_fwd(q, k, v, **own)
    wrt = ("q", "sinks") if "sinks" in options else ("q",)
    if "sinks" in options:
        residuals = api.AttentionResiduals.from_arrays(q, k, v, out, residuals.lse, **own)
    grads = api.attention_bwd(dout, residuals, wrt=wrt)
    return [out, residuals.lse, grads.dq, *([grads.dsinks] if "sinks" in options else [])]


def _config(api, operands, lists, numbers="float16"):
    return api.explain(*operands[:3], block_mask=lists, **_precision(numbers)).config


def _precision(numbers):
    return {"precision": NUMBERS[numbers].get("precision", "highest")}


_BITS = [*((name, "float16") for name in _OPTIONS if name != "none"), ("none", "tf32"), ("none", "float32")]


@pytest.mark.parametrize(("options", "numbers"), _BITS)
def test_heads_have_the_bits_that_they_have_alone(backend, options, numbers):
    batch, own = (3,) if options == "lengths" else (), _OPTIONS[options]()
    operands, dense = _operands(numbers, batch=batch), _dense()
    together, alone = _lists(dense), _lists(dense.repeat(2, 0))
    if numbers != "float32":  # which tensor cores of some GPUs do not serve
        assert "_o32h2k" in _config(backend.api, operands, together, numbers)
        assert "_o16k" in _config(backend.api, operands, alone, numbers)
    got, expected = (_results(backend.api, operands, lists, numbers, **own) for lists in (together, alone))
    assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))
    _require_right(got, operands, together, numbers, **own)


def _require_right(results, operands, lists, numbers, **options):
    (q, k, v, dout), own = operands, {"block_mask": lists, **options}
    precision = _precision(numbers)["precision"]
    truth = *reference.attention(q, k, v, **own), reference.attention_bwd(dout, q, k, v, **own).dq
    coarse = (
        *naive(q, k, v, q.dtype, precision, **own),
        naive_bwd(dout, q, k, v, q.dtype, precision, **own)[0],
    )
    for grad, got, want, low in zip((False, False, True), results, truth, coarse, strict=False):
        assert_close(got, want, low, grad=grad, num_keys=_KV_LEN, precision=precision)


# Tiles of the table, rows of a block, query and key/value heads, and what a tile has of them.
_WAYS = [
    ("float16", Choice(64, 32, 2, 2, 1), 32, (2, 1), "_o64h2k32_d32v32_w2"),  # a warp has 32 rows
    ("float16", Choice(64, 32, 4, 1, 1), 16, (3, 1), "_o48h3k32_d32v32_w3"),
    ("float16", Choice(96, 32, 4, 2, 1), 32, (6, 2), "_o96h3k32_d32v32_w6"),
    ("tf32", Choice(128, 32, 4, 1, 2), 16, (8, 1), "_o128h8k32_d32v32_w8s1b1_"),
]


@pytest.mark.parametrize(("numbers", "tiles", "block", "heads", "name"), _WAYS)
def test_any_number_of_heads_and_rows(backend, numbers, tiles, block, heads, name):
    operands, options = _operands(numbers, heads), _DROPOUT | {"causal": True}
    lists = _lists(_dense(heads[1], block), block)
    with use_tiles(tiles):
        assert name in _config(backend.api, operands, lists, numbers)
        results = _results(backend.api, operands, lists, numbers, **options)
    _require_right(results, operands, lists, numbers, **options)


@pytest.mark.parametrize("layout", ["odd_rows", "misaligned", "all_reversed"])
def test_any_strides_give_the_same_bits(backend, layout):
    operands, lists = _operands("float16"), _lists(_dense())
    expected = _results(backend.api, operands, lists, "float16", **_DROPOUT)
    own = [tensor_cores.filled(layout, x) for x in operands]
    assert all(map(np.array_equal, _results(backend.api, own, lists, "float16", **_DROPOUT), expected))


def test_packed_sequences(backend):
    """Of rows anywhere, of one, of none, and rows of no sequence; lists of each sequence."""
    cu_q, cu_k = np.array([1, 1, 2, 35, 36, 44]), np.array([3, 20, 20, 53, 54, 75])
    q, k, v, dout = _operands("float16")
    dense = np.random.default_rng(3).random((5, 2, 33, 33)) < 0.6
    options = {"max_seqlen_q": 33, "max_seqlen_k": 33, **_DROPOUT}
    runs = []
    for lists in (_lists(dense), _lists(dense.repeat(2, 1))):
        out, residuals = backend.api.attention_varlen_fwd(q, k, v, cu_q, cu_k, block_mask=lists, **options)
        dq = backend.api.attention_varlen_bwd(dout, residuals, wrt=("q",)).dq
        runs.append((out, residuals.lse, dq))
    assert all(map(np.array_equal, *runs))
    want = reference.attention_varlen(q, k, v, cu_q, cu_k, block_mask=_lists(dense), **options)[0]
    assert np.allclose(runs[0][0], want, atol=4e-3)


# ---- which heads -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heads", "mask_heads", "expected"),
    [((4, 2), 2, 2), ((4, 2), 1, 2), ((4, 2), 4, 1), ((4, 4), 4, 1), ((4, 4), 1, 1), ((6, 1), 1, 6), ((4, 2), None, 1)],
)
def test_heads_that_are_listed_together(heads, mask_heads, expected):
    """Not across key/value heads, whose keys differ."""
    q, k, v, _ = _operands("float16", heads)
    mask = None if mask_heads is None else fc.BlockMask.causal((_Q_LEN, _KV_LEN), block_size=16)
    if mask is not None:
        mask = _lists(np.broadcast_to(mask.to_dense()[0, :1], (mask_heads, _Q_LEN, _KV_LEN)).copy())
    options = Options(block_mask=mask)
    assert dense_problem(q, k, v, options).spec.listed_together == expected
    cu = np.array([0, _Q_LEN]), np.array([0, _KV_LEN])
    assert varlen_problem(q, k, v, cu, (None, None), options).spec.listed_together == expected


def test_lists_of_each_head_have_tiles_of_each_head(backend):
    operands = _operands("float16")
    for lists, owner in ((_dense(), "_o32h2k"), (_dense(1), "_o32h2k"), (_dense(4), "_o16k")):
        assert owner in _config(backend.api, operands, _lists(lists))
    assert "_o32k" in _config(backend.api, operands, _lists(_dense(2, 32), 32))
