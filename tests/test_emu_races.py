"""Races that the emulator must find, each beside a twin that is right; and random programs against a plain oracle."""

from __future__ import annotations

import collections
import re

import numpy as np
import pytest
from emu.device import EmuDevice, EmuError, Settings
from emu.tiny import run

ORDERS = ("forward", "reverse", "random")
ROW = "u32 row[64];"
FIRST = "s.row[t] = t; block_sync(); "  # nothing is uninitialised


@pytest.fixture(params=ORDERS)
def device(request):
    return EmuDevice(settings=Settings(lane_order=request.param, block_order=request.param))


def _words(device, *shape):
    return device.from_host(np.zeros(shape, np.uint32))


# name: what is wrong, what is right. 64 threads, two warps, two blocks; p.out has a word for each thread.
SHARED = {
    "write then read": (
        "s.row[t] = 1; p.out[b * 64 + t] = s.row[63 - t];",
        "s.row[t] = 1; block_sync(); s.row[63 - t];",
    ),
    "read then write": (
        "p.out[b * 64 + t] = s.row[63 - t]; s.row[t] = 1;",
        "p.out[b * 64 + t] = s.row[63 - t]; block_sync(); s.row[t] = 1;",
    ),
    "write and write": ("s.row[t / 2] = 1;", "if (t % 2 == 0) s.row[t / 2] = 1;"),
    "the same value written twice": ("s.row[0] = 0;", "if (t == 0) s.row[0] = 0;"),
    "a shuffle orders no memory": (
        "s.row[t] = 1; shuffle_xor(t, 1); p.out[b * 64 + t] = s.row[t ^ 1];",
        "s.row[t] = 1; shuffle_xor(t, 1); warp_sync(); p.out[b * 64 + t] = s.row[t ^ 1];",
    ),
    "warp_sync orders one warp": (
        "s.row[t] = 1; warp_sync(); p.out[b * 64 + t] = s.row[t ^ 32];",
        "s.row[t] = 1; warp_sync(); p.out[b * 64 + t] = s.row[t ^ 31];",
    ),
    "warp_sync, then the write of another warp": (
        "u32 x = s.row[t]; warp_sync(); s.row[t ^ 32] = x;",
        "u32 x = s.row[t]; warp_sync(); s.row[t ^ 1] = x;",
    ),
    "a reader that is not the last": (
        "if (t < 3 || t == 33) p.out[b * 64 + t] = s.row[9]; if (t == 2) s.row[9] = 1;",
        "if (t == 2 || t == 33) p.out[b * 64 + t] = s.row[t]; if (t == 2) s.row[2] = 1;",
    ),
    "part of a word": (
        "reinterpret_cast<u16*>(s.row)[t] = 1; p.out[b * 64 + t] = s.row[t / 2];",
        "reinterpret_cast<u16*>(s.row)[t] = 1; p.out[b * 64 + t] = reinterpret_cast<u16*>(s.row)[t];",
    ),
    "a byte of a vector": (
        "struct alignas(16) V { u32 x[4]; }; if (t == 40) reinterpret_cast<u8*>(s.row)[7] = 1;"
        "if (t == 2) { V v = *reinterpret_cast<V*>(s.row); p.out[b] = v.x[0] + v.x[1] + v.x[2] + v.x[3]; }",
        "struct alignas(16) V { u32 x[4]; }; if (t == 40) reinterpret_cast<u8*>(s.row)[16] = 1;"
        "if (t == 2) { V v = *reinterpret_cast<V*>(s.row); p.out[b] = v.x[0] + v.x[1] + v.x[2] + v.x[3]; }",
    ),
    "memcpy": (
        "if (t == 1) __builtin_memcpy(s.row, s.row + 32, p.n); if (t == 40) s.row[33] = 1;",
        "if (t == 1) __builtin_memcpy(s.row, s.row + 32, p.n); if (t == 40) s.row[63] = 1;",
    ),
    "memset": (
        "if (t == 1) __builtin_memset(s.row, 0, p.n); if (t == 40) s.row[3] = 1;",
        "if (t == 1) __builtin_memset(s.row, 0, p.n); if (t == 40) s.row[p.n / 4] = 1;",
    ),
    "an atomic and a read": (
        "emu_atomic(&s.row[0], emu::Atomic::add_i32, 1); p.out[b * 64 + t] = s.row[0];",
        "emu_atomic(&s.row[0], emu::Atomic::add_i32, 1); block_sync(); p.out[b * 64 + t] = s.row[0];",
    ),
    "a write and an atomic": (
        "if (t == 0) s.row[0] = 0; emu_atomic(&s.row[0], emu::Atomic::add_i32, 1);",
        "if (t == 0) s.row[0] = 0; block_sync(); emu_atomic(&s.row[0], emu::Atomic::add_i32, 1);",
    ),
    "the barrier is in the wrong place": (
        "for (u32 i = 0; i < 3; ++i) { s.row[t] = i; block_sync(); p.out[b * 64 + t] = s.row[63 - t]; }",
        "for (u32 i = 0; i < 3; ++i) { s.row[t] = i; block_sync(); p.out[b * 64 + t] = s.row[63 - t]; block_sync(); }",
    ),
}


