"""The C library in processes that know nothing of Python: its start, its environment, forks, threads, sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from capi_kit import installed

from flashcupy._version import __version__
from flashcupy.capi import build as capi_build
from flashcupy.capi.build import Prefix, bindings_dir, build

SOURCE = Path(__file__).parent / "capi_hosts" / "process.c"
COMPILE = ["cc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", f"-I{bindings_dir()}"]


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    installed()
    program = tmp_path_factory.mktemp("host") / "process"
    subprocess.run([*COMPILE, str(SOURCE), "-o", str(program), "-ldl", "-lpthread"], check=True)
    return program


def _run(host, what, library=None, *more, env=None, cwd="/"):
    """Run without an environment; what the library writes to stderr, or beside the host's lines, fails the test."""
    command = [str(host), what, str(library or installed().library), *map(str, more)]
    done = subprocess.run(command, capture_output=True, text=True, env=env or {}, cwd=cwd, timeout=120)
    assert done.stderr == ""
    assert done.returncode == 0, done.stdout
    return done.stdout.splitlines()


GOOD = ["first: FLASHCUPY_OK ", "second: FLASHCUPY_OK "]


@pytest.mark.parametrize(
    "env",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"PYTHONHOME": "/nonexistent", "PYTHONPATH": "/nonexistent", "PATH": "/nonexistent", "HOME": "/nonexistent"},
        {"PYTHONSTARTUP": "/nonexistent", "PYTHONINSPECT": "1", "PYTHONVERBOSE": "1", "LC_ALL": "C"},
        pytest.param({"FLASHCUPY_DEBUG": "1"}, marks=pytest.mark.slow),
    ],
    ids=["none", "bogus", "loud", "debug"],
)
def test_the_environment_of_the_host_does_not_matter(host, env):
    assert _run(host, "twice", env=env) == GOOD


def test_forks(host):
    lines = _run(host, "fork")
    assert lines[:2] == ["child before the first call: FLASHCUPY_OK ", "parent: FLASHCUPY_OK "]
    assert lines[2].startswith("child after it: FLASHCUPY_FORKED this process is a fork of process ")
    assert lines[3] == "parent: FLASHCUPY_OK "


def test_closing_the_library_is_harmless(host):
    assert _run(host, "reopen") == ["first: FLASHCUPY_OK ", "dlclose: 0", "second: FLASHCUPY_OK "]


def test_threads_at_once_and_a_shutdown_between(host):
    lines = _run(host, "threads")
    assert lines == ["threads: 0 errors", "shutdown: FLASHCUPY_OK ", "threads: 0 errors"]


def test_messages_go_to_the_callback(host):
    message, warned, silent = _run(host, "log")
    assert message.startswith("message 30 for me: UserWarning: dropout is 0.0001")
    assert message.endswith("calling from it: FLASHCUPY_INVALID_ARGUMENT")
    assert (warned, silent) == ("warned: FLASHCUPY_OK ", "silent: FLASHCUPY_OK ")


def test_a_shutdown_comes_through_while_calls_overlap(host):
    assert _run(host, "shutdown") == ["shutdown: FLASHCUPY_OK "] * 3 + ["calls: 0 errors"]


def test_a_relative_path_and_another_folder(host):
    """A daemon changes its folder between loading the library and using it."""
    library = installed().library
    assert _run(host, "chdir", f"./{library.name}", cwd=library.parent) == GOOD


def _built(monkeypatch, folder, **recorded):
    """The library as it is when what it was built for has gone."""
    original = capi_build._recorded

    def changed(*arguments):
        text = original(*arguments)
        for name, value in recorded.items():
            lines = [f'#define {name} "{value}"' if f" {name} " in line else line for line in text.splitlines()]
            text = "\n".join(lines) + "\n"
        return text

    monkeypatch.setattr(capi_build, "_recorded", changed)
    prefix = Prefix(folder)
    build(prefix)
    return prefix


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recorded", "message"),
    [
        ({"RECORDED_LIBPYTHON": "/gone/libpython.so"}, "libpython cannot be loaded: /gone/libpython.so"),
        (
            {"RECORDED_PYTHON": "/gone/bin/python", "RECORDED_NAMES": "recorded_version = ((3, 0), '')"},
            "ImportError: this is",
        ),
        (
            {
                "RECORDED_PYTHON": "/gone/bin/python",
                "RECORDED_NAMES": f"recorded_version = {(sys.version_info[:2], sys.abiflags)}\\nrecorded_path = []",
            },
            "No module named",
        ),
        ({"RECORDED_ENTRIES": "gone.so"}, "gone.so"),
        ({"RECORDED_VERSION": "3.0"}, "expected Python 3.0, which the library is bound to"),
    ],
    ids=["libpython", "version of packages", "packages", "entries", "version"],
)
def test_a_python_that_cannot_start_is_a_status(host, monkeypatch, tmp_path, recorded, message):
    prefix = _built(monkeypatch, tmp_path, **recorded)
    first, second = _run(host, "twice", prefix.library)
    assert first.startswith("first: FLASHCUPY_PYTHON ")
    assert message in first
    assert second == first.replace("first", "second")


