"""Device arrays pass through everything above a backend as metadata: no value is read, errors precede launches."""

from __future__ import annotations

import numpy as np
import pytest
from emu.arrays import EmuArray
from fake_cuda import fake_cuda

import flashcupy as fc
from flashcupy import build, overlap
from flashcupy.options import Options

_RNG = np.random.default_rng(0)
Q, K, V = (_RNG.standard_normal((2, h, n, 8)).astype(np.float32) for h, n in ((4, 5), (2, 7), (2, 7)))
PACKED_Q, PACKED_K = Q[0], K[0]
CU_Q, CU_K = np.array([0, 2, 5]), np.array([0, 4, 7], np.int32)


@pytest.fixture
def gpu():
    with fake_cuda(ordinals=(0, 1)) as fake:
        yield fake


@pytest.fixture
def on_gpu(gpu):
    """The operands of a call, on the first device."""
    return {"q": gpu.put(Q), "k": gpu.put(K), "v": gpu.put(V)}


def _equal(got, want):
    assert isinstance(got, EmuArray)
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got.get(), want)


@pytest.mark.parametrize("small_on_device", [False, True])
def test_forward_and_backward(gpu, on_gpu, small_on_device):
    put = gpu.put if small_on_device else lambda x: x
    rng = np.random.default_rng(1)
    large = {"mask": rng.random((5, 7)) < 0.8, "bias": rng.standard_normal((4, 5, 7)).astype(np.float32)}
    small = {
        "alibi_slopes": np.ones(4, np.float32),
        "sinks": np.linspace(0, 1, 4, dtype=np.float32),
        "q_lengths": np.array([4, 5]),
        "kv_lengths": np.array([[7], [3]], np.int32)[:, 0],
        "seed": np.array([3, 4], np.uint64),
    }
    plain = {"causal": True, "softcap": 5.0, "dropout": 0.2}
    want, want_residuals = fc.attention_fwd(Q, K, V, **large, **small, **plain)
    options = {n: gpu.put(x) for n, x in large.items()} | {n: put(x) for n, x in small.items()} | plain
    out, residuals = fc.attention_fwd(**on_gpu, **options)
    _equal(out, want)
    _equal(residuals.lse, want_residuals.lse)
    assert residuals.spec.device == "cuda:0"
    wrt = ("q", "k", "v", "bias", "sinks")
    expected = fc.attention_bwd(want, want_residuals, wrt=wrt, dlse=want_residuals.lse)
    for got, wanted in zip(fc.attention_bwd(out, residuals, wrt=wrt, dlse=residuals.lse), expected, strict=True):
        _equal(got, wanted)
    again = fc.AttentionResiduals.from_arrays(*on_gpu.values(), out, residuals.lse, **options)
    assert fc.attention_bwd(out, again).dq.shape == Q.shape
    assert sum(device.copies_to_host for device in gpu.devices) == 0


def test_packed_rows(gpu):
    longest = {"max_seqlen_q": 3, "max_seqlen_k": 4}
    want, want_residuals = fc.attention_varlen_fwd(PACKED_Q, PACKED_K, PACKED_K, CU_Q, CU_K, kv_lengths=[4, 1])
    q, k = gpu.put(PACKED_Q), gpu.put(PACKED_K)
    for cu_q, cu_k, given in (
        (gpu.put(CU_Q), gpu.put(CU_K), longest),
        (CU_Q, gpu.put(CU_K), longest),
        (CU_Q, CU_K, {}),
    ):
        out, residuals = fc.attention_varlen_fwd(q, k, k, cu_q, cu_k, kv_lengths=[4, 1], **given)
        _equal(out, want)
        _equal(fc.attention_varlen(q, k, k, cu_q, cu_k, kv_lengths=gpu.put(np.array([4, 1])), **given), want)
        expected = fc.attention_varlen_bwd(want, want_residuals)
        _equal(fc.attention_varlen_bwd(out, residuals).dk, expected.dk)
    assert gpu.devices[0].copies_to_host == 0


def test_merging(gpu, on_gpu):
    parts = [fc.attention(Q, K[..., s, :], V[..., s, :], return_lse=True) for s in (slice(0, 3), slice(3, 7))]
    outs, lses = zip(*parts, strict=True)
    want, want_lse = fc.merge_attention(outs, lses)
    target = gpu.put(np.zeros_like(want))
    out, lse = fc.merge_attention(map(gpu.put, outs), map(gpu.put, lses), out=target)
    assert out is target
    _equal(out, want)
    _equal(lse, want_lse)


def test_explain_and_warmup_ask_the_backend_of_the_device(gpu, on_gpu):
    assert fc.explain(**on_gpu).backend == "fake"
    fc.warmup(**on_gpu, causal=True, backward=True)
    ((problem, backward),) = gpu.backend.warmed_up
    assert (problem.spec.device, problem.spec.causal, backward) == ("cuda:0", "bottom-right", True)
    stand_in = ((2, 8, 4), "float32")
    assert fc.explain(stand_in, stand_in, stand_in).backend == "numpy"


