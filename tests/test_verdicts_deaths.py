"""First-use checks that a process did not survive: forgiven once, and only where it is known to be dead."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from verdict_kit import DEVICE, Check, ensure, make_kernel, new_process, verdict_files

from flashcupy.cuda import processes, verdicts
from flashcupy.errors import FirstUseError


@pytest.fixture
def kernel(tmp_path):
    return make_kernel(tmp_path)


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.delenv("FLASHCUPY_CHECK", raising=False)
    new_process(monkeypatch)


CHECKER = """
import os, sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from fake_device import FakeDevice
from verdict_kit import ensure, make_kernel
def run():
    print("checking", flush=True)
    sys.stdin.readline()
    {end}
ensure(FakeDevice(), [make_kernel(Path({folder!r}))], run)
"""


def start_checker(folder, end="return None"):
    code = CHECKER.format(tests=str(Path(__file__).parent), folder=str(folder), end=end)
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "checking\n"
    return process


@pytest.mark.parametrize("death", ["os._exit(3)", "os.kill(os.getpid(), 9)"])
def test_one_death_during_a_check_is_forgiven(kernel, tmp_path, death):
    start_checker(tmp_path, death).communicate("go\n", timeout=60)
    assert not verdicts.is_checked(DEVICE, [kernel])
    check = Check()
    ensure(DEVICE, [kernel], check)
    assert check.calls == 1
    assert verdicts.is_checked(DEVICE, [kernel])


def test_a_process_that_is_interrupted_takes_its_marker_back(kernel, tmp_path):
    for _ in range(2):
        process = start_checker(tmp_path, "time.sleep(60)")
        process.stdin.write("go\n")
        process.stdin.flush()
        process.send_signal(signal.SIGINT)  # what `timeout --signal=INT` sends
        process.communicate(timeout=60)
        assert process.returncode != 0
        assert not verdict_files(tmp_path)
    check = Check()
    ensure(DEVICE, [kernel], check)
    assert check.calls == 1


def test_a_second_death_condemns_the_kernel(kernel, tmp_path):
    for _ in range(2):
        process = start_checker(tmp_path, "os.kill(os.getpid(), 9)")
        process.communicate("go\n", timeout=60)
    check = Check()
    for _ in range(2):
        with pytest.raises(FirstUseError, match=f"process {process.pid} died while it checked .* before; delete"):
            ensure(DEVICE, [kernel], check)
    assert check.calls == 0


def test_a_live_process_that_checks_does_not(kernel, tmp_path, monkeypatch):
    process = start_checker(tmp_path)
    try:
        check = Check()
        ensure(DEVICE, [kernel], check)
        assert check.calls == 1
    finally:
        process.communicate("go\n", timeout=60)
    assert process.returncode == 0
    new_process(monkeypatch)
    assert verdicts.is_checked(DEVICE, [kernel])


def marker(folder, kernel, monkeypatch, **process):
    """The file that a process with this identity would have left."""
    identity = {**processes.this_process(), **process}
    with monkeypatch.context() as patch:
        patch.setattr(verdicts, "this_process", lambda: identity)
        patch.setattr(Path, "unlink", lambda path: None)  # killed, it could not take its marker back
        with pytest.raises(SystemExit):
            ensure(DEVICE, [kernel], Check(SystemExit()))
    (path,) = verdict_files(folder)
    assert json.loads(path.read_text())["verdict"] == "checking"


def test_a_marker_of_another_host_says_nothing(kernel, tmp_path, monkeypatch):
    marker(tmp_path, kernel, monkeypatch, host="elsewhere", pid=1, started="long ago")
    check = Check()
    ensure(DEVICE, [kernel], check)
    assert check.calls == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux's /proc tells when a process started")
def test_a_later_process_of_the_same_number_is_another_one(kernel, tmp_path, monkeypatch):
    for _ in range(2):
        marker(tmp_path, kernel, monkeypatch, started="before the last boot")
    with pytest.raises(FirstUseError, match="died"):
        ensure(DEVICE, [kernel], Check())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="zombies are told from Linux's /proc")
def test_a_dead_process_that_nobody_waited_for_is_dead(kernel, tmp_path):
    start_checker(tmp_path, "os._exit(3)").communicate("go\n", timeout=60)
    process = start_checker(tmp_path, "os._exit(3)")
    process.stdin.close()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is dead, and still has its number
    try:
        with pytest.raises(FirstUseError, match="died"):
            ensure(DEVICE, [kernel], Check())
    finally:
        process.wait()
        process.stdout.close()


def test_without_start_times_the_number_decides(monkeypatch):
    monkeypatch.setattr(processes, "_started", lambda pid: "")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert processes.is_dead({**processes.this_process(), "pid": gone.pid})
    assert not processes.is_dead(processes.this_process())
