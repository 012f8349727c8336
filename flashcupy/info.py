"""What ``flashcupy info`` tells: versions, backends found, caches and threads."""

from __future__ import annotations

import platform
import shutil
import subprocess
from importlib import metadata
from typing import Any

import numpy as np
import threadpoolctl

from flashcupy._version import __version__
from flashcupy.cpu import num_threads
from flashcupy.paths import cache_dir

OPTIONAL_PACKAGES = ("ml_dtypes", "scipy", "matplotlib")
CUPY_DISTRIBUTIONS = ("cupy-cuda13x", "cupy-cuda12x", "cupy")


def collect_info() -> dict[str, Any]:
    """Gather what ``flashcupy info`` prints; never raises, and starts nothing on a GPU."""
    return {
        "flashcupy": __version__,
        "python": f"{platform.python_version()} ({platform.system()} {platform.machine()})",
        "numpy": np.__version__,
        "blas": [
            {key: library.get(key) for key in ("internal_api", "version", "architecture", "num_threads")}
            for library in threadpoolctl.threadpool_info()
            if library["user_api"] == "blas"
        ],
        "threadpoolctl": metadata.version("threadpoolctl"),
        "optional": {name: _version_or_none(name) for name in OPTIONAL_PACKAGES},
        "backends": {"numpy": {"usable": True, "threads": num_threads()}, "cuda": _cuda_facts()},
        "cache": _cache_facts(),
    }


def _cuda_facts() -> dict[str, Any]:
    cupy = next((f"{name} {version}" for name in CUPY_DISTRIBUTIONS if (version := _version_or_none(name))), None)
    nvrtc, why_not = _try_cuda()
    return {"usable": why_not is None, "why_not": why_not, "cupy": cupy, "nvrtc": nvrtc, "gpus": _gpus()}


def _try_cuda() -> tuple[str | None, str | None]:
    """The version of NVRTC, and why the first GPU cannot be used; None for what is missing."""
    nvrtc = None
    # Whatever a broken installation raises is the answer.
    try:
        from flashcupy.cuda import cupy_device

        nvrtc = cupy_device.compiler_version().removeprefix("NVRTC ")
        _ = cupy_device.CupyRuntime().device(0).properties
    except Exception as error:
        return nvrtc, str(error).partition("\n")[0] or type(error).__name__
    return nvrtc, None


def _cache_facts() -> dict[str, Any]:
    from flashcupy.cuda import cache

    kernels, size = cache.usage()
    try:
        folder = str(cache_dir())
    except OSError as error:
        folder = f"none: {error}"
    return {"dir": folder, "kernels": kernels, "bytes": size}


def _version_or_none(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    """Name and driver of each GPU as nvidia-smi lists them; empty where it is missing or fails."""
    nvidia_smi = shutil.which("nvidia-smi")
    if nvidia_smi is None:
        return []
    query = [nvidia_smi, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        listing = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [", driver ".join(line.split(", ")) for line in listing.splitlines()]


def format_info(facts: dict[str, Any]) -> str:
    """Lay out the facts of `collect_info` as aligned text."""
    cuda, cache = facts["backends"]["cuda"], facts["cache"]
    threads = facts["backends"]["numpy"]["threads"]
    rows = [(name, facts[name]) for name in ("flashcupy", "python", "numpy")]
    for blas in facts["blas"]:
        details = f"{blas['version']}, {blas['architecture']}, {blas['num_threads']} threads"
        rows.append(("blas", f"{blas['internal_api']} {details}"))
    rows.append(("threadpoolctl", facts["threadpoolctl"]))
    rows += [(name, version or "not installed") for name, version in facts["optional"].items()]
    rows += [
        ("NumPy backend", f"usable, {threads} thread{'s' if threads != 1 else ''}"),
        ("CUDA backend", "usable" if cuda["usable"] else f"not usable: {cuda['why_not']}"),
        ("  CuPy", cuda["cupy"] or "not installed"),
        ("  NVRTC", cuda["nvrtc"] or "not found"),
        ("  GPU", "; ".join(cuda["gpus"]) or "none found (no answer from nvidia-smi)"),
        ("cache", cache["dir"]),
        ("  kernels", f"{cache['kernels']}, {cache['bytes'] / 2**20:.1f} MiB"),
    ]
    return "\n".join(f"{name:<14} {value}" for name, value in rows)
