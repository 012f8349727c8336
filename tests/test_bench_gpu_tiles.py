"""Choosing tiles by measurement: which are tried, that a failure is a row, that what is timed is what was asked for."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
from backends import EmuBackend
from host_gpu import HostGpu

import flashcupy
from bench.gpu import operands
from bench.gpu.candidates import tiles
from bench.gpu.measure import measure, reason
from bench.gpu.problem import Problem, square
from bench.gpu.reference import expected
from bench.gpu.sections import SECTIONS
from bench.harness import OURS
from flashcupy.cuda import config, table_sm80, table_sm80_bwd
from flashcupy.cuda.table_sm80 import Choice, Tried

TINY = Problem("forward", "float16", 1, 2, 48, 48, 32, 2)


class EmulatedGpu(HostGpu):
    """Names the emulator's device."""

    name = "cuda:0"


@pytest.fixture
def emulated():
    backend = EmuBackend("sm80")
    with backend.active():
        yield backend.device


def on_device(problem, device):
    host = operands.make(problem, np)
    return host, replace(host, **{name: device.from_host(getattr(host, name)) for name in ("q", "k", "v", "dout")})


def test_choices_are_what_registers_hold():
    found = tiles.choices(square("forward", "bfloat16", 128, 4096))
    assert Choice(128, 64, 4, 1, 2) in found
    assert Choice(64, 64, 4, 2, 3) in found
    assert not [choice for choice in found if choice.owner == 128 and choice.walk == 128 and choice.warps == 4]
    assert not [choice for choice in found if choice.warps == 4 and choice.blocks == 1]  # two are no dearer
    assert len(found) == len(set(found)) < 40
    split = tiles.choices(square("forward", "float32", 256, 4096))
    assert split
    assert all(choice.walk <= 64 for choice in split)


def test_every_choice_of_the_table_is_tried():
    tables = {"bfloat16": table_sm80._SIXTEEN_BITS, "float32": table_sm80._SPLIT_TF32}
    for dtype, table in tables.items():
        for head_dim in (64, 128, 256):
            problem = square("forward", dtype, head_dim, 4096)
            tried = {choice[:4] for choice in tiles.choices(problem)}
            assert {choice[:4] for choice in table[head_dim] if choice.walk >= 32} <= tried


def test_tuning_covers_every_kind_and_head_dim():
    problems = [item.problem for item in SECTIONS["tune"](False)]
    assert {(tiles.kind_of(problem), problem.head_dim) for problem in problems} == {
        (kind, head_dim) for kind in ("bf16", "f16", "split_tf32", "tf32") for head_dim in (64, 128, 256)
    }
    names = [candidate.name for candidate in next(iter(SECTIONS["tune"](False))).candidates]
    assert names[0] == OURS
    assert "o128k64_w4s1b2" in names


def test_every_kernel_of_the_backward_is_tuned():
    items = list(SECTIONS["tune-bwd"](False))
    assert {item.group for item in items} == {"tiles of dkvq", "tiles of dkv", "tiles of dq"}
    assert {tiles.kind_of(item.problem) for item in items} == {"bf16", "split_tf32", "tf32"}
    assert all(item.candidates[0].name == OURS and len(item.candidates) > 3 for item in items)
    tables = {"tiles of dkvq": table_sm80_bwd._KEYS_SIXTEEN_BITS, "tiles of dq": table_sm80_bwd._QUERIES_SIXTEEN_BITS}
    for item in items:
        if item.problem.dtype == "bfloat16" and item.group in tables:
            names = {candidate.name.partition("b")[0] for candidate in item.candidates}
            best = tables[item.group][item.problem.head_dim][0]
            assert tiles.name_of(best).partition("b")[0] in names, item.name


