"""First-use checks that a process did not survive, or its device: forgiven once, if it is known to be so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fake_device import KernelFaultError
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
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background inherit that it is ignored
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


def fault_in_a_new_process(kernel, monkeypatch):
    """What the next check says that ends in one."""
    new_process(monkeypatch)
    with pytest.raises(FirstUseError, match="KernelFaultError: CUDA_ERROR_ILLEGAL_ADDRESS") as caught:
        ensure(DEVICE, [kernel], Check(KernelFaultError("CUDA_ERROR_ILLEGAL_ADDRESS")))
    return caught.value


def test_one_fault_is_final_for_its_process_alone(kernel, tmp_path, monkeypatch):
    error = fault_in_a_new_process(kernel, monkeypatch)
    assert isinstance(error.__cause__, KernelFaultError)
    assert error.verdict_path is None
    assert "a new process checks it again" in str(error)
    refused = Check()
    with pytest.raises(FirstUseError, match="KernelFaultError"):
        ensure(DEVICE, [kernel], refused)
    assert refused.calls == 0
    new_process(monkeypatch)
    assert not verdicts.is_checked(DEVICE, [kernel])
    ensure(DEVICE, [kernel], Check())
    assert json.loads(verdict_files(tmp_path)[0].read_text())["verdict"] == "good"


def test_a_second_fault_in_one_process_condemns_nothing_for_good(kernel, tmp_path, monkeypatch):
    helper, other = (make_kernel(tmp_path, name, digest * 32) for name, digest in (("lists", "e1"), ("generic", "f2")))
    for main in (kernel, other):
        with pytest.raises(FirstUseError, match="a new process checks it again"):
            ensure(DEVICE, [main, helper], Check(KernelFaultError()))
    new_process(monkeypatch)
    ensure(DEVICE, [kernel, other, helper], Check())


@pytest.mark.parametrize("first", ["fault", "death"])
def test_a_fault_after_another_attempt_condemns_the_kernel(kernel, tmp_path, monkeypatch, first):
    if first == "fault":
        fault_in_a_new_process(kernel, monkeypatch)
    else:
        start_checker(tmp_path, "os._exit(3)").communicate("go\n", timeout=60)
    error = fault_in_a_new_process(kernel, monkeypatch)
    assert [Path(error.verdict_path)] == verdict_files(tmp_path)
    new_process(monkeypatch)
    with pytest.raises(FirstUseError, match=r"KernelFaultError.*delete"):
        ensure(DEVICE, [kernel], Check())


def test_a_death_after_a_fault_condemns_the_kernel(kernel, tmp_path, monkeypatch):
    fault_in_a_new_process(kernel, monkeypatch)
    start_checker(tmp_path, "os._exit(3)").communicate("go\n", timeout=60)
    new_process(monkeypatch)
    with pytest.raises(FirstUseError, match="died while it checked"):
        ensure(DEVICE, [kernel], Check())


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
