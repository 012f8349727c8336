"""What only a GPU can show: graphs, streams, other libraries' tensors, exhausted memory, a kernel wrong on it."""

from __future__ import annotations

import numpy as np
import pytest
from cases import DTYPES
from gpu_kit import require_right
from wrong_kernels import Wrong

import flashcupy as fc
from flashcupy.cuda import compile as compiling
from flashcupy.cuda import config_generic, serve, table_sm80
from flashcupy.cuda.launch import PlanCache
from flashcupy.errors import FirstUseError, NotWarmedUpError

pytestmark = pytest.mark.gpu


def _normal(*shape, dtype=np.float32):
    return np.random.default_rng(shape).standard_normal(shape).astype(dtype)


def _operands(cp, dtype=np.float32):
    return [cp.asarray(_normal(2, heads, rows, 32, dtype=dtype)) for heads, rows in ((4, 150), (2, 203), (2, 203))]


def test_a_graph_follows_its_inputs_and_draws_anew(cp):
    """Replays must write nothing but the results: memory taken after the capture stays as it is."""
    q, k, v = _operands(cp)
    seed, lengths = cp.array([1, 2], dtype=np.uint64), cp.array([203, 77], dtype=np.int32)
    mask = fc.BlockMask.sliding_window((150, 203), 64, 0)
    options = {"dropout": 0.3, "seed": seed, "kv_lengths": lengths, "block_mask": mask}
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        fc.warmup(q, k, v, backward=True, **options)
        fc.attention_bwd(*fc.attention_fwd(q, k, v, **options))  # the pool has the memory from here on
        stream.begin_capture()
        out, residuals = fc.attention_fwd(q, k, v, **options)
        grads = fc.attention_bwd(q, residuals)
        graph = stream.end_capture()
        others = [cp.full(1 << 16, 7, np.float32) for _ in range(64)]
        for first, length in ((1, 203), (9, 40)):
            seed[0], lengths[0] = first, length
            q *= 0.5
            graph.launch(stream)
            want, kept = fc.attention_fwd(q, k, v, **{**options, "seed": (first, 2)})
            assert cp.array_equal(out, want)
            for a, b in zip(grads[:3], fc.attention_bwd(q, kept)[:3], strict=True):
                assert cp.array_equal(a, b)
        assert all(bool((other == 7).all()) for other in others)


def test_a_graph_chooses_its_blocks_anew(cp):
    """Scores, lists, forward and backward in one graph: each replay is what calls with a new mask give."""
    q, k, v = _operands(cp)
    shape, heads = (150, 203), 2
    allowed = cp.asarray(np.tri(5, 7, k=2, dtype=np.bool_))
    mask = fc.BlockMask.empty(shape, block_size=32, batch=2, heads=heads, capacity=2 * heads * 5 * 3, device="cuda:0")

    def choose(out=None):
        scores = fc.pooled_scores(q, k, block_size=32).reshape(2, heads, 2, 5, 7).max(axis=2)
        return fc.BlockMask.from_topk(scores, 3, shape, block_size=32, allowed=allowed, out=out)

    def step(own):
        out, residuals = fc.attention_fwd(q, k, v, causal=True, block_mask=own)
        return out, *fc.attention_bwd(q, residuals, deterministic=True)[:3]

    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        step(choose(mask))
        stream.begin_capture()
        results = step(choose(mask))
        graph = stream.end_capture()
        for seed in range(3):
            q[...] = cp.asarray(np.random.default_rng(seed).standard_normal(q.shape).astype(q.dtype))
            graph.launch(stream)
            for got, want in zip(results, step(choose()), strict=True):
                assert cp.array_equal(got, want)
            mask.check()


def test_what_is_new_under_capture_is_refused(cp, monkeypatch):
    monkeypatch.setattr(compiling, "_slots", {})  # as in a new process, whatever earlier tests have loaded
    monkeypatch.setattr(serve, "_plans", PlanCache())
    q = cp.asarray(_normal(1, 2, 70, 24))
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        try:
            with pytest.raises(NotWarmedUpError, match="warmup"):
                fc.attention(q, q, q, softcap=3.0, alibi_slopes=np.ones(2, np.float32))
        finally:
            stream.end_capture()


def test_streams_share_a_mask_and_keep_their_order(cp):
    q, k, v = _operands(cp)
    mask = fc.BlockMask.bigbird((150, 203), window=1, n_global=1, n_random=1, rng=np.random.default_rng(0))
    streams = [cp.cuda.Stream(non_blocking=True) for _ in range(2)]
    cp.cuda.Device().synchronize()
    results = []
    for stream in streams:
        with stream:
            results.append(fc.attention(q, k, v, block_mask=mask))
    for stream in streams:
        stream.synchronize()
    assert cp.array_equal(*results)
    require_right(results[0].get(), *(x.get() for x in (q, k, v)), block_mask=mask)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_torch_tensors_come_in_and_go_out(cp, dtype):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    q, k, v = (torch.as_tensor(_normal(2, 2, 70, 32)).to("cuda", getattr(torch, dtype)) for _ in range(3))
    with torch.cuda.stream(torch.cuda.Stream()):
        out, residuals = fc.attention_fwd(q, k, v, causal=True)
        given = torch.empty_like(out)
        assert fc.attention(q, k, v, causal=True, out=given) is given
        grads = fc.attention_bwd(out, residuals)
        assert all(x.dtype == q.dtype and x.is_cuda for x in (out, *grads[:3]))
        assert torch.equal(out, given)
        host = (x.float().cpu().numpy().astype(DTYPES[dtype]) for x in (out, q, k, v))
        require_right(*host, causal=True)


def test_exhausted_memory_leaves_the_process_usable(cp):
    q = cp.asarray(_normal(1, 2, 70, 32))
    free = cp.cuda.Device().mem_info[0]
    many = cp.broadcast_to(q, (free // (q.nbytes // 2), 2, 70, 32))
    with pytest.raises(cp.cuda.memory.OutOfMemoryError):
        fc.attention(many, q, q)
    require_right(fc.attention(q, q, q).get(), *(q.get(),) * 3)


@pytest.mark.parametrize(("family", "dtype"), [("generic", "float32"), ("sm80", "float32"), ("sm80", "float16")])
def test_a_kernel_that_is_wrong_here_is_refused(cp, monkeypatch, tmp_path, family, dtype):
    q = cp.asarray(_normal(1, 2, 70, 32, dtype=dtype))
    options = {"softcap": 2.0, "alibi_slopes": np.ones(2, np.float32)}
    monkeypatch.setenv("FLASHCUPY_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("FLASHCUPY_CHECK", "first-use")
    monkeypatch.setenv("FLASHCUPY_FAMILY", family)
    try:
        fc.explain(q, q, q, **options)
    except ValueError as error:
        pytest.skip(f"this GPU has no such family: {error}")
    module, name = {"generic": (config_generic, "generic_config"), "sm80": (table_sm80, "sm80_config")}[family]
    choose = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *arguments: Wrong(choose(*arguments)))
    for _ in range(2):
        with pytest.raises(FirstUseError, match="error"):
            fc.attention(q, q, q, **options)


def test_each_device_computes_its_own(cp):
    if cp.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("needs two GPUs")
    results = []
    for ordinal in range(2):
        with cp.cuda.Device(ordinal):
            q = cp.asarray(_normal(1, 2, 70, 32))
        results.append(fc.attention(q, q, q))  # the current device is another one
        assert results[-1].device.id == ordinal
    assert np.array_equal(*(x.get() for x in results))