@pytest.mark.parametrize("case", SHARED)
def test_races_in_shared_memory(device, case):
    wrong, right = SHARED[case]
    run(device, FIRST + right, 64, 2, ROW, out=_words(device, 2, 64), n=48)
    with pytest.raises(EmuError, match=r"^race: .* of shared memory"):
        run(device, FIRST + wrong, 64, 2, ROW, out=_words(device, 2, 64), n=48)


GLOBAL = {
    "within a block": ("p.out[b * 64 + t / 2] = t;", "p.out[b * 64 + t] = t;"),
    "blocks write the same": ("if (t == 0) p.out[0] = 1;", "if (t == 0) p.out[b] = 1;"),
    "a block reads what another writes": (
        "p.out[b * 64 + t] = 1; p.own[b * 64 + t] = p.out[t];",
        "p.out[b * 64 + t] = 1; p.own[b * 64 + t] = p.out[b * 64 + t];",
    ),
    "a block writes what another has read": (
        "p.own[b * 64 + t] = p.out[t]; p.out[t] += b;",
        "p.own[b * 64 + t] = p.out[t];",
    ),
    "a barrier does not reach other blocks": (
        "block_sync(); p.out[t] = b; block_sync();",
        "block_sync(); p.out[b * 64 + t] = b; block_sync();",
    ),
    "atomics and a write of another block": (
        "emu_atomic(p.out, emu::Atomic::add_i32, 1); block_sync(); if (t == 0) p.out[0] = 0;",
        "emu_atomic(p.out, emu::Atomic::add_i32, 1);",
    ),
    "atomics of a block and a read of the next": (
        "emu_atomic(p.out, emu::Atomic::add_i32, 1); block_sync(); p.own[b * 64 + t] = p.out[0];",
        "emu_atomic(p.out + b, emu::Atomic::add_i32, 1); block_sync(); p.own[b * 64 + t] = p.out[b];",
    ),
    "halves of a word": (
        "reinterpret_cast<u16*>(p.out)[b * 128 + t] = 1; p.own[t + b * 64] = p.out[b * 64 + t / 2];",
        "u16* half = reinterpret_cast<u16*>(p.out) + b * 128 + t; *half = 1; p.own[b * 64 + t] = *half;",
    ),
}


@pytest.mark.parametrize("case", GLOBAL)
def test_races_in_global_memory(device, case):
    wrong, right = GLOBAL[case]
    run(device, right, 64, 2, out=_words(device, 2, 64), own=_words(device, 2, 64))
    with pytest.raises(EmuError, match=r"^race: .* of an array uint32\[2, 64\]"):
        run(device, wrong, 64, 2, out=_words(device, 2, 64), own=_words(device, 2, 64))


def test_launches_are_ordered(device):
    out = _words(device, 64)
    for _ in range(3):
        run(device, "p.out[t] += 1;", out=out)
    np.testing.assert_array_equal(out.get(), 3)


def test_a_race_that_every_order_of_lanes_hides(device):
    # The shuffle makes all lanes write before any reads, in this emulator and not on a GPU.
    body = "s.row[t] = t; shuffle_xor(t, 1); p.out[t] = s.row[t ^ 7];"
    out = _words(device, 64)
    with device.using(detect_races=False):
        run(device, body, 64, 1, ROW, out=out)
    np.testing.assert_array_equal(out.get(), np.arange(64) ^ 7)
    with pytest.raises(EmuError, match=r"^race: read of 4 bytes"):
        run(device, body, 64, 1, ROW, out=out)


