"""A process that was forked from one that had used CUDA cannot use it, and says so."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from flashcupy.cuda import cupy_device, forks

_FORKING = """
import os
from types import SimpleNamespace
from flashcupy.cuda import cupy_device
runtime = SimpleNamespace(getDeviceCount=lambda: 1, CUDARuntimeError=OSError)
cupy_device._cupy = lambda: SimpleNamespace(cuda=SimpleNamespace(runtime=runtime), ndarray=dict)
devices = cupy_device.CupyRuntime()
{use}
child = os.fork()
if child == 0:
    try:
        devices.device(0)
    except RuntimeError as error:
        os._exit(3 if "forked" in str(error) else 4)
    os._exit(0)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
@pytest.mark.parametrize(("use", "status"), [("", 0), ("devices.count()", 3)])
def test_a_forked_child_is_told(use, status):
    """Not one whose parent has used no GPU: it may use one of its own."""
    code = _FORKING.format(use=use)
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == status


@pytest.mark.parametrize("ask", ["read", "device", "count"])
def test_all_ways_in_are_closed(fake, monkeypatch, ask):
    runtime = cupy_device.CupyRuntime()
    monkeypatch.setattr(forks, "_inherited", True)
    arguments = {"read": (object(), "q"), "device": (0,), "count": ()}[ask]
    with pytest.raises(RuntimeError, match=r"forked.*'spawn' or 'forkserver'"):
        getattr(runtime, ask)(*arguments)


def test_asking_for_properties_is_use(fake, monkeypatch):
    monkeypatch.setattr(forks, "_used", False)
    device = cupy_device.CupyRuntime().device(0)
    assert not forks._used
    _ = device.properties
    assert forks._used