def test_one_kernel_of_a_backward_runs_on_the_chosen_tiles(emulated):
    problem, choice = replace(TINY, direction="backward"), Choice(64, 32, 2, 1, 1)
    host, shared = on_device(problem, emulated)
    prepared = tiles.prepare("dq", choice, (choice,), problem, shared, EmulatedGpu())
    keys, queries = prepared.kernel.split(" + ")
    assert "_o64k32_" not in keys
    assert queries == "dq_sm80_f16_o64k32_d32c32v32c32_w2s1b1_band"
    with prepared.around():
        grads = prepared.call()
    want = expected(problem, host)
    for name in "qkv":
        np.testing.assert_allclose(getattr(grads, f"d{name}").get()[-1, -1], want[f"d{name}"], atol=4e-3)


def test_arrays_on_the_host_are_told_to_be_so():
    with pytest.raises(Exception, match="is for arrays on a GPU") as caught:
        tiles.prepare("fwd", Choice(64, 32, 4, 1, 2), (), TINY, operands.make(TINY, np), HostGpu())
    assert reason(caught.value) == "is for arrays on a GPU"


def test_what_is_timed_runs_on_the_chosen_tiles(emulated):
    choice = Choice(32, 32, 2, 1, 1)
    host, shared = on_device(TINY, emulated)
    prepared = tiles.prepare("fwd", choice, (choice,), TINY, shared, EmulatedGpu())
    assert prepared.kernel == "fwd_sm80_f16_o32k32_d32v32_w2s1b1_band"
    before = flashcupy.explain(shared.q, shared.k, shared.v).config
    with prepared.around():
        assert flashcupy.explain(shared.q, shared.k, shared.v).config == prepared.kernel
        found = prepared.call().get()[-1, -1]
    assert flashcupy.explain(shared.q, shared.k, shared.v).config == before != prepared.kernel
    assert "FLASHCUPY_FAMILY" not in os.environ
    assert config.tile_table() == "real"
    np.testing.assert_allclose(found, expected(TINY, host)["out"], atol=2e-3)


GOOD, LARGE, ODD, BROKEN, WRONG = (
    Choice(32, 32, 2, 1, 1),
    Choice(3584, 32, 32, 1, 1),
    Choice(32, 24, 2, 1, 1),
    Choice(48, 32, 3, 1, 1),
    Choice(16, 32, 1, 1, 1),
)


def test_each_failure_is_a_row(emulated, monkeypatch):
    _, shared = on_device(TINY, emulated)
    compile_unit, attention = type(emulated).compile, flashcupy.attention

    def refuse_one(self, source, entry, include):
        return compile_unit(self, "#error no" if "o48k32" in entry else source, entry, include)

    def spoil_one(q, k, v, **arguments):
        return attention(q, k, v, **arguments).get() + (config.tile_table() == Tried("fwd", WRONG))

    def with_device_arrays(candidate):
        return replace(candidate, prepare=lambda problem, _, gpu: candidate.prepare(problem, shared, gpu))

    monkeypatch.setattr(type(emulated), "compile", refuse_one)
    monkeypatch.setattr(flashcupy, "attention", spoil_one)
    monkeypatch.setattr(tiles, "choices", lambda problem, kernel: [GOOD, LARGE, ODD, BROKEN, WRONG])
    candidates = [with_device_arrays(candidate) for candidate in tiles.candidates(TINY)]
    row = measure("tiles", TINY, candidates, EmulatedGpu(), 0.0)
    assert set(row.seconds) == {OURS, tiles.name_of(GOOD)}
    assert "bytes of shared memory" in row.missing[tiles.name_of(LARGE)]
    assert row.missing[tiles.name_of(ODD)].startswith("ValueError: walk must be")
    assert row.missing[tiles.name_of(BROKEN)].startswith("KernelCompileError")
    assert row.missing[tiles.name_of(WRONG)].startswith("ArithmeticError: its result is wrong")
    assert row.kernels[tiles.name_of(GOOD)] == "fwd_sm80_f16_o32k32_d32v32_w2s1b1_band"
