"""CuPy over `runtime.cpp`: its wheel as it is, but for the one module that has CUDA's runtime linked in.

That module is built anew from CuPy's source distribution against the stand-in. Everything needed is downloaded into the
folder `build`: the source, Cython, and NVIDIA's headers.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).parent
BUILD = FOLDER / "build"
CYTHON = "cython>=3.1,<3.3"
HEADERS = ("nvidia-cuda-runtime-cu12==12.9.*", "nvidia-cuda-nvcc-cu12==12.9.*")
MODULE = "cupy_backends/cuda/api/runtime"
CUBLAS, CUBLAS_MODULE = "libcublas.so.12", "cupy_backends/cuda/libs/cublas"

# Functions that CuPy's modules refer to and the stand-in leaves out; both libraries have statuses for them.
_REST = "int %s(void) { return %d; }\n"
_NOT_SUPPORTED, _CUBLAS_NOT_SUPPORTED = 801, 15

_CYTHONIZE = """
import sys
from Cython.Build import cythonize
from setuptools import Extension
constants = dict(CUPY_USE_CUDA_PYTHON=False, CUPY_CUFFT_STATIC=False, CUPY_CYTHON_VERSION="3", CUPY_HIP_VERSION=0)
directives = dict(language_level=3, embedsignature=True, c_api_binop_methods=True, binding=False)
cythonize([Extension(sys.argv[1].replace("/", "."), [sys.argv[1] + ".pyx"], language="c++")], quiet=True,
          compile_time_env=constants | {"CUPY_CUDA_VERSION": 12090}, compiler_directives=directives)
