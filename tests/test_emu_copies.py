"""Asynchronous copies: right kernels get the same whenever the bytes arrive; wrong ones are caught, right twins not."""

from __future__ import annotations

import re

import numpy as np
import pytest
from emu.device import EmuDevice, EmuError, Settings
from emu.tiny import run

ORDERS = ("forward", "reverse", "random")
COPIES = ("eager", "lazy")


@pytest.fixture(params=ORDERS)
def order(request):
    return request.param


@pytest.fixture(params=COPIES)
def device(request, order):
    return EmuDevice(settings=Settings(lane_order=order, block_order=order, copies=request.param))


def _source(device, words=1024):
    return device.from_host(np.arange(words, dtype=np.uint32) + 1000)


@pytest.mark.parametrize("bytes_of_source", range(17))
def test_the_rest_of_the_sixteen_bytes_is_zeros(device, bytes_of_source):
    source = device.from_host(np.arange(1, 33, dtype=np.uint8))
    out = device.empty((32,), np.uint8)
    body = """
    if (t == 3) { copy_async_16(s.x + 16, p.source + 16, p.bytes); copy_async_commit(); copy_async_wait<0>(); }
    else if (t < 16) s.x[t] = 99;
    if (t == 3) s.x[3] = 99;
    block_sync();
    if (t < 32) p.out[t] = s.x[t];
    """
    run(device, body, 64, 1, "alignas(16) u8 x[32];", source=source, out=out, bytes=bytes_of_source)
    want = np.where(np.arange(16, 32) < 16 + bytes_of_source, np.arange(17, 33), 0)
    np.testing.assert_array_equal(out.get(), np.concatenate([np.full(16, 99), want]))


@pytest.mark.parametrize(("size", "bytes_of_source"), [(size, n) for size in (4, 8) for n in range(size + 1)])
def test_copies_of_less_than_sixteen_bytes(device, size, bytes_of_source):
    """What lies behind them stays as it is."""
    source = device.from_host(np.arange(1, 33, dtype=np.uint8))
    out = device.empty((32,), np.uint8)
    body = f"""
    if (t < 32) s.x[t] = 99;
    block_sync();
    if (t == 3) {{
        copy_async_{size}(s.x + {size}, p.source + {size}, p.bytes); copy_async_commit(); copy_async_wait<0>();
    }}
    block_sync();
    if (t < 32) p.out[t] = s.x[t];
    """
    run(device, body, 64, 1, "alignas(16) u8 x[32];", source=source, out=out, bytes=bytes_of_source)
    want = np.full(32, 99, np.uint8)
    want[size : 2 * size] = 0
    want[size : size + bytes_of_source] = np.arange(size, size + bytes_of_source) + 1
    np.testing.assert_array_equal(out.get(), want)


# A ring of stages: each block adds up tiles of 64 words that its threads copied for one another.
RING = """
u32 sum = 0;
for (u32 stage = 0; stage < STAGES; ++stage) s.stage[stage][t] = 0;
block_sync();
auto copy = [&](u32 tile) {
    if (tile < p.tiles && t < 16) copy_async_16(s.stage[tile % STAGES] + 4 * t, p.source + tile * 64 + 4 * t, 16);
    copy_async_commit();
};
for (u32 tile = 0; tile < STAGES - 1; ++tile) copy(tile);
for (u32 tile = 0; tile < p.tiles; ++tile) {
    copy_async_wait<STAGES - 2>();
    block_sync();
    copy(tile + STAGES - 1);
    sum = sum * 3 + s.stage[tile % STAGES][63 - t];
}
p.out[b * 64 + t] = sum;
"""


def _ring(device, body, stages, tiles=9):
    out = device.empty((2, 64), np.uint32)
    body = body.replace("STAGES", str(stages))
    shared = f"alignas(16) u32 stage[{stages}][64];"
    run(device, body, 64, 2, shared, stages * 256, source=_source(device), out=out, tiles=tiles)
    return out.get()


def _ring_sum(tiles=9):
    total = np.zeros(64, np.uint32)
    for tile in range(tiles):
        total = total * 3 + np.arange(1000 + tile * 64, 1064 + tile * 64, dtype=np.uint32)[::-1]
    return np.broadcast_to(total, (2, 64))


@pytest.mark.parametrize("stages", [2, 3, 5])
def test_a_ring_of_stages(device, stages):
    np.testing.assert_array_equal(_ring(device, RING, stages), _ring_sum())


