"""Shapes, strides, memory order and broadcasting."""

from __future__ import annotations

import numpy as np
import pytest
from cases import Case, Sizes
from harness import check
from naive import assert_close

from flashcupy import reference


def _normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape))


def _agrees(api, q, k, v, **options):
    out, residuals = api.attention_fwd(q, k, v, **options)
    want, want_lse = reference.attention(q, k, v, **options)
    assert_close(out, want, None, num_keys=k.shape[-2])
    assert_close(residuals.lse, want_lse, None, num_keys=k.shape[-2])
    dout = _normal(*out.shape, seed=1)
    wrt = ("q", "k", "v", *(n for n in ("bias", "sinks") if n in options))
    dlse = _normal(*want_lse.shape, seed=2)  # without it the gradient of a bias shared by a whole row is 0
    grads = api.attention_bwd(dout, residuals, wrt=wrt, dlse=dlse)
    expected = reference.attention_bwd(dout, q, k, v, dlse=dlse, **options)
    for got, wanted in zip(grads, expected, strict=True):
        assert (got is None) == (wanted is None)
        if got is not None:
            assert_close(got, wanted, None, grad=True, num_keys=max(q.shape[-2], k.shape[-2]))
    return out, residuals.lse, grads


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        (((), (), ()), ()),
        (((3,), (), ()), (3,)),
        (((), (3,), (3,)), (3,)),
        (((1,), (3,), (1,)), (3,)),
        (((2, 1), (3,), (1, 3)), (2, 3)),
        (((2, 3), (2, 3), (3,)), (2, 3)),
        (((0,), (1,), (0,)), (0,)),
    ],
)
def test_batch_dims_broadcast_and_gradients_sum_over_them(backend, batches, expected):
    q, k, v = (
        _normal(*b, h, s, 4, seed=i) for i, (b, h, s) in enumerate(zip(batches, (4, 2, 2), (5, 7, 7), strict=True))
    )
    out, lse, grads = _agrees(backend.api, q, k, v, causal=True)
    assert out.shape == (*expected, 4, 5, 4)
    assert lse.shape == (*expected, 4, 5)
    assert [g.shape for g in grads[:3]] == [q.shape, k.shape, v.shape]


def test_matrices_have_no_head_axis(backend):
    q, k, v = _normal(5, 4), _normal(7, 4), _normal(7, 3)
    out, lse, grads = _agrees(backend.api, q, k, v, mask=_normal(5, 7) > -0.5, bias=_normal(5, 7))
    assert out.shape == (5, 3)
    assert lse.shape == (5,)
    assert grads.dv.shape == (7, 3)


def test_a_matrix_beside_three_dims_has_one_head(backend):
    q, k, v = _normal(5, 4), _normal(1, 7, 4), _normal(7, 3)
    out, lse, _ = _agrees(backend.api, q, k, v)
    assert out.shape == (1, 5, 3)
    assert lse.shape == (1, 5)


@pytest.mark.parametrize("mask_shape", [(), (7,), (5, 1), (5, 7), (1, 5, 7), (4, 1, 7), (3, 1, 5, 7), (2, 1, 4, 5, 7)])
def test_masks_and_biases_broadcast(backend, mask_shape):
    q, k, v = _normal(2, 3, 4, 5, 6), _normal(2, 3, 2, 7, 6), _normal(2, 3, 2, 7, 6)
    _agrees(backend.api, q, k, v, bias=_normal(*mask_shape), mask=np.asarray(_normal(*mask_shape, seed=5) > -1))


@pytest.mark.parametrize("slopes", [(4,), (3, 4), (1, 4), (2, 3, 4)])
def test_slopes_broadcast_over_the_batch(backend, slopes):
    q, k, v = _normal(2, 3, 4, 5, 6), _normal(2, 3, 4, 7, 6), _normal(2, 3, 4, 7, 6)
    _agrees(backend.api, q, k, v, alibi_slopes=np.abs(_normal(*slopes)))


@pytest.mark.parametrize("zero", ["q_len", "kv_len", "v_dim", "batch", "q_heads"])
def test_zero_sizes(backend, zero):
    sizes = {"q_len": 5, "kv_len": 7, "v_dim": 3, "batch": 2, "q_heads": 4, zero: 0}
    q = _normal(sizes["batch"], sizes["q_heads"], sizes["q_len"], 4)
    k = _normal(sizes["batch"], 2, sizes["kv_len"], 4)
    v = _normal(sizes["batch"], 2, sizes["kv_len"], sizes["v_dim"])
    out, lse, grads = _agrees(backend.api, q, k, v, causal=True, sinks=_normal(sizes["q_heads"]))
    assert out.shape == (*q.shape[:3], sizes["v_dim"])
    given = np.empty_like(out)
    assert backend.api.attention(q, k, v, out=given) is given
    if zero == "kv_len":
        assert not out.any()
        assert np.array_equal(lse, np.broadcast_to(_normal(4)[:, None], lse.shape))
    assert all(not g.any() for g in grads[:3]) or zero == "v_dim"


