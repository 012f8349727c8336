"""Wavefronts of accesses to shared memory, counted, against patterns whose bank conflicts are known."""

from __future__ import annotations

import numpy as np
import pytest
from emu.banks import BankConflicts
from emu.device import EmuDevice, Settings
from emu.tiny import run

ROWS = "alignas(128) u32 x[1024];"
VECTOR = "typedef u32 V __attribute__((vector_size(16))); typedef u32 W __attribute__((vector_size(8)));\n"


@pytest.fixture(params=["forward", "reverse", "random"])
def device(request):
    return EmuDevice(settings=Settings(lane_order=request.param, count_bank_conflicts=True, detect_races=False))


def _count(device, body, line, threads=32):
    """Launch one block; return the counts of one line."""
    given = {"source": device.from_host(np.zeros(1024, np.uint32)), "out": device.empty((1024,), np.uint32)}
    run(device, body, threads, 1, ROWS, 4096, **given)
    return [row for row in device.bank_conflicts if row.place.endswith(f"tiny tiny.cpp:{line}")]


# An access of one warp: the address, then wavefronts and the least. SWIZZLE: rows of eight pieces of 16 bytes.
SWIZZLED = "s.x + t * 32 + (PIECE ^ t % 8) * 4"
FOUR_BYTES = {
    "one word each": ("s.x + t", 1, 1),
    "in another order": ("s.x + (t ^ 21)", 1, 1),
    "any words of different banks": ("s.x + t * 33 % 1024", 1, 1),
    "two words of a bank": ("s.x + t * 2", 2, 1),
    "eight words of a bank": ("s.x + t * 8", 8, 1),
    "one bank": ("s.x + t * 32", 32, 1),
    "one word for all": ("s.x + 7", 1, 1),
    "one word for each eight": ("s.x + t / 8", 1, 1),
    "two words of one bank, each for half the lanes": ("s.x + t % 2 * 32", 2, 1),
}
VECTORS = {
    "a row": ("V", "s.x + t * 4", 4, 4),
    "the first piece of each row": ("V", "s.x + t * 32", 32, 4),
    "the first piece of each row, swizzled": ("V", SWIZZLED.replace("PIECE", "0"), 4, 4),
    "the sixth piece of each row, swizzled": ("V", SWIZZLED.replace("PIECE", "5"), 4, 4),
    "rows with a pad": ("V", "s.x + t % 16 * 36", 4, 4),
    "two rows share their banks": ("V", "s.x + t % 16 * 16", 16, 4),
    "one piece for all": ("V", "s.x", 4, 4),
    "half vectors in a row": ("W", "s.x + t * 2", 2, 2),
    "half vectors, every other": ("W", "s.x + t * 4", 4, 2),
}


@pytest.mark.parametrize("case", FOUR_BYTES)
def test_accesses_of_four_bytes(device, case):
    address, wavefronts, least = FOUR_BYTES[case]
    (read,) = _count(device, f"\np.out[t] = *({address});", 2)
    assert read == BankConflicts("read", "tiny tiny.cpp:2", 4, 1, wavefronts, least)
    (write,) = _count(device, f"\n*({address}) = t;", 2)
    assert write == BankConflicts("write", "tiny tiny.cpp:2", 4, 1, wavefronts, least)


@pytest.mark.parametrize("case", VECTORS)
def test_accesses_of_vectors(device, case):
    kind, address, wavefronts, least = VECTORS[case]
    (read,) = _count(device, f"{VECTOR}reinterpret_cast<{kind}*>(p.out)[t] = *reinterpret_cast<{kind}*>({address});", 2)
    assert (read.kind, read.bytes, read.wavefronts, read.least) == ("read", 4 * least, wavefronts, least)


@pytest.mark.parametrize("case", [case for case in VECTORS if VECTORS[case][0] == "V"])
def test_ldmatrix_and_asynchronous_copies_go_by_eight_rows(device, case):
    _, address, wavefronts, least = VECTORS[case]
    (load,) = _count(device, f"u32 to[4];\nload_matrices(to, {address});\np.out[t] = to[0];", 2)
    assert (load.kind, load.accesses, load.wavefronts, load.least) == ("load_matrices", 1, wavefronts, least)
    (copy,) = _count(device, f"\ncopy_async_16({address}, p.source, 16);", 2)
    assert (copy.kind, copy.accesses, copy.wavefronts, copy.least) == ("copy_async", 1, wavefronts, least)


