"""First-use checks: each binary once per GPU and driver, and no second chance for what died."""

from __future__ import annotations

import errno
import json
import os
import pickle
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fake_device import PROPERTIES, FakeDevice, KernelFaultError
from verdict_kit import DEVICE, Check, ensure, make_kernel, new_process, verdict_files

from flashcupy.cuda import cache, verdicts
from flashcupy.errors import FirstUseError, KernelCompileError, UnsupportedError


@pytest.fixture
def kernel(tmp_path):
    return make_kernel(tmp_path)


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.delenv("FLASHCUPY_CHECK", raising=False)
    new_process(monkeypatch)


def test_a_good_kernel_is_checked_once_and_the_verdict_outlives_the_process(kernel, monkeypatch, tmp_path):
    check = Check()
    assert not verdicts.is_checked(DEVICE, [kernel])
    ensure(DEVICE, [kernel], check)
    ensure(DEVICE, [kernel], check)
    new_process(monkeypatch)
    ensure(DEVICE, [kernel], check)
    assert check.calls == 1
    assert verdicts.is_checked(DEVICE, [kernel])
    (path,) = verdict_files(tmp_path)
    facts = json.loads(path.read_text())
    assert (facts["verdict"], facts["kernel"], facts["gpu"]) == ("good", "fwd_fake", "Fake GPU")


@pytest.mark.parametrize("change", ["binary", "gpu", "driver"])
def test_a_verdict_is_for_one_binary_gpu_and_driver(kernel, tmp_path, change):
    ensure(DEVICE, [kernel], Check())
    device, other = DEVICE, kernel
    if change == "binary":
        other = make_kernel(tmp_path, digest="e1" * 32)
    else:
        field = {"gpu": "name", "driver": "driver"}[change]
        device = FakeDevice(properties=replace(PROPERTIES, **{field: "another"}))
    check = Check()
    ensure(device, [other], check)
    assert check.calls == 1
    assert len(verdict_files(tmp_path)) == 2


def test_a_failed_kernel_is_refused_until_the_file_is_deleted(kernel, monkeypatch, tmp_path):
    check = Check("row 3 is off by 0.5")
    for _ in range(2):
        with pytest.raises(FirstUseError, match=r"kernel fwd_fake .* on Fake GPU: row 3 is off by 0\.5") as caught:
            ensure(DEVICE, [kernel], check)
        new_process(monkeypatch)
    assert check.calls == 1
    error = caught.value
    assert (error.kernel, error.reason) == ("fwd_fake", "row 3 is off by 0.5")
    assert [Path(error.verdict_path)] == verdict_files(tmp_path)
    assert f"delete {error.verdict_path}" in str(error)
    with pytest.raises(FirstUseError):
        verdicts.is_checked(DEVICE, [kernel])
    assert str(pickle.loads(pickle.dumps(error))) == str(error)

    Path(error.verdict_path).unlink()
    ensure(DEVICE, [kernel], Check())


