"""Problems of which the tensor-core forward gets every bit right.

Queries pick two elements of keys that are all 1 or -1, and the scale is a multiple of ln 2: scores in units of log2 are
whole, weights powers of two. Values are small and whole. Products and their sums are then exact, in any order and in
any dtype; what is left are a few roundings when a row is finished. A wrong element is an error of a thousandth or more.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from backends import EmuBackend
from cases import DTYPES, NUMBERS, Sizes

from emu.probes.agree import Probe
from flashcupy import reference
from flashcupy.cuda.config import use_tiles
from flashcupy.cuda.table_sm80 import Choice

Array = np.ndarray[Any, Any]
Layout = Callable[[Array], Array]

ONE_STAGE, TWO_STAGES = Choice(32, 32, 2, 1, 1), Choice(32, 32, 2, 2, 1)
TWO_TILES_A_WARP = Choice(64, 32, 2, 2, 1)  # 32 rows a warp
ONE_WARP = Choice(16, 32, 1, 1, 1)
TWO_HEADS_OF_TWO_WARPS = Choice(64, 32, 4, 1, 1)  # where a list has blocks of 32 rows

# Tails of rows, of keys, of queries' and of values' columns.
SIZES = Sizes(batch=(), q_heads=4, kv_heads=2, q_len=45, kv_len=77, head_dim=40, v_dim=40)
LN2 = math.log(2)
SCALE = 2 * LN2
_FINISH = 2.0**-20  # more than the roundings of a sink, a reciprocal, a product, a logarithm and its product
# Half an ulp, and the smallest number that has all its bits.
_ROUNDING = {"float16": (2.0**-11, 2.0**-14), "bfloat16": (2.0**-8, 2.0**-126), "float32": (2.0**-24, 2.0**-126)}


def whole(sizes: Sizes, dtype: np.dtype[Any], seed: int = 0) -> tuple[Array, Array, Array]:
    """q, k, v whose scores are -2, 0 or 2, and values 1 to 8."""
    rng = np.random.default_rng(seed)
    queries = *sizes.batch, sizes.q_heads, sizes.q_len, sizes.head_dim
    keys = *sizes.batch, sizes.kv_heads, sizes.kv_len
    picked = rng.permuted(np.broadcast_to(np.arange(sizes.head_dim) < 2, queries), axis=-1)
    q = np.where(picked, rng.choice([-1.0, 1.0], queries), 0)
    k, v = rng.choice([-1.0, 1.0], (*keys, sizes.head_dim)), rng.integers(1, 9, (*keys, sizes.v_dim))
    return q.astype(dtype), k.astype(dtype), v.astype(dtype)


def require(got: Array, want: Array, bound: float = _FINISH, least: float = 0) -> None:
    """Hold each element to `bound`, relative to its own size or to `least`, and the rounding to its dtype."""
    given = got.astype(np.float64)
    same = (given == want) | (np.isnan(given) & np.isnan(want))
    assert (same | (np.isfinite(given) & np.isfinite(want))).all(), "inf and nan lie elsewhere"
    rounding, smallest = _ROUNDING[got.dtype.name]
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0, np.abs(given - want))
        bounds = np.maximum(np.abs(want), max(least, smallest)) * (bound + rounding)
    assert (same | (error <= bounds)).all(), f"error {error.max():.3e} is above the bound"


def require_right(
    backend: EmuBackend,
    operands: tuple[Array, ...],
    *,
    out: Array | None = None,
    precision: str = "highest",
    **options: Any,
) -> None:
    """Out and lse as the oracle has them, whenever copies arrive."""
    truth, lse_truth = reference.attention(*operands, **options)
    for copies in ("eager", "lazy"):
        with backend.device.using(copies=copies):
            got, lse = backend.api.attention(*operands, out=out, return_lse=True, precision=precision, **options)
        require(got, truth)
        require(lse, lse_truth, least=1)


def exact(
    numbers: str = "float16",
    tiles: Choice | str = ONE_STAGE,
    *,
    sizes: Sizes = SIZES,
    layouts: tuple[Layout, ...] = (lambda x: x,),
    scale: float = SCALE,
    out: str | None = None,
    **options: Any,
) -> Probe:
    """Whole scores against the oracle, operands and result laid out in each of some ways; `out` is another dtype."""

    def run(backend: EmuBackend) -> None:
        dtype = DTYPES[NUMBERS[numbers]["dtype"]]
        operands = whole(sizes, dtype)
        result = np.zeros((*operands[0].shape[:-1], sizes.v_dim), out or dtype)
        own = {"precision": NUMBERS[numbers].get("precision", "highest"), "scale": scale, **options}
        for layout in layouts:
            with use_tiles(tiles):
                require_right(backend, tuple(map(layout, operands)), out=layout(result), **own)

    return run


def undetected(*probes: Probe) -> Probe:
    """What the numbers tell without the race detector, in orders of lanes one after the other."""

    def run(backend: EmuBackend) -> None:
        for probe, order in itertools.product(probes, ("forward", "reverse", "random")):
            with backend.device.using(detect_races=False, lane_order=order):
                probe(backend)

    return run


def _within(shape: tuple[int, ...], x: Array, place: tuple[Any, ...]) -> Array:
    view = np.zeros(shape, x.dtype)[(..., *place)]
    view[...] = x
    return view


def _off_elements(x: Array) -> Array:
    view = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


def aligned_rows(x: Array) -> Array:
    """Rows that start at pieces of 16 bytes, and end anywhere."""
    return _within((*x.shape[:-1], (x.shape[-1] // 16 + 2) * 16), x, (slice(None, x.shape[-1]),))


def halves(elements: int) -> Layout:
    """Rows that are an odd multiple of so many elements apart."""

    def layout(x: Array) -> Array:
        apart = (x.shape[-1] // elements // 2 * 2 + 3) * elements
        return _within((*x.shape[:-1], apart), x, (slice(None, x.shape[-1]),))

    return layout


# Each of them but the first cannot be copied in pieces of 16 bytes, for a reason of its own.
LAYOUTS: dict[str, Layout] = {
    "wide rows": lambda x: _within((*x.shape[:-1], x.shape[-1] + 16), x, (slice(None, -16),)),
    "odd rows": lambda x: _within((*x.shape[:-1], x.shape[-1] + 1), x, (slice(None, -1),)),
    "off a piece": lambda x: _within((*x.shape[:-1], x.shape[-1] + 16), x, (slice(1, -15),)),
    "spaced": lambda x: _within((*x.shape[:-1], 2 * x.shape[-1]), x, (slice(None, None, 2),)),
    "off elements": _off_elements,
}