RING_FAULTS = {
    "no wait": ("copy_async_wait<STAGES - 2>();", ""),
    "waits for too few groups": ("copy_async_wait<STAGES - 2>();", "copy_async_wait<STAGES - 1>();"),
    "no barrier behind the wait": ("block_sync();\n    copy(", "copy("),
    "the barrier before the wait": (
        "copy_async_wait<STAGES - 2>();\n    block_sync();",
        "block_sync();\n    copy_async_wait<STAGES - 2>();",
    ),
    "no commit": ("copy_async_commit();", "if (tile == 0) copy_async_commit();"),
    "no commit where there is no tile": ("copy_async_commit();", "if (tile < p.tiles) copy_async_commit();"),
    "a stage is filled while others read it": ("tile % STAGES] + 4 * t,", "tile % (STAGES - 1)] + 4 * t,"),
    "one tile ahead of the ring": ("copy(tile + STAGES - 1);", "copy(tile + STAGES);"),
}


@pytest.mark.parametrize("fault", RING_FAULTS)
def test_faults_of_a_ring(device, fault):
    old, new = RING_FAULTS[fault]
    assert RING.count(old) == 1
    with pytest.raises(EmuError) as caught:
        _ring(device, RING.replace(old, new), 3)
    assert caught.value.kind == "race"


def test_what_a_ring_gives_away_when_nobody_looks_for_races(order):
    """Why there are two ways: numbers show a missing wait in the one, a stage that is filled too early in the other."""
    too_early = RING.replace("tile % STAGES] + 4 * t,", "tile % (STAGES - 1)] + 4 * t,")
    too_early = too_early.replace("s.stage[tile % STAGES]", "s.stage[tile % (STAGES - 1)]")
    device = EmuDevice(settings=Settings(lane_order=order, detect_races=False))
    for copies, body in (("lazy", RING.replace("copy_async_wait<STAGES - 2>();", "")), ("eager", too_early)):
        with device.using(copies=copies):
            assert np.any(_ring(device, body, 3) != _ring_sum())
            np.testing.assert_array_equal(_ring(device, RING, 3), _ring_sum())


