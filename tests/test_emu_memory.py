"""Accesses of memory that a GPU would not survive, or would only seem to; each beside a twin that is right."""

from __future__ import annotations

import numpy as np
import pytest
from backends import EmuBackend
from emu.arrays import EmuArray
from emu.device import EmuDevice, EmuError, Settings
from emu.tiny import run

ORDERS = ("forward", "reverse", "random")
ROW = "u32 row[64];"


@pytest.fixture(params=ORDERS)
def device(request):
    return EmuDevice(settings=Settings(lane_order=request.param, block_order=request.param))


def _words(device, *shape):
    return device.from_host(np.zeros(shape, np.uint32))


BOUNDS = {
    "past the end": ("p.x[p.n] = 1;", "p.x[p.n - 1] = 1;"),
    "before the start": ("p.out[0] = p.x[-1];", "p.out[0] = p.x[0];"),
    "across the end": (
        "p.out[0] = *reinterpret_cast<u64*>(p.x + p.n - 1);",
        "p.out[0] = *reinterpret_cast<u64*>(p.x + p.n - 3);",
    ),
    "nowhere": ("p.out[0] = *reinterpret_cast<u32*>(p.n * 4);", ""),
    "null": ("*reinterpret_cast<u32*>(p.n - p.n) = 1;", ""),
    "past shared memory": ("s.row[64] = 1;", "s.row[63] = 1;"),
    "before shared memory": ("s.row[-p.n] = 1;", ""),
}


@pytest.mark.parametrize("case", BOUNDS)
@pytest.mark.parametrize("detect_races", [True, False])
def test_bounds(case, detect_races):
    device = EmuDevice(settings=Settings(detect_races=detect_races))
    wrong, right = BOUNDS[case]
    arguments = {"x": _words(device, 9), "out": _words(device, 1), "n": 9}
    run(device, right, 1, 1, ROW, 256, **arguments)
    with pytest.raises(EmuError, match=r"^bounds: "):
        run(device, wrong, 1, 1, ROW, 256, **arguments)


def test_bounds_are_those_of_the_array_that_owns_the_memory():
    device = EmuDevice()
    whole = np.zeros(64, np.uint32)
    view = EmuArray(whole[16:32:2][::-1], device)
    run(device, "p.x[-(i64)t] = 1;", 31, x=view)
    assert whole[:31].tolist() == [1] * 31
    with pytest.raises(EmuError, match=r"^bounds: write of 4 bytes at byte -4 of 256 of an array uint32\[64\]"):
        run(device, "p.x[-(i64)t] = 1;", 32, x=view)


@pytest.mark.parametrize("place", [0, 4, 60])
def test_what_a_test_hands_over_ends_where_it_ends(place):
    """At the same place modulo 64 as on the host, and whatever that is nothing before it or behind it is there."""
    backend = EmuBackend()
    x = backend.view(*backend.put_bytes(np.arange(16, dtype=np.uint8), place), np.zeros(4, np.uint32))
    assert x._host.ctypes.data % 64 == place
    out = _words(backend.device, 1)
    for right, wrong in ((0, -1), (3, 4)):
        run(backend.device, f"p.out[0] = p.x[{right}];", 1, x=x, out=out)
        assert out.get()[0] == x.get()[right]
        with pytest.raises(EmuError, match=r"^bounds: "):
            run(backend.device, f"p.out[0] = p.x[{wrong}];", 1, x=x, out=out)


def test_memory_that_is_gone():
    device = EmuDevice()
    out = _words(device, 8)
    pointer = out._host.ctypes.data
    run(device, "*reinterpret_cast<u32*>(p.n) = 7;", 1, n=pointer)
    assert out.get()[0] == 7
    del out
    with pytest.raises(EmuError, match=r"^bounds: .* no memory of this device"):
        run(device, "*reinterpret_cast<u32*>(p.n) = 7;", 1, n=pointer)


