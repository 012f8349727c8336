"""The kernel sources: where they lie, and a digest that changes whenever one of them does."""

from __future__ import annotations

import hashlib
import threading
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
    files = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if _is_source(path))
    stamp = tuple((name, stat.st_mtime_ns, stat.st_size) for name, path in files for stat in [path.stat()])
    with _lock:
        known = _digests.get(folder)
        if known is None or known[0] != stamp:
            known = _digests[folder] = stamp, fields_digest({name: path.read_bytes() for name, path in files})
    return known[1]


def _is_source(path: Path) -> bool:
    """Anything a kernel could include; an editor's hidden files and the documentation are not."""
    return path.is_file() and not path.name.startswith(".") and path.suffix != ".md"


def fields_digest(fields: dict[str, bytes]) -> str:
    """Digest labelled fields; lengths go in, so that no two sets of fields look alike."""
    digest = hashlib.sha256()
    for label, value in fields.items():
        for part in (label.encode(), value):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    return digest.hexdigest()
