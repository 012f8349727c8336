"""The kernels as NVRTC compiles them, run by an interpreter of PTX: what the emulator takes other files for, or g++."""

from __future__ import annotations

import pytest
from emu.arrays import EmuRuntime
from emu.probes import PROBES
from fault_kit import complaint, copy_kernels, kernels_of, kind_of, require_all_apply
from first_use_kit import Watched
from oracles import nvrtc_library
from ptx.backend import TARGETS, PtxBackend
from ptx.faults import SM80_FAULTS, SM90_FAULTS
from ptx.sample import SAMPLE, traits

from flashcupy.cuda import config, matrix, sources
from flashcupy.cuda import device as device_module

FAULTS = [("sm90", fault) for fault in SM90_FAULTS] + [("sm80", fault) for fault in SM80_FAULTS]
# Of the tensor-core kernels in small tiles, which have shapes that no table has.
FURTHER_PROBES = (
    "mma two stages",
    "mma two tiles a warp",
    "mma chunks of any columns",
    "mma heads together",
    "mma packed",
)


def _backend(target: str) -> PtxBackend:
    nvrtc_library(TARGETS[target].compiler)
    return PtxBackend(target)


def _cases(target: str) -> dict:
    return {case.name: case for case in matrix.check_cases(TARGETS[target].compute_capability)}


@pytest.mark.slow
@pytest.mark.parametrize(("target", "name"), [(target, name) for target in TARGETS for name in SAMPLE[target]])
def test_first_use(target, name):
    """What a GPU checks before it serves a call, in the tiles that it serves with."""
    backend, cases = _backend(target), _cases(target)
    # Each in one way; what both targets have, in both.
    late = list(cases).index(name) % 2 == (target == "sm80")
    with backend.active(), backend.device.using(copies="lazy" if late else "eager"):
        assert cases[name].run(backend.device) is None


def test_the_sample_reaches_each_function_in_all_that_it_computes_with(monkeypatch, tmp_path):
    watched = Watched(TARGETS["sm90"].compute_capability)
    monkeypatch.setattr(device_module, "_installed", [EmuRuntime(watched)])
    monkeypatch.setenv("FLASHCUPY_CHECK", "off")
    monkeypatch.setenv("FLASHCUPY_CACHE_DIR", str(tmp_path))
    reached = {}
    for name, case in _cases("sm90").items():
        watched.entries.clear()
        case.compute(watched)
        reached[name] = set().union(*map(traits, watched.entries))
    assert set().union(*reached.values()) - set().union(*(reached[name] for name in SAMPLE["sm90"])) == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "probe"),
    [
        *(("sm90", probe) for probe in FURTHER_PROBES),
        *dict.fromkeys((target, fault.probe) for target, fault in FAULTS),
    ],
)
def test_without_a_fault_nothing_is_caught(target, probe):
    backend = _backend(target)
    with backend.active(), config.use_tiles("small"):
        PROBES[probe](backend)


def test_every_fault_still_applies():
    require_all_apply(fault for _, fault in FAULTS)


def test_every_header_has_a_fault():
    headers = {f"ptx/{path.name}" for path in (sources.kernels_dir() / "ptx").glob("*.cuh")}
    assert {fault.path for _, fault in FAULTS} == headers


@pytest.mark.slow
@pytest.mark.parametrize(("target", "fault"), FAULTS, ids=str)
def test_fault_is_caught(target, fault, tmp_path):
    backend, folder = _backend(target), copy_kernels(tmp_path)
    fault.apply(folder)
    with kernels_of(folder, tmp_path, backend):
        error = complaint(PROBES[fault.probe], backend)
    assert error is not None, f"{fault}: probe {fault.probe!r} does not catch it"
    assert kind_of(error) in fault.kinds.split(), f"{fault}: caught, but as {kind_of(error)!r}: {error}"
