"""Environment variables that steer how kernels are compiled; read each time, so that a change counts at once."""

from __future__ import annotations

import logging
import os
from pathlib import Path

LOG = logging.getLogger("flashcupy")


def switch(name: str) -> bool:
    """Whether a variable is "1"; unset, empty and "0" mean no.

    Raises
    ------
    ValueError
        For any other value: a misspelt switch must not pass for one that is off.
    """
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise ValueError(f"{name} is {value!r}, expected 0 or 1")
    return value == "1"


def lineinfo() -> bool:
    """Whether kernels carry source lines for profilers: FLASHCUPY_LINEINFO."""
    return switch("FLASHCUPY_LINEINFO")


def dump_dir() -> Path | None:
    """Where to keep translation units and binaries for a look at them: FLASHCUPY_DUMP."""
    value = os.environ.get("FLASHCUPY_DUMP")
    return Path(value).expanduser().absolute() if value else None


def show_log() -> None:
    """With FLASHCUPY_DEBUG=1, print what the logger "flashcupy" says, unless the program has set that logger up."""
    if switch("FLASHCUPY_DEBUG") and not LOG.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("flashcupy: %(message)s"))
        LOG.addHandler(handler)
        LOG.setLevel(logging.DEBUG)