@pytest.mark.parametrize(
    ("body", "wavefronts", "least"),
    [
        ("if (t % 4 == 0)\np.out[t] = s.x[t * 8];", 8, 1),
        ("\np.out[t] = reinterpret_cast<u8*>(s.x)[t];", 1, 1),
        ("\np.out[t] = reinterpret_cast<u16*>(s.x)[t * 2 + t % 2];", 1, 1),
        ("\np.out[t] = reinterpret_cast<u8*>(s.x)[t * 8];", 2, 1),
        ("if (t < 3)\ncopy_async_16(s.x + t * 4, p.source, 16);", 1, 1),
        ("if (t % 8 == 0)\ncopy_async_16(s.x + t * 4, p.source, 16);", 4, 1),
        ("\ncopy_async_8(s.x + t * 2, p.source, 8);", 2, 2),
        ("\ncopy_async_8(s.x + t * 4, p.source, 8);", 4, 2),
        ("\ncopy_async_4(s.x + t, p.source, 4);", 1, 1),
        ("\ncopy_async_4(s.x + t * 2, p.source, 4);", 2, 1),
    ],
)
def test_some_lanes_and_parts_of_words(device, body, wavefronts, least):
    (row,) = _count(device, body, 2)
    assert (row.accesses, row.wavefronts, row.least) == (1, wavefronts, least)


def test_executions_of_a_loop_are_matched_by_their_number(device):
    """Lanes run one after the other; the n-th reads of all lanes are one access, of those that come so far."""
    body = "for (u32 n = 0; n <= t % 4; ++n)\np.out[n * 32 + t] = s.x[n + t * 2];"
    (row,) = _count(device, body, 2, threads=64)
    # Of a warp: all lanes, then 24, 16 and 8 of them, where lanes 16 apart ask for two words of a bank.
    assert (row.accesses, row.wavefronts, row.least) == (8, 16, 8)


@pytest.mark.parametrize("meet", ["warp_sync();", "block_sync();", "warp_any(true);"])
def test_lanes_that_have_met_begin_anew(device, meet):
    loop = "volatile u32 many = 2; for (u32 n = 0; n < many; ++n)"  # of which the compiler does not make two
    body = f"{loop} {{ if (t / 16 == n)\np.out[t] = s.x[t % 16];\n{meet} }}"
    (row,) = _count(device, body, 2)
    assert (row.accesses, row.wavefronts) == (2, 2)
    (row,) = _count(device, body.replace(meet, ""), 2)
    assert (row.accesses, row.wavefronts) == (1, 1)


def test_a_place_is_a_chain_of_functions(device):
    body = "u32 to[4];\nauto load = [&] { load_matrices(to, s.x + t * 4); };\nload();\np.out[t] = to[0];"
    (row,) = _count(device, body, 3)
    inner, middle, outer = row.place.split(" < ")
    assert inner.startswith("load_matrices ldmatrix.cuh:")
    assert middle.endswith("tiny.cpp:2")
    assert outer == "tiny tiny.cpp:3"


def test_counting_is_of_the_last_launch_and_off_by_default():
    device = EmuDevice()
    assert _count(device, "\np.out[t] = s.x[t] = t;", 2) == []
    with device.using(count_bank_conflicts=True):
        assert len(_count(device, "\ns.x[t] = t; warp_sync();\np.out[t] = s.x[t ^ 1];", 2)) == 1
        assert len(device.bank_conflicts) == 2
        assert len(_count(device, "\ns.x[t] = t;", 2)) == 1
        assert len(device.bank_conflicts) == 1


def test_races_are_found_while_counting(device):
    with device.using(detect_races=True), pytest.raises(RuntimeError, match=r"^race: "):
        _count(device, "s.x[t / 2] = t;", 1)
    (row,) = _count(device, "\ns.x[t] = 1;", 2)
    assert row.accesses == 1
