"""Where flashcupy finds files that come with it, and keeps those of its own on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_dir() -> Path:
    """Return the folder for compiled kernels; it need not exist yet.

    ``FLASHCUPY_CACHE_DIR`` names it outright. Otherwise it is ``flashcupy`` in the user's cache folder:
    ``%LOCALAPPDATA%`` on Windows, ``~/Library/Caches`` on macOS, elsewhere ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Returns
    -------
    pathlib.Path
        An absolute path.

    Raises
    ------
    OSError
        If it would be in the user's home folder, and the user has none: HOME is unset and the system does not know him.

    Examples
    --------
    >>> from flashcupy.paths import cache_dir
    >>> cache_dir().is_absolute()
    True
    """
    chosen = os.environ.get("FLASHCUPY_CACHE_DIR")
    try:
        return Path(chosen).expanduser().absolute() if chosen else _user_cache_dir() / "flashcupy"
    except RuntimeError as error:  # from Path.home
        raise FileNotFoundError(f"the user's home folder is not known: {error}") from None


def shipped(folder: str) -> Path:
    """Return a folder of sources that comes with the package: in a wheel inside it, in a checkout beside it.

    Raises
    ------
    FileNotFoundError
        If neither is there.
    """
    package = Path(__file__).resolve().parent
    for place in (package / folder, package.parent / folder):
        if place.is_dir():
            return place
    raise FileNotFoundError(f"flashcupy's sources are missing, expected them in {package / folder}")


def _user_cache_dir() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG base directory specification asks to ignore a relative path.
    return xdg if xdg.is_absolute() else Path.home() / ".cache"
