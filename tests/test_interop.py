"""Arrays of other libraries: viewed without a copy, and answered in kind."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from oracles import oracle

import flashcupy as fc
from flashcupy import arrays
from flashcupy.cuda import device

_NAMES = ("float16", "bfloat16", "float32", "float64")


def _numpy_call(dtype):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 4, n, 8)).astype(dtype) for n in (9, 13, 13))
    out, residuals = fc.attention_fwd(q, k, v, causal=True)
    return (q, k, v), (out, residuals.lse, *fc.attention_bwd(out, residuals)[:3])


@pytest.mark.parametrize("name", _NAMES)
def test_torch_in_torch_out(name):
    torch = oracle("torch")
    dtype = np.dtype(name) if name != "bfloat16" else arrays.bfloat16()
    inputs, expected = _numpy_call(dtype)
    tensors = [torch.from_numpy(x.astype(np.float32)).to(getattr(torch, name)) for x in inputs]
    for tensor in tensors:
        viewed, library = arrays.read(tensor, "q")
        assert library == "torch"
        assert viewed.__array_interface__["data"][0] == tensor.data_ptr()
    if name != "float64":  # those went through float32
        out, residuals = fc.attention_fwd(*tensors, causal=True)
        results = (out, residuals.lse, *fc.attention_bwd(out, residuals)[:3])
        for got, want in zip(results, expected, strict=True):
            assert isinstance(got, torch.Tensor)
            assert got.dtype == getattr(torch, want.dtype.name)
            assert np.array_equal(got.float().numpy(), want.astype(np.float32))


def test_torch_out_is_written_in_place():
    torch = oracle("torch")
    q = torch.randn(2, 6, 4, 8, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0)).transpose(1, 2)
    out = torch.empty(2, 4, 6, 8, dtype=torch.bfloat16)
    assert fc.attention(q, q, q, out=out) is out
    fresh = fc.attention(q, q, q)
    assert torch.equal(out, fresh)
    assert fresh.stride() == q.stride()


def test_torch_refusals():
    torch = oracle("torch")
    x = torch.ones(2, 3, 4)
    with pytest.raises(TypeError, match=r"q is a torch tensor that requires grad.*detach"):
        fc.attention(x.clone().requires_grad_(), x, x)
    with pytest.raises(TypeError, match="k is a numpy array and q a torch one"):
        fc.attention(x, x.numpy(), x)
    with pytest.raises(TypeError, match=r"layout torch\.sparse_coo"):
        fc.attention(x.to_sparse(), x, x)
    with pytest.raises(fc.UnsupportedError, match="q lives on meta"):
        fc.attention(x.to("meta"), x, x)
    with pytest.raises(TypeError, match="out is a numpy array and the inputs are torch ones"):
        fc.attention(x, x, x, out=x.numpy())


def test_small_host_arrays_may_accompany_tensors():
    torch = oracle("torch")
    x = torch.ones(2, 4, 3, 4)
    assert isinstance(fc.attention(x, x, x, kv_lengths=[1, 2], sinks=np.ones(4, np.float32)), torch.Tensor)
    lengths = torch.tensor([1, 2])
    assert isinstance(fc.attention(x, x, x, kv_lengths=lengths, alibi_slopes=torch.ones(4)), torch.Tensor)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_jax_in_jax_out(name):
    jax = oracle("jax")
    dtype = np.dtype(name) if name != "bfloat16" else arrays.bfloat16()
    inputs, expected = _numpy_call(dtype)
    tensors = [jax.numpy.asarray(x) for x in inputs]
    for tensor in tensors:
        viewed, library = arrays.read(tensor, "q")
        assert library == "jax"
        assert viewed.__array_interface__["data"][0] == tensor.unsafe_buffer_pointer()
    out, residuals = fc.attention_fwd(*tensors, causal=True)
    for got, want in zip((out, residuals.lse, *fc.attention_bwd(out, residuals)[:3]), expected, strict=True):
        assert isinstance(got, jax.Array)
        assert got.dtype == want.dtype
        assert np.array_equal(np.asarray(got), want)


def test_jax_takes_results_over_without_a_copy():
    oracle("jax")
    for dtype in (np.dtype(np.float32), arrays.bfloat16()):
        array = arrays.empty_like(np.empty((3, 5)), (3, 5), dtype, "jax")
        array[...] = 1
        assert arrays.write_back(array, "jax").unsafe_buffer_pointer() == array.__array_interface__["data"][0]


def test_jax_refusals():
    jax = oracle("jax")
    x = jax.numpy.ones((2, 3, 4))
    with pytest.raises(TypeError, match=r"q is a JAX tracer.*pure_callback"):
        jax.jit(lambda x: fc.attention(x, x, x))(x)
    with pytest.raises(TypeError, match="out is an immutable jax array"):
        fc.attention(x, x, x, out=x)


def test_jax_custom_vjp_with_from_arrays():
    """The recipe that the tracer error names, with state kept by the host."""
    jax = oracle("jax")
    jnp = jax.numpy
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((2, 5, 4)), jnp.float32) for _ in range(3))

    def forward(q, k, v):
        shapes = (jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct(q.shape[:-1], jnp.float32))
        call = lambda *x: fc.attention(*map(np.asarray, x), causal=True, return_lse=True)  # noqa: E731
        return jax.pure_callback(call, shapes, q, k, v)

    def backward(kept, dout):
        def call(dout, *kept):
            residuals = fc.AttentionResiduals.from_arrays(*map(np.asarray, kept), causal=True)
            return tuple(fc.attention_bwd(np.asarray(dout), residuals)[:3])

        return jax.pure_callback(call, tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in kept[:3]), dout, *kept)

    @jax.custom_vjp
    def attention(q, k, v):
        return forward(q, k, v)[0]

    attention.defvjp(lambda q, k, v: (lambda r: (r[0], (q, k, v, *r)))(forward(q, k, v)), backward)
    grads = jax.jit(jax.grad(lambda *x: (attention(*x) ** 2).sum(), argnums=(0, 1, 2)))(q, k, v)

    def plain(q, k, v):
        s = jnp.where(jnp.tril(jnp.ones((5, 5), bool)), q @ k.mT / 2, -jnp.inf)
        return ((jax.nn.softmax(s) @ v) ** 2).sum()

    for got, want in zip(grads, jax.grad(plain, argnums=(0, 1, 2))(q, k, v), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


class _Producer:
    """Some other library's array: DLPack and nothing else."""

    def __init__(self, array, device=(1, 0)):
        self._array, self._device = array, device

    def __dlpack__(self, **kwargs):
        return self._array.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self._device


