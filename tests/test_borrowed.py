"""Memory of other libraries outlives the launches that read it, and that of a graph is not kept from being freed."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from emu.arrays import EmuArray, EmuRuntime
from emu.device import EmuDevice
from oracles import oracle

import flashcupy as fc
from flashcupy.cuda import cupy_device, launch
from flashcupy.cuda import device as device_module


class Memory:
    """What came from another library."""


class Event:
    """One that is done when the test says so."""

    made: list = []  # noqa: RUF012

    def __init__(self, disable_timing):
        assert disable_timing
        self._passed = self.recorded = False
        Event.made.append(self)

    def record(self):
        self.recorded = True

    @property
    def done(self):
        assert not Capture.on, "asking may break a capture"
        return self._passed


class Capture:
    on = False


@pytest.fixture
def device(monkeypatch):
    monkeypatch.setattr(Event, "made", [])
    monkeypatch.setattr(Capture, "on", False)
    monkeypatch.setattr(cupy_device.CupyDevice, "borrows", True)
    monkeypatch.setattr(cupy_device, "_borrowing_kinds", lambda: (Memory,))
    monkeypatch.setattr(cupy_device, "_per_thread_default", lambda: False)
    stream = SimpleNamespace(is_capturing=lambda: Capture.on, ptr=0)
    cuda = SimpleNamespace(Event=Event, get_current_stream=lambda ordinal: stream)
    cuda.runtime = SimpleNamespace(CUDARuntimeError=RuntimeError)
    monkeypatch.setattr(cupy_device, "_cupy", lambda: SimpleNamespace(cuda=cuda))
    device = cupy_device.CupyDevice(0)
    device.test_stream = stream
    return device


def _array(memory):
    return SimpleNamespace(data=SimpleNamespace(mem=memory))


def _keep(device):
    """One call's borrowed memory, which nothing else refers to."""
    memory = Memory()
    device.keep_until_done([_array(memory), _array(object())])
    return weakref.ref(memory)


def test_memory_is_kept_until_the_stream_has_passed_the_launches(device):
    first, second = _keep(device), _keep(device)
    assert [event.recorded for event in Event.made] == [True, True]
    Event.made[0]._passed = True
    device.keep_until_done([])
    assert first() is None
    assert second() is not None


def test_cupys_own_memory_costs_no_event(device):
    device.keep_until_done([_array(object())])
    assert Event.made == []
    cupy_device.CupyDevice.borrows = False
    device.keep_until_done(iter(lambda: pytest.fail("looked at"), None))


def test_memory_of_a_captured_call_is_kept_for_good(device):
    earlier = _keep(device)
    Event.made[0]._passed = Capture.on = True
    captured = _keep(device)
    assert earlier() is not None
    Capture.on = False
    device.keep_until_done([])
    assert earlier() is None
    assert captured() is not None
    assert len(Event.made) == 1


def test_memory_that_goes_to_another_stream_is_kept_until_that_has_passed(device, monkeypatch):
    monkeypatch.setattr(cupy_device.CupyDevice, "borrows", False)
    memory, home = Memory(), device.current_stream()
    device.keep_elsewhere(memory, home)
    assert Event.made == []
    device.test_stream.ptr = 0x1230
    device.keep_elsewhere(memory, home)
    kept = weakref.ref(memory)
    del memory
    device.keep_until_done([])
    assert kept() is not None
    assert [event.recorded for event in Event.made] == [True]
    Event.made[0]._passed = True
    device.keep_until_done([])
    assert kept() is None


def test_threads_have_streams_of_their_own_where_cupy_says_so(device, monkeypatch):
    def of_threads():
        with ThreadPoolExecutor(2) as pool:
            barrier = threading.Barrier(2)
            ask = lambda: (barrier.wait(), device.current_stream())[1]  # noqa: E731
            return {device.current_stream(), *(asked.result() for asked in [pool.submit(ask) for _ in range(2)])}

    assert of_threads() == {0}
    monkeypatch.setattr(cupy_device, "_per_thread_default", lambda: True)
    for pointer in (0, 2):  # cudaStreamPerThread
        device.test_stream.ptr = pointer
        assert len(of_threads()) == 3
        assert device.current_stream() == device.current_stream()
    device.test_stream.ptr = 0x1230
    assert of_threads() == {0x1230}


