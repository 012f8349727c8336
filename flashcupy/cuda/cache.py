"""Compiled kernels on disk, safe between processes.

A kernel has a folder, named after its entry and its key; a binary in it is named after its own digest. What is read
must have the digest that its name says, so truncated and foreign files are as good as missing. Nothing is written in
place: a file is complete before it has its name.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import secrets
import shutil
import tempfile
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flashcupy.cuda.sources import fields_digest
from flashcupy.paths import cache_dir

_SCHEMA = "1"
_SUFFIX = ".bin"
_NAMED = 32  # hex digits of a digest that make a name
_LONGEST = 120  # characters of an entry that make a name: file systems end at 255


@dataclass(frozen=True, slots=True)
class Binary:
    """A compiled kernel on disk; `digest` is of its content."""

    path: Path
    digest: str


def cache_key(*, sources: str, unit: str, entry: str, compiler: str, arch: str, flags: tuple[str, ...] = ()) -> str:
    """Digest everything that the compiler's answer depends on."""
    fields = {
        "schema": _SCHEMA,
        "sources": sources,
        "unit": unit,
        "entry": entry,
        "compiler": compiler,
        "arch": arch,
        "flags": " ".join(flags),
    }
    return fields_digest({label: value.encode() for label, value in fields.items()})


def find(entry: str, key: str) -> Binary | None:
    """Return the binary kept under a key, or None; what is unreadable or damaged counts as missing."""
    for root in _roots():
        with contextlib.suppress(OSError):
            for path in sorted((root / _folder(entry, key)).glob(f"*{_SUFFIX}")):
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                if path.stem == digest[:_NAMED]:
                    return Binary(path, digest)
    return None


def store(entry: str, key: str, content: bytes) -> Binary:
    """Keep a binary under a key.

    Where the cache folder takes no file (read-only, full, not to be made; nobody's, without a home) it goes to a folder
    of this process alone, which is removed at exit; the first time a RuntimeWarning says so.

    Raises
    ------
    OSError
        If the temporary folder takes no file either.
    """
    digest = hashlib.sha256(content).hexdigest()
    inside = _folder(entry, key) / f"{digest[:_NAMED]}{_SUFFIX}"
    try:
        path = _root() / inside
        write(path, content)
    except OSError as error:
        path = _private.get() / inside
        write(path, content)
        _private.tell(error)
    return Binary(path, digest)


def discard(binary: Binary) -> None:
    """Remove a binary that does not load, so that it is not found again."""
    with contextlib.suppress(OSError):
        binary.path.unlink()


def keep_source(entry: str, key: str, unit: str) -> Path | None:
    """Keep a translation unit that does not compile; None if no folder takes it."""
    content = unit.encode()
    with contextlib.suppress(OSError):
        path = _root() / _folder(entry, key) / f"{entry[:_LONGEST]}.cu"
        write(path, content)
        return path
    with contextlib.suppress(OSError):
        # Not in the private folder: this one is to be looked at after the process has gone.
        handle, name = tempfile.mkstemp(prefix=f"{entry[:_LONGEST]}-", suffix=".cu")
        with open(handle, "wb") as file:
            file.write(content)
        return Path(name)
    return None


def write(path: Path, content: bytes) -> None:
    """Write a file so that others see all of it or nothing.

    Raises
    ------
    OSError
        With nothing left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name[:_LONGEST]}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


def usage() -> tuple[int, int]:
    """How many kernels the cache folder holds, and their bytes."""
    sizes = []
    with contextlib.suppress(OSError):  # there is no home to have it in
        for path in _root().glob(f"*/*{_SUFFIX}"):
            with contextlib.suppress(OSError):  # another process may be clearing it
                sizes.append(path.stat().st_size)
    return len(sizes), sum(sizes)


def _root() -> Path:
    return cache_dir() / "kernels"


def _roots() -> Iterator[Path]:
    """Where binaries may be."""
    with contextlib.suppress(OSError):
        yield _root()
    if _private.made is not None:
        yield _private.made


def _folder(entry: str, key: str) -> Path:
    return Path(f"{entry[:_LONGEST]}-{key[:_NAMED]}")


class _PrivateFolder:
    """A folder of this process for what the cache folder does not take: made when first needed, removed at exit."""

    def __init__(self) -> None:
        self.made: Path | None = None
        self._told = False
        self._lock = threading.Lock()

    def get(self) -> Path:
        with self._lock:
            if self.made is None:
                self.made = Path(tempfile.mkdtemp(prefix="flashcupy-"))
                atexit.register(_remove_in, os.getpid(), self.made)
            return self.made

    def tell(self, error: OSError) -> None:
        """Warn, the first time."""
        with self._lock:
            told, self._told = self._told, True
        if not told:
            place = ""
            with contextlib.suppress(OSError):
                place = f" in {_root()}"
            warnings.warn(
                f"compiled kernels cannot be kept{place} ({error}), so this process keeps its own in {self.made} "
                "and the next one compiles again; FLASHCUPY_CACHE_DIR names another folder",
                RuntimeWarning,
                stacklevel=2,
            )


def _remove_in(process: int, folder: Path) -> None:
    if os.getpid() == process:  # a forked child runs this too
        shutil.rmtree(folder, ignore_errors=True)


_private = _PrivateFolder()