def test_results_keep_the_memory_order_of_their_model(gpu):
    q = gpu.put(np.zeros((2, 5, 4, 8), np.float32)).swapaxes(1, 2)
    out, residuals = fc.attention_fwd(q, q, q)
    assert out.swapaxes(1, 2).flags.c_contiguous
    assert residuals.lse.flags.c_contiguous


_SMALL = {
    "q_lengths": np.array([4, 5]),
    "kv_lengths": np.array([4, 5]),
    "sinks": np.ones(4, np.float32),
    "alibi_slopes": np.ones(4, np.float32),
    "seed": np.array([1, 2], np.uint64),
}
_LARGE = {"mask": np.ones((5, 7), np.bool_), "bias": np.ones((5, 7), np.float32), "k": K, "v": V, "out": Q}


@pytest.mark.parametrize("name", [*_SMALL, *_LARGE])
def test_operands_of_another_device_are_refused(gpu, on_gpu, name):
    elsewhere = EmuArray({**_SMALL, **_LARGE}[name], gpu.devices[1])
    with pytest.raises(ValueError, match=f"{name} is on cuda:1 and q on cuda:0, expected one device: move {name}"):
        fc.attention(**{**on_gpu, name: elsewhere})
    with pytest.raises(ValueError, match=f"{name} is on cuda:1 and q in host memory, expected one device"):
        fc.attention(**{"q": Q, "k": K, "v": V, name: elsewhere})


@pytest.mark.parametrize("name", _LARGE)
def test_large_operands_do_not_come_from_the_host(on_gpu, name):
    with pytest.raises(ValueError, match=f"{name} is in host memory and q on cuda:0"):
        fc.attention(**{**on_gpu, name: _LARGE[name]})


def test_gradients_and_parts_are_held_to_one_device_too(gpu, on_gpu):
    out, residuals = fc.attention_fwd(**on_gpu)
    for bad in (Q, EmuArray(Q, gpu.devices[1])):
        with pytest.raises(ValueError, match=r"dout is .* and q on cuda:0"):
            fc.attention_bwd(bad, residuals)
        with pytest.raises(ValueError, match=r"out\.dq is .* and q on cuda:0"):
            fc.attention_bwd(out, residuals, out=fc.AttentionGrads(dq=bad))
        with pytest.raises(ValueError, match=r"outs and lses are on .*, expected one device"):
            fc.merge_attention([out, bad], [residuals.lse, residuals.lse])
    with pytest.raises(ValueError, match="lse is in host memory"):
        fc.AttentionResiduals.from_arrays(*on_gpu.values(), out, np.zeros((2, 4, 5), np.float32))


def test_small_arrays_stay_where_they_are(gpu, on_gpu):
    for name, value in _SMALL.items():
        there = gpu.put(value)
        problem = build.dense_problem(*on_gpu.values(), Options(**{name: there}))
        assert getattr(problem, name) is there
        problem = build.dense_problem(*on_gpu.values(), Options(**{name: value}))
        assert isinstance(getattr(problem, name), (np.ndarray, tuple))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kv_lengths": np.ones(2)}, TypeError, "kv_lengths has dtype float64, expected int32 or int64"),
        ({"kv_lengths": np.ones(3, np.int32)}, ValueError, r"kv_lengths has shape \(3,\), .* broadcasts to \(2,\)"),
        ({"sinks": np.ones(3, np.float32)}, ValueError, "sinks has shape"),
        ({"alibi_slopes": np.ones(4, np.int32)}, TypeError, "alibi_slopes has dtype int32"),
        ({"seed": np.ones(2, np.int64)}, TypeError, r"seed is an array \(2,\) of int64, expected uint64"),
        ({"seed": np.uint64(1)}, TypeError, r"seed is an array \(\) of uint64, expected uint64 of shape \(2,\)"),
        ({"seed": (np.uint64(1), 2)}, TypeError, "expected an int or .seed, offset."),
        ({"window": (np.int64(1), 2)}, TypeError, "expected a pair .left, right. of int"),
        ({"scale": np.float64(1)}, TypeError, "scale is .*, expected a real number"),
    ],
)
def test_what_metadata_tells_is_checked(gpu, on_gpu, change, error, message):
    ((name, value),) = change.items()
    there = (gpu.put(value[0]), value[1]) if isinstance(value, tuple) else gpu.put(value)
    with pytest.raises(error, match=message):
        fc.attention(**on_gpu, **{name: there})


def test_a_device_seed_is_kept(gpu, on_gpu):
    seed = gpu.put(np.array([7, 9], np.uint64))
    out, residuals = fc.attention_fwd(**on_gpu, dropout=0.5, seed=seed)
    assert residuals.seed is seed
    _equal(out, fc.attention(Q, K, V, dropout=0.5, seed=(7, 9)))


