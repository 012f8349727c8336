"""NVRTC without a GPU and without CuPy: what a kernel compiles to, and the registers, spills and shared memory of it.

``python tests/nvrtc.py --help`` prints the table of every configuration.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import hashlib
import os
import pickle
import re
import shutil
import site
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flashcupy.cuda.nvrtc import options_for
from flashcupy.cuda.sources import sources_digest

KERNELS = Path(__file__).parent.parent / "kernels_cu"
KEPT = Path(__file__).parent / "build" / "nvrtc"

# Where the wheels nvidia-cuda-nvrtc-cu12 and nvidia-cuda-nvrtc put the library, by major version.
WHEEL_FOLDERS = {12: "nvidia/cuda_nvrtc/lib", 13: "nvidia/cu13/lib"}
WHEELS = {12: "nvidia-cuda-nvrtc-cu12", 13: "nvidia-cuda-nvrtc"}

# CUDA C++ Programming Guide, "Compute Capabilities": the most shared memory a block may opt in to.
SHARED_LIMITS = {
    "sm_70": 96 << 10,
    "sm_75": 64 << 10,
    "sm_80": 163 << 10,
    "sm_86": 99 << 10,
    "sm_89": 99 << 10,
    "sm_90a": 227 << 10,
    "sm_100": 227 << 10,
    "sm_120": 99 << 10,
}
# The same of a multiprocessor, whose every block takes a kibibyte more from compute capability 8.0 on; and its threads.
SHARED_OF_BLOCK = {arch: 0 if arch in ("sm_70", "sm_75") else 1 << 10 for arch in SHARED_LIMITS}
SHARED_OF_MULTIPROCESSOR = {arch: limit + SHARED_OF_BLOCK[arch] for arch, limit in SHARED_LIMITS.items()}
THREADS_OF_MULTIPROCESSOR = dict.fromkeys(SHARED_LIMITS, 2048) | {"sm_75": 1024}
THREADS_OF_MULTIPROCESSOR |= dict.fromkeys(("sm_86", "sm_89", "sm_120"), 1536)
REGISTERS = 64 << 10  # of a multiprocessor
REGISTER_UNIT = 8  # a thread's registers are given out in eights
STACK_UNIT = 16  # bytes


class CompileError(Exception):
    """NVRTC refused a source; the message is its log."""


@dataclass(frozen=True)
class Usage:
    """What ptxas reports of one entry; device functions that were not inlined count in."""

    registers: int
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0
    static_shared: int = 0

    def registers_of_block(self, threads: int) -> int:
        """Registers that a block of `threads` occupies."""
        warps = -(-threads // 32)
        return -(-self.registers // REGISTER_UNIT) * REGISTER_UNIT * 32 * warps

    @property
    def arrays(self) -> int:
        """Bytes of local memory that no spill accounts for: arrays that are indexed at run time, calls."""
        return max(0, self.stack - -(-self.spill_stores // STACK_UNIT) * STACK_UNIT)


@dataclass(frozen=True)
class Compiled:
    cubin: bytes
    log: str
    seconds: float
    usage: dict[str, Usage] = field(default_factory=dict)


class Nvrtc:
    """One libnvrtc."""

    def __init__(self, library: Path) -> None:
        # NVRTC opens its builtins by name; found only where the loader has them already.
        for builtins in sorted(library.parent.glob("libnvrtc-builtins.so.*")):
            ctypes.CDLL(str(builtins))
        self._library = ctypes.CDLL(str(library))
        self._identity = (str(library), library.stat().st_mtime_ns, library.stat().st_size)
        self.keeps = True  # and reads what was kept

    def version(self) -> tuple[int, int]:
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check(self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        return major.value, minor.value

    def archs(self) -> list[int]:
        """The architectures it compiles for, as in ``sm_<number>``."""
        count = ctypes.c_int()
        self._check(self._library.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
        numbers = (ctypes.c_int * count.value)()
        self._check(self._library.nvrtcGetSupportedArchs(numbers))
        return list(numbers)

    def supports(self, arch: str) -> bool:
        return int(arch.removeprefix("sm_").rstrip("a")) in self.archs()

    def compile(self, source: str, arch: str, options: Sequence[str] = ()) -> Compiled:
        """Compile a translation unit that includes from kernels_cu/, with the options that the library compiles with.

        What was compiled before, from the same kernels_cu/, is read from `KEPT`, in all processes and the next run too.

        Raises
        ------
        CompileError
            With the log.
        """
        arguments = [*options_for(arch, KERNELS, lineinfo=False), *options]
        if not self.keeps:
            return self._compile_anew(source, arguments)
        digest = sources_digest()
        what = repr((self._identity, arguments, source))
        kept = KEPT / digest[:16] / hashlib.sha256(what.encode()).hexdigest()
        with contextlib.suppress(OSError):
            cubin, log, seconds = pickle.loads(kept.read_bytes())
            return Compiled(cubin, log, seconds, usage(log))
        compiled = self._compile_anew(source, arguments)
        if sources_digest() == digest:
            _keep(kept, pickle.dumps((compiled.cubin, compiled.log, compiled.seconds)))
        return compiled

    def ptx(self, source: str, arch: str, include: Path = KERNELS) -> bytes:
        """Compile a translation unit to PTX: what ptxas would go on from, for "compute_80" and the like.

        Raises
        ------
        CompileError
            With the log.
        """
        with self._compiled(source, options_for(arch, include, lineinfo=False)) as (program, _):
            return self._bytes("nvrtcGetPTX", program).rstrip(b"\0")

    def _compile_anew(self, source: str, arguments: Sequence[str]) -> Compiled:
        start = time.perf_counter()
        with self._compiled(source, arguments) as (program, log):
            seconds = time.perf_counter() - start
            return Compiled(self._bytes("nvrtcGetCUBIN", program), log, seconds, usage(log))

    @contextlib.contextmanager
    def _compiled(self, source: str, arguments: Sequence[str]) -> Iterator[tuple[ctypes.c_void_p, str]]:
        program = ctypes.c_void_p()
        create = self._library.nvrtcCreateProgram
        self._check(create(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None))
        try:
            encoded = (ctypes.c_char_p * len(arguments))(*[argument.encode() for argument in arguments])
            status = self._library.nvrtcCompileProgram(program, len(arguments), encoded)
            log = self._bytes("nvrtcGetProgramLog", program).rstrip(b"\0").decode()
            if status != 0:
                raise CompileError(f"{' '.join(arguments)}: {log}")
            yield program, log
        finally:
            self._check(self._library.nvrtcDestroyProgram(ctypes.byref(program)))

    def _bytes(self, getter: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._check(getattr(self._library, f"{getter}Size")(program, ctypes.byref(size)))
        buffer = ctypes.create_string_buffer(size.value)
        self._check(getattr(self._library, getter)(program, buffer))
        return buffer.raw

    def _check(self, status: int) -> None:
        if status != 0:
            self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
            raise RuntimeError(f"NVRTC: {self._library.nvrtcGetErrorString(status).decode()}")


def _keep(path: Path, content: bytes) -> None:
    """Write a file, and remove those of other sources."""
    for other in KEPT.glob("*"):
        if other != path.parent:
            shutil.rmtree(other, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    os.replace(file.name, path)


@functools.cache
def load(major: int) -> Nvrtc:
    """Load the NVRTC of a major version from its wheel.

    Raises
    ------
    ImportError
        Naming the wheel that is missing.
    """
    for folder in [*site.getsitepackages(), *sys.path]:
        library = Path(folder) / WHEEL_FOLDERS[major] / f"libnvrtc.so.{major}"
        if library.exists():
            return Nvrtc(library)
    raise ImportError(f"libnvrtc.so.{major} was not found: pip install {WHEELS[major]}")


def usage(log: str) -> dict[str, Usage]:
    """Read the log of ``--ptxas-options=-v`` by entry."""
    parts = re.split(r"Compiling entry function '(\w+)' for '\w+'", log)
    return {name: _usage_of_entry(text) for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def _usage_of_entry(text: str) -> Usage:
    def numbers(pattern: str) -> list[int]:
        return [int(number) for number in re.findall(pattern, text)]

    return Usage(
        registers=max(numbers(r"Used (\d+) registers")),
        stack=max(numbers(r"(\d+) bytes (?:stack frame|cumulative stack size)"), default=0),
        spill_stores=sum(numbers(r"(\d+) bytes spill stores")),
        spill_loads=sum(numbers(r"(\d+) bytes spill loads")),
        static_shared=max(numbers(r"(\d+) bytes smem"), default=0),
    )


@dataclass(frozen=True)
class Row:
    """One configuration on one architecture."""

    name: str
    arch: str
    threads: int
    usage: Usage
    shared_bytes: int
    cubin_bytes: int
    seconds: float

    def faults(self, spills_allowed: bool = False) -> list[str]:
        """What keeps the kernel from a launch, or from being quick."""
        found = []
        if (block := self.usage.registers_of_block(self.threads)) > REGISTERS:
            found.append(f"{block} registers a block, of {REGISTERS}")
        if (shared := self.shared_bytes + self.usage.static_shared) > SHARED_LIMITS[self.arch]:
            found.append(f"{shared} bytes of shared memory, of {SHARED_LIMITS[self.arch]}")
        if not spills_allowed and self.usage.spill_stores + self.usage.spill_loads:
            found.append(f"spills {self.usage.spill_stores} + {self.usage.spill_loads} bytes")
        if self.usage.arrays:
            found.append(f"{self.usage.arrays} bytes of stack besides spills")
        return [f"{self.name} on {self.arch}: {fault}" for fault in found]


def compile_config(nvrtc: Nvrtc, config: Any, arch: str) -> Row:
    """Compile one configuration of flashcupy.cuda; `config` has name, threads, shared_bytes, translation_unit()."""
    compiled = nvrtc.compile(config.translation_unit(), arch)
    if list(compiled.usage) != [config.name]:
        raise CompileError(
            f"{config.name}: the translation unit has the entries {list(compiled.usage)}, expected its name"
        )
    found = compiled.usage[config.name]
    size = len(compiled.cubin)
    return Row(config.name, arch, config.threads, found, config.shared_bytes, size, compiled.seconds)


def compile_all(nvrtc: Nvrtc, configs: Sequence[Any], arch: str) -> list[Row]:
    """Compile on every core; NVRTC leaves the interpreter lock alone meanwhile."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda config: compile_config(nvrtc, config, arch), configs))