"""


class UnavailableError(ImportError):
    """Something could not be downloaded or compiled; the message is what the program said."""


@functools.cache
def site() -> Path:
    """Build once, and return the folder from which `import cupy` finds it.

    Raises
    ------
    UnavailableError
        If CuPy is not installed, or there is no network.
    """
    wheel = importlib.util.find_spec("cupy")
    if wheel is None or wheel.origin is None:
        raise UnavailableError("CuPy is not installed")
    sources = [*sorted(FOLDER.glob("*.*pp")), *sorted((FOLDER / "include").rglob("*.*")), Path(__file__)]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources))
    wheels = Path(wheel.origin).resolve().parent.parent
    digest.update(f"{wheels} {_cupy_version()} {sys.version}".encode())
    target = BUILD / digest.hexdigest()[:16]
    BUILD.mkdir(exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        if not target.exists():
            for other in (path for path in BUILD.iterdir() if path.is_dir()):
                shutil.rmtree(other)
            with tempfile.TemporaryDirectory(dir=BUILD) as folder:
                _make(Path(folder), wheels)
                Path(folder, "done").rename(target)
    return target


def library() -> Path:
    """The stand-in for libcuda.so.1."""
    return site() / "libcuda.so.1"


def flags() -> list[str]:
    """What compiles and links a C program that calls the runtime, and makes it find the stand-in."""
    return ["-isystem", str(site() / "include"), str(library()), f"-Wl,-rpath,{site()}"]


def _cupy_version() -> str:
    return version("cupy-cuda12x")


def _make(folder: Path, wheels: Path) -> None:
    tools, headers, done = folder / "tools", folder / "headers", folder / "done"
    done.mkdir()
    _pip("install", "--target", tools, CYTHON, "setuptools")
    _pip("install", "--target", headers, "--no-deps", *HEADERS)
    source = _source_of_cupy(folder)
    includes = [f"-I{path}" for path in headers.glob("nvidia/*/include")]
    compiled = _compile_module(source, tools, [*includes, f"-I{sysconfig.get_path('include')}"], folder)
    _link(compiled, includes, folder, done)
    _link_cublas(_only((wheels / CUBLAS_MODULE).parent, "cublas.cpython-*.so"), includes, folder, done)
    for name in ("cupy", "cupy_backends", "cupyx"):
        _mirror(wheels / name, done / name)
    module = _only((done / MODULE).parent, "runtime.cpython-*.so")
    module.unlink()
    shutil.copy(folder / "runtime.so", module)
    for path in headers.glob("nvidia/*/include"):
        shutil.copytree(path, done / "include", dirs_exist_ok=True)


def _mirror(source: Path, target: Path) -> None:
    """Copy a package, by hard links to its libraries where the file system has them."""

    def copy(path: str, to: str) -> None:
        try:
            os.link(path, to)
        except OSError:
            shutil.copy2(path, to)

    shutil.copytree(source, target, copy_function=copy)


def _source_of_cupy(folder: Path) -> Path:
    # The variable lets its set-up script run where there is no CUDA, which pip runs to read the metadata.
    environment = os.environ | {"CUPY_INSTALL_USE_STUB": "1"}
    archive = f"cupy=={_cupy_version()}"
    _pip("download", "--no-deps", "--no-binary", "cupy", "--dest", folder, archive, environment=environment)
    (path,) = folder.glob("cupy-*.tar.gz")
    with tarfile.open(path) as content:
        content.extractall(folder, filter="data")
    return path.with_name(path.name.removesuffix(".tar.gz"))


def _compile_module(source: Path, tools: Path, includes: list[str], folder: Path) -> Path:
    environment = os.environ | {"PYTHONPATH": str(tools)}
    _run(sys.executable, "-c", _CYTHONIZE, MODULE, cwd=source, environment=environment)
    # A header of CUDA's profiler, which the wheels do not have.
    declarations = ("cudaProfilerStart", "cudaProfilerStop")
    lines = ["#include <cuda_runtime_api.h>", *(f'extern "C" cudaError_t {name}();' for name in declarations)]
    (folder / "cuda_profiler_api.h").write_text("\n".join(lines) + "\n")
    target = folder / "runtime.o"
    options = ["-O1", "-std=c++17", "-fPIC", "-w", *includes, f"-I{folder}", "-I."]
    _run("g++", *options, "-c", MODULE + ".cpp", "-o", target, cwd=source)
    return target


def _link(module: Path, includes: list[str], folder: Path, done: Path) -> None:
    objects = [_compile_own(name, includes, folder) for name in ("runtime", "driver")]
    rest = _rest(
        "cuda", _NOT_SUPPORTED, _symbols("--undefined-only", module) - _symbols("--defined-only", *objects), folder
    )
    library = done / "libcuda.so.1"
    _run("g++", "-shared", "-fPIC", *objects, "-x", "c", rest, "-o", library, "-Wl,-soname,libcuda.so.1", "-ldl")
    _run("g++", "-shared", module, "-o", folder / "runtime.so", library, "-Wl,-rpath,$ORIGIN/../../..")


def _link_cublas(user: Path, includes: list[str], folder: Path, done: Path) -> None:
    own = _compile_own("cublas", includes, folder)
    wanted = {name.partition("@")[0] for name in _symbols("-D", "--undefined-only", user)}
    rest = _rest("cublas", _CUBLAS_NOT_SUPPORTED, wanted - _symbols("--defined-only", own), folder)
    versions = folder / "cublas.map"
    versions.write_text(f"{CUBLAS} {{ global: cublas*; local: *; }};\n")
    options = (f"-Wl,-soname,{CUBLAS}", f"-Wl,--version-script={versions}", "-Wl,-rpath,$ORIGIN")
    _run("g++", "-shared", "-fPIC", own, done / "libcuda.so.1", "-x", "c", rest, "-o", done / CUBLAS, *options)


def _compile_own(name: str, includes: list[str], folder: Path) -> Path:
    target = folder / f"{name}_own.o"
    _run("g++", "-O2", "-std=c++17", "-fPIC", "-w", *includes, "-c", FOLDER / f"{name}.cpp", "-o", target)
    return target


def _rest(prefix: str, status: int, names: set[str], folder: Path) -> Path:
    source = folder / f"{prefix}_rest.c"
    source.write_text("".join(_REST % (name, status) for name in sorted(names) if name.startswith(prefix)))
    return source


def _only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def _symbols(*arguments: str | Path) -> set[str]:
    return {line.split()[-1] for line in _run("nm", *arguments).splitlines() if len(line.split()) > 1}


def _pip(*arguments: object, environment: dict[str, str] | None = None) -> None:
    _run(sys.executable, "-m", "pip", *arguments, "--quiet", environment=environment)


def _run(*command: object, cwd: Path | None = None, environment: dict[str, str] | None = None) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise UnavailableError(f"{' '.join(words[:4])}: {done.stderr[-2000:]}")
    return done.stdout
