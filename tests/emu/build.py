"""The emulator's compiler: g++, for the runtime library once and for each kernel."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from flashcupy.cuda import cache
from flashcupy.errors import KernelCompileError

FOLDER = Path(__file__).parent
COMPILER = os.environ.get("CXX", "g++")

_COMMON = (
    "-std=c++17",
    "-fPIC",
    "-fno-exceptions",
    "-fno-rtti",
    "-ffp-contract=off",  # a * b + c rounds twice; a kernel that needs one rounding says fma
    "-fno-math-errno",
    "-fno-strict-aliasing",
    "-fno-stack-protector",
)
_RUNTIME = (*_COMMON, "-O2", "-g", "-Wall", "-Wextra", "-Wno-psabi", "-shared", "-pthread")
_KERNEL = (
    *_COMMON,
    "-Wno-unknown-pragmas",
    "-ftrivial-auto-var-init=pattern",
    "-fsanitize=thread",  # for the calls it plants; the runtime has its own functions behind them
    "--param=tsan-instrument-func-entry-exit=0",
    "-fsanitize=alignment,integer-divide-by-zero",
    "-fno-sanitize-recover=all",
    "-fno-plt",
    "-fno-asynchronous-unwind-tables",
)
# By FLASHCUPY_EMU_BUILD.
_BUILDS = {
    "": ("-O1", "-g1"),
    "quick": ("-O0", "-g1"),  # for kernels that run once
    "inlined": ("-O1", "-g1", "-DEMU_INLINED"),  # reports name callers; bank conflicts are counted by instruction
    # As NVRTC does by default: a product and a sum become one rounding where the compiler sees both.
    "contracted": ("-O1", "-g1", "-DEMU_INLINED", "-ffp-contract=fast", "-fexpensive-optimizations"),
    "debug": ("-O0", "-g"),
    "strict": ("-O1", "-g1", "-fsanitize=undefined"),
}
_LINK = ("-shared", "-Wl,-z,now", "-Wl,--no-undefined", "-Wl,--wrap=memcpy,--wrap=memmove,--wrap=memset")
_ENDING = b"flashcupy emulator:"


def build_flags() -> tuple[str, ...]:
    """Return the flags of kernels that depend on the environment and on this processor."""
    kind = os.environ.get("FLASHCUPY_EMU_BUILD", "")
    if kind not in _BUILDS:
        raise ValueError(f"FLASHCUPY_EMU_BUILD is {kind!r}, expected one of {sorted(_BUILDS)}")
    return (*_BUILDS[kind], *_processor_flags())


@functools.cache
def _processor_flags() -> tuple[str, ...]:
    # Without them every fmaf is a call, and mma takes its columns one by one.
    try:
        words = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text()))
    except OSError:
        return ()
    return ("-march=x86-64-v3",) if {"fma", "avx2", "bmi2", "f16c", "movbe"} <= words else ()


@functools.cache
def _gcc() -> str:
    if shutil.which(COMPILER) is None:
        raise RuntimeError(f"the emulator needs GCC 12 or newer, and {COMPILER!r} is not there (CXX names another)")
    return subprocess.run([COMPILER, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


@functools.cache
def _digest(flags: tuple[object, ...], *folders: str) -> str:
    digest = hashlib.sha256(repr((_gcc(), flags)).encode())
    for path in sorted(path for folder in folders for path in (FOLDER / folder).iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def compiler_version() -> str:
    """Return what keys a cache: g++'s version and a digest of the flags and the emulator's sources."""
    return f"{_gcc()}, emulator {_digest((_KERNEL, build_flags(), _LINK), 'ptx', 'runtime')}"


@functools.cache
def runtime_library() -> Path:
    """Return the runtime library, compiled if need be. Its name tells its version: kernels ask for it by name."""
    name = f"libflashcupy_emu_{_digest((_RUNTIME, _processor_flags()), 'runtime')}.so"
    folder = _build_folder()
    library = folder / name
    if not library.exists():
        temporary = folder / f"{name}.{os.getpid()}"
        command = [
            *(COMPILER, *_RUNTIME, *_processor_flags(), f"-Wl,-soname,{name}"),
            *(f"-I{FOLDER}", str(FOLDER / "runtime" / "runtime.cpp"), "-o", str(temporary)),
        ]
        _run(command, "the emulator's runtime")
        os.replace(temporary, library)
    return library


@functools.cache
def _build_folder() -> Path:
    folder = FOLDER / "build"
    with contextlib.suppress(OSError):
        folder.mkdir(exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    return Path(_private_folder().name)


@functools.cache
def _private_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="flashcupy-emu-")


def compile_kernel(source: str, entry: str, include: Path) -> bytes:
    """Return a shared object with the kernel `entry`, and a digest at its end that tells a truncated one.

    What reads the same after preprocessing is compiled once, for all processes and the next run too: many a test has a
    cache of its own, and a fault in one file leaves most kernels as they were.
    """
    bounds = re.search(r"__launch_bounds__\(\s*(\d+)", source)
    unit = f"{source}\nEMU_ENTRY({entry}, {bounds[1] if bounds else 1024})\n"
    with tempfile.TemporaryDirectory(prefix="flashcupy-emu-") as folder:
        text = _preprocessed(unit, entry, Path(folder), include)
        kept = _build_folder() / "objects" / hashlib.sha256(f"{compiler_version()}{text}".encode()).hexdigest()
        with contextlib.suppress(OSError):
            content = kept.read_bytes()
            check_kernel(content)
            return content
        content = _compiled(text, entry, Path(folder))
    cache.write(kept, content)
    return content


def _preprocessed(unit: str, entry: str, folder: Path, include: Path) -> str:
    """Include what there is to include; lines are said to be of files as `include` has them, wherever it lies."""
    path, result = (folder / f"{entry[:100]}{end}" for end in (".cpp", ".ii"))
    path.write_text(unit)
    options = "-include", "runtime/keywords.cuh", f"-I{FOLDER}", f"-I{include}"
    _run([COMPILER, *_KERNEL, *build_flags(), *options, "-E", str(path), "-o", str(result)], entry)
    return result.read_text().replace(f'"{include}/', '"').replace(f'"{folder}/', '"')


def _compiled(text: str, entry: str, folder: Path) -> bytes:
    unit, compiled, library = (folder / f"{entry[:100]}{end}" for end in (".ii", ".o", ".so"))
    unit.write_text(text)
    map_prefix = f"-ffile-prefix-map={folder}/="
    _run([COMPILER, *_KERNEL, *build_flags(), map_prefix, "-c", str(unit), "-o", str(compiled)], entry)
    _run([COMPILER, *_LINK, str(compiled), str(runtime_library()), "-lm", "-o", str(library)], entry)
    content = library.read_bytes()
    return content + _ENDING + hashlib.sha256(content).digest()


def check_kernel(content: bytes) -> None:
    """Raise OSError unless `content` is whole and was made by `compile_kernel`; the loader would crash on less."""
    body, ending = content[: -len(_ENDING) - 32], content[-len(_ENDING) - 32 :]
    if ending != _ENDING + hashlib.sha256(body).digest():
        raise OSError("not a kernel of the emulator, or not all of it")


def _run(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise KernelCompileError(what, tuple(command[1:]), done.stdout + done.stderr)
