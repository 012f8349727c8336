"""A CUDA backend without CUDA: the NumPy backend behind device arrays.

It shows that everything above a backend gets by with metadata, whatever the state of kernels and emulator.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from emu.arrays import EmuArray, EmuRuntime

from flashcupy import backend, cpu
from flashcupy.cuda import device as device_module
from flashcupy.spec import AttentionProblem

_OPERANDS = ("q", "k", "v", "mask", "bias", "alibi_slopes", "sinks", "seed")
_LENGTHS = ("q_lengths", "kv_lengths")
_STARTS = ("cu_seqlens_q", "cu_seqlens_k")


class FakeDevice:
    """Memory and nothing else."""

    def __init__(self, ordinal: int = 0) -> None:
        self.name = f"cuda:{ordinal}"
        self.copies_to_host = 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> EmuArray:
        return EmuArray(np.frombuffer(b"\xff" * (math.prod(shape) * dtype.itemsize), dtype).reshape(shape).copy(), self)

    def scope(self) -> AbstractContextManager[None]:
        return nullcontext()

    def is_capturing(self) -> bool:
        return False

    def to_host(self, array: EmuArray) -> np.ndarray:
        self.copies_to_host += 1
        return array.get()

    def register(self, host: np.ndarray) -> None:
        pass


class FakeCuda:
    """`flashcupy.backend.Backend` on EmuArrays."""

    def __init__(self) -> None:
        self.warmed_up: list[tuple[AttentionProblem, bool]] = []

    def forward(self, problem, out, lse, keep):
        assert _all_on_device(problem, out, lse)
        kept = cpu.forward(_on_host(problem), out._host, lse._host, keep)
        assert keep or kept is None
        return kept

    def kept_from_lse(self, lse):
        return cpu.kept_from_lse(lse._host)

    def backward(self, problem, out, kept, dout, dlse, grads, deterministic):
        assert _all_on_device(problem, out, dout, dlse, *grads.values())
        hosts = {name: array._host for name, array in grads.items()}
        cpu.backward(_on_host(problem), _host(out), kept, _host(dout), _host(dlse), hosts, deterministic)

    def merge(self, parts, logs, target, lse):
        cpu.merge([_host(x) for x in parts], [_host(x) for x in logs], _host(target), _host(lse))

    def explain(self, problem):
        return dataclasses.replace(cpu.explain(_on_host(problem)), backend="fake")

    def warmup(self, problem, backward):
        self.warmed_up.append((problem, backward))


def _host(x: Any) -> Any:
    return x._host if isinstance(x, EmuArray) else x


def _all_on_device(problem: AttentionProblem, *arrays: Any) -> bool:
    large = (problem.q, problem.k, problem.v, problem.mask, problem.bias, *arrays)
    return all(isinstance(x, EmuArray) and x.device.name == problem.spec.device for x in large if x is not None)


def _on_host(problem: AttentionProblem) -> AttentionProblem:
    """The problem as the NumPy backend wants it: what came as a device array has values now."""
    changes = {name: _host(getattr(problem, name)) for name in _OPERANDS}
    if isinstance(problem.seed, EmuArray):
        changes["seed"] = tuple(int(word) for word in problem.seed._host)
    for name in _LENGTHS:
        if isinstance(getattr(problem, name), EmuArray):
            full = np.broadcast_to(getattr(problem, name)._host, problem.spec.batch)
            changes[name] = full.astype(np.int64).reshape(-1)
    for name in _STARTS:
        if isinstance(getattr(problem, name), EmuArray):
            changes[name] = getattr(problem, name)._host.astype(np.int64)
    return dataclasses.replace(problem, **changes)


@contextmanager
def fake_cuda(ordinals: tuple[int, ...] = (0,)) -> Iterator[SimpleNamespace]:
    """Install the fake runtime and backend; yield its devices and the backend."""
    devices, fake = [FakeDevice(ordinal) for ordinal in ordinals], FakeCuda()
    real = backend._package
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_module, "_installed", [EmuRuntime(*devices)])
        patch.setattr(backend, "_package", lambda name: fake if name == "cuda" else real(name))
        yield SimpleNamespace(devices=devices, backend=fake, put=lambda x: EmuArray(np.asarray(x), devices[0]))
