"""``flashcupy capi``: build the C library, and tell compilers where it is."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from flashcupy.capi.build import BuildError, Prefix, build, default_prefix


def run(arguments: Namespace) -> int:
    """Run the command and return the exit status: 0, or 2 if it could not."""
    try:
        prefix = Prefix(Path(arguments.prefix).expanduser().absolute()) if arguments.prefix else default_prefix()
        if arguments.action == "build":
            return _build(prefix)
        return _tell(prefix, cflags=arguments.cflags, libs=arguments.libs)
    except (BuildError, ImportError, OSError) as error:
        print(f"flashcupy capi: {error}", file=sys.stderr)
        return 2


def _build(prefix: Prefix) -> int:
    build(prefix)
    print(f"{prefix.library}\n{prefix.include / 'flashcupy.h'}\n{prefix.pkgconfig}")
    return 0


def _tell(prefix: Prefix, *, cflags: bool, libs: bool) -> int:
    if not (cflags or libs):
        raise BuildError("nothing to do: build, --cflags or --libs")
    if not prefix.library.is_file():
        raise BuildError(f"{prefix.library} is not there: run 'flashcupy capi build'")
    print(" ".join([prefix.cflags()] * cflags + [prefix.libs()] * libs))
    return 0
