"""The tests would notice: kernels with one fault each, caught on the emulator by probes that the right ones pass."""

from __future__ import annotations

from collections import Counter

import pytest
from backends import EmuBackend
from emu.faults import FAULTS, Fault
from emu.probes import PROBES, family
from fault_kit import complaint, copy_kernels, kernels_of, kind_of, require_all_apply


def test_every_fault_still_applies():
    require_all_apply(FAULTS)


def test_faults_and_probes_belong_together():
    assert [name for name, times in Counter(map(str, FAULTS)).items() if times > 1] == []
    assert {fault.probe for fault in FAULTS} == PROBES.keys()


@pytest.mark.slow
@pytest.mark.parametrize("probe", PROBES)
def test_without_a_fault_nothing_is_caught(probe, tmp_path):
    with kernels_of(copy_kernels(tmp_path), tmp_path, EmuBackend(family(probe))) as backend:
        PROBES[probe](backend)


@pytest.fixture(scope="module")
def caught(request):
    """Kinds by fault; a table of them is printed when all are through."""
    kinds: dict[Fault, str] = {}
    yield kinds
    lines = [f"{kind:13} {fault.probe:27} {fault}" for fault, kind in kinds.items()]
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("", f"{len(kinds)} faults are caught:", *sorted(lines), sep="\n")


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_fault_is_caught(fault, caught, tmp_path):
    folder = copy_kernels(tmp_path)
    fault.apply(folder)
    with kernels_of(folder, tmp_path, EmuBackend(family(fault.probe))) as backend:
        error = complaint(PROBES[fault.probe], backend)
    assert error is not None, f"{fault}: probe {fault.probe!r} does not catch it"
    caught[fault] = kind = kind_of(error)
    assert kind in fault.kinds.split(), f"{fault}: caught, but as {kind!r}: {error}"
