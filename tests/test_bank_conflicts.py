"""Shared memory of the tensor-core kernels: every access takes as few wavefronts as its bytes need."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from backends import EmuBackend
from cases import DTYPES

import flashcupy as fc
from flashcupy.cuda.config import use_tiles

_Q_LEN, _KV_LEN = 140, 200  # whole tiles and such as end inside
_MMA = EmuBackend("sm80")


def _conflicts(dtype: str, dims: tuple[int, int], **options: Any) -> dict[tuple[str, int], tuple[int, int]]:
    """(kind, bytes of a lane): wavefronts, and the least that would do."""
    rng = np.random.default_rng(0)
    shapes = (2, _Q_LEN, dims[0]), (1, _KV_LEN, dims[0]), (1, _KV_LEN, dims[1])
    with _MMA.active(), _MMA.device.using(detect_races=False, count_bank_conflicts=True):
        operands = (_MMA.device.from_host(rng.standard_normal(shape).astype(DTYPES[dtype])) for shape in shapes)
        fc.attention(*operands, causal=True, **options)
        counted = _MMA.device.bank_conflicts
    sums: dict[tuple[str, int], tuple[int, int]] = {}
    for row in counted:
        wavefronts, least = sums.get((row.kind, row.bytes), (0, 0))
        sums[row.kind, row.bytes] = wavefronts + row.wavefronts, least + row.least
    return sums


_OTHER_DIMS = [(64, 128), (192, 128), (256, 64), (32, 64)]


@pytest.mark.parametrize("dims", [(d, d) for d in (32, 64, 128, 192, 256)] + _OTHER_DIMS, ids=str)
@pytest.mark.parametrize(("dtype", "precision"), [("float16", "highest"), ("float32", "highest"), ("float32", "tf32")])
@pytest.mark.parametrize("tiles", ["real", "small"])
def test_no_access_takes_more_wavefronts_than_its_bytes(dtype, precision, dims, tiles):
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
