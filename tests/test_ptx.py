"""The kernels as NVRTC compiles them, run by an interpreter of PTX: what the emulator takes other files for, or g++."""

from __future__ import annotations

import pytest
from emu.probes import PROBES, family
from fault_kit import complaint, copy_kernels, kernels_of, kind_of, require_all_apply
from oracles import nvrtc_library
from ptx.backend import TARGETS, PtxBackend
from ptx.faults import PTX_FAULTS

from flashcupy.cuda import config, matrix

# Of a target's cases one in so many, from this one on. All of them, which `python -m ptx` runs, take more than an hour.
_SAMPLE = {"sm75": (20, 3), "sm80": (24, 13), "sm90": (8, 6)}
# A minute and more each, for loops over many columns in single lanes.
_LONG = ("float64", "d264")


def _cases(target: str) -> list:
    every, first = _SAMPLE[target]
    cases = matrix.check_cases(TARGETS[target].compute_capability)
    return [case for case in cases if not any(word in case.name for word in _LONG)][first::every]


_TENSOR_CORE_PROBES = [probe for probe in PROBES if family(probe) == "sm80"]


def _backend(target: str) -> PtxBackend:
    nvrtc_library(TARGETS[target].compiler)
    return PtxBackend(target)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "case"),
    [pytest.param(target, case, id=f"{target}-{case.name}") for target in TARGETS for case in _cases(target)],
)
def test_first_use(target, case):
    """What a GPU checks before it serves a call, in the tiles that it serves with."""
    backend = _backend(target)
    with backend.active():
        assert case.run(backend.device) is None


@pytest.mark.slow
@pytest.mark.parametrize("probe", _TENSOR_CORE_PROBES[::6])
def test_probe(probe):
    backend = _backend(("sm80", "sm90")[_TENSOR_CORE_PROBES.index(probe) // 6 % 2])
    with backend.active(), config.use_tiles("small"):
        PROBES[probe](backend)


def test_every_fault_still_applies():
    require_all_apply(PTX_FAULTS)


@pytest.mark.slow
@pytest.mark.parametrize("fault", PTX_FAULTS, ids=str)
def test_fault_is_caught(fault, tmp_path):
    backend, folder = _backend("sm90"), copy_kernels(tmp_path)
    fault.apply(folder)
    with kernels_of(folder, tmp_path, backend):
        error = complaint(PROBES[fault.probe], backend)
    assert error is not None, f"{fault}: probe {fault.probe!r} does not catch it"
    assert kind_of(error) in fault.kinds.split(), f"{fault}: caught, but as {kind_of(error)!r}: {error}"
