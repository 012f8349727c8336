"""The kernels as NVRTC compiles them, run by an interpreter of PTX: what the emulator takes other files for, or g++."""

from __future__ import annotations

import pytest
from emu.probes import PROBES, family
from fault_kit import complaint, copy_kernels, kernels_of, kind_of, require_all_apply
from oracles import nvrtc_library
from ptx.backend import TARGETS, PtxBackend
from ptx.faults import PTX_FAULTS

from flashcupy.cuda import config, matrix

_TENSOR_CORES = ("sm80", "sm90")


def _backend(target: str) -> PtxBackend:
    nvrtc_library(TARGETS[target].compiler)
    return PtxBackend(target)


# What a GPU checks before it serves a call, in the tiles that it serves with. Together they use every kernel.
_CASES = [(target, case) for target in TARGETS for case in matrix.check_cases(TARGETS[target].compute_capability)]


@pytest.mark.slow
@pytest.mark.parametrize(("target", "case"), _CASES, ids=lambda x: getattr(x, "name", x))
def test_first_use(target, case):
    backend = _backend(target)
    with backend.active():
        assert case.run(backend.device) is None


@pytest.mark.slow
@pytest.mark.parametrize("probe", PROBES)
def test_probe(probe):
    target = "sm75" if family(probe) == "generic" else _TENSOR_CORES[list(PROBES).index(probe) % 2]
    backend = _backend(target)
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
