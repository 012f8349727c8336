"""Numbers of twice float32's digits in kernels: logarithms and sums, against extended precision."""

from __future__ import annotations

import numpy as np
import pytest
from emu.device import EmuDevice
from emu.tiny import run

THREADS, BLOCKS = 256, 64
COUNT = THREADS * BLOCKS


def _computed(includes: str, expression: str, *operands: np.ndarray) -> np.ndarray:
    """The value of a C++ expression in x[i], y[i]."""
    device = EmuDevice()
    out = device.empty((COUNT,), np.float32)
    arrays = {name: device.from_host(x.astype(np.float32)) for name, x in zip("xy", operands, strict=False)}
    names = " ".join(f"const float {name} = p.{name}[i];" for name in arrays)
    body = f"u32 i = b * {THREADS} + t; {names} p.out[i] = {expression};"
    run(device, body, THREADS, BLOCKS, includes=includes, out=out, **arrays)
    return out.get()


def test_log_of_sum_is_rounded_once():
    """Also where the two of its logarithms cancel, and are what is left."""
    rng = np.random.default_rng(0)
    sums = np.exp2(rng.uniform(0, 30, COUNT)).astype(np.float32)
    tops = (rng.standard_normal(COUNT) * 10.0 ** rng.integers(-2, 8, COUNT)).astype(np.float32)
    tops[::4] = np.round(-np.log2(sums[::4])) + rng.integers(-1, 2, COUNT)[::4] * np.float32(0.25)
    got = _computed("tile/two_floats.cuh", "log_of_sum(x, y)", tops, sums)
    want = np.longdouble(tops) * np.log(np.longdouble(2)) + np.log(np.longdouble(sums))
    assert (np.abs(got - want) <= 0.51 * np.spacing(np.abs(got)) + 2.0**-29).all()


@pytest.mark.parametrize(("top", "total", "want"), [(3, np.inf, np.inf), (3, np.nan, np.nan), (np.inf, 2, np.inf)])
def test_log_of_sum_of_what_is_not_finite(top, total, want):
    got = _computed("tile/two_floats.cuh", "log_of_sum(x, y)", np.full(COUNT, top), np.full(COUNT, total))
    np.testing.assert_array_equal(got, np.float32(want))


def test_products_are_summed_with_all_digits():
    """What a rounded product lost is there when it is taken away again."""
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, COUNT)).astype(np.float32)
    steps = "sum.add_product(x, y); sum.add(-multiply_rounded(x, y)); return sum.value();"
    body = f"[&] {{ CompensatedSum<float> sum = {{}}; {steps} }}()"
    got = _computed("tile/sum.cuh", body, x, y)
    exact = x.astype(np.float64) * y
    np.testing.assert_array_equal(got, (exact - (x * y)).astype(np.float32))
    assert np.count_nonzero(got) > COUNT / 2


def test_statistics_from_lse_keep_its_digits():
    """What rounding the reference loses is in the factor, beside half of the keys' logarithm."""
    lse = (np.random.default_rng(2).uniform(-1, 1, COUNT) * 1e5).astype(np.float32)
    sums = "sums_from_lse(x, 1000)"
    reference, factor = (_computed("bwd_rows.cu", f"{sums}.{name}", lse) for name in ("reference", "inverse_sum"))
    want = np.longdouble(lse) * np.log2(np.exp(np.longdouble(1)))
    assert (np.abs(reference - np.log2(np.longdouble(factor)) - want) < 2.0**-22).all()
    assert (np.abs(np.log2(factor) + 4) < 2.0**-6).all()
