"""What the tests of tensor cores share: the backends that have them, as fixtures, and layouts of operands in memory."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from backends import BACKENDS

_TENSOR_CORES = [one for one in BACKENDS if one.id in ("emu_sm80", "cupy")]
_EMULATED = [one for one in _TENSOR_CORES if one.id == "emu_sm80"]


def fixture(*, small: bool = True, emulated: bool = False) -> Any:
    """Make a fixture of the backends, or of the emulated one alone, with small tiles or with those of the tables."""

    @pytest.fixture(params=_EMULATED if emulated else _TENSOR_CORES)
    def backend(request):
        with request.param.active(), request.param.small_tiles() if small else nullcontext():
            yield request.param

    return backend


def _misaligned(x):
    """One element off 16 bytes."""
    raw = np.zeros(x.size + 1, x.dtype)
    return raw[1:].reshape(x.shape)


def _off_elements(x):
    """A byte off."""
    return np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)


LAYOUTS = {
    "misaligned": _misaligned,
    "off_elements": _off_elements,
    "odd_rows": lambda x: np.zeros((*x.shape[:-1], x.shape[-1] + 1), x.dtype)[..., :-1],
    "even_rows": lambda x: np.zeros((*x.shape[:-1], x.shape[-1] + 16), x.dtype)[..., :-16],
    "spaced": lambda x: np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)[..., ::2],
    "columns_first": lambda x: np.zeros(x.mT.shape, x.dtype).mT,
    "rows_first": lambda x: np.zeros(x.swapaxes(0, 1).shape, x.dtype).swapaxes(0, 1),
    "rows_reversed": lambda x: np.zeros_like(x)[:, ::-1],
    "columns_reversed": lambda x: np.zeros_like(x)[..., ::-1],
    "all_reversed": lambda x: np.zeros_like(x)[::-1, ::-1, ::-1],
}


def filled(layout: str, x: np.ndarray) -> np.ndarray:
    """Copy (H, S, D) into a layout."""
    view = LAYOUTS[layout](x)
    view[...] = x
    return view
