"""Building the C library: the front, in C, and the extension module that cffi writes, for this Python environment."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import NamedTuple

from flashcupy._version import __version__
from flashcupy.paths import shipped

ABI = 1  # FLASHCUPY_ABI_VERSION
_ENTRIES_MODULE = "_flashcupy_entries"
_PACKAGES = ("flashcupy", "_cffi_backend", "numpy", "threadpoolctl", "ml_dtypes", "cupy")
_FLAGS = ("-O2", "-fPIC", "-fvisibility=hidden", "-shared")
# pkg-config and compilers take these apart.
_TROUBLE = set(',"#$\\\n')


class BuildError(RuntimeError):
    """The library cannot be built here; the message says what is missing."""


class Prefix(NamedTuple):
    """Where the library's files go."""

    root: Path

    @property
    def include(self) -> Path:
        return self.root / "include"

    @property
    def lib(self) -> Path:
        return self.root / "lib"

    @property
    def library(self) -> Path:
        return self.lib / f"libflashcupy.so.{ABI}"

    @property
    def entries(self) -> Path:
        return self.lib / "flashcupy" / f"entries.{ABI}.so"

    @property
    def pkgconfig(self) -> Path:
        return self.lib / "pkgconfig" / "flashcupy.pc"

    def cflags(self) -> str:
        return shlex.join([f"-I{self.include}"])

    def libs(self) -> str:
        return shlex.join([f"-L{self.lib}", f"-Wl,-rpath,{self.lib}", "-lflashcupy"])


def default_prefix() -> Prefix:
    """The environment's own folders.

    Raises
    ------
    BuildError
        If this Python is the system's: its folders belong to a package manager.
    """
    if sys.prefix == sys.base_prefix and not (Path(sys.prefix) / "conda-meta").is_dir():
        raise BuildError(f"{sys.prefix} is no virtual environment: name a folder by --prefix")
    return Prefix(Path(sys.prefix))


def bindings_dir() -> Path:
    """Return the folder of the header and the C sources; raises as `flashcupy.paths.shipped` does."""
    return shipped("bindings")


def declarations(header: Path) -> str:
    """What a header declares, as `cffi.FFI.cdef` takes it: without preprocessor, inline functions and visibility."""
    text = re.sub(r"/\*.*?\*/", "", header.read_text(), flags=re.DOTALL)
    text = re.sub(r"#ifdef __cplusplus.*?#endif", "", text, flags=re.DOTALL)
    text = re.sub(r"^#.*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^static inline .*?^}", "", text, flags=re.DOTALL | re.MULTILINE)
    return text.replace("FLASHCUPY_API", "")


def _split(header: Path) -> tuple[str, str]:
    """What a header declares: types, and functions."""
    functions: list[str] = []
    types: list[str] = []
    for statement in declarations(header).split(";"):
        is_function = "(" in statement and not statement.lstrip().startswith("typedef")
        (functions if is_function else types).append(statement)
    return ";".join(types), ";".join(functions) + ";"


def build(prefix: Prefix, *, extra_flags: tuple[str, ...] = ()) -> None:
    """Compile both libraries and install them with the header and a pkg-config file.

    Parameters
    ----------
    prefix : Prefix
        Where to.
    extra_flags : tuple of str
        More options for the compiler of the front, such as warnings or a sanitizer's.

    Raises
    ------
    BuildError
        If this Python or this machine lacks something that the build needs.
    """
    if _TROUBLE & set(str(prefix.root)):
        raise BuildError(
            f"--prefix is {str(prefix.root)!r}, expected a path without any of {''.join(sorted(_TROUBLE))!r}"
        )
    compiler = _compiler()
    libpython = _libpython()
    with tempfile.TemporaryDirectory(prefix="flashcupy-capi-") as work:
        folder = Path(work)
        front, entries = folder / "front.so", folder / "entries.so"
        _compile_entries(compiler, folder, entries)
        (folder / "recorded.h").write_text(_recorded(libpython, prefix))
        _compile_front(compiler, folder, front, extra_flags)
        _install(prefix, front, entries)


def _compiler() -> list[str]:
    command = shlex.split(os.environ.get("CC", "cc"))
    if not sys.platform.startswith("linux"):
        raise BuildError(f"the C library is for Linux, and this is {sys.platform}")
    if not command or shutil.which(command[0]) is None:
        raise BuildError(f"no C compiler {os.environ.get('CC', 'cc')!r}: install gcc or clang, or name one in CC")
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        raise BuildError(
            f"{sysconfig.get_path('include')} lacks Python.h: install this Python's headers (on Debian and Ubuntu the "
            f"package python{_version()}-dev)"
        )
    return command


def _version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _libpython() -> Path:
    """The shared library of this Python, by its own name: the links beside it may come with another package."""
    name = sysconfig.get_config_var("INSTSONAME") or ""
    folders = [sysconfig.get_config_var(key) for key in ("LIBDIR", "LIBPL")] + [f"{sys.base_prefix}/lib"]
    for folder in folders:
        if folder and ".so" in name and (Path(folder) / name).is_file():
            return Path(folder) / name
    raise BuildError(
        f"{sys.executable} has no shared libpython, which a C program needs to run Python: use one that has (those of "
        "Debian, Ubuntu and Fedora with their -dev or -devel package, conda and uv do; pyenv's are built with "
        "PYTHON_CONFIGURE_OPTS=--enable-shared)"
    )


