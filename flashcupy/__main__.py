"""The ``flashcupy`` command: what is installed, what was found, what will be used."""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np
import threadpoolctl

from flashcupy._version import __version__
from flashcupy.cpu import num_threads
from flashcupy.paths import cache_dir

OPTIONAL_PACKAGES = ("ml_dtypes", "scipy", "matplotlib")
CUPY_DISTRIBUTIONS = ("cupy-cuda13x", "cupy-cuda12x", "cupy")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="flashcupy", description="FlashAttention for NumPy and CuPy arrays.")
    parser.add_argument("--version", action="version", version=f"flashcupy {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="versions, backends found, caches and threads")
    info.add_argument("--json", action="store_true", help="print JSON instead of text")
    arguments = parser.parse_args(argv)

    facts = collect_info()
    print(json.dumps(facts, indent=2) if arguments.json else format_info(facts))
    return 0


def collect_info() -> dict[str, Any]:
    """Gather what ``flashcupy info`` prints, without importing CuPy or touching a GPU."""
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
        "cache_dir": str(cache_dir()),
    }


def _cuda_facts() -> dict[str, Any]:
    cupy = next((f"{name} {version}" for name in CUPY_DISTRIBUTIONS if (version := _version_or_none(name))), None)
    return {
        "usable": False,
        "why_not": f"flashcupy {__version__} has the NumPy backend only",
        "cupy": cupy,
        "gpus": _gpus(),
    }


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
    cuda = facts["backends"]["cuda"]
    threads = facts["backends"]["numpy"]["threads"]
    rows = [(name, facts[name]) for name in ("flashcupy", "python", "numpy")]
    for blas in facts["blas"]:
        details = f"{blas['version']}, {blas['architecture']}, {blas['num_threads']} threads"
        rows.append(("blas", f"{blas['internal_api']} {details}"))
    rows.append(("threadpoolctl", facts["threadpoolctl"]))
    rows += [(name, version or "not installed") for name, version in facts["optional"].items()]
    rows += [
        ("NumPy backend", f"usable, {threads} thread{'s' if threads != 1 else ''}"),
        ("CUDA backend", f"not usable: {cuda['why_not']}"),
        ("  CuPy", cuda["cupy"] or "not installed"),
        ("  GPU", "; ".join(cuda["gpus"]) or "none found (no answer from nvidia-smi)"),
        ("kernel cache", facts["cache_dir"]),
    ]
    return "\n".join(f"{name:<14} {value}" for name, value in rows)


if __name__ == "__main__":
    raise SystemExit(main())
