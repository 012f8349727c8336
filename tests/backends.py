"""Backends that every attention test runs on: how arrays get there and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from flashcupy.cpu import schedule


class NumpyBackend:
    """Host arrays; `small_tiles` makes problems of a few dozen rows walk many tiles."""

    name = "numpy"

    def put(self, x: Any) -> Any:
        return x

    def get(self, x: Any) -> np.ndarray:
        return x

    @contextmanager
    def small_tiles(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(schedule, "BLOCK_ROWS", 16)
            patch.setattr(schedule, "TILE_AREA", 16 * 32)
            patch.setattr(schedule, "STACK_AREA", 3 * 16 * 32)
            patch.setattr(schedule, "MAX_TILE_COLUMNS", 64)
            yield


BACKENDS = [NumpyBackend()]