# kind: what is wrong, what is right. 64 threads; s.x has 64 words that are written, s.y none.
START = "s.x[t] = t; block_sync(); u32 sum = 0;\n"
COPY, WAIT = "copy_async_16(s.x, p.source, 16);", "copy_async_commit(); copy_async_wait<0>();"
MISUSE = {
    "race: the own read before the wait": (
        f"if (t == 5) {{ {COPY} sum = s.x[2]; {WAIT} }}",
        f"if (t == 5) {{ sum = s.x[2]; {COPY} {WAIT} sum += s.x[2]; }}",
    ),
    "race: the own write before the wait": (
        f"if (t == 5) {{ {COPY} s.x[2] = 1; {WAIT} }}",
        f"if (t == 5) {{ s.x[2] = 1; {COPY} {WAIT} s.x[2] = 1; }}",
    ),
    "race: two copies to one place": (
        f"if (t == 5) {{ {COPY} {COPY} {WAIT} }}",
        f"if (t == 5) {{ {COPY} {WAIT} {COPY} {WAIT} }}",
    ),
    "race: two threads copy to one place": (
        f"if (t == 5 || t == 6) {{ {COPY} {WAIT} }}",
        f"if (t == 5) {{ {COPY} {WAIT} }} block_sync(); if (t == 6) {{ {COPY} {WAIT} }}",
    ),
    "race: a barrier is no wait": (
        f"if (t == 5) {{ {COPY} copy_async_commit(); }} block_sync(); sum = s.x[0]; copy_async_wait<0>();",
        f"if (t == 5) {{ {COPY} copy_async_commit(); }} copy_async_wait<0>(); block_sync(); sum = s.x[0];",
    ),
    "race: others wait for their own copies only": (
        f"if (t == 5) {{ {COPY} copy_async_commit(); }} if (t == 6) copy_async_wait<0>(); block_sync(); sum = s.x[0];",
        f"if (t == 5) {{ {COPY} copy_async_commit(); }} if (t == 5) copy_async_wait<0>(); block_sync(); sum = s.x[0];",
    ),
    "race: a copy over what others may still read": (
        f"sum = s.x[1]; if (t == 5) {{ {COPY} {WAIT} }}",
        f"sum = s.x[1]; block_sync(); if (t == 5) {{ {COPY} {WAIT} }}",
    ),
    "race: a warp_sync does not reach the other warp": (
        f"if (t == 5) {{ {COPY} {WAIT} }} warp_sync(); if (t == 40) sum = s.x[1];",
        f"if (t == 5) {{ {COPY} {WAIT} }} warp_sync(); if (t == 20) sum = s.x[1];",
    ),
    "race: zeros are written too": (
        f"if (t == 5) {{ copy_async_16(s.x, p.source, 0); {WAIT} }} if (t == 6) sum = s.x[3];",
        f"if (t == 5) {{ copy_async_16(s.x, p.source, 0); {WAIT} }} if (t == 6) sum = s.x[4];",
    ),
    "race: a copy in no group, at the end of which a read": (
        f"if (t == 5) {{ {COPY} copy_async_wait<0>(); sum = s.x[0]; }}",
        f"if (t == 5) {{ {COPY} copy_async_wait<0>(); sum = s.x[4]; }}",
    ),
    "race: the youngest of two groups is still under way": (
        "if (t == 5) { for (u32 n = 0; n < 2; ++n) { copy_async_16(s.x + 4 * n, p.source, 16); copy_async_commit(); }"
        "copy_async_wait<1>(); sum = s.x[4]; }",
        "if (t == 5) { for (u32 n = 0; n < 2; ++n) { copy_async_16(s.x + 4 * n, p.source, 16); copy_async_commit(); }"
        "copy_async_wait<1>(); sum = s.x[3]; }",
    ),
    "race: the source is another thread's": (
        f"if (t == 6) p.source[3] = 1; if (t == 5) {{ {COPY} {WAIT} }}",
        f"if (t == 6) p.source[4] = 1; if (t == 5) {{ {COPY} {WAIT} }}",
    ),
    "race: ldmatrix of rows under way": (
        f"u32 to[4]; if (t == 5) {{ {COPY} copy_async_commit(); }} block_sync(); load_matrices(to, s.x + t % 4 * 4);",
        f"u32 to[4]; if (t == 5) {{ {COPY} {WAIT} }} block_sync(); load_matrices(to, s.x + t % 4 * 4);",
    ),
    "bounds: behind the source": (
        f"if (t == 5) {{ copy_async_16(s.x, p.source + 1020, 16); copy_async_16(s.y, p.source + 1024, 4); {WAIT} }}",
        f"if (t == 5) {{ copy_async_16(s.x, p.source + 1020, 16); copy_async_16(s.y, p.source + 1024, 0); {WAIT} }}",
    ),
    "bounds: over the source's end": (
        f"if (t == 5) {{ copy_async_16(s.x, p.ragged + 4, 9); {WAIT} }}",
        f"if (t == 5) {{ copy_async_16(s.x, p.ragged + 4, 8); {WAIT} }}",
    ),
    "bounds: shared memory as the source": (
        f"if (t == 5) {{ copy_async_16(s.y, s.x, 16); {WAIT} }}",
        f"if (t == 5) {{ copy_async_16(s.y, p.source, 16); {WAIT} }}",
    ),
    "bounds: an array as the destination": (
        f"if (t == 5) {{ copy_async_16(p.source, p.source, 16); {WAIT} }}",
        f"if (t == 5) {{ {COPY} {WAIT} }}",
    ),
    "bounds: behind shared memory": (
        f"if (t == 5) {{ copy_async_16(s.y + 4, p.source, 16); {WAIT} }}",
        f"if (t == 5) {{ copy_async_16(s.y, p.source, 16); {WAIT} }}",
    ),
    "misaligned: destination": (
        f"if (t == 5) {{ copy_async_16(s.x + 2, p.source, 8); {WAIT} }}",
        f"if (t == 5) {{ copy_async_16(s.x + 4, p.source, 8); {WAIT} }}",
    ),
    "misaligned: source": (
        f"if (t == 5) {{ copy_async_16(s.x, p.source + 2, 8); {WAIT} }}",
        f"if (t == 5) {{ copy_async_16(s.x, p.source + 4, 8); {WAIT} }}",
    ),
    "misaligned: destination of 8 bytes": (
        f"if (t == 5) {{ copy_async_8(s.x + 1, p.source, 8); {WAIT} }}",
        f"if (t == 5) {{ copy_async_8(s.x + 2, p.source, 8); {WAIT} }}",
    ),
    "misaligned: source of 8 bytes": (
        f"if (t == 5) {{ copy_async_8(s.x, p.source + 1, 8); {WAIT} }}",
        f"if (t == 5) {{ copy_async_4(s.x, p.source + 1, 4); {WAIT} }}",
    ),
    "misaligned: source of 4 bytes": (
        f"if (t == 5) {{ copy_async_4(s.x, reinterpret_cast<const u8*>(p.source) + 2, 2); {WAIT} }}",
        f"if (t == 5) {{ copy_async_4(s.x, reinterpret_cast<const u8*>(p.source) + 4, 2); {WAIT} }}",
    ),
    "race: the second word of 8 bytes": (
        f"if (t == 5) {{ copy_async_8(s.x, p.source, 4); {WAIT} }} if (t == 6) sum = s.x[1];",
        f"if (t == 5) {{ copy_async_8(s.x, p.source, 4); {WAIT} }} if (t == 6) sum = s.x[2];",
    ),
    "race: neighbours' copies overlap": (
        f"if (t < 4) {{ copy_async_8(s.x + t / 2 * 2, p.source, 8); {WAIT} }}",
        f"if (t < 4) {{ copy_async_8(s.x + t * 2, p.source, 8); {WAIT} }}",
    ),
    "bounds: 8 bytes behind shared memory": (
        f"if (t == 5) {{ copy_async_8(s.y + 4, p.source, 8); {WAIT} }}",
        f"if (t == 5) {{ copy_async_8(s.y + 2, p.source, 8); {WAIT} }}",
    ),
    "bounds: 4 bytes over the source's end": (
        f"if (t == 5) {{ copy_async_4(s.x, p.ragged + 6, 1); {WAIT} }}",
        f"if (t == 5) {{ copy_async_4(s.x, p.ragged + 5, 4); {WAIT} }}",
    ),
    "undefined: more than eight bytes": (
        f"if (t == 5) {{ copy_async_8(s.x, p.source, 9); {WAIT} }}",
        f"if (t == 5) {{ copy_async_8(s.x, p.source, 8); {WAIT} }}",
    ),
    "undefined: more than sixteen bytes": (
        f"if (t == 5) {{ copy_async_16(s.x, p.source, 17); {WAIT} }}",
        f"if (t == 5) {{ copy_async_16(s.x, p.source, 16); {WAIT} }}",
    ),
    "uninitialised: beside what was copied": (
        f"if (t == 5) {{ {COPY} {WAIT} sum = s.y[3]; }}",
        f"if (t == 5) {{ copy_async_16(s.y, p.source, 4); {WAIT} sum = s.y[3]; }}",
    ),
}