def _recorded(libpython: Path, prefix: Prefix) -> str:
    """What the front is bound to: see src/python.c."""
    version = (sys.version_info[:2], sys.abiflags)
    names = f"recorded_version = {version!r}\nrecorded_path = {_package_folders()!r}\n"
    macros = {
        "RECORDED_PYTHON": sys.executable,
        "RECORDED_LIBPYTHON": str(libpython),
        "RECORDED_VERSION": _version(),
        "RECORDED_ENTRIES": prefix.entries.name,
        "RECORDED_NAMES": names,
    }
    return "".join(f"#define {name} {_c_string(value)}\n" for name, value in macros.items())


def _package_folders() -> list[str]:
    """Where the packages are that a host's own Python may lack."""
    found = (importlib.util.find_spec(name) for name in _PACKAGES)
    origins = [Path(spec.origin).absolute() for spec in found if spec is not None and spec.origin is not None]
    folders = [path.parent.parent if path.name == "__init__.py" else path.parent for path in origins]
    return list(dict.fromkeys(map(str, folders)))


def _c_string(text: str) -> str:
    """A literal in which every byte but plain characters is an octal escape."""
    plain = set(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+=(), []'")
    return '"' + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in os.fsencode(text)) + '"'


def _compile_entries(compiler: list[str], folder: Path, target: Path) -> None:
    try:
        import cffi
    except ImportError as error:
        raise ImportError("the C library needs cffi: pip install 'flashcupy[capi]'") from error
    bindings = bindings_dir()
    builder = cffi.FFI()
    builder.cdef(_split(bindings / "flashcupy.h")[0])
    # Not cffi's embedding mode, which starts Python by itself: it spins for ever where the host's own Python, older
    # than 3.12, has looked up an attribute of a capsule, and it prints why Python does not start.
    types, functions = _split(bindings / "src" / "entries.h")
    builder.cdef(types)
    builder.cdef(f'extern "Python+C" {{ {functions} }}')
    # The front looks these functions up; cffi hides what is not declared to be seen.
    include = '#pragma GCC visibility push(default)\n#include "src/entries.h"\n#pragma GCC visibility pop\n'
    builder.set_source(_ENTRIES_MODULE, include)
    source = folder / "entries.c"
    with contextlib.redirect_stdout(None):  # it says that it does
        builder.emit_c_code(str(source))
    _run(
        [
            *compiler,
            *_FLAGS,
            "-w",
            f"-I{sysconfig.get_path('include')}",
            f"-I{bindings}",
            str(source),
            "-o",
            str(target),
        ]
    )


def _compile_front(compiler: list[str], folder: Path, target: Path, extra_flags: tuple[str, ...]) -> None:
    bindings = bindings_dir()
    sources = [str(path) for path in sorted((bindings / "src").glob("*.c"))]
    includes = [f"-I{bindings}", f"-I{folder}", "-isystem", sysconfig.get_path("include")]
    link = [
        f"-Wl,-soname,libflashcupy.so.{ABI}",
        *("-Xlinker", f"--version-script={bindings / 'src' / 'flashcupy.map'}"),
        "-Wl,-z,nodelete",  # Python stays, whoever closes the library
        "-ldl",
        "-lpthread",
    ]
    _run([*compiler, "-std=gnu11", *_FLAGS, *extra_flags, *includes, *sources, "-o", str(target), *link])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise BuildError(f"{shlex.join(command)} failed:\n{done.stdout}{done.stderr}")


def _install(prefix: Prefix, front: Path, entries: Path) -> None:
    for path in (prefix.include, prefix.entries.parent, prefix.pkgconfig.parent):
        path.mkdir(parents=True, exist_ok=True)
    # Replaced, not overwritten: a running host keeps what it has mapped.
    _replace(entries, prefix.entries)
    _replace(front, prefix.library)
    link = prefix.lib / "libflashcupy.so"
    link.unlink(missing_ok=True)
    link.symlink_to(prefix.library.name)
    shutil.copyfile(bindings_dir() / "flashcupy.h", prefix.include / "flashcupy.h")
    prefix.pkgconfig.write_text(_pkgconfig(prefix))


def _replace(source: Path, target: Path) -> None:
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copy(source, fresh)
    fresh.chmod(0o755)
    fresh.replace(target)


def _pkgconfig(prefix: Prefix) -> str:
    return "\n".join(
        [
            f"prefix={prefix.root}",
            "includedir=${prefix}/include",
            "libdir=${prefix}/lib",
            "",
            "Name: flashcupy",
            "Description: FlashAttention for NumPy and CuPy arrays, and for programs in C",
            f"Version: {__version__}",
            'Cflags: "-I${includedir}"',
            'Libs: "-L${libdir}" "-Wl,-rpath,${libdir}" -lflashcupy',
            "",
        ]
    )
