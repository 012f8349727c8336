"""Kernels with a fault: a copy of their sources, a device of its own that compiles them, and how it was noticed."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from backends import EmuBackend
from emu.device import EmuError
from emu.faults import Fault
from emu.probes import Probe

from flashcupy.cuda import compile as compiling
from flashcupy.cuda import config, serve, sources
from flashcupy.cuda.launch import PlanCache


def copy_kernels(folder: Path) -> Path:
    return shutil.copytree(sources.kernels_dir(), folder / "kernels_cu")


@contextmanager
def kernels_of(folder: Path, cache: Path, backend: EmuBackend) -> Iterator[EmuBackend]:
    """Serve by a new backend, whose kernels come from `folder`, in small tiles."""
    with backend.active(), config.use_tiles("small"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLASHCUPY_EMU_BUILD", "quick")
        patch.setenv("FLASHCUPY_CACHE_DIR", str(cache))
        for module in (sources, compiling):
            patch.setattr(module, "kernels_dir", lambda: folder)
        patch.setattr(compiling, "_slots", {})
        patch.setattr(serve, "_plans", PlanCache())
        yield backend


def complaint(probe: Probe, backend: EmuBackend) -> EmuError | AssertionError | None:
    try:
        probe(backend)
    except (EmuError, AssertionError) as error:
        return error
    return None


def kind_of(error: EmuError | AssertionError) -> str:
    """One of `Fault.kinds`."""
    if isinstance(error, EmuError):
        return error.kind
    text = str(error)
    return "wrong" if "above the bound" in text else "nan" if "inf and nan lie elsewhere" in text else "bits"


def require_all_apply(faults: Iterable[Fault]) -> None:
    """An edit of a kernel cannot retire a fault unnoticed."""
    gone = []
    for fault in faults:
        text = (sources.kernels_dir() / fault.path).read_text()
        try:
            assert fault.edited(text) != text, f"{fault}: changes nothing"
        except ValueError as error:
            gone.append(str(error))
    assert not gone, "\n".join(gone)
