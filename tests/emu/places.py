"""Where in a kernel's sources a return address lies, as binutils tell."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path


def with_places(report: str, binary: Path) -> str:
    """Replace each ``{pc:...}`` by file and line, innermost first, where binutils can tell."""

    def place(match: re.Match[str]) -> str:
        # A return address: the call before it is the access.
        address = f"{int(match[1], 16) - 1:x}"
        command = [tool, "-e", str(binary), "-i", "-s", address]
        lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split("\n")
        return " < ".join(re.sub(r" \(.*\)$", "", line) for line in lines if line) or address

    tool = shutil.which("addr2line")
    return report if tool is None else re.sub(r"\{pc:(\w+)\}", place, report)


def places(offsets: list[int], binary: Path) -> list[str]:
    """Functions, files and lines of return addresses, where binutils can tell."""
    # A return address: the call before it is the access.
    addresses = [f"{offset - 1:x}" for offset in offsets]
    tool = shutil.which("addr2line")
    if tool is None:
        return addresses
    command = [tool, "-e", str(binary), "-a", "-i", "-f", "-C", "-s"]
    given = "\n".join(addresses)
    text = subprocess.run(command, input=given, capture_output=True, text=True, check=False).stdout
    return [_chain(lines.split("\n")[1:]) for lines in re.split(r"^0x", text, flags=re.MULTILINE)[1:]]


def _chain(lines: list[str]) -> str:
    functions, sources = (_bare(name) for name in lines[::2]), lines[1::2]
    return " < ".join(f"{name} {source.partition(' ')[0]}" for name, source in zip(functions, sources, strict=False))


def _bare(name: str) -> str:
    """Leave a function's name: no result, template arguments and parameters."""
    while (shorter := re.sub(r"<[^<>]*>", "", name)) != name:
        name = shorter
    return name.partition("(")[0].split(" ")[-1]
