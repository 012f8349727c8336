"""A device that no kernel has run on, for the tests of first-use checks."""

from __future__ import annotations

from pathlib import Path

import pytest
from emu.arrays import EmuRuntime
from emu.device import EmuDevice

from flashcupy.cuda import device as device_module
from flashcupy.cuda import fallback, mask_buffers, serve, verdicts
from flashcupy.cuda.launch import PlanCache


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what this process knows, compiled kernels excepted."""
    monkeypatch.setattr(verdicts, "_good", set())
    monkeypatch.setattr(verdicts, "_unwritten", {})
    for module in (serve, mask_buffers):
        monkeypatch.setattr(module, "_plans", PlanCache())
    monkeypatch.setattr(fallback, "_told", set())


def fresh_gpu(monkeypatch: pytest.MonkeyPatch, cache: Path) -> EmuDevice:
    """Serve device arrays by generic kernels, on a GPU of no history."""
    forget(monkeypatch)
    own = EmuDevice(compute_capability=(7, 5))
    monkeypatch.setattr(device_module, "_installed", [EmuRuntime(own)])
    for name in ("FLASHCUPY_CHECK", "FLASHCUPY_FAMILY", "FLASHCUPY_FALLBACK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FLASHCUPY_CACHE_DIR", str(cache))
    return own


class Watched(EmuDevice):
    """Notes what is launched, and launches nothing."""

    def __init__(self, compute_capability=(9, 0)):
        super().__init__(compute_capability=compute_capability)
        self.entries = []

    def compile(self, source, entry, include):
        return entry.encode()

    def load(self, path, entry, shared_bytes):
        return entry

    def launch(self, kernel, grid, block, shared_bytes, params):
        self.entries.append(kernel)