def test_a_report_names_both_sides():
    device = EmuDevice(settings=Settings(lane_order="forward", block_order="forward"))
    body = f"{FIRST}\nif (t == 5) s.row[7] = 1;\n\nif (t == 40 && b == 1) p.out[0] = s.row[7];"
    with pytest.raises(EmuError) as caught:
        run(device, body, 64, 3, ROW, out=_words(device, 1))
    assert caught.value.kind == "race"
    assert re.fullmatch(
        r"race: read of 4 bytes at byte 28 of 1024 of shared memory by thread 40 \(warp 1, lane 8\) at \S+:4 "
        r"and an earlier write by thread 5 \(warp 0, lane 5\) at \S+:2, with nothing that orders them; "
        r"kernel tiny, block 1",
        str(caught.value),
    )


def test_a_report_names_the_other_block():
    device = EmuDevice(settings=Settings(lane_order="forward", block_order="reverse"))
    with pytest.raises(EmuError, match=r"earlier write by thread 3 .* of block 2 at .*; kernel tiny, block 1"):
        run(device, "if (t == 3 + 2 - b) p.out[5] = t;", 64, 3, out=_words(device, 8))


# Random programs. Each thread of a block runs a list of operations, one a step: read or write some bytes, copy 4, 8 or
# 16 asynchronously, commit or wait, or meet the other threads of its warp or of its block, which all do at the same
# step.
NOTHING, READ, WRITE, WARP, BLOCK, COPY, COMMIT, WAIT = range(8)
STEPS, THREADS, BYTES = 20, 96, 32
INTERPRETER = """
u32 sum = 0;
if (t == 0) for (u32 i = 0; i < sizeof(s.bytes); ++i) s.bytes[i] = 0;
block_sync();
u8* memory = p.in_shared ? s.bytes : p.memory;
for (u32 step = 0; step < p.steps; ++step) {
    const u8* operation = p.program + ((b * p.width + t) * p.steps + step) * 4;
    u8* at = memory + operation[1];
    if (operation[0] == 1) sum += operation[2] == 1 ? *at : operation[2] == 2 ? *(u16*)at : *(u32*)at;
    if (operation[0] == 2) {
        if (operation[2] == 1) *at = 1;
        if (operation[2] == 2) *(u16*)at = 1;
        if (operation[2] == 4) *(u32*)at = 1;
    }
    if (operation[0] == 3) warp_sync();
    if (operation[0] == 4) block_sync();
    if (operation[0] == 5) {
        if (operation[3] == 16) copy_async_16(at, p.program, operation[2]);
        if (operation[3] == 8) copy_async_8(at, p.program, operation[2]);
        if (operation[3] == 4) copy_async_4(at, p.program, operation[2]);
    }
    if (operation[0] == 6) copy_async_commit();
    if (operation[0] == 7 && operation[1] == 0) copy_async_wait<0>();
    if (operation[0] == 7 && operation[1] == 1) copy_async_wait<1>();
}
p.sums[b * p.width + t] = sum;
"""


