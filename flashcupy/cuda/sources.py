"""The kernel sources: where they lie, and a digest that changes whenever one of them does."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from flashcupy.paths import shipped

_Stamp = tuple[tuple[str, int, int], ...]

_lock = threading.Lock()
_digests: dict[Path, tuple[_Stamp, str]] = {}


def kernels_dir() -> Path:
    """Return the folder that kernels include from; raises as `flashcupy.paths.shipped` does."""
    return shipped("kernels_cu")


def sources_digest() -> str:
    """Return a digest of every kernel source, which is part of every cache key.

    The files are read again only when one of them has another time or size than before, so that an edit is noticed in a
    running process too.
    """
    folder = kernels_dir()
    stamp = tuple(sorted(_sources(folder, "")))
    with _lock:
        known = _digests.get(folder)
        if known is None or known[0] != stamp:
            contents = {name: (folder / name).read_bytes() for name, _, _ in stamp}
            known = _digests[folder] = stamp, fields_digest(contents)
    return known[1]


def _sources(folder: str | Path, prefix: str) -> Iterator[tuple[str, int, int]]:
    """Anything a kernel could include; an editor's hidden files and the documentation are not.

    Each kernel's first use looks: os.scandir takes a fifth of the time of Path.rglob.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _sources(entry.path, f"{prefix}{entry.name}/")
            elif entry.is_file() and not entry.name.startswith(".") and not entry.name.endswith(".md"):
                stat = entry.stat()
                yield prefix + entry.name, stat.st_mtime_ns, stat.st_size


def fields_digest(fields: dict[str, bytes]) -> str:
    """Digest labelled fields; lengths go in, so that no two sets of fields look alike."""
    digest = hashlib.sha256()
    for label, value in fields.items():
        for part in (label.encode(), value):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    return digest.hexdigest()