def test_what_is_borrowed():
    cupy = oracle("cupy")
    owned = cupy.cuda.UnownedMemory(0x7000, 16, object(), 0)
    assert cupy_device._is_borrowed(owned)
    ours = cupy_device.CupyDevice(0).view(0x7000, (4,), None, np.dtype(np.float32))
    assert not cupy_device._is_borrowed(ours.data.mem)
    assert not cupy_device._is_borrowed(cupy.cuda.memory.BaseMemory())
    assert cupy_device._borrowing_kinds()[0].__name__ == "DLPackMemory"
    assert not cupy_device.CupyDevice(0).is_stream_ordered(ours)
    asynchronous = _array(cupy.cuda.MemoryAsync.__new__(cupy.cuda.MemoryAsync))
    assert cupy_device.CupyDevice(0).is_stream_ordered(asynchronous)


# ---- calls -----------------------------------------------------------------------------------------------------------


class Noting(EmuDevice):
    """Launches nothing; notes what is to be kept, and can play a pool in stream order."""

    def __init__(self):
        super().__init__(compute_capability=(8, 0))
        self.kept, self.launched, self.stream_ordered = [], 0, False
        self.kept_elsewhere = []

    def compile(self, source, entry, include):
        return entry.encode()

    def load(self, path, entry, shared_bytes):
        return entry

    def launch(self, kernel, grid, block, shared_bytes, params):
        self.launched += 1

    def is_stream_ordered(self, array):
        return self.stream_ordered

    def keep_until_done(self, arrays):
        assert self.launched, "before the launches"
        self.kept += arrays

    def keep_elsewhere(self, memory, stream):
        assert self.launched, "before the launches"
        if stream != self.stream:
            self.kept_elsewhere.append(memory)


@pytest.fixture
def noting(monkeypatch, tmp_path):
    device = Noting()
    monkeypatch.setattr(device_module, "_installed", [EmuRuntime(device)])
    monkeypatch.setattr(launch, "_of_graphs", [])
    monkeypatch.setenv("FLASHCUPY_CHECK", "off")
    monkeypatch.setenv("FLASHCUPY_CACHE_DIR", str(tmp_path))
    return device


def _put(device, array):
    return EmuArray(np.asarray(array), device)


@pytest.mark.parametrize("library", ["jax", "torch"])
def test_calls_keep_what_they_read(noting, monkeypatch, library):
    """Of torch's only what it does not reuse in the order of its stream anyway, which waits for results."""
    monkeypatch.setattr(EmuRuntime, "read", lambda self, x, name: (x, library))
    monkeypatch.setattr(EmuRuntime, "write_back", lambda self, array, library: array)
    x, dout = (_put(noting, np.zeros((1, 1, 40, 16), np.float32)) for _ in range(2))
    lengths, seed = _put(noting, np.array([30], np.int32)), _put(noting, np.zeros(2, np.uint64))
    _, residuals = fc.attention_fwd(x, x, x, kv_lengths=lengths, dropout=0.5, seed=seed)
    for large in (x, None), (x, dout):
        kept = {id(array) for array in noting.kept}
        assert {id(lengths), id(seed)} <= kept
        assert all((id(array) in kept) == (library == "jax") for array in large if array is not None)
        noting.kept.clear()
        fc.attention_bwd(dout, residuals)


def test_masks_and_merges_keep_what_they_read(noting):
    scores = _put(noting, np.zeros((1, 1, 4, 4), np.float32))
    fc.BlockMask.from_topk(scores, 2, (64, 64), block_size=16)
    assert [array is scores for array in noting.kept] == [True]
    noting.kept.clear()
    part, lse = _put(noting, np.zeros((1, 40, 16), np.float32)), _put(noting, np.zeros((1, 40), np.float32))
    fc.merge_attention([part, part], [lse, lse])
    assert {id(part), id(lse)} <= {id(array) for array in noting.kept}