def _program(rng, blocks, copies):
    """Accesses of a few threads, of which `copies` are asynchronous; these are mostly ended as they ought to be."""
    program = np.zeros((blocks, THREADS, STEPS, 4), np.uint8)
    busy = rng.choice(THREADS, 4, replace=False)
    writes = rng.choice([0.1, 0.3])
    turn = 0
    for block, step in np.ndindex(blocks, STEPS):
        operations = program[block, :, step]
        kind = rng.random()
        if copies and kind < 0.6:
            operations[:, 0] = (COMMIT, WAIT, BLOCK)[turn % 3]
            operations[:, 1] = rng.random() < 0.1  # groups that may be pending
            turn += 1 + (rng.random() < 0.1)
        elif kind < 0.25:
            operations[:, 0] = BLOCK
        elif kind < 0.6:
            warps = rng.random(THREADS // 32) < 0.8
            operations[:, 0] = np.repeat(np.where(warps, WARP, NOTHING), 32)
        else:
            for thread in busy[rng.random(busy.size) < (0.15 if copies else 0.4)]:
                size = 1 << rng.integers(3)
                offset = size * rng.integers(BYTES // size)
                operations[thread, :3] = [WRITE if rng.random() < writes else READ, offset, size]
                if rng.random() < copies:
                    size = rng.choice([4, 8, 16, 16])
                    operations[thread] = [
                        COPY,
                        size * rng.integers(BYTES // size),
                        rng.choice([0, size // 2 - 1, size]),
                        size,
                    ]
    return program


class _Oracle:
    """Happens-before by definition: a set of all earlier accesses for each thread."""

    def __init__(self, in_shared):
        self.in_shared = in_shared
        self.accesses = []  # (block, first byte, end, whether it writes)
        self.known = collections.defaultdict(set)
        # Of each thread: the numbers of its copies by group, the last group not committed yet.
        self.groups = collections.defaultdict(lambda: [[]])

    def races(self, block, thread, kind, offset, size):
        """Whether one more access races with an earlier one."""
        for number, (other_block, first, end, writes) in enumerate(self.accesses):
            unordered = number not in self.known[block, thread] and (other_block == block or not self.in_shared)
            if unordered and first < offset + size and offset < end and (writes or kind != READ):
                return True
        self.accesses.append((block, offset, offset + size, kind != READ))
        # A copy comes after what its thread did before, and before what it does after the wait.
        where = self.groups[block, thread][-1].append if kind == COPY else self.known[block, thread].add
        where(len(self.accesses) - 1)
        return False

    def wait(self, block, thread, pending):
        groups = self.groups[block, thread]
        for group in groups[: max(len(groups) - 1 - pending, 0)]:
            self.known[block, thread].update(group)

    def meet(self, block, threads):
        met = set().union(*(self.known[block, thread] for thread in threads))
        self.known.update({(block, thread): set(met) for thread in threads})


def _has_race(program, in_shared):
    oracle = _Oracle(in_shared)
    for block, step in np.ndindex(len(program), STEPS):
        operations = program[block, :, step]
        for thread in np.flatnonzero(operations[:, 0] > BLOCK):
            kind, argument, _, size = map(int, operations[thread])
            if kind == COPY and oracle.races(block, thread, COPY, argument, size):
                return True
            if kind == COMMIT:
                oracle.groups[block, thread].append([])
            if kind == WAIT:
                oracle.wait(block, thread, argument)
        for thread in np.flatnonzero(np.isin(operations[:, 0], (READ, WRITE))):
            if oracle.races(block, thread, *map(int, operations[thread, :3])):
                return True
        for kind, width in ((WARP, 32), (BLOCK, THREADS)):
            for first in np.flatnonzero(operations[::width, 0] == kind) * width:
                oracle.meet(block, range(first, first + width))
    return False


def _report(device, program, blocks, in_shared):
    """Return the kind of mistake that the emulator sees, "" for none."""
    arguments = {
        "program": device.from_host(program),
        "memory": device.from_host(np.zeros(BYTES, np.uint8)),
        "sums": device.empty((blocks, THREADS), np.uint32),
    }
    sizes = {"in_shared": int(in_shared), "steps": STEPS, "width": THREADS}
    try:
        run(device, INTERPRETER, THREADS, blocks, f"alignas(16) u8 bytes[{BYTES}];", **arguments, **sizes)
    except EmuError as error:
        return error.kind
    return ""


@pytest.mark.parametrize(("in_shared", "copies"), [(True, 0), (True, 0.4), (False, 0)])
def test_random_programs_race_where_the_oracle_says(in_shared, copies):
    rng = np.random.default_rng(7)
    verdicts = []
    for number in range(120):
        blocks = 1 + number % 2
        order = ORDERS[number % 3]
        device = EmuDevice(settings=Settings(lane_order=order, block_order=order, seed=number))
        program = _program(rng, blocks, copies)
        found = _report(device, program, blocks, in_shared)
        assert found in ("", "race"), number
        verdicts.append(found == "race")
        assert verdicts[-1] == _has_race(program, in_shared), number
    assert 24 < sum(verdicts) < 96