@pytest.mark.parametrize("heads", [0, 4])
def test_no_key_heads(backend, heads):
    q, k = _normal(2, heads, 5, 4), _normal(2, 0, 5, 4)
    if heads:
        with pytest.raises(ValueError, match="q has 4 heads and k has 0"):
            backend.api.attention(q, k, k)
    else:
        assert backend.api.attention(q, k, k).shape == (2, 0, 5, 4)


def _variants(x: np.ndarray) -> dict[str, np.ndarray]:
    """The same values in other memory: sliced, reversed, transposed, unaligned, swapped."""
    spaced = np.zeros((*x.shape[:-1], x.shape[-1] * 3), x.dtype)[..., ::3]
    raw = np.zeros(x.nbytes + 1, np.uint8)[1:]
    layouts = {
        "spaced": spaced,
        "reversed": np.empty_like(x)[..., ::-1, ::-1],
        "fortran": np.empty_like(x, order="F"),
        "tokens_first": np.empty(x.swapaxes(-2, -3).shape, x.dtype).swapaxes(-2, -3),
        "unaligned": raw.view(x.dtype).reshape(x.shape),
        "swapped": np.empty(x.shape, x.dtype.newbyteorder()),
    }
    for view in layouts.values():
        view[...] = x
    layouts["read_only"] = x.copy()
    layouts["read_only"].flags.writeable = False
    return layouts


_HOST_ONLY = {"swapped": "byte order", "read_only": "read-only flag"}


@pytest.mark.parametrize(
    "layout", ["spaced", "reversed", "fortran", "tokens_first", "unaligned", "swapped", "read_only"]
)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_any_strides_give_the_same_bits(backend, layout, dtype):
    if layout in _HOST_ONLY:
        backend.requires(_HOST_ONLY[layout])
    q, k, v = (_normal(2, 4, 33, 16, seed=i).astype(dtype) for i in range(3))
    plain, residuals = backend.api.attention_fwd(q, k, v, causal=True)
    views = [_variants(x)[layout] for x in (q, k, v)]
    out, other = backend.api.attention_fwd(*views, causal=True)
    assert np.array_equal(out, plain)
    assert out.dtype == plain.dtype
    dout = _variants(plain)[layout]
    for got, want in zip(
        backend.api.attention_bwd(dout, other)[:3], backend.api.attention_bwd(plain, residuals)[:3], strict=True
    ):
        assert np.array_equal(got, want)
        assert got.dtype == want.dtype


def test_zero_strides_are_read_as_broadcast(backend):
    q = np.broadcast_to(_normal(2, 1, 4), (2, 5, 4))
    _agrees(backend.api, q, np.broadcast_to(_normal(7, 4), (2, 7, 4)), np.broadcast_to(_normal(7, 1), (2, 7, 3)))


def test_results_keep_the_memory_order_of_their_model(backend):
    q, k, v = (_normal(2, 6, 4, 8, seed=i).swapaxes(1, 2) for i in range(3))  # (B, S, H, D) data
    out, residuals = backend.api.attention_fwd(q, k, v)
    grads = backend.api.attention_bwd(out, residuals)
    for result in (out, *grads[:3]):
        assert result.shape == (2, 4, 6, 8)
        assert result.swapaxes(1, 2).flags.c_contiguous
    assert residuals.lse.flags.c_contiguous


@pytest.mark.parametrize("order", ["C", "F"])
def test_out_is_written_and_returned(backend, order):
    q, k, v = (_normal(2, 4, 6, 8, seed=i) for i in range(3))
    out, lse = np.full((2, 4, 6, 8), np.nan, order=order), np.full((2, 4, 6), np.nan)
    returned, residuals = backend.api.attention_fwd(q, k, v, out=out, lse_out=lse)
    assert returned is out
    assert residuals.out is out
    assert residuals.lse is lse
    assert np.array_equal(out, backend.api.attention(q, k, v))
    assert backend.api.attention(q, k, v, out=out) is out
    given = backend.api.AttentionGrads(dq=np.empty_like(q), dv=np.empty_like(v))
    grads = backend.api.attention_bwd(out, residuals, out=given)
    assert grads.dq is given.dq
    assert grads.dv is given.dv
    for got, want in zip(grads[:3], backend.api.attention_bwd(out, residuals)[:3], strict=True):
        assert np.array_equal(got, want)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bit_inputs_may_write_float32(backend, dtype):
    problem = Case(("causal",), dtype, Sizes()).make()
    wide = np.empty(problem.dout.shape, np.float32)
    backend.api.attention(problem.q, problem.k, problem.v, causal=True, out=wide)
    narrow = backend.api.attention(problem.q, problem.k, problem.v, causal=True)
    assert np.array_equal(wide.astype(narrow.dtype), narrow)
    assert not np.array_equal(wide, narrow.astype(np.float32))


def test_many_batch_dims(backend):
    check(Case(("alibi", "q_lengths"), "float64", Sizes(batch=(2, 1, 3), q_len=5, kv_len=6)), backend)