@pytest.mark.slow
def test_a_library_of_another_version(host, monkeypatch, tmp_path):
    """As after an upgrade of the package: what C hands over may mean something else."""
    shutil.copytree(bindings_dir(), tmp_path / "bindings")
    header = tmp_path / "bindings" / "flashcupy.h"
    header.write_text(header.read_text().replace(f'FLASHCUPY_VERSION "{__version__}"', 'FLASHCUPY_VERSION "0.0.9"'))
    monkeypatch.setattr(capi_build, "bindings_dir", lambda: tmp_path / "bindings")
    prefix = Prefix(tmp_path / "prefix")
    build(prefix)
    first, _ = _run(host, "twice", prefix.library)
    assert "FLASHCUPY_PYTHON the library was built by flashcupy 0.0.9" in first
    assert "run 'flashcupy capi build' anew" in first


@pytest.mark.slow
def test_what_the_start_has_to_say_goes_to_the_log(host, monkeypatch, tmp_path):
    """`site` complains on stderr of a .pth file that it cannot read."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    packages = next(venv.glob("lib/python*/site-packages"))
    (packages / "ours.pth").write_text("".join(f"{path}\n" for path in capi_build._package_folders()))
    (packages / "broken.pth").write_text("import no_such_module\n")
    prefix = _built(monkeypatch, tmp_path / "prefix", RECORDED_PYTHON=str(venv / "bin" / "python"))
    lines = _run(host, "log", prefix.library)
    assert any("no_such_module" in line for line in lines)
    assert [line for line in lines if line.startswith(("warned", "silent"))] == [
        "warned: FLASHCUPY_OK ",
        "silent: FLASHCUPY_OK ",
    ]


@pytest.mark.slow
def test_after_the_end_of_the_hosts_python(tmp_path):
    """Objects with static lifetime are destroyed then."""
    flags = [f"-I{installed().include}", f"-L{installed().lib}", f"-Wl,-rpath,{installed().lib}", "-lflashcupy"]
    plugin = tmp_path / "plugin.so"
    subprocess.run(["cc", "-shared", "-fPIC", str(SOURCE.with_name("plugin.c")), *flags, "-o", str(plugin)], check=True)
    program = f"import ctypes; print(ctypes.CDLL({str(plugin)!r}).set_up(), flush=True)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "0",
        "FLASHCUPY_PYTHON the host has finalised its Python, which flashcupy needs",
    ]


def test_a_host_with_another_python(host, tmp_path):
    other = tmp_path / "libpython3.9.so.1.0"
    code = 'const char *Py_GetVersion(void) { return "3.9.1 (default)"; } int Py_IsInitialized(void) { return 1; }'
    source = tmp_path / "other.c"
    source.write_text(code)
    subprocess.run(["cc", "-shared", "-fPIC", str(source), "-o", str(other)], check=True)
    first, _ = _run(host, "behind", None, other)
    assert "FLASHCUPY_PYTHON the process has Python 3.9.1 (" in first
    assert str(other) in first


@pytest.mark.slow
def test_a_host_that_has_loaded_python_for_itself(host):
    """As programs with plugins do: locally, and without starting it."""
    assert _run(host, "behind", None, capi_build._libpython()) == GOOD


def test_a_host_that_runs_python_is_joined_and_lent_packages(tmp_path):
    """A Python of the same version without flashcupy, whose stdout and warnings stay its own."""
    program = f"""
import ctypes, sys
sys.path = [path for path in sys.path if "site-packages" not in path and not path.startswith({os.getcwd()!r})]
before = sys.stdout
library = ctypes.CDLL({str(installed().library)!r})
assert library.flashcupy_init() == 0, ctypes.string_at(ctypes.cast(library.flashcupy_last_error(), ctypes.c_char_p))
import flashcupy
assert sys.stdout is before
print("joined")
"""
    base = Path(sys.base_prefix) / "bin" / Path(sys.executable).resolve().name
    done = subprocess.run([str(base), "-I", "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert (done.stdout, done.stderr) == ("joined\n", "")


@pytest.mark.slow
def test_no_errors_of_address_or_undefined_behaviour(monkeypatch, tmp_path):
    """The front and a host under sanitizers; of Python's own allocations they are not asked."""
    flags = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")
    prefix = Prefix(tmp_path / "prefix")
    build(prefix, extra_flags=flags)
    program = tmp_path / "process"
    subprocess.run([*COMPILE, *flags, str(SOURCE), "-o", str(program), "-ldl", "-lpthread"], check=True)
    env = {"ASAN_OPTIONS": "detect_leaks=0"}
    for what in ("twice", "fork", "log", "threads"):
        lines = _run(program, what, prefix.library, env=env)
        assert all("OK" in line or "0 errors" in line or "FORKED" in line or "message" in line for line in lines)


@pytest.mark.slow
def test_valgrind_finds_nothing_in_our_code(host, tmp_path):
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed")
    log = tmp_path / "log"
    command = ["valgrind", f"--log-file={log}", str(host), "twice", str(installed().library)]
    done = subprocess.run(command, env={"PYTHONMALLOC": "malloc", "PATH": os.environ["PATH"]}, capture_output=True)
    assert done.returncode == 0
    # Others' errors are theirs: glibc's loader has some.
    reports = [part for part in log.read_text().split("== \n") if " at 0x" in part]
    assert [part for part in reports if "flashcupy" in part] == []