def test_lists_of_a_mask_are_kept_where_another_stream_reads_them(noting):
    """Its user lets go of it after the call, and the pool gives them to the stream of the call that made them."""
    x = _put(noting, np.zeros((1, 1, 64, 16), np.float32))
    mask = fc.BlockMask.causal((64, 64), block_size=16)
    _, residuals = fc.attention_fwd(x, x, x, block_mask=mask)
    fc.attention_bwd(x, residuals)
    assert noting.kept_elsewhere == []
    noting.stream = 1
    fc.attention(x, x, x, block_mask=mask)
    (lists,) = noting.kept_elsewhere
    noting.kept_elsewhere.clear()
    fc.attention_bwd(x, residuals)
    assert noting.kept_elsewhere[0] is lists
    assert len(noting.kept_elsewhere) == 2
    kept = weakref.ref(lists)
    del mask, residuals, lists
    gc.collect()
    assert kept() is not None
    noting.kept_elsewhere.clear()
    gc.collect()
    assert kept() is None


def test_memory_of_a_mask_is_kept_where_another_stream_rewrites_it(noting):
    scores = _put(noting, np.zeros((1, 1, 4, 4), np.float32))
    mask = fc.BlockMask.empty((64, 64), block_size=16, capacity=16, device="cuda:0", transposed=True)
    fc.BlockMask.from_topk(scores, 2, (64, 64), block_size=16, out=mask)
    assert noting.kept_elsewhere == []
    noting.stream = 1
    fc.BlockMask.from_topk(scores, 2, (64, 64), block_size=16, out=mask)
    (buffers,) = noting.kept_elsewhere
    assert buffers.lists is mask.lists


def test_a_captured_call_into_given_arrays_leaves_nothing_allocated_that_a_graph_owns(noting, monkeypatch):
    """As the README says of pools in stream order: else the graph could not be launched a second time."""
    x, out, dq, dk, dv = (_put(noting, np.zeros((1, 1, 64, 16), np.float32)) for _ in range(5))
    lse = _put(noting, np.zeros((1, 1, 64), np.float32))

    def call():
        _, residuals = fc.attention_fwd(x, x, x, out=out, lse_out=lse)
        return fc.attention(x, x, x, out=out), fc.attention_bwd(x, residuals, out=fc.AttentionGrads(dq, dk, dv))

    call()
    made, empty = [], noting.empty
    monkeypatch.setattr(
        noting, "empty", lambda shape, dtype: (made.append(weakref.ref(array := empty(shape, dtype))), array)[1]
    )
    noting.capturing = noting.stream_ordered = True
    results = call()
    noting.kept.clear()
    assert made
    assert not any(array() is not None for array in made)
    assert results[0] is out
    assert results[1].dq is dq


@pytest.mark.parametrize("stream_ordered", [False, True])
def test_memory_that_a_graph_owns_goes_while_it_is_captured(noting, monkeypatch, stream_ordered):
    x = _put(noting, np.zeros((1, 1, 64, 16), np.float32))
    scores = _put(noting, np.zeros((1, 1, 4, 4), np.float32))
    lasting = fc.BlockMask.empty((64, 64), block_size=16, capacity=16, device="cuda:0", transposed=True)

    def calls(lasting):
        chosen = fc.BlockMask.from_topk(scores, 2, (64, 64), block_size=16)
        fc.BlockMask.from_topk(scores, 2, (64, 64), block_size=16, out=lasting)
        for mask in (chosen, lasting):
            _, residuals = fc.attention_fwd(x, x, x, block_mask=mask)
            fc.attention_bwd(x, residuals)

    calls(lasting)
    made, empty = [], noting.empty
    monkeypatch.setattr(
        noting, "empty", lambda shape, dtype: (made.append(weakref.ref(array := empty(shape, dtype))), array)[1]
    )
    noting.capturing, noting.stream_ordered = True, stream_ordered
    gc.collect()
    gc.disable()  # what waits for it to be found would go after the capture
    try:
        calls(lasting)
        noting.kept.clear()
        alive = [array() for array in made if array() is not None]
    finally:
        gc.enable()
    assert len(made) > 10
    if stream_ordered:
        assert not alive
    else:
        assert alive
    kept = weakref.ref(lasting.lists)
    del lasting
    gc.collect()
    assert kept() is not None, "made before the capture"
