"""Shared memory of the tensor-core kernels: every access takes as few wavefronts as its bytes need."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from backends import EmuBackend
from cases import DTYPES
from emu.banks import BankConflicts

import flashcupy as fc
from flashcupy.cuda.config import use_tiles

_Q_LEN, _KV_LEN = 140, 200  # whole tiles and such as end inside
_MMA = EmuBackend("sm80")


@pytest.fixture(autouse=True)
def _inlined(monkeypatch):
    monkeypatch.setenv("FLASHCUPY_EMU_BUILD", "inlined")


# (kind, bytes of a lane): wavefronts, and the least that would do.
_Sums = dict[tuple[str, int], tuple[int, int]]


def _summed(counted: list[BankConflicts]) -> _Sums:
    sums: _Sums = {}
    for row in counted:
        wavefronts, least = sums.get((row.kind, row.bytes), (0, 0))
        sums[row.kind, row.bytes] = wavefronts + row.wavefronts, least + row.least
    return sums


def _conflicts(dtype: str, dims: tuple[int, int], **options: Any) -> _Sums:
    rng = np.random.default_rng(0)
    shapes = (2, _Q_LEN, dims[0]), (1, _KV_LEN, dims[0]), (1, _KV_LEN, dims[1])
    with _MMA.active(), _MMA.device.using(detect_races=False, count_bank_conflicts=True):
        operands = (_MMA.device.from_host(rng.standard_normal(shape).astype(DTYPES[dtype])) for shape in shapes)
        fc.attention(*operands, causal=True, **options)
        counted = _MMA.device.bank_conflicts
    return _summed(counted)


def _slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


_DIMS = [(d, d) for d in (32, 64, 128, 192, 256)] + [(64, 128), (192, 128), (256, 64), (32, 64)]
_KINDS = ("float16", "highest"), ("float32", "highest"), ("float32", "tf32")
_QUICK_FORWARDS = [("small", *_KINDS[0], (32, 64)), ("real", *_KINDS[0], (64, 64)), ("small", *_KINDS[1], (64, 64))]
_REAL_FORWARDS = [("real", *kind, dims) for kind in _KINDS for dims in _DIMS]


@pytest.mark.parametrize(
    ("tiles", "dtype", "precision", "dims"),
    [*_QUICK_FORWARDS, *(_slow(*one) for one in _REAL_FORWARDS if one not in _QUICK_FORWARDS)],
)
def test_no_access_takes_more_wavefronts_than_its_bytes(tiles, dtype, precision, dims):
    with use_tiles(tiles):
        counted = _conflicts(dtype, dims, precision=precision)
    assert {"load_matrices", "copy_async", "read", "write"} <= {kind for kind, _ in counted}
    assert {what: own for what, own in counted.items() if own[0] != own[1]} == {}


def test_rows_of_96_halves_conflict_in_copies_alone():
    """12 pieces a row: of three groups of eight lanes one spans two rows, and takes two wavefronts."""
    counted = _conflicts("float16", (96, 96))
    wavefronts, least = counted.pop(("copy_async", 16))
    assert 3 * wavefronts == 4 * least
    assert all(own[0] == own[1] for own in counted.values())


def test_results_in_float32_are_stored_without_conflicts():
    out = np.zeros((2, _Q_LEN, 64), np.float32)
    with _MMA.active():
        counted = _conflicts("bfloat16", (64, 64), out=_MMA.device.from_host(out))
    assert ("write", 8) in counted
    assert all(own[0] == own[1] for own in counted.values())


# ---- the backward ----------------------------------------------------------------------------------------------------


def _backward_conflicts(
    dtype: str,
    dims: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
    *,
    wrt: tuple[str, ...] = ("q", "k", "v"),
    deterministic: bool = False,
    **options: Any,
) -> dict[str, list[BankConflicts]]:
    """What each kernel counted, by the part of its name that tells kernels apart; none is launched twice."""
    rng, device, counted = np.random.default_rng(0), _MMA.device, {}
    shapes = (2, _Q_LEN, dims[0]), (1, _KV_LEN, dims[0]), (1, _KV_LEN, dims[1]), (2, _Q_LEN, dims[1])
    launch = device.launch

    def launch_and_look(kernel: Any, *rest: Any) -> None:
        launch(kernel, *rest)
        counted[kernel.name.partition("_sm80")[0]] = device.bank_conflicts

    with _MMA.active():
        q, k, v, dout = (device.from_host(rng.standard_normal(shape).astype(DTYPES[dtype])) for shape in shapes)
        own = {name: device.from_host(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}
        with device.using(detect_races=False):
            _, residuals = fc.attention_fwd(q, k, v, causal=True, **own)
        monkeypatch.setattr(device, "launch", launch_and_look)
        with device.using(detect_races=False, count_bank_conflicts=True):
            fc.attention_bwd(dout, residuals, wrt=wrt, deterministic=deterministic)
    return counted


_BIAS = np.zeros((_Q_LEN, _KV_LEN), np.float32)


def _require_least(counted: dict[str, list[BankConflicts]], kernels: set[str]) -> None:
    assert kernels <= counted.keys()
    conflicts = [(name, row) for name, rows in counted.items() for row in rows if row.wavefronts != row.least]
    assert conflicts == []


@pytest.mark.parametrize(
    ("dtype", "dims"),  # bfloat16 lies as float16 does
    [
        _slow("float16", (64, 64)),
        *(_slow("float16", (d, d)) for d in (32, 128, 192, 256)),
        *(_slow(dtype, (192, 128)) for dtype in ("float16", "bfloat16")),
    ],
)
def test_no_access_of_the_backward_takes_more_wavefronts_than_its_bytes(dtype, dims, monkeypatch):
    counted = _backward_conflicts(dtype, dims, monkeypatch, bias=_BIAS)  # which hides: keys are looked at
    sums = next(name for name in counted if name.startswith("bwd_dq_sums"))
    _require_least(counted, {"dkvq", sums})
    assert {"load_matrices", "copy_async", "read", "write"} <= {row.kind for row in counted["dkvq"]}
    assert {"read", "write"} == {row.kind for row in counted[sums]}


@pytest.mark.parametrize(
    ("dtype", "precision", "dims"),
    [
        _slow("float16", "highest", (64, 64)),
        _slow("float32", "highest", (32, 32)),
        _slow("float16", "highest", (32, 32)),
        _slow("float32", "highest", (64, 64)),
        *(_slow(dtype, "highest", (128, 128)) for dtype in ("float16", "float32")),
        *(_slow("float32", "tf32", dims) for dims in ((32, 32), (64, 64), (128, 128), (256, 64))),
        _slow("float16", "highest", (256, 64)),
    ],
)
def test_no_access_of_the_deterministic_backward_does(dtype, precision, dims, monkeypatch):
    counted = _backward_conflicts(dtype, dims, monkeypatch, deterministic=True, precision=precision)
    _require_least(counted, {"dkv", "dq"})


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_no_access_of_dbias_does(dtype, monkeypatch):
    counted = _backward_conflicts(dtype, (64, 64), monkeypatch, wrt=("bias",), bias=_BIAS)
    _require_least(counted, {"dbias"})