def test_longest_sequences_must_be_told(gpu):
    q, k, cu_q, cu_k = map(gpu.put, (PACKED_Q, PACKED_K, CU_Q, CU_K))
    with pytest.raises(ValueError, match="max_seqlen_k is None, expected an int: cu_seqlens_k is on a device"):
        fc.attention_varlen(q, k, k, CU_Q, cu_k)
    with pytest.raises(ValueError, match="max_seqlen_q is None"):
        fc.attention_varlen(q, k, k, cu_q, CU_K)
    with pytest.raises(ValueError, match="cu_seqlens_k has 2 entries, expected 3"):
        fc.attention_varlen(q, k, k, cu_q, cu_k[:2], max_seqlen_q=3, max_seqlen_k=4)
    with pytest.raises(ValueError, match="max_seqlen_q is -1, expected a length"):
        fc.attention_varlen(q, k, k, cu_q, cu_k, max_seqlen_q=-1, max_seqlen_k=4)
    with pytest.raises(ValueError, match="max_seqlen_q is on cuda:0"):
        fc.attention_varlen(q, k, k, cu_q, cu_k, max_seqlen_q=gpu.put(np.array(3)), max_seqlen_k=4)
    with pytest.raises(ValueError, match="q_lengths runs from 4 to 4, expected values from 0 to 3"):
        fc.attention_varlen(q, k, k, cu_q, cu_k, max_seqlen_q=3, max_seqlen_k=4, q_lengths=[4, 4])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cu_seqlens_q": [0, 3, 2]}, "cu_seqlens_q falls from 3 to 2"),
        ({"cu_seqlens_k": [0, 3, 9]}, "cu_seqlens_k ends at 9"),
        ({"max_seqlen_k": 2}, "max_seqlen_k is 2, expected at least 4, the longest sequence"),
        ({"kv_lengths": [5, 1]}, "kv_lengths runs from 1 to 5"),
    ],
)
def test_values_on_the_device_are_looked_at_only_when_asked_to(gpu, monkeypatch, change, message):
    q, k = gpu.put(PACKED_Q), gpu.put(PACKED_K)
    call = {"cu_seqlens_q": CU_Q, "cu_seqlens_k": CU_K, "max_seqlen_q": 3, "max_seqlen_k": 4, **change}
    call = {n: gpu.put(np.array(x, np.int64)) if "max" not in n else x for n, x in call.items()}
    options = {"kv_lengths": call.pop("kv_lengths")} if "kv_lengths" in call else {}
    longest = {n: call.pop(n) for n in ("max_seqlen_q", "max_seqlen_k")}
    cu = call["cu_seqlens_q"], call["cu_seqlens_k"]
    build.varlen_problem(q, k, k, cu, tuple(longest.values()), Options(**options))
    assert gpu.devices[0].copies_to_host == 0
    monkeypatch.setenv("FLASHCUPY_CHECK", "1")
    with pytest.raises(ValueError, match=message):
        build.varlen_problem(q, k, k, cu, tuple(longest.values()), Options(**options))
    assert gpu.devices[0].copies_to_host > 0


def _views():
    base = np.zeros((8, 16), np.float32)
    return {
        "all": base,
        "left": base[:, :8],
        "right": base[:, 8:],
        "even": base[:, ::2],
        "odd": base[:, 1::2],
        "reversed": base[::-1, ::-1],
        "top": base[:4],
        "bottom": base[4:][::-1],
        "none": base[:0],
        "straddling": base.view(np.uint8).reshape(-1)[6:14].view(np.float32),
        "elsewhere": np.zeros((8, 16), np.float32),
    }


@pytest.mark.parametrize("a", _views())
def test_overlap_is_what_numpy_says(gpu, a):
    hosts = _views()
    for b, other in hosts.items():
        expected = np.shares_memory(hosts[a], other)
        assert _is_refused(gpu.put(hosts[a]), gpu.put(other)) == expected, (a, b)
        assert not _is_refused(gpu.put(hosts[a]), other)


def _is_refused(a, b):
    try:
        overlap.require_no_overlap(a, "a", [("none", None), ("b", b)])
    except ValueError:
        return True
    return False


def test_an_overlapping_output_is_refused(gpu):
    memory = gpu.put(np.zeros((2, 4, 5, 3, 8), np.float32))
    q, k, out = (memory[..., i, :] for i in range(3))
    assert fc.attention(q, k, k, out=out) is out
    with pytest.raises(ValueError, match="out shares memory with q"):
        fc.attention(q, k, k, out=q)
    lengths = gpu.put(np.zeros(2 * 4 * 5 * 8, np.int64))
    out = EmuArray(lengths._host.view(np.float32)[: 2 * 4 * 5 * 8].reshape(2, 4, 5, 8), gpu.devices[0])
    with pytest.raises(ValueError, match="out shares memory with kv_lengths"):
        fc.attention(q, k, k, kv_lengths=lengths[:2], out=out)


def test_lists_themselves_are_for_host_arrays(gpu):
    with pytest.raises(
        fc.UnsupportedError, match="indices is in device memory: on a device masks are made by from_blocks"
    ):
        fc.BlockMask.from_csr([0, 1, 2], gpu.put(np.zeros(2, np.int32)), (32, 32), block_size=16)
