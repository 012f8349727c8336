"""The ``flashcupy`` command: what is installed and will be used, whether kernels are right, kernels ahead of time."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence

from flashcupy._version import __version__
from flashcupy.info import collect_info, format_info


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    0 is success, 1 that a case or a kernel failed, 2 that the command could not run here.
    """
    arguments = _parser().parse_args(argv)
    if arguments.command == "info":
        facts = collect_info()
        print(json.dumps(facts, indent=2) if arguments.json else format_info(facts))
        return 0

    if arguments.command == "capi":
        from flashcupy.capi.command import run

        return run(arguments)

    from flashcupy.cuda import commands

    if arguments.command == "check":
        return commands.check()
    return commands.compile_ahead(arguments.arch, arguments.what, arguments.jobs)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flashcupy", description="FlashAttention for NumPy and CuPy arrays.")
    parser.add_argument("--version", action="version", version=f"flashcupy {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="versions, backends found, caches and threads")
    info.add_argument("--json", action="store_true", help="print JSON instead of text")
    commands.add_parser("check", help="run every kind of kernel on the GPU and compare with the reference")
    capi = commands.add_parser("capi", help="build the C library for this Python, or tell how to compile with it")
    capi.add_argument("action", nargs="?", choices=["build"], help="build and install libflashcupy and flashcupy.h")
    capi.add_argument("--prefix", metavar="DIR", help="where: DIR/include, DIR/lib (default: this Python's own prefix)")
    capi.add_argument("--cflags", action="store_true", help="print the compiler's options")
    capi.add_argument("--libs", action="store_true", help="print the linker's options")
    ahead = commands.add_parser("compile", help="compile kernels into the cache, for --arch even without a GPU")
    ahead.add_argument(
        "--arch", type=_names, metavar="SM[,SM]", help="such as sm_90a,sm_80 (default: those of this machine's GPUs)"
    )
    ahead.add_argument(
        "--what", choices=("plain", "all"), default="plain", help="kernels without options, or with every option too"
    )
    ahead.add_argument("--jobs", type=_at_least_one, default=os.cpu_count() or 1, help="threads (default: all cores)")
    return parser


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("expected architectures, such as sm_90a,sm_80")
    return names


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected an integer >= 1")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main())
