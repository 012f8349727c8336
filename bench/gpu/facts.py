"""What a result on a GPU depends on besides the code."""

from __future__ import annotations

import platform
import shutil
import subprocess
from typing import Any

from bench.environment import version_of, when_and_what
from flashcupy import __version__

PACKAGES = ("numpy", "ml_dtypes", "torch", "triton", "jax", "jaxlib", "nvidia-cudnn-cu13", "nvidia-cublas")
CUPY = ("cupy-cuda13x", "cupy-cuda12x", "cupy")
NVRTC = ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12")
QUERY = (
    "name",
    "driver_version",
    "memory.total",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "clocks.max.mem",
    "power.limit",
    "temperature.gpu",
    "clocks_throttle_reasons.active",
)


def facts() -> dict[str, Any]:
    """Gather date, commit, GPU and versions; nothing in them names a user, a host or a folder."""
    versions = {name: version_of(name) for name in (*PACKAGES, *CUPY, *NVRTC)}
    return {
        **when_and_what(),
        "flashcupy": __version__,
        "python": platform.python_version(),
        "gpu": {**smi(), **properties()},
        "versions": {name: version for name, version in versions.items() if version},
        "nvcc": nvcc(),
    }


def smi() -> dict[str, str]:
    """Return what nvidia-smi says of the first GPU; empty where it is missing or fails."""
    listing = _output(["nvidia-smi", "-i", "0", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader"])
    values = [value.strip() for value in (listing or "").split(",")]
    return dict(zip(QUERY, values, strict=True)) if len(values) == len(QUERY) else {}


def properties() -> dict[str, Any]:
    """Return what CuPy says of the device and the versions it uses; the reason where it cannot."""
    try:
        import cupy
        from cupy.cuda import nvrtc, runtime

        found = runtime.getDeviceProperties(cupy.cuda.Device().id)
        return {
            "compute_capability": f"{found['major']}.{found['minor']}",
            "multiprocessors": found["multiProcessorCount"],
            "l2_bytes": found["l2CacheSize"],
            "shared_memory_optin": found["sharedMemPerBlockOptin"],
            "cuda_runtime": runtime.runtimeGetVersion(),
            "cuda_driver": runtime.driverGetVersion(),
            "nvrtc": ".".join(map(str, nvrtc.getVersion())),
        }
    except Exception as error:  # no CuPy, no driver: the rest is still worth having
        return {"cupy_says": f"{type(error).__name__}: {error}"}


def nvcc() -> str | None:
    """Return the last line of ``nvcc --version``."""
    text = _output(["nvcc", "--version"])
    return text.strip().splitlines()[-1] if text else None


def _output(command: list[str]) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
