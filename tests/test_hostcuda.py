"""Tests and benchmarks meant for a GPU, by CuPy itself over a stand-in for CUDA: see hostcuda/README.md."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hostcuda import build
from hostcuda.embedded import python_in
from hostcuda.faults import FAULTS
from oracles import installed

from flashcupy.capi.build import bindings_dir

pytestmark = pytest.mark.slow
TESTS = Path(__file__).parent


@pytest.fixture(scope="module", autouse=True)
def stand_in():
    return installed(build.site)


def run(*arguments, **variables):
    environment = os.environ | {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}", **variables}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True, timeout=900)


def run_tests(*arguments, plugins=(), **variables):
    plugins = [f"-phostcuda.{name}" for name in ("preload", *plugins)]
    return run("-m", "pytest", "-qrs", *plugins, "-pno:xdist", "-pno:cacheprovider", "-mgpu", *arguments, **variables)


def require_passes(done, at_least):
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout
    assert int(passed[1]) >= at_least, done.stdout


@pytest.mark.parametrize(
    ("files", "passes"),
    [
        (("test_gpu.py",), 9),
        (("test_gpu_lifetimes.py",), 7),
        (("test_device_masks.py", "test_device_masks_attention.py", "test_merge.py"), 80),
        (("test_bad_input.py",), 76),
        (("test_examples_sparse.py", "test_train_tiny_gpt.py"), 2),
    ],
    ids=["gpu", "lifetimes", "masks", "bad_input", "examples"],
)
def test_what_is_for_a_gpu_passes(files, passes):
    require_passes(run_tests(*(f"tests/{file}" for file in files)), passes)


def test_with_per_thread_default_streams():
    files = ("tests/test_gpu_lifetimes.py", "tests/test_gpu.py")
    done = run_tests(*files, "-knull or own or streams or refused", CUPY_CUDA_PER_THREAD_DEFAULT_STREAM="1")
    require_passes(done, 6)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_mistake_in_the_layer_over_cupy_is_seen(fault):
    test = f"-k{FAULTS[fault].seen_by}"
    done = run_tests("tests/test_gpu_lifetimes.py", test, plugins=("faults",), HOSTCUDA_FAULT=fault)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search("AssertionError|first-use check|CUDARuntimeError", done.stdout), done.stdout


def test_the_benchmark_measures(tmp_path):
    program = (
        "import runpy; from hostcuda import preload; preload.install(); runpy.run_module('bench.gpu', None, '__main__')"
    )
    rows = ("--quick", "--match", "graph.*float16 D=64")
    done = run("-c", program, "small", "--output", str(tmp_path), *rows)
    assert done.returncode == 0, done.stdout + done.stderr
    measured = re.findall(r"^\| flashcupy \| (\d+\.\d+) ", done.stdout, re.MULTILINE)
    assert len(measured) == 2, done.stdout


@pytest.fixture(scope="module")
def c_program(tmp_path_factory):
    """bindings/examples/host_gpu.c, with a library that starts a Python over the stand-in."""
    folder = tmp_path_factory.mktemp("c")
    capi = [str(python_in(folder / "venv")), "-m", "flashcupy", "capi", "--prefix", str(folder / "capi")]
    subprocess.run([*capi, "build"], check=True)
    told = subprocess.run([*capi, "--cflags", "--libs"], check=True, capture_output=True, text=True).stdout
    program = folder / "host_gpu"
    compile_it = ["cc", "-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", "host_gpu.c", "-o", str(program)]
    libraries = [*shlex.split(told), *build.flags(), "-lm", "-ldl"]
    subprocess.run([*compile_it, *libraries], cwd=bindings_dir() / "examples", check=True)

    def run_it(**variables):
        environment = {"PATH": os.environ["PATH"], **variables}  # the emulator calls the compiler
        return subprocess.run([str(program)], env=environment, cwd="/", capture_output=True, text=True, timeout=900)

    return run_it


def test_the_c_program_runs(c_program):
    done = c_program()
    assert (done.returncode, done.stderr) == (0, "")
    assert "graph, two streams: all as expected" in done.stdout


def test_the_c_program_sees_a_mistake(c_program):
    done = c_program(HOSTCUDA_FAULT="launches go to the default stream")
    assert done.returncode == 1
    assert "causal_out: off by" in done.stderr, done.stderr
