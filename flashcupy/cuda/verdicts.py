"""First-use checks: a binary that is new on a GPU runs once on a small problem, and the verdict is kept beside it.

A marker is written before the check. If the process then dies or is killed, because the kernel broke its context or
never returned, the marker is left behind, and who finds it takes the check for failed.

A check runs several kernels, some of which other checks need too. A good one clears them all; a failed one makes all of
them suspects, and condemns a kernel only where no suspect is left outside what is asked for. So a family that fails
does not take down the helpers that it shares with the next.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

from flashcupy.cuda import cache
from flashcupy.cuda.compile import LoadedKernel
from flashcupy.cuda.device import Device
from flashcupy.cuda.environment import LOG
from flashcupy.cuda.processes import is_dead, this_process
from flashcupy.cuda.sources import fields_digest
from flashcupy.errors import FirstUseError, KernelCompileError, NotWarmedUpError

Mode = Literal["off", "first-use", "values"]
_MODES: dict[str, Mode] = {"": "first-use", "first-use": "first-use", "0": "off", "off": "off", "1": "values"}

# Errors of preparing the check, which say nothing of the kernel that was to be checked.
_NOT_THE_KERNELS = (KernelCompileError, FirstUseError, NotWarmedUpError, NotImplementedError)

_lock = threading.RLock()  # one check at a time; a check may load, and so check, further kernels
# By the path of the verdict, whether or not a file is there.
_good: set[Path] = set()
_running: set[Path] = set()
_unwritten: dict[Path, _Verdict] = {}


class _Verdict(NamedTuple):
    """`suspects` are the verdicts of all kernels that ran in a check that failed."""

    good: bool
    reason: str
    suspects: frozenset[Path]


def check_mode() -> Mode:
    """What FLASHCUPY_CHECK asks for.

    Returns
    -------
    {"first-use", "off", "values"}
        Unset or "first-use": check what is new on this GPU. "0" or "off": never check. "1": check what is new, and
        validate values in device memory at each call, with a synchronisation.

    Raises
    ------
    ValueError
        For any other value.
    """
    value = os.environ.get("FLASHCUPY_CHECK", "")
    if value not in _MODES:
        raise ValueError(f"FLASHCUPY_CHECK is {value!r}, expected one of {', '.join(filter(None, _MODES))}")
    return _MODES[value]


def ensure_checked(device: Device, kernels: Sequence[LoadedKernel], run: Callable[[], str | None]) -> None:
    """Run a check once for those kernels that have no verdict on this GPU and driver.

    Parameters
    ----------
    device : Device
    kernels : sequence of LoadedKernel
    run : callable
        Launches the kernels on a small problem; returns None if the results are right, or else what is wrong. It may
        use `ensure_checked` in turn: the kernels being checked count as good meanwhile.

    Raises
    ------
    FirstUseError
        If a kernel failed, now or earlier: `run` said so or raised RuntimeError, as CUDA errors are, or a process died
        while it checked the kernel.
    ValueError
        For a FLASHCUPY_CHECK that is none.

    Other exceptions of `run` pass through and leave no verdict.
    """
    if check_mode() == "off":
        return
    subjects = _subjects(device, kernels)
    if all(subject.path in _good for subject in subjects):
        return
    with _lock:
        unchecked = _unchecked(subjects)
        if unchecked:
            _check(unchecked, run)


def is_checked(device: Device, kernels: Sequence[LoadedKernel]) -> bool:
    """Whether `ensure_checked` would return without a check: what is asked while a CUDA graph is captured.

    Raises
    ------
    FirstUseError, ValueError
        As `ensure_checked` does, for a verdict that is known.
    """
    if check_mode() == "off":
        return True
    with _lock:
        return not _unchecked(_subjects(device, kernels))


@dataclass(frozen=True, slots=True)
class _Subject:
    """A binary on a GPU, and where its verdict is kept."""

    kernel: str
    binary: str
    gpu: str
    path: Path

    def is_good(self) -> bool:
        if self.path in _good or self.path in _running:
            return True
        verdict = _read(self.path)
        good = verdict.good if verdict is not None else (self.binary, self.gpu) in _vouched()
        if good:
            _good.add(self.path)
        return good

    def write(self, verdict: str, group: Sequence[_Subject], reason: str | None = None) -> bool:
        """Keep a verdict beside the binary; False if the folder takes no file."""
        facts = {
            "verdict": verdict,
            "reason": reason,
            "kernel": self.kernel,
            "binary": self.binary,
            "gpu": self.gpu,
            "checked_together": [str(subject.path) for subject in group],
            "process": this_process(),
        }
        try:
            cache.write(self.path, json.dumps(facts, indent=2).encode())
        except OSError as error:
            LOG.debug("no verdict is kept at %s: %s", self.path, error)
            return False
        return True

    def withdraw(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink()


def _subjects(device: Device, kernels: Sequence[LoadedKernel]) -> list[_Subject]:
    properties = device.properties
    subjects = []
    for kernel in kernels:
        identity = {"binary": kernel.digest, "gpu": properties.name, "driver": properties.driver}
        digest = fields_digest({label: value.encode() for label, value in identity.items()})
        path = kernel.path.with_name(f"{digest[:32]}.verdict")
        subjects.append(_Subject(kernel.name, kernel.digest, properties.name, path))
    return subjects


def _unchecked(subjects: Sequence[_Subject]) -> list[_Subject]:
    """Those that are not known to be good.

    Raises
    ------
    FirstUseError
        If a check has failed and every kernel of it that may be to blame is among them.
    """
    unchecked = [subject for subject in subjects if not subject.is_good()]
    asked_for = {subject.path for subject in unchecked}
    for subject in unchecked:
        verdict = _read(subject.path)
        if verdict is None:
            continue
        suspects = {path for path in verdict.suspects if not _is_good(path)}
        if suspects <= asked_for:
            files = " ".join(str(path) for path in sorted(suspects) if path not in _unwritten)
            raise FirstUseError(subject.kernel, subject.gpu, verdict.reason, files or None)
    return unchecked


def _is_good(path: Path) -> bool:
    verdict = _read(path)
    return path in _good or (verdict is not None and verdict.good)


def _check(subjects: Sequence[_Subject], run: Callable[[], str | None]) -> None:
    for subject in subjects:
        subject.write("checking", subjects)
    paths = {subject.path for subject in subjects}
    _running.update(paths)
    try:
        reason = run()
    except BaseException as error:
        if not isinstance(error, RuntimeError) or isinstance(error, _NOT_THE_KERNELS):
            for subject in subjects:
                subject.withdraw()
            raise
        _fail(subjects, f"{type(error).__name__}: {error}", error)
    finally:
        _running.difference_update(paths)
    if reason is not None:
        _fail(subjects, reason)
    for subject in subjects:
        subject.write("good", subjects)
        _unwritten.pop(subject.path, None)
    _good.update(paths)
    LOG.debug("checked %s", ", ".join(subject.kernel for subject in subjects))


def _fail(subjects: Sequence[_Subject], reason: str, cause: BaseException | None = None) -> NoReturn:
    files = []
    for subject in subjects:
        if subject.write("failed", subjects, reason):
            files.append(str(subject.path))
        else:
            _unwritten[subject.path] = _Verdict(False, reason, frozenset(other.path for other in subjects))
    names = ", ".join(subject.kernel for subject in subjects)
    raise FirstUseError(names, subjects[0].gpu, reason, " ".join(files) or None) from cause


def _read(path: Path) -> _Verdict | None:
    """The verdict a file keeps, if it does; a check that is under way elsewhere is no verdict."""
    if path in _unwritten:
        return _unwritten[path]
    try:
        facts = json.loads(path.read_bytes())
        verdict, reason, process = facts["verdict"], str(facts["reason"]), facts["process"]
        suspects = frozenset(map(Path, facts["checked_together"])) | {path}
        if verdict == "checking" and is_dead(process):
            return _Verdict(False, f"process {process['pid']} died while it checked the kernel", suspects)
    except (OSError, ValueError, KeyError, TypeError):  # missing, or not a verdict
        return None
    return _Verdict(verdict == "good", reason, suspects) if verdict in ("good", "failed") else None


@functools.cache
def _vouched() -> frozenset[tuple[str, str]]:
    """(binary digest, GPU name) of what the project's own results have shown to be right."""
    entries: list[dict[str, Any]] = json.loads(Path(__file__).with_name("vouched.json").read_bytes())
    return frozenset((entry["binary"], entry["gpu"]) for entry in entries)
