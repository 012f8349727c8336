"""Telling whether the process that left a file is still there."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import TypedDict


class Identity(TypedDict):
    """A process; `started` tells it from a later one that got its number, "" where the system does not say."""

    host: str
    pid: int
    started: str


def this_process() -> Identity:
    pid = os.getpid()
    return {"host": _host(), "pid": pid, "started": _started(pid)}


def is_dead(process: Identity) -> bool:
    """Whether the process was of this host and is gone; False where that cannot be told."""
    if process["host"] != _host():
        return False
    pid = process["pid"]
    if _started(pid) != process["started"]:
        return True
    if sys.platform == "win32":
        return False  # there os.kill(pid, 0) is Ctrl-C to the process
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # someone else's
        return False
    return False


def _host() -> str:
    """Where process numbers mean the same: containers that share a host's name may count their processes apart."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> str:
    """Boot and clock tick at which a process started, from Linux's /proc; "" for one that is not there or a zombie."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # After the name, in parentheses and of any characters, come field 3, the state, and on; 22 is the start.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else f"{boot} {fields[19]}"
    except (OSError, IndexError):
        return ""
