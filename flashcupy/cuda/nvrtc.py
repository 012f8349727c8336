"""NVRTC, CUDA's run-time compiler: architecture, options, one compilation, and what the kernel then uses.

The library itself comes as CuPy's thin wrapper of it, `cupy.cuda.nvrtc`, from `cupy_device`. None of this needs a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashcupy.errors import KernelCompileError, UnsupportedError

OLDEST = (7, 0)
# Kernels of these use instructions that only the "a" variant of the architecture has.
_WITH_OWN_FEATURES = {(9, 0)}


@dataclass(frozen=True, slots=True)
class Usage:
    """What one thread of a kernel uses, and what of it did not fit into registers."""

    registers: int
    spill_bytes: int


def arch_for(compute_capability: tuple[int, int], known: Sequence[int], compiler: str) -> str:
    """Choose what to compile for: the GPU's own architecture, or else PTX of the highest below that is known.

    `known` is what the compiler knows, as 10 * major + minor. PTX is translated by the driver when it is loaded.

    Raises
    ------
    UnsupportedError
        If the GPU is older than compute capability 7.0, or than everything the compiler knows.
    """
    major, minor = compute_capability
    if compute_capability < OLDEST:
        raise UnsupportedError(
            f"the GPU has compute capability {major}.{minor}, expected {OLDEST[0]}.{OLDEST[1]} or newer"
        )
    own = 10 * major + minor
    if own in known:
        return f"sm_{own}{'a' if compute_capability in _WITH_OWN_FEATURES else ''}"
    below = [arch for arch in known if arch < own]
    if not below:
        raise UnsupportedError(
            f"{compiler} no longer compiles for compute capability {major}.{minor}, expected an older NVRTC: "
            "pip install nvidia-cuda-nvrtc-cu12"
        )
    return f"compute_{max(below)}"


def options_for(arch: str, include: Path, *, lineinfo: bool) -> tuple[str, ...]:
    """Options of a compilation; neither flush-to-zero nor fast math."""
    # ptxas reports registers and spills. It writes its options into the binary, so they do not vary.
    fixed = ("-std=c++17", f"-arch={arch}", f"-I{include}", "--ptxas-options=-v")
    return (*fixed, "-lineinfo") if lineinfo else fixed


def compile_unit(nvrtc: Any, source: str, entry: str, options: tuple[str, ...]) -> tuple[bytes, str]:
    """Compile one translation unit; returns a cubin, or PTX for a ``compute_`` architecture, and the log.

    Raises
    ------
    KernelCompileError
        If the compiler refuses the unit or an option.
    """
    program = nvrtc.createProgram(source, f"{entry}.cu", (), ())
    try:
        try:
            nvrtc.compileProgram(program, options)
        except nvrtc.NVRTCError as error:
            raise KernelCompileError(entry, options, nvrtc.getProgramLog(program).strip() or str(error)) from None
        log = nvrtc.getProgramLog(program)
        if any(option.startswith("-arch=compute_") for option in options):
            return nvrtc.getPTX(program), log
        # The wrapper takes the last byte for a terminator, but it is the file's own.
        return nvrtc.getCUBIN(program) + b"\0", log
    finally:
        nvrtc.destroyProgram(program)


def usage(log: str) -> Usage | None:
    """Read the log; None for PTX, whose registers are not assigned yet."""
    registers = [int(number) for number in re.findall(r"Used (\d+) registers", log)]
    spills = [int(number) for number in re.findall(r"(\d+) bytes spill (?:stores|loads)", log)]
    return Usage(max(registers), sum(spills)) if registers else None