@pytest.mark.parametrize(
    "error",
    [
        *(KeyboardInterrupt(), MemoryError(), RecursionError(), RuntimeError("out of memory"), TypeError()),
        *(KernelCompileError("other", (), ""), FirstUseError("other", "", ""), UnsupportedError()),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_not_the_kernels_fault_leaves_no_verdict(kernel, tmp_path, error):
    with pytest.raises(type(error)):
        ensure(DEVICE, [kernel], Check(error))
    assert verdict_files(tmp_path) == []
    check = Check()
    ensure(DEVICE, [kernel], check)
    assert check.calls == 1


def test_one_run_serves_all_kernels_that_lack_a_verdict(kernel, tmp_path):
    others = [make_kernel(tmp_path, name, digest * 32) for name, digest in (("combine", "e1"), ("lists", "f2"))]
    ensure(DEVICE, [kernel], Check())
    check = Check("wrong")
    with pytest.raises(FirstUseError, match="kernel combine, lists failed") as caught:
        ensure(DEVICE, [kernel, *others], check)
    assert check.calls == 1
    for path in caught.value.verdict_path.split():
        Path(path).unlink()
    assert len(verdict_files(tmp_path)) == 1
    ensure(DEVICE, [kernel, *others], Check())


@pytest.mark.parametrize("written", [True, False], ids=["kept", "in memory"])
def test_a_family_that_fails_does_not_condemn_the_helpers_it_shares(kernel, tmp_path, monkeypatch, written):
    """The next family's check clears the helper, and then the blame of the first is certain."""
    generic, helper = (
        make_kernel(tmp_path, name, digest * 32) for name, digest in (("generic", "e1"), ("lists", "f2"))
    )
    if not written:
        refuse_writing(monkeypatch)
    with pytest.raises(FirstUseError):
        ensure(DEVICE, [kernel, helper], Check("wrong"))
    refused = Check()
    with pytest.raises(FirstUseError):
        ensure(DEVICE, [kernel, helper], refused)

    clearing = Check()
    ensure(DEVICE, [generic, helper], clearing)
    assert clearing.calls == 1
    for asked_for in ([kernel, helper], [kernel], [kernel, generic]):
        with pytest.raises(FirstUseError, match="kernel fwd_fake failed"):
            ensure(DEVICE, asked_for, refused)
    assert refused.calls == 0
    if written:
        new_process(monkeypatch)
        with pytest.raises(FirstUseError, match="kernel fwd_fake failed"):
            ensure(DEVICE, [kernel, helper], refused)


def test_a_helper_that_is_to_blame_fails_every_family(kernel, tmp_path):
    generic, helper = (
        make_kernel(tmp_path, name, digest * 32) for name, digest in (("generic", "e1"), ("lists", "f2"))
    )
    for main in (kernel, generic):
        with pytest.raises(FirstUseError):
            ensure(DEVICE, [main, helper], Check("wrong"))
    for main in (kernel, generic):
        with pytest.raises(FirstUseError):
            ensure(DEVICE, [main, helper], Check())
        ensure(DEVICE, [main], Check())  # alone it is not known to be bad


def test_the_marker_is_there_while_the_check_runs(kernel, tmp_path):
    def run():
        (path,) = verdict_files(tmp_path)
        assert json.loads(path.read_text())["verdict"] == "checking"

    ensure(DEVICE, [kernel], run)


def test_a_check_may_use_the_kernels_it_checks_and_check_others(kernel, tmp_path):
    other, inner = make_kernel(tmp_path, "combine", "e1" * 32), Check()

    def run():
        ensure(DEVICE, [kernel], lambda: pytest.fail("would never end"))
        ensure(DEVICE, [kernel, other], inner)

    ensure(DEVICE, [kernel], run)
    assert inner.calls == 1


def test_what_is_got_ready_for_a_check_comes_before_its_marker(kernel, tmp_path):
    def check():
        assert verdict_files(tmp_path) == []
        raise FirstUseError("another", "Fake GPU", "wrong")

    with pytest.raises(FirstUseError, match="another"):
        verdicts.ensure_checked(DEVICE, [kernel], check)
    assert verdict_files(tmp_path) == []


def test_what_earlier_work_broke_is_not_the_kernels_fault(kernel, tmp_path):
    check = Check()
    with pytest.raises(KernelFaultError):
        ensure(FakeDevice(fault=KernelFaultError("somebody's kernel")), [kernel], check)
    assert check.calls == 0
    assert verdict_files(tmp_path) == []


@pytest.mark.parametrize("outcome", [None, "wrong"])
def test_a_kernel_that_was_not_launched_gets_no_verdict(kernel, tmp_path, outcome):
    other = make_kernel(tmp_path, "combine", "e1" * 32)
    error = RuntimeError if outcome is None else FirstUseError
    match = "kernel combine never launched" if outcome is None else "kernel fwd_fake failed"
    with pytest.raises(error, match=match):
        ensure(DEVICE, [kernel, other], Check(outcome), launched=[kernel])
    assert len(verdict_files(tmp_path)) == 1
    assert not verdicts.is_checked(DEVICE, [other])


def test_threads_that_race_check_once(kernel):
    calls, start = [], threading.Barrier(6)

    def ask():
        start.wait()
        ensure(DEVICE, [kernel], lambda: calls.append(time.sleep(0.05)))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"verdict": "checking"}', b'{"verdict": "fine"}'])
def test_a_file_that_is_no_verdict_is_checked_again(kernel, tmp_path, monkeypatch, content):
    ensure(DEVICE, [kernel], Check())
    verdict_files(tmp_path)[0].write_bytes(content)
    new_process(monkeypatch)
    check = Check()
    ensure(DEVICE, [kernel], check)
    assert check.calls == 1


def refuse_writing(monkeypatch):
    def refuse(path, content):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(cache, "write", refuse)


@pytest.mark.parametrize("outcome", [None, "wrong"])
def test_an_unwritable_folder_keeps_verdicts_in_memory(kernel, monkeypatch, outcome):
    refuse_writing(monkeypatch)
    check = Check(outcome)
    for _ in range(2):
        if outcome is None:
            ensure(DEVICE, [kernel], check)
        else:
            with pytest.raises(FirstUseError, match="wrong; a new process checks it again"):
                ensure(DEVICE, [kernel], check)
    assert check.calls == 1


def test_what_the_project_vouches_for_is_not_checked(kernel, monkeypatch, tmp_path):
    monkeypatch.setattr(verdicts, "_vouched", lambda: {(kernel.digest, "Fake GPU")})
    ensure(DEVICE, [kernel], Check("never run"))
    assert verdict_files(tmp_path) == []
    check = Check()
    ensure(FakeDevice(properties=replace(PROPERTIES, name="Another GPU")), [kernel], check)
    assert check.calls == 1


def test_the_vouched_list_that_ships_can_be_read():
    verdicts._vouched.cache_clear()
    for binary, gpu in verdicts._vouched():
        assert len(binary) == 64
        assert gpu


@pytest.mark.parametrize(
    ("value", "mode"),
    [(None, "first-use"), ("first-use", "first-use"), ("0", "off"), ("off", "off"), ("1", "values")],
)
def test_modes(kernel, monkeypatch, value, mode):
    if value is not None:
        monkeypatch.setenv("FLASHCUPY_CHECK", value)
    assert verdicts.check_mode() == mode
    check = Check()
    ensure(DEVICE, [kernel], check)
    assert check.calls == (mode != "off")


def test_an_unknown_mode_is_named(monkeypatch):
    monkeypatch.setenv("FLASHCUPY_CHECK", "always")
    with pytest.raises(ValueError, match="FLASHCUPY_CHECK is 'always', expected one of first-use, 0, off, 1"):
        verdicts.check_mode()