def table(rows: Sequence[Row]) -> str:
    """Lay the rows out as text; the last line sums them up."""
    width = max((len(row.name) for row in rows), default=0)
    header = f"{'kernel':{width}}  arch    threads  registers  stack  spills  shared    cubin  seconds"
    lines = [
        f"{row.name:{width}}  {row.arch:6}  {row.threads:7}  {row.usage.registers:9}  {row.usage.stack:5}"
        f"  {row.usage.spill_stores + row.usage.spill_loads:6}  {row.shared_bytes + row.usage.static_shared:6}"
        f"  {row.cubin_bytes:7}  {row.seconds:7.2f}"
        for row in rows
    ]
    total = sum(row.seconds for row in rows)
    spilling = sum(row.usage.spill_stores > 0 for row in rows)
    slowest = max((row.seconds for row in rows), default=0.0)
    summary = f"{len(rows)} kernels, {spilling} spill, {total:.0f} s to compile, the slowest {slowest:.2f} s"
    return "\n".join([header, *lines, summary])


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile configurations with NVRTC and print what they use.")
    parser.add_argument(
        "which", nargs="?", choices=("plain", "all"), default="plain", help="without options, or with all"
    )
    parser.add_argument("--arch", nargs="+", choices=SHARED_LIMITS, default=["sm_80", "sm_90a", "sm_120"])
    parser.add_argument("--nvrtc", type=int, choices=WHEELS, default=12, help="major version (default: 12)")
    parser.add_argument("--match", default="", help="only kernels whose name matches this regular expression")
    parser.add_argument("--output", type=Path, help="write the table here as well")
    arguments = parser.parse_args()
    from flashcupy.cuda.matrix import compile_configs

    library, rows = load(arguments.nvrtc), []
    library.keeps = False  # the table tells how long it takes
    for arch in arguments.arch:
        configs = [one for one in compile_configs(arguments.which, arch) if re.search(arguments.match, one.name)]
        rows += compile_all(library, configs, arch)
    text = table(rows)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
