"""What a result depends on besides the code: commit, machine, versions, threads."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from flashcupy.info import collect_info

REPOSITORY = Path(__file__).parent.parent


def environment(threads: int) -> dict[str, Any]:
    """Gather the facts that go with a result on the CPU; nothing in them names a user, a host or a folder."""
    info = collect_info()
    return {
        **when_and_what(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": threads,
        "torch": version_of("torch"),
        **{key: info[key] for key in ("flashcupy", "python", "numpy", "blas", "threadpoolctl")},
    }


def when_and_what() -> dict[str, Any]:
    """Return the date and the commit."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return {"date": now.isoformat(timespec="seconds"), "commit": commit()}


class ForeignLoad:
    """How many cores other processes kept busy since this was made.

    It matters: where a thread of BLAS has to wait for a core, all threads of that call wait with it, and a candidate
    that makes many small BLAS calls looks tens of times slower than it is.
    """

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._before = self._foreign_seconds()

    def cores(self) -> float | None:
        """Return the average; None where the system has no /proc/stat."""
        now = self._foreign_seconds()
        if now is None or self._before is None:
            return None
        return round((now - self._before) / (time.perf_counter() - self._start), 2)

    @staticmethod
    def _foreign_seconds() -> float | None:
        try:
            user, nice, system = map(int, Path("/proc/stat").read_text().split(maxsplit=4)[1:4])
        except OSError:
            return None
        own = os.times()
        return (user + nice + system) / os.sysconf("SC_CLK_TCK") - own.user - own.system


def commit() -> str:
    """Return FLASHCUPY_COMMIT, or the commit checked out, with ``-dirty`` after it where tracked files differ from it.

    The variable is for a copy of the tree that came without its history.
    """
    if given := os.environ.get("FLASHCUPY_COMMIT"):
        return given
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def cpu_model() -> str:
    """Return the processor's name, as far as the system tells."""
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def machine_slug() -> str:
    """Return processor and core count fit for a file name."""
    name = re.sub(r"[^a-z0-9]+", "-", cpu_model().lower()).strip("-")
    return f"{name}-{os.cpu_count()}c"


def version_of(distribution: str) -> str | None:
    """Return the version of a package where it is installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
