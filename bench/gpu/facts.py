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
)
# By their names in newer drivers and in older ones, which refuse each other's.
THROTTLING = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")


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
    """Return what nvidia-smi says of the first GPU; empty where it is missing or fails.

    One field that it does not know makes it refuse the whole query: then each is asked for alone.
    """
    found = _queried(QUERY)
    if not found:
        for field in QUERY:
            found |= _queried((field,))
    if not found:
        return {}
    return found | next(filter(None, (_queried((field,)) for field in THROTTLING)), {})


def _queried(fields: tuple[str, ...]) -> dict[str, str]:
    listing = _output(["nvidia-smi", "-i", "0", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"])
    values = [value.strip() for value in (listing or "").split(",")]
    return dict(zip(fields, values, strict=True)) if listing and len(values) == len(fields) else {}


def properties() -> dict[str, Any]:
    """Return what CuPy says of the device and the versions it uses; the reason where it cannot.

    The name is here too: nvidia-smi may be missing, and numbers the GPUs in its own way.
    """
    try:
        import cupy
        from cupy.cuda import nvrtc, runtime

        found = runtime.getDeviceProperties(cupy.cuda.Device().id)
        return {
            "name": found["name"].decode(),
            "compute_capability": f"{found['major']}.{found['minor']}",
            "multiprocessors": found.get("multiProcessorCount"),
            "l2_bytes": found.get("l2CacheSize"),
            "shared_memory_optin": found.get("sharedMemPerBlockOptin"),
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
