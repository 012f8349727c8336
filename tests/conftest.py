from __future__ import annotations

import os
import shutil

import pytest
from backends import BACKENDS, why_no_gpu
from cupy_kit import fake, host_cupy  # noqa: F401  (fixtures)
from emu.build import COMPILER
from emulated import left_to_others, mark_slow
from gpu_kit import cp  # noqa: F401  (a fixture)

_left_out = pytest.StashKey[str]()


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Run the same test body on every backend this machine has."""
    with request.param.active():
        yield request.param


@pytest.hookimpl(tryfirst=True)  # before -m "not slow" looks
def pytest_collection_modifyitems(config, items):
    mark_slow(items)
    if left := left_to_others(items):
        unwanted = set(left)
        items[:] = [item for item in items if item not in unwanted]
        config.hook.pytest_deselected(items=left)
    if shutil.which(COMPILER) is None and os.environ.get("FLASHCUPY_REQUIRE_ORACLES") != "1":
        for item in filter(_emulates, items):
            item.add_marker(
                pytest.mark.skip(reason=f"the emulator compiles kernels with {COMPILER}, which is not there")
            )
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu and (reason := why_no_gpu()):
        # Hundreds of skips would bury those that say something about the code.
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]
        config.hook.pytest_deselected(items=on_gpu)
        config.stash[_left_out] = f"left out {len(on_gpu)} tests marked gpu: {reason}"


def _emulates(item):
    call = getattr(item, "callspec", None)
    backend = None if call is None else call.params.get("backend")
    names = vars(getattr(item, "module", None) or object)
    return getattr(backend, "name", "").startswith("emu") or not {
        "EmuDevice",
        "EmuBackend",
        "emu",
        "build",
        "first_use_kit",
        "Watched",
    }.isdisjoint(names)


def pytest_report_collectionfinish(config):
    return config.stash.get(_left_out, "")
