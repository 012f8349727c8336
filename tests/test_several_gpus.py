"""Work on one GPU while another is current, from one thread or several."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from emu.arrays import EmuArray, EmuRuntime
from emu.device import EmuDevice

import flashcupy as fc
from flashcupy.cuda import device as device_module

_current = threading.local()


class Gpu(EmuDevice):
    """Launches nothing, and refuses what goes to the current device where that is another."""

    def __init__(self, ordinal):
        super().__init__(ordinal, compute_capability=(8, 0))
        self.loaded, self.launched = [], []

    @contextlib.contextmanager
    def scope(self):
        before, _current.device = getattr(_current, "device", None), self
        try:
            yield
        finally:
            _current.device = before

    def _require_current(self):
        assert getattr(_current, "device", None) is self

    def is_capturing(self):
        self._require_current()
        return super().is_capturing()

    def keep_until_done(self, arrays):
        self._require_current()
        assert all(array.device is self for array in arrays)

    def keep_elsewhere(self, memory, stream):
        self._require_current()

    def compile(self, source, entry, include):
        return entry.encode()

    def load(self, path, entry, shared_bytes):
        self.loaded.append(entry)
        return self, entry

    def launch(self, kernel, grid, block, shared_bytes, params):
        self._require_current()
        assert kernel[0] is self
        self.launched.append(kernel[1])


@pytest.fixture
def gpus(monkeypatch, tmp_path):
    both = Gpu(0), Gpu(1)
    monkeypatch.setattr(device_module, "_installed", [EmuRuntime(*both)])
    monkeypatch.setenv("FLASHCUPY_CHECK", "off")
    monkeypatch.setenv("FLASHCUPY_CACHE_DIR", str(tmp_path))
    return both


def _training(gpu, mask=None):
    x = EmuArray(np.zeros((1, 1, 64, 16), np.float32), gpu)
    fc.warmup(x, x, x, backward=True, block_mask=mask)
    _, residuals = fc.attention_fwd(x, x, x, block_mask=mask)
    fc.attention_bwd(x, residuals)


def _lengths(gpu):
    x = EmuArray(np.zeros((1, 64, 16), np.float32), gpu)
    fc.attention_varlen(x, x, x, np.array([0, 64]), np.array([0, 64]))


def _checked_lengths(gpu):
    x, lengths = EmuArray(np.zeros((1, 1, 64, 16), np.float32), gpu), EmuArray(np.array([30], np.int32), gpu)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLASHCUPY_CHECK", "1")
        fc.explain(x, x, x, kv_lengths=lengths)
    fc.attention(x, x, x, kv_lengths=lengths)


def _merge(gpu):
    part, lse = EmuArray(np.zeros((1, 64, 16), np.float32), gpu), EmuArray(np.zeros((1, 64), np.float32), gpu)
    fc.merge_attention([part, part], [lse, lse])


def _host_mask(gpu):
    _training(gpu, fc.BlockMask.causal((64, 64), block_size=16))


def _device_mask(gpu):
    scores = EmuArray(np.zeros((1, 1, 4, 4), np.float32), gpu)
    fixed = fc.BlockMask.empty((64, 64), block_size=16, capacity=16, device=gpu.name, transposed=False)
    for out in (None, fixed):
        mask = fc.BlockMask.from_topk(scores, 2, (64, 64), block_size=16, out=out)
        assert mask.transposed is not None
        _training(gpu, mask)


def _scores(gpu):
    x = EmuArray(np.zeros((1, 1, 64, 16), np.float32), gpu)
    fc.pooled_scores(x, x, block_size=16)
    fc.block_mass(x, x, block_size=16)


CALLS = (_training, _lengths, _checked_lengths, _merge, _host_mask, _device_mask, _scores)


@pytest.mark.parametrize("call", CALLS)
def test_calls_go_to_the_device_of_their_arrays(gpus, call):
    first, second = gpus
    with first.scope():
        call(second)
        assert _current.device is first
    assert second.launched
    assert not first.launched


def test_each_device_loads_what_it_launches(gpus):
    for gpu in gpus:
        with gpus[0].scope():
            _training(gpu)
    first, second = gpus
    assert first.loaded == second.loaded
    assert set(second.launched) <= set(second.loaded)


def test_a_mask_of_the_host_is_copied_to_each_device(gpus):
    mask = fc.BlockMask.causal((64, 64), block_size=16)
    for gpu in gpus:
        _training(gpu, mask)
    copies = list(mask._device_copies.values())
    assert [copy.device.name for copy in copies] == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]


def test_the_backward_follows_the_forward_when_the_device_has_changed(gpus):
    first, second = gpus
    x = EmuArray(np.zeros((1, 1, 64, 16), np.float32), second)
    with second.scope():
        _, residuals = fc.attention_fwd(x, x, x)
    with first.scope():
        grads = fc.attention_bwd(x, residuals)
    assert grads.dq.device is second
    assert not first.launched
    elsewhere = EmuArray(np.zeros((1, 1, 64, 16), np.float32), first)
    with pytest.raises(ValueError, match="dout is on cuda:0 and q on cuda:1"):
        fc.attention_bwd(elsewhere, residuals)


def test_threads_have_current_devices_of_their_own(gpus):
    barrier = threading.Barrier(2, timeout=60)

    def work(own, other):
        with other.scope():
            barrier.wait()
            for _ in range(5):
                _training(own)
        return len(own.launched)

    with ThreadPoolExecutor(2) as pool:
        launched = [one.result() for one in [pool.submit(work, *pair) for pair in (gpus, gpus[::-1])]]
    assert launched[0] == launched[1] > 0
