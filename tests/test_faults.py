"""The tests would notice: kernels with one fault each, caught on the emulator by probes that the right ones pass."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from backends import EmuBackend
from emu.device import EmuError
from emu.faults import FAULTS, Fault
from emu.probes import PROBES, Probe, family

from flashcupy.cuda import compile as compiling
from flashcupy.cuda import config, serve, sources
from flashcupy.cuda.launch import PlanCache


def _copy(folder: Path) -> Path:
    return shutil.copytree(sources.kernels_dir(), folder / "kernels_cu")


@contextmanager
def _kernels_of(folder: Path, cache: Path, probe: str) -> Iterator[EmuBackend]:
    """A device of its own for a probe, whose kernels come from `folder`."""
    backend = EmuBackend(family(probe))
    with backend.active(), config.use_tiles("small"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLASHCUPY_EMU_BUILD", "quick")
        patch.setenv("FLASHCUPY_CACHE_DIR", str(cache))
        for module in (sources, compiling):
            patch.setattr(module, "kernels_dir", lambda: folder)
        patch.setattr(compiling, "_slots", {})
        patch.setattr(serve, "_plans", PlanCache())
        yield backend


def _complaint(probe: Probe, backend: EmuBackend) -> EmuError | AssertionError | None:
    try:
        probe(backend)
    except (EmuError, AssertionError) as error:
        return error
    return None


def _kind(error: EmuError | AssertionError) -> str:
    """One of `Fault.kinds`."""
    if isinstance(error, EmuError):
        return error.kind
    text = str(error)
    return "wrong" if "above the bound" in text else "nan" if "inf and nan lie elsewhere" in text else "bits"


def test_every_fault_still_applies():
    """An edit of a kernel cannot retire a fault unnoticed."""
    gone, texts = [], {path: (sources.kernels_dir() / path).read_text() for path in {fault.path for fault in FAULTS}}
    for fault in FAULTS:
        try:
            assert fault.edited(texts[fault.path]) != texts[fault.path], f"{fault}: changes nothing"
        except ValueError as error:
            gone.append(str(error))
    assert not gone, "\n".join(gone)


def test_faults_and_probes_belong_together():
    assert [name for name, times in Counter(map(str, FAULTS)).items() if times > 1] == []
    assert {fault.probe for fault in FAULTS} == PROBES.keys()


@pytest.mark.slow
@pytest.mark.parametrize("probe", PROBES)
def test_without_a_fault_nothing_is_caught(probe, tmp_path):
    with _kernels_of(_copy(tmp_path), tmp_path, probe) as backend:
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
    folder = _copy(tmp_path)
    fault.apply(folder)
    with _kernels_of(folder, tmp_path, fault.probe) as backend:
        error = _complaint(PROBES[fault.probe], backend)
    assert error is not None, f"{fault}: probe {fault.probe!r} does not catch it"
    caught[fault] = kind = _kind(error)
    assert kind in fault.kinds.split(), f"{fault}: caught, but as {kind!r}: {error}"