def test_memory_that_is_read_only():
    device = EmuDevice()
    host = np.zeros(8, np.uint32)
    host.flags.writeable = False
    out = _words(device, 1)
    run(device, "p.out[0] = p.x[0];", 1, x=EmuArray(host, device), out=out)
    with pytest.raises(EmuError, match=r"^bounds: write .* a read-only array"):
        run(device, "p.x[0] = 1;", 1, x=EmuArray(host, device))


def test_the_stack_of_another_thread():
    device = EmuDevice()
    body = "u32 mine[2] = {t, t}; s.at[t] = mine; block_sync(); p.out[t] = s.at[t % p.n][0];"
    out = _words(device, 64)
    run(device, body, 1, 1, "u32* at[64];", out=out, n=1)
    with pytest.raises(EmuError, match=r"^bounds: read .* another thread's stack"):
        run(device, body, 64, 1, "u32* at[64];", out=out, n=2)


def test_tables_in_the_code_may_be_read():
    device = EmuDevice()
    out = _words(device, 8)
    run(device, "static const u32 table[] = {3, 1, 4, 1, 5, 9, 2, 6}; p.out[t] = table[t ^ p.n];", 8, out=out, n=0)
    np.testing.assert_array_equal(out.get(), [3, 1, 4, 1, 5, 9, 2, 6])


def test_shared_memory_of_another_block_is_uninitialised(device):
    body = "if (b == p.n) s.row[t] = 1; block_sync(); if (t < 32) p.out[b * 64 + t] = s.row[t];"
    run(device, body, 64, 1, ROW, out=_words(device, 64), n=0)
    with pytest.raises(EmuError, match=r"^uninitialised: read of 4 bytes .* no thread of this block has written yet"):
        run(device, body, 64, 2, ROW, out=_words(device, 128), n=0)


def test_a_word_of_which_a_byte_is_uninitialised(device):
    body = "u8* bytes = reinterpret_cast<u8*>(s.row); if (t < p.n) bytes[t] = 1; block_sync(); p.out[t] = s.row[0];"
    run(device, body, 64, 1, ROW, out=_words(device, 64), n=4)
    with pytest.raises(EmuError, match=r"^uninitialised: "):
        run(device, body, 64, 1, ROW, out=_words(device, 64), n=3)


@pytest.mark.parametrize(("kind", "size"), [("u16", 2), ("float", 4), ("u64", 8), ("Four", 16)])
@pytest.mark.parametrize("space", ["shared", "global"])
def test_misaligned(kind, size, space):
    device = EmuDevice()
    where = "s.row" if space == "shared" else "p.x"
    body = f"""
    struct alignas(16) Four {{ u32 x[4]; }};
    for (u32 i = 0; i < 64; ++i) s.row[i] = i;
    {kind} value = *reinterpret_cast<{kind}*>(reinterpret_cast<u8*>({where}) + p.n);
    *reinterpret_cast<{kind}*>(p.out) = value;
    """
    arguments = {"x": _words(device, 64), "out": _words(device, 4)}
    run(device, body, 1, 1, ROW, n=3 * size, **arguments)
    with pytest.raises(
        EmuError, match=f"^misaligned: use of a .*{kind}.*, aligned to {size}, {size} bytes at byte {size * 7 // 2} of"
    ):
        run(device, body, 1, 1, ROW, n=3 * size + size // 2, **arguments)


@pytest.mark.parametrize("divide", ["p.out[t] = 7 / p.n;", "p.out[t] = 7 % p.n;"])
def test_division_by_zero_is_an_error_not_the_end_of_the_process(divide):
    device = EmuDevice()
    run(device, divide, threads=32, blocks=1, out=_words(device, 32), n=2)
    with pytest.raises(EmuError) as caught:
        run(device, divide, threads=32, blocks=1, out=_words(device, 32), n=0)
    assert caught.value.kind == "undefined"
