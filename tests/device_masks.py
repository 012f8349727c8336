"""What tests of block masks on a device share: the devices, sources of masks, and the same sources on the host."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from backends import CupyBackend, EmuBackend

from flashcupy import BlockMask

DEVICES = [
    pytest.param(EmuBackend(), id="emu"),
    pytest.param(EmuBackend("sm80"), id="emu_sm80"),
    pytest.param(CupyBackend(), id="cupy", marks=pytest.mark.gpu),
]
# For what has nothing to do with the attention kernels.
BUILDERS = [DEVICES[0], DEVICES[2]]

# Heads, rows, columns, block size: ragged ends, more than a word has bits, fewer than a block, none.
GRIDS = {
    "ragged": (3, 100, 200, (16, 32)),
    "one": (2, 1, 1, 64),
    "words": (2, 37 * 16 - 3, 70 * 16 - 5, 16),
    "tall": (1, 700, 130, (32, 128)),
    "large blocks": (2, 300, 500, (128, 256)),
    "no rows": (2, 0, 50, 32),
    "no columns": (2, 50, 0, 32),
}


def grid_of(name: str) -> tuple[tuple[int, int, int], tuple[int, int], Any]:
    """(heads, block rows, block columns), the shape, and the block size."""
    heads, rows, columns, size = GRIDS[name]
    bq, bk = size if isinstance(size, tuple) else (size, size)
    return (heads, -(-rows // bq), -(-columns // bk)), (rows, columns), size


def on_device(backend: Any, *arrays: np.ndarray | None) -> list[Any]:
    """The same arrays in the memory of a device."""
    return [None if x is None else backend.api.put(x) for x in arrays]


def assert_same(mask: BlockMask, expected: BlockMask) -> None:
    """Lists both ways, and all invariants."""
    mask.check()
    assert mask.device == "cuda:0"
    assert mask.equals(expected)
    assert mask.mT.equals(expected.mT)


def dense_of(rng: np.random.Generator, shape: tuple[int, ...], size: int = 16) -> np.ndarray:
    """FULL, PARTIAL and empty blocks of 16 x 16, and so of any larger size."""
    *lead, rows, columns = shape
    kinds = rng.integers(0, 3, (*lead, -(-rows // size), -(-columns // size)))
    spread = kinds.repeat(size, -2).repeat(size, -1)[..., :rows, :columns]
    return (spread == 1) | ((spread == 2) & (rng.random(shape) < 0.5))


@contextmanager
def no_allocations(backend: Any, patch: pytest.MonkeyPatch):
    """Nothing is allocated, and on the emulator nothing copied from the host or waited for."""
    if not backend.name.startswith("emu"):
        import cupy

        with cupy.cuda.using_allocator(_forbidden("the allocator")):
            yield
        return
    with patch.context() as inside:
        for name in ("empty", "from_host", "to_host", "synchronize"):
            inside.setattr(backend.device, name, _forbidden(name), raising=True)
        yield


def _forbidden(name: str) -> Any:
    def call(*_: Any, **__: Any) -> Any:
        raise AssertionError(f"{name} was called")

    return call