@pytest.mark.parametrize("case", MISUSE)
def test_misuse(device, case):
    wrong, right = MISUSE[case]
    shared = "alignas(16) u32 x[64]; u32 y[4];"

    def launch(body):
        given = {"source": _source(device), "ragged": _source(device, 6), "out": device.empty((64,), np.uint32)}
        run(device, f"{START}{body}\np.out[t] = sum;", 64, 1, shared, 272, **given)

    launch(right)
    with pytest.raises(EmuError, match=f"^{case.partition(':')[0]}: "):
        launch(wrong)


def test_a_copy_that_nobody_waits_for_ends_with_its_block(device):
    """It is legal, and the next block, of another shape, starts anew; so does the launch after one that failed."""
    body = f"if (t == 5) {COPY} if (t == 6) s.x[8] = 1;"
    shared = "alignas(16) u32 x[64];"
    run(device, body, 64, 3, shared, source=_source(device))
    run(device, "s.x[t] = t; block_sync();", 32, 2, shared, source=_source(device))
    with pytest.raises(EmuError, match=r"^race: "):
        run(device, body + "if (t == 5) s.x[0] = 1;", 64, 3, shared, source=_source(device))
    run(device, "reinterpret_cast<u8*>(s.x)[t] = t;", 64, 2, shared, source=_source(device))
    run(device, "copy_async_wait<0>(); s.x[t] = 1;", 64, 2, shared, source=_source(device))


def test_a_report_names_the_copy():
    device = EmuDevice(settings=Settings(lane_order="forward", block_order="forward"))
    body = (
        f"{START}\nif (t == 5) {{ {COPY} copy_async_commit(); }}\nblock_sync();\n"
        "if (t == 40) sum = s.x[3];\np.out[t] = sum;"
    )
    with pytest.raises(EmuError) as caught:
        run(device, body, 64, 1, "alignas(16) u32 x[64];", source=_source(device), out=device.empty((64,), np.uint32))
    told = re.sub(r"\S+\.c\S+:(\d+)", r":\1", str(caught.value))
    assert re.fullmatch(
        r"race: read of 4 bytes at byte 12 of 1024 of shared memory by thread 40 \(warp 1, lane 8\) at :5 "
        r"and an asynchronous copy under way, by thread 5 \(warp 0, lane 5\) at :\d+ < :3, "
        r"with nothing that orders them; kernel tiny, block 0",
        told,
    )


def test_launches_take_turns():
    device = EmuDevice(settings=Settings(detect_races=False))
    body = f"s.x[t] = t; block_sync(); if (t == 0) {COPY} block_sync(); p.out[t] = s.x[t];"
    out = device.empty((64,), np.uint32)
    arrived = []
    for _ in range(4):
        run(device, body, 64, 1, "alignas(16) u32 x[64];", source=_source(device), out=out)
        arrived.append(bool(out.get()[0] == 1000))
    assert arrived == [True, False, True, False]
