"""Device pointers through the C interface, with kernels on the emulator in the place of CuPy."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from backends import EmuBackend
from capi_kit import Failed, library

import flashcupy as fc
from flashcupy import dispatch
from flashcupy.cuda import device as device_module

RNG = np.random.default_rng(6)
HEADS, KV_HEADS, SQ, SK, D = 4, 2, 21, 37, 16


def _inputs():
    shapes = ((HEADS, SQ, D), (KV_HEADS, SK, D), (KV_HEADS, SK, 2 * D))
    return [RNG.standard_normal(shape).astype(np.float32) for shape in shapes]


def _expected(q, k, v, dout, **options):
    out, lse = fc.attention(q, k, v, return_lse=True, **options)
    residuals = fc.AttentionResiduals.from_arrays(q, k, v, out, lse, **options)
    return out, lse, fc.attention_bwd(dout, residuals)


@pytest.fixture
def emu():
    backend = EmuBackend()
    with backend.active():
        yield backend


def _put(emu, array):
    return emu.device.from_host(np.ascontiguousarray(array))


def _empty(emu, array):
    return emu.device.empty(array.shape, array.dtype)


def test_forward_and_backward(emu):
    q, k, v = _inputs()
    dout = RNG.standard_normal((HEADS, SQ, 2 * D)).astype(np.float32)
    slopes = np.array([0.5, 0.25, 0.125, 0.1], np.float32)
    out, lse, grads = _expected(q, k, v, dout, causal=True, alibi_slopes=slopes)
    inputs = [_put(emu, x) for x in (q, k, v)]
    results = [_empty(emu, x) for x in (out, lse)]
    library().forward(*inputs, *results, stream=0x1230, causal=True, alibi_slopes=slopes)
    np.testing.assert_allclose(results[0].get(), out, atol=1e-5)
    np.testing.assert_allclose(results[1].get(), lse, atol=1e-5)
    backs = [_empty(emu, x) for x in (q, k, v)]
    options = {"causal": True, "alibi_slopes": slopes}
    library().backward((*inputs, *results), _put(emu, dout), (*backs, None, None), stream=1, **options)
    for result, expected in zip(backs, grads[:3], strict=True):
        np.testing.assert_allclose(result.get(), expected, atol=1e-4)
    assert emu.device.streams[-2:] == [0x1230, 1]


@pytest.mark.parametrize("with_lse", [True, False])
def test_a_workspace_is_all_that_a_call_needs(emu, monkeypatch, with_lse):
    lib = library()
    q, k, v = _inputs()
    out, lse = fc.attention(q, k, v, return_lse=True)
    inputs = [_put(emu, x) for x in (q, k, v)]
    results = [_empty(emu, out), _empty(emu, lse) if with_lse else None]
    slopes = np.zeros(HEADS, np.float32)  # which has to travel to the device
    lib.forward(*inputs, *results, alibi_slopes=slopes)  # the first use compiles
    tensors = [lib.tensor(x) for x in (*inputs, *results)]
    for tensor in tensors:
        if tensor:
            tensor.data = lib.ffi.NULL
    size = lib.ffi.new("uint64_t *")
    lib.ok(lib.lib.flashcupy_forward_workspace_size(*tensors, lib.options(alibi_slopes=slopes), size))
    assert size[0] > 0
    workspace = emu.device.empty((size[0],), np.dtype(np.uint8))
    pointer = lib.ffi.cast("void *", workspace._host.ctypes.data)

    def refuse(*_, **__):
        raise AssertionError("allocated")

    monkeypatch.setattr(emu.device, "empty", refuse)
    options = {"alibi_slopes": slopes, "workspace": pointer}
    results[0]._host[...] = np.nan
    lib.forward(*inputs, *results, workspace_size=size[0], **options)
    np.testing.assert_allclose(results[0].get(), out, atol=1e-5)
    with pytest.raises(Failed, match="allocated"):
        lib.forward(*inputs, *results, alibi_slopes=slopes)
    results[0]._host[...] = 7
    with pytest.raises(Failed, match="workspace has") as failed:
        lib.forward(*inputs, *results, workspace_size=size[0] - 16, **options)
    assert failed.value.status == "INVALID_ARGUMENT"
    assert (results[0].get() == 7).all()
    shifted = {**options, "workspace": lib.ffi.cast("char *", pointer) + 16}
    with pytest.raises(Failed, match="multiple of 256"):
        lib.forward(*inputs, *results, workspace_size=size[0] - 16, **shifted)


def test_lengths_that_are_to_be_checked_are_not_made_up(emu, monkeypatch):
    """With FLASHCUPY_CHECK=1 values in device memory are looked at: what stands in for them has none."""
    lib = library()
    q, k, v = (lib.tensor(_put(emu, x), data=lib.ffi.NULL) for x in _inputs())
    options = lib.options(kv_lengths=emu.device.from_host(np.array(7, np.int32)))
    options.kv_lengths.data = lib.ffi.NULL
    lib.ok(lib.lib.flashcupy_supported(q, k, v, options, lib.ffi.NULL))
    monkeypatch.setenv("FLASHCUPY_CHECK", "1")
    assert lib.lib.flashcupy_supported(q, k, v, options, lib.ffi.NULL) == lib.lib.FLASHCUPY_INVALID_ARGUMENT
    assert "kv_lengths.data is NULL" in lib.last_error()


def test_a_backward_in_a_workspace(emu, monkeypatch):
    lib = library()
    q, k, v = _inputs()
    dout = RNG.standard_normal((HEADS, SQ, 2 * D)).astype(np.float32)
    out, lse, grads = _expected(q, k, v, dout)
    arrays = [_put(emu, x) for x in (q, k, v, out, lse, dout)]
    backs = [_empty(emu, x) for x in (q, k, v)]
    lib.backward(arrays[:5], arrays[5], (*backs, None, None))
    tensors = [lib.tensor(x) for x in (*arrays, None, *backs, None, None)]
    size = lib.ffi.new("uint64_t *")
    lib.ok(lib.lib.flashcupy_backward_workspace_size(*tensors, lib.ffi.NULL, size))
    workspace = emu.device.empty((size[0],), np.dtype(np.uint8))
    pointer = lib.ffi.cast("void *", workspace._host.ctypes.data)

    def refuse(*_, **__):
        raise AssertionError("allocated")

    monkeypatch.setattr(emu.device, "empty", refuse)
    lib.backward(arrays[:5], arrays[5], (*backs, None, None), workspace=pointer, workspace_size=size[0])
    for result, expected in zip(backs, grads[:3], strict=True):
        np.testing.assert_allclose(result.get(), expected, atol=1e-4)


@pytest.mark.slow
def test_masks_are_where_they_are_used(emu):
    lib = library()
    q, k, v = _inputs()
    blocks = np.array([[True, False, True], [False, True, False]])
    options = lib.mask_options((SQ, SK), (16, 16), device=(2, 0), capacity=4)
    handle = lib.mask_from_blocks(options, blocks)
    inputs = [_put(emu, x) for x in (q, k, v)]
    out, lse = (_empty(emu, np.empty(shape, np.float32)) for shape in ((HEADS, SQ, 2 * D), (HEADS, SQ)))
    lib.forward(*inputs, out, lse, block_mask=handle)
    mask = fc.BlockMask.from_blocks(blocks, (SQ, SK), block_size=16)
    np.testing.assert_allclose(out.get(), fc.attention(q, k, v, block_mask=mask), atol=1e-5)

    # from blocks of the device, of the host, and from lists of the host: at the same addresses
    for update in (_put(emu, ~blocks), ~blocks):
        lib.ok(lib.lib.flashcupy_block_mask_update_from_blocks(handle, lib.tensor(blocks), lib.ffi.NULL))
        lib.ok(lib.lib.flashcupy_block_mask_update_from_blocks(handle, lib.tensor(update), lib.ffi.NULL))
        _same_as(lib, handle, ~blocks, emu, inputs, (q, k, v))
    lists = [np.array([0, 1, 2]), np.array([2, 0])]
    tensors = [lib.tensor(x) for x in (*lists, None, None)]
    lib.ok(lib.lib.flashcupy_block_mask_update_from_csr(handle, *tensors, lib.ffi.NULL))
    _same_as(lib, handle, np.array([[0, 0, 1], [1, 0, 0]], bool), emu, inputs, (q, k, v))
    with pytest.raises(Failed, match="capacity"):
        lib.ok(lib.lib.flashcupy_block_mask_update_from_blocks(handle, lib.tensor(np.ones((2, 3), bool)), lib.ffi.NULL))
    _same_as(lib, handle, np.array([[0, 0, 1], [1, 0, 0]], bool), emu, inputs, (q, k, v))
    with pytest.raises(Failed, match="block_mask is on cuda:0, expected cpu"):
        lib.forward(q, k, v, np.empty((HEADS, SQ, 2 * D), np.float32), block_mask=handle)
    lib.ok(lib.lib.flashcupy_block_mask_destroy(handle))


def _same_as(lib, handle, blocks, emu, inputs, host):
    q, k, v = host
    lib.ok(lib.lib.flashcupy_block_mask_check(handle))
    mask = fc.BlockMask.from_blocks(blocks, (SQ, SK), block_size=16)
    dout = np.ones((HEADS, SQ, 2 * D), np.float32)
    out, lse, grads = _expected(q, k, v, dout, block_mask=mask)
    results = [_empty(emu, x) for x in (out, lse)]
    lib.forward(*inputs, *results, block_mask=handle)
    np.testing.assert_allclose(results[0].get(), out, atol=1e-5)
    backs = [_empty(emu, x) for x in (q, k, v)]
    lib.backward((*inputs, *results), _put(emu, dout), (*backs, None, None), block_mask=handle)
    for result, expected in zip(backs, grads[:3], strict=True):
        np.testing.assert_allclose(result.get(), expected, atol=1e-4)


def test_a_mask_of_the_host_is_refused_beside_a_device(emu):
    """Python copies it there and keeps the copy; in C nobody could tell when that may be freed."""
    lib = library()
    handle = lib.mask_from_blocks(lib.mask_options((SQ, SK), (16, 16)), np.ones((2, 3), bool))
    inputs = [_put(emu, x) for x in _inputs()]
    with pytest.raises(Failed, match="block_mask is on cpu, expected cuda:0"):
        lib.forward(*inputs, _empty(emu, np.empty((HEADS, SQ, 2 * D), np.float32)), block_mask=handle)
    lib.ok(lib.lib.flashcupy_block_mask_destroy(handle))


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_deterministic_backward_is_asked_for(monkeypatch, deterministic):
    asked = []
    monkeypatch.setattr(dispatch, "run_backward", lambda *arguments: asked.append(arguments[4]))
    q, k, v = _inputs()
    out, lse = fc.attention(q, k, v, return_lse=True)
    library().backward((q, k, v, out, lse), out, (q, None, None, None, None), deterministic=deterministic)
    assert asked == [deterministic]


def test_blocks_on_the_device(emu):
    lib = library()
    blocks = np.array([[True, False, True], [False, True, False]])
    options = lib.mask_options((SQ, SK), (16, 16), device=(2, 0))
    handle = lib.mask_from_blocks(options, _put(emu, blocks))
    inputs = _inputs()
    _same_as(lib, handle, blocks, emu, [_put(emu, x) for x in inputs], inputs)
    small = lib.mask_from_blocks(lib.mask_options((SQ, SK), (16, 16), device=(2, 0), capacity=1), _put(emu, blocks))
    with pytest.raises(Failed, match="room"):
        lib.ok(lib.lib.flashcupy_block_mask_check(small))
    for mask in (handle, small):
        lib.ok(lib.lib.flashcupy_block_mask_destroy(mask))


def test_under_capture_what_is_new_is_refused(emu):
    q, k, v = (x.astype(np.float64) for x in _inputs())
    inputs = [_put(emu, x) for x in (q, k, v)]
    out = _empty(emu, np.empty((HEADS, SQ, 2 * D)))
    emu.device.capturing = True
    try:
        with pytest.raises(Failed) as failed:
            library().forward(*inputs, out, softcap=1.5, window=(3, 3), sinks=np.zeros(HEADS))
    finally:
        emu.device.capturing = False
    assert failed.value.status == "NOT_WARMED_UP"
    assert "flashcupy_warmup" in failed.value.message


def test_a_mask_is_not_made_under_capture(emu):
    lib = library()
    blocks = np.ones((2, 3), bool)
    emu.device.capturing = True
    try:
        for table in (blocks, _put_while_capturing(emu, blocks)):
            with pytest.raises(Failed) as failed:
                lib.mask_from_blocks(lib.mask_options((SQ, SK), (16, 16), device=(2, 0)), table)
            assert failed.value.status == "NOT_WARMED_UP"
    finally:
        emu.device.capturing = False


def _put_while_capturing(emu, array):
    emu.device.capturing = False
    copy = _put(emu, array)
    emu.device.capturing = True
    return copy


def test_what_is_on_no_device(emu):
    lib = library()
    q = lib.tensor(np.zeros((1, 4, 8), np.float32), device=(2, 5))
    with pytest.raises(Failed, match=r"q has device_id 5, expected 0 to 0: there are 1 CUDA devices"):
        lib.forward(q, q, q, q)
    wrong = lib.mask_options((SQ, SK), (16, 16))
    with pytest.raises(Failed, match="blocks is on cuda:0, expected cpu"):
        lib.mask_from_blocks(wrong, _put(emu, np.ones((2, 3), bool)))
    with pytest.raises(Failed, match="blocks has shape"):
        lib.mask_from_blocks(lib.mask_options((SQ, SK), (16, 16), device=(2, 0)), _put(emu, np.ones((2, 4), bool)))


def test_no_device_at_all(monkeypatch):
    class Runtime:
        def count(self):
            return 0

    monkeypatch.setattr(device_module, "_installed", [Runtime()])
    lib = library()
    q = lib.tensor(np.zeros((1, 4, 8), np.float32), device=(2, 0))
    with pytest.raises(Failed, match="q is on a CUDA device, and there is none") as failed:
        lib.forward(q, q, q, q)
    assert failed.value.status == "CUDA"


def test_a_shutdown_waits_and_makes_masks_stale(emu, monkeypatch):
    lib = library()
    blocks = np.ones((2, 3), bool)
    handle = lib.mask_from_blocks(lib.mask_options((SQ, SK), (16, 16), device=(2, 0)), blocks)
    waited = []
    monkeypatch.setattr(emu.device, "synchronize", lambda: waited.append(1))
    lib.ok(lib.lib.flashcupy_shutdown())
    assert waited
    with pytest.raises(Failed, match="destroyed"):
        lib.ok(lib.lib.flashcupy_block_mask_check(handle))
    lib.forward(*_inputs(), np.empty((HEADS, SQ, 2 * D), np.float32))  # and starts anew


def test_destroying_waits_for_calls_in_other_threads(emu, monkeypatch):
    """The mask's memory goes back only when nothing that was launched with it can still be running."""
    lib = library()
    handle = lib.mask_from_blocks(lib.mask_options((SQ, SK), (16, 16), device=(2, 0)), np.ones((2, 3), bool))
    inside, go_on, events = threading.Event(), threading.Event(), []
    launch, synchronize = emu.device.launch, emu.device.synchronize

    def slow_launch(*arguments):
        inside.set()
        go_on.wait(20)
        launch(*arguments)
        events.append("launched")

    monkeypatch.setattr(emu.device, "launch", slow_launch)
    monkeypatch.setattr(emu.device, "synchronize", lambda: (events.append("waited"), synchronize()))
    inputs = [_put(emu, x) for x in _inputs()]
    out = _empty(emu, np.empty((HEADS, SQ, 2 * D), np.float32))
    calling = threading.Thread(target=lambda: lib.forward(*inputs, out, block_mask=handle))
    calling.start()
    assert inside.wait(20)
    destroying = threading.Thread(target=lambda: lib.ok(lib.lib.flashcupy_block_mask_destroy(handle)))
    destroying.start()
    go_on.set()
    calling.join()
    destroying.join()
    assert events[-1] == "waited"
    assert "launched" in events