def test_other_producers_are_read_through_dlpack():
    x = np.random.default_rng(0).standard_normal((2, 3, 4))
    out = fc.attention(_Producer(x), _Producer(x), _Producer(x))
    assert type(out) is np.ndarray
    assert np.array_equal(out, fc.attention(x, x, x))
    with pytest.raises(fc.UnsupportedError, match=r"q lives on DLPack device \(10, 1\); .* on CUDA devices"):
        fc.attention(_Producer(x, (10, 1)), x, x)  # 10 is ROCm


class _CudaOnly:
    """A device array that speaks no DLPack but would copy itself to the host if asked."""

    __cuda_array_interface__ = {"shape": (2, 3, 4), "typestr": "<f4", "data": (0, False), "version": 3}  # noqa: RUF012

    def __array__(self, dtype=None, copy=None):
        raise AssertionError("copied to the host")


class _TorchOnCuda:
    """As much of a torch tensor on a GPU as is looked at before it is handed to the runtime."""

    device = SimpleNamespace(type="cuda")


class _Runtime:
    """Takes note of what it is asked to read."""

    def __init__(self):
        self.asked = []

    def read(self, x, name):
        self.asked.append(name)
        raise NotImplementedError


def _read_on_device(x):
    runtime = _Runtime()
    device.use(runtime)
    try:
        with pytest.raises(NotImplementedError):
            fc.attention(x, x, x)
    finally:
        device.use(None)
    return runtime.asked


@pytest.mark.parametrize("x", [_CudaOnly(), _Producer(None, (2, 0)), _Producer(None, (13, 0))])
def test_arrays_in_device_memory_go_to_the_runtime(x):
    assert _read_on_device(x) == ["q"]


@pytest.mark.parametrize(("hip", "on_cuda"), [(None, True), ("6.0", False)])
def test_torch_calls_rocm_devices_cuda_too(monkeypatch, hip, on_cuda):
    stub = SimpleNamespace(Tensor=_TorchOnCuda, version=SimpleNamespace(hip=hip))
    monkeypatch.setitem(sys.modules, "torch", stub)
    assert arrays.in_device_memory(_TorchOnCuda()) is on_cuda
    if on_cuda:
        assert _read_on_device(_TorchOnCuda()) == ["q"]


@pytest.mark.parametrize(
    ("platforms", "dlpack", "on_cuda"),
    [
        (("gpu",), 2, True),
        (("cuda",), 2, True),
        (("gpu",), 10, False),
        (("tpu",), 2, False),
        (("gpu", "gpu"), 2, False),
    ],
)
def test_jax_arrays_on_a_gpu(monkeypatch, platforms, dlpack, on_cuda):
    class Array(_Producer):
        def devices(self):
            return [SimpleNamespace(platform=name) for name in platforms]

    class Tracer(Array):
        pass

    monkeypatch.setitem(sys.modules, "jax", SimpleNamespace(Array=Array, core=SimpleNamespace(Tracer=Tracer)))
    x = Array(None, (dlpack, 0))
    assert arrays.in_device_memory(x) is on_cuda
    assert not arrays.in_device_memory(Tracer(None, (2, 0)))
    if not on_cuda:
        with pytest.raises(fc.UnsupportedError, match=f"q lives on {platforms[0]}"):
            fc.attention(x, x, x)


def test_torch_seed_and_unreadable_tensors():
    torch = oracle("torch")
    x = torch.ones(2, 3, 4)
    seed = torch.tensor([5, 7], dtype=torch.uint64)
    assert torch.equal(fc.attention(x, x, x, dropout=0.5, seed=seed), fc.attention(x, x, x, dropout=0.5, seed=(5, 7)))
    with pytest.raises(TypeError, match=r"q is a torch tensor of torch\.float8_e4m3fn"):
        fc.attention(x.to(torch.float8_e4m3fn), x, x)


def test_sequences_and_subclasses():
    x = [[[1.0, 2.0], [3.0, 4.0]]]
    out = fc.attention(x, x, x)
    assert type(out) is np.ndarray
    assert out.dtype == np.float64
    matrix = np.ones((3, 4)).view(np.matrix)
    assert type(fc.attention(matrix, matrix, matrix)) is np.ndarray
    with pytest.raises(TypeError, match="q has dtype int64"):
        fc.attention([[[1, 2]]], x, x)
