"""The programs of bindings/examples, compiled as its README says and run where nothing tells them of Python."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from backends import why_no_gpu
from capi_kit import installed

from flashcupy.capi.build import bindings_dir

EXAMPLES = bindings_dir() / "examples"
WARNINGS = ["-Wall", "-Wextra", "-pedantic", "-Werror"]
ENVIRONMENTS = {
    "nothing": {},
    "a bogus Python": {"PYTHONHOME": "/nonexistent", "PYTHONPATH": "/nonexistent", "LC_ALL": "C"},
}


def _flags():
    return shlex.split(f"{installed().cflags()} {installed().libs()}")


def _compile(folder, source, *extra):
    """Compile one of the examples, where they are: it includes its neighbours."""
    program = folder / source.replace(".", "_")
    commands = {
        ".c": ["cc", "-std=c99", *WARNINGS, source, "-o", str(program), *_flags(), "-lm", "-pthread", *extra],
        ".cpp": ["c++", "-std=c++17", *WARNINGS, source, "-o", str(program), *_flags()],
        ".rs": [
            *("rustc", "--edition", "2021", "-D", "warnings", source, "-o", str(program)),
            *("-C", f"link-args={installed().libs()}"),
        ],
    }
    subprocess.run(commands[Path(source).suffix], cwd=EXAMPLES, check=True)
    return program


def _run(program, *arguments, env=None):
    """Run from elsewhere; what the library writes to stderr fails the test."""
    done = subprocess.run(
        [str(program), *arguments], capture_output=True, text=True, env=env or {}, cwd="/", timeout=300
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout


@pytest.mark.parametrize(
    "source", ["errors.c", *(pytest.param(name, marks=pytest.mark.slow) for name in ("host.c", "host.cpp", "host.rs"))]
)
def test_a_program(source, tmp_path):
    if source == "host.rs" and shutil.which("rustc") is None:
        pytest.skip("rustc is not installed")
    program = _compile(tmp_path, source)
    outputs = {_run(program, env=env) for env in ENVIRONMENTS.values()}
    assert len(outputs) == 1
    assert outputs.pop()


def test_a_program_with_eight_threads(tmp_path):
    assert _run(_compile(tmp_path, "host.c"), "--threads", "8")


@pytest.mark.slow
def test_a_wrong_result_fails_a_program(tmp_path):
    """The comparison can fail: here it compares with numbers that are a little off."""
    copy = tmp_path / "examples"
    shutil.copytree(EXAMPLES, copy)
    expected = (copy / "expected.h").read_text()
    at = expected.index("0.", expected.index("{"))
    digit = str((int(expected[at + 3]) + 1) % 10)
    (copy / "expected.h").write_text(expected[: at + 3] + digit + expected[at + 4 :])
    program = tmp_path / "host"
    subprocess.run(["cc", "host.c", "-o", str(program), *_flags(), "-lm", "-pthread"], cwd=copy, check=True)
    assert subprocess.run([str(program)], env={}, capture_output=True).returncode != 0


def test_what_the_programs_expect_is_the_oracles():
    command = [sys.executable, str(EXAMPLES / "expected.py"), "--check"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run(command, env=environment, check=True)


def _cuda():
    """The CUDA toolkit, for its headers and runtime library."""
    folders = [os.environ.get("CUDA_HOME", ""), os.environ.get("CUDA_PATH", ""), "/usr/local/cuda"]
    folders += map(str, sorted(Path("/usr/local").glob("cuda-*")))
    for folder in folders:
        if folder and (Path(folder) / "include" / "cuda_runtime_api.h").is_file():
            return Path(folder)
    pytest.skip("no headers of the CUDA runtime")


def test_the_program_for_a_gpu_compiles():
    include = ["-isystem", str(_cuda() / "include")]
    command = ["cc", "-std=c99", *WARNINGS, "-fsyntax-only", "host_gpu.c", f"-I{bindings_dir()}", *include]
    subprocess.run(command, cwd=EXAMPLES, check=True)


@pytest.mark.gpu
def test_the_program_for_a_gpu(tmp_path):
    assert why_no_gpu() is None
    cuda = _cuda()
    libraries = [f"-L{cuda}/lib64", f"-Wl,-rpath,{cuda}/lib64", "-lcudart", "-ldl"]
    program = _compile(tmp_path, "host_gpu.c", "-isystem", str(cuda / "include"), *libraries)
    keep = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "CUDA_PATH", "HOME") if name in os.environ}
    assert _run(program, env=keep)
