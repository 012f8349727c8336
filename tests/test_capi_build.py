"""`flashcupy capi`: building, telling compilers, and what it says where it cannot."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
from capi_kit import HEADER, installed, library

from flashcupy.__main__ import main
from flashcupy.capi import build as capi_build
from flashcupy.capi.build import bindings_dir, declarations

PROGRAM = """
#include <flashcupy.h>
#include <stdio.h>
int main(void) { puts(flashcupy_version()); return flashcupy_init(); }
"""


@pytest.mark.parametrize(
    "command", [["cc", "-std=c99", "-x", "c"], ["c++", "-std=c++17", "-x", "c++"]], ids=["C99", "C++17"]
)
def test_the_header_compiles_alone(command):
    subprocess.run([*command, "-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only", str(HEADER)], check=True)


def test_build_and_compile_against_it(tmp_path, capsys):
    installed()  # or skip, where nothing can be built
    prefix = tmp_path / "a prefix"  # with a space, which has to be quoted
    assert main(["capi", "build", "--prefix", str(prefix)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [Path(line).is_file() for line in printed] == [True] * 3
    assert main(["capi", "--cflags", "--libs", "--prefix", str(prefix)]) == 0
    flags = capsys.readouterr().out
    source = tmp_path / "main.c"
    source.write_text(PROGRAM)
    ways = [shlex.split(flags)]
    if shutil.which("pkg-config"):
        tell = ["pkg-config", "--cflags", "--libs", "flashcupy"]
        folder = prefix / "lib" / "pkgconfig"
        told = subprocess.run(tell, env={"PKG_CONFIG_PATH": str(folder)}, capture_output=True, text=True, check=True)
        ways.append(shlex.split(told.stdout))
    for number, way in enumerate(ways):
        program = tmp_path / f"main{number}"
        subprocess.run(["cc", "-std=c99", str(source), *way, "-o", str(program)], check=True)
        done = subprocess.run([str(program)], env={}, cwd="/", capture_output=True, text=True)
        assert (done.returncode, done.stdout.strip(), done.stderr) == (0, capi_build.__version__, "")


def test_it_can_be_moved(tmp_path):
    """The entries are found beside the front, wherever that is."""
    copy = tmp_path / "elsewhere"
    shutil.copytree(installed().root, copy, symlinks=True)
    source = tmp_path / "main.c"
    source.write_text(PROGRAM)
    flags = [f"-I{copy}/include", f"-L{copy}/lib", "-lflashcupy", f"-Wl,-rpath,{copy}/lib"]
    subprocess.run(["cc", str(source), *flags, "-o", str(tmp_path / "main")], check=True)
    assert subprocess.run([str(tmp_path / "main")], env={}, capture_output=True).returncode == 0


def _fails(capsys, *arguments):
    assert main(["capi", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err


def test_what_it_says_where_it_cannot(tmp_path, capsys, monkeypatch):
    prefix = ["--prefix", str(tmp_path / "prefix")]
    assert "run 'flashcupy capi build'" in _fails(capsys, "--libs", *prefix)
    assert "nothing to do" in _fails(capsys)
    with monkeypatch.context() as patch:
        patch.setenv("CC", "no-such-compiler -O3")
        assert "no C compiler 'no-such-compiler -O3'" in _fails(capsys, "build", *prefix)
    with monkeypatch.context() as patch:
        patch.setattr(capi_build.sys, "platform", "darwin")
        assert "is for Linux" in _fails(capsys, "build", *prefix)
    with monkeypatch.context() as patch:
        patch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
        assert "lacks Python.h" in _fails(capsys, "build", *prefix)
    with monkeypatch.context() as patch:
        patch.setattr(sysconfig, "get_config_var", lambda name: None)
        assert "no shared libpython" in _fails(capsys, "build", *prefix)
    with monkeypatch.context() as patch:
        patch.setitem(capi_build.sys.modules, "cffi", None)
        assert "pip install 'flashcupy[capi]'" in _fails(capsys, "build", *prefix)
    assert "without any of" in _fails(capsys, "build", "--prefix", str(tmp_path / "a,b"))
    with monkeypatch.context() as patch:
        patch.setattr(capi_build.sys, "prefix", capi_build.sys.base_prefix)
        assert "no virtual environment: name a folder by --prefix" in _fails(capsys, "build")
    with monkeypatch.context() as patch:
        patch.setenv("CC", "false")
        assert "false" in _fails(capsys, "build", *prefix)
    assert not (tmp_path / "prefix").exists()


def test_every_entry_is_declared_once_and_served():
    """The table of the front, the declarations and Python's functions name the same calls."""
    from flashcupy.capi import entries

    served = {}

    def def_extern(name, error):
        assert error == 0
        return lambda function: served.setdefault(name, function)

    ffi = library().ffi
    entries.bind(SimpleNamespace(typeof=ffi.typeof, sizeof=ffi.sizeof, def_extern=def_extern))
    text = declarations(bindings_dir() / "src" / "entries.h")
    declared = {word.split("(")[0] for word in text.split() if word.startswith(entries.PREFIX) and "(" in word}
    front = (bindings_dir() / "src" / "front.h").read_text()
    listed = {
        f"{entries.PREFIX}{line.strip()[2:].split(')')[0]}"
        for line in front.splitlines()
        if line.strip().startswith("X(")
    }
    assert set(served) == declared == listed
    assert f"FLASHCUPY_MARK = {entries.MARK:#09x}" in (bindings_dir() / "src" / "entries.h").read_text().replace(
        "FC", "fc"
    )
