"""First-use checks: a binary that is new on a GPU runs once on a small problem, and the verdict is kept beside it.

A marker is written before the check. If the process then dies or is killed, because the kernel broke its context or
never returned, the marker is left behind; so it is if the device reports a fault. It may have been the doing of
somebody else who uses the device, so another process makes the check once more; a second fault, or the marker of a
second death, fails it.

A check runs several kernels, some of which other checks need too. A good one clears those that it launched; a failed
one makes all of these suspects, and condemns a kernel only where no suspect is left outside what is asked for. So a
wrong dq does not take down the row sums that dk and dv need as well.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

from flashcupy.cuda import cache
from flashcupy.cuda.compile import LoadedKernel
from flashcupy.cuda.device import Device
from flashcupy.cuda.environment import LOG
from flashcupy.cuda.processes import is_dead, this_process
from flashcupy.cuda.sources import fields_digest
from flashcupy.errors import FirstUseError

Mode = Literal["off", "first-use", "values"]
_MODES: dict[str, Mode] = {"": "first-use", "first-use": "first-use", "0": "off", "off": "off", "1": "values"}

# Gets ready all that the launches need besides the kernels to be checked; what it returns launches them on a small
# problem and tells None if the results are right, or else what is wrong.
Check = Callable[[], Callable[[], str | None]]

_MOST_ATTEMPTS = 2  # that end in a death or a fault
_lock = threading.RLock()  # one check at a time; a check may load, and so check, further kernels
# By the path of the verdict, whether or not a file is there.
_good: set[Path] = set()
_running: set[Path] = set()
_unwritten: dict[Path, _Verdict] = {}
# Digests of what the check that runs in this context has launched.
_launched: ContextVar[set[str] | None] = ContextVar("launched", default=None)


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


def ensure_checked(device: Device, kernels: Sequence[LoadedKernel], check: Check) -> None:
    """Run a check once for those kernels that have no verdict on this GPU and driver.

    Parameters
    ----------
    device : Device
    kernels : sequence of LoadedKernel
    check : Check
        Both what it does itself and the launches may use `ensure_checked` in turn, for other kernels; those being
        checked count as good during their launches.

    Raises
    ------
    FirstUseError
        If a kernel failed, now or earlier: its results were wrong, the device reports a fault, or two processes died
        while they checked it. After a first fault another process checks it again.
    ValueError
        For a FLASHCUPY_CHECK that is none.
    RuntimeError
        If the check is right, but never launched one of the kernels: that one gets no verdict.

    Other exceptions of `check` and of the launches pass through and leave no verdict.
    """
    if check_mode() == "off":
        return
    subjects = _subjects(device, kernels)
    if all(subject.path in _good for subject in subjects):
        return
    with _lock:
        unchecked = _unchecked(subjects)
        if unchecked:
            launch = check()
            device.synchronize()  # what earlier work did wrong is not the kernel's fault
            _run(device, unchecked, launch)


def note_launches(kernels: Iterable[LoadedKernel]) -> None:
    """Tell the check that runs in this context, if there is one, what is launched: only that can it clear or blame."""
    launched = _launched.get()
    if launched is not None:
        launched.update(kernel.digest for kernel in kernels)


def is_checking() -> bool:
    """Whether the caller is one of the launches of a check."""
    return _launched.get() is not None


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

    def write(
        self, verdict: str, group: Sequence[_Subject], *, reason: str | None = None, attempt: int | None = None
    ) -> bool:
        """Keep a verdict beside the binary; False if the folder takes no file."""
        facts = {
            "verdict": verdict,
            "reason": reason,
            "attempt": attempt,
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


def _run(device: Device, subjects: Sequence[_Subject], launch: Callable[[], str | None]) -> None:
    attempts = {subject.path: _next_attempt(subject.path) for subject in subjects}
    for subject in subjects:
        subject.write("checking", subjects, attempt=attempts[subject.path])
    paths = {subject.path for subject in subjects}
    _running.update(paths)
    launched: set[str] = set()
    token = _launched.set(launched)
    cause: BaseException | None = None
    try:
        reason = launch()
    except BaseException as error:
        if not device.is_kernel_fault(error):
            _withdraw(subjects)
            raise
        reason, cause = f"{type(error).__name__}: {error}", error
    finally:
        _launched.reset(token)
        _running.difference_update(paths)
    reached = [subject for subject in subjects if subject.binary in launched]
    _withdraw([subject for subject in subjects if subject not in reached])
    if reason is not None and reached:
        _fail(reached, reason, cause, attempts)
    _clear(reached)
    if len(reached) < len(subjects):
        missed = ", ".join(subject.kernel for subject in subjects if subject not in reached)
        raise RuntimeError(f"the first-use check of kernel {missed} never launched it") from cause


def _next_attempt(path: Path) -> int:
    """1, or one more than the attempt that ended in a death or a fault."""
    try:
        facts = json.loads(path.read_bytes())
        if facts["verdict"] not in ("checking", "fault"):
            return 1
        # A fault of this process counts once, whatever else it checks with the kernel.
        over = path not in _unwritten if facts["verdict"] == "fault" else is_dead(facts["process"])
        return int(facts["attempt"]) + over
    except (OSError, ValueError, KeyError, TypeError):
        return 1


def _withdraw(subjects: Sequence[_Subject]) -> None:
    for subject in subjects:
        with contextlib.suppress(OSError):
            subject.path.unlink()


def _clear(subjects: Sequence[_Subject]) -> None:
    for subject in subjects:
        subject.write("good", subjects)
        _unwritten.pop(subject.path, None)
        _good.add(subject.path)
    LOG.debug("checked %s", ", ".join(subject.kernel for subject in subjects))


def _fail(
    subjects: Sequence[_Subject], reason: str, cause: BaseException | None, attempts: Mapping[Path, int]
) -> NoReturn:
    """Keep that a check failed; `cause` is the fault that the device reported, if that is why."""
    files = []
    for subject in subjects:
        attempt = attempts[subject.path]
        is_final = cause is None or attempt >= _MOST_ATTEMPTS
        if subject.write("failed" if is_final else "fault", subjects, reason=reason, attempt=attempt) and is_final:
            files.append(str(subject.path))
        else:  # for this process, whose device is broken, it is final
            _unwritten[subject.path] = _Verdict(False, reason, frozenset(other.path for other in subjects))
    names = ", ".join(subject.kernel for subject in subjects)
    raise FirstUseError(names, subjects[0].gpu, reason, " ".join(files) or None) from cause


def _read(path: Path) -> _Verdict | None:
    """The verdict a file keeps, if it does; a check under way elsewhere, one death or one fault is no verdict."""
    if path in _unwritten:
        return _unwritten[path]
    try:
        facts = json.loads(path.read_bytes())
        verdict, reason, process = facts["verdict"], str(facts["reason"]), facts["process"]
        suspects = frozenset(map(Path, facts["checked_together"])) | {path}
        if verdict == "checking" and facts["attempt"] >= _MOST_ATTEMPTS and is_dead(process):
            died = f"process {process['pid']} died while it checked the kernel, which another did not survive before"
            return _Verdict(False, died, suspects)
    except (OSError, ValueError, KeyError, TypeError):  # missing, or not a verdict
        return None
    return _Verdict(verdict == "good", reason, suspects) if verdict in ("good", "failed") else None


@functools.cache
def _vouched() -> frozenset[tuple[str, str]]:
    """(binary digest, GPU name) of what the project's own results have shown to be right."""
    entries: list[dict[str, Any]] = json.loads(Path(__file__).with_name("vouched.json").read_bytes())
    return frozenset((entry["binary"], entry["gpu"]) for entry in entries)
