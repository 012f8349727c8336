"""Versions of the driver."""

from __future__ import annotations

import re
from pathlib import Path


def dotted(version: int) -> str:
    """A version as CUDA counts it, in the usual form."""
    return f"{version // 1000}.{version % 1000 // 10}"


def driver_version(cuda: int) -> str:
    """The CUDA version of the driver, and where Linux tells it, the release: another release may compile otherwise."""
    try:
        module = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        module = ""
    release = re.search(r"^NVRM version:.*?\s(\d+(?:\.\d+)+)\s", module, re.MULTILINE)
    return f"CUDA {dotted(cuda)}" + (f", {release[1]}" if release else "")
