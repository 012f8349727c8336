"""Memory of other libraries outlives the launches that read it, and that of a graph is not kept from being freed."""

from __future__ import annotations

import gc
import weakref
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
    stream = SimpleNamespace(is_capturing=lambda: Capture.on)
    cuda = SimpleNamespace(Event=Event, get_current_stream=lambda ordinal: stream)
    cuda.runtime = SimpleNamespace(CUDARuntimeError=RuntimeError)
    monkeypatch.setattr(cupy_device, "_cupy", lambda: SimpleNamespace(cuda=cuda))
    return cupy_device.CupyDevice(0)


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
    calls(lasting)
    noting.kept.clear()
    gc.collect()
    assert len(made) > 10
    if stream_ordered:
        assert not any(array() is not None for array in made)
    else:
        assert any(array() is not None for array in made)
    kept = weakref.ref(lasting.lists)
    del lasting
    gc.collect()
    assert kept() is not None, "made before the capture"
