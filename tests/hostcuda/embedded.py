"""A Python whose programs get the stand-in without being told: one that a C program starts takes no plugin."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

from hostcuda import build

_AT_START = """\
import os
from hostcuda import faults, preload

preload.install()
if "HOSTCUDA_FAULT" in os.environ:
    faults.pytest_configure()
"""


def python_in(folder: Path) -> Path:
    """Make a virtual environment with this one's packages and the stand-in; returns its interpreter."""
    build.site()  # which would have to be built by the interpreter that waits for it
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    ask = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip())
    # Links, not a line in a .pth file: CuPy looks for NVIDIA's libraries in the environment's own folder alone.
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        (packages / path.name).symlink_to(path)
    (packages / "hostcuda_tests.pth").write_text(f"{Path(__file__).parent.parent}\n")
    (packages / "sitecustomize.py").write_text(_AT_START)
    return python
