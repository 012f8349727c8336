"""bench/on_gpu.sh with a stand-in for the interpreter: what it runs, what it keeps, what it reports."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "bench" / "on_gpu.sh"
SECTIONS = [
    "env",
    "test",
    "sanitize",
    "limits",
    "bench-fwd",
    "bench-bwd",
    "bench-sparse",
    "bench-masks",
    "bench-options",
    "bench-small",
]

# Writes a result where it is asked for one; flashcupy's own check fails.
STAND_IN = """\
#!/usr/bin/env bash
echo "ran $*"
while [ $# -gt 0 ]; do
  [ "$1" = --output ] && mkdir -p "$2" && echo done >"$2/result.json"
  [ "$1" = check ] && exit 3
  shift
done
exit 0
"""


def run(*arguments, **variables):
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    environment = {**kept, **variables}
    return subprocess.run(
        [SCRIPT, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def python(tmp_path):
    file = tmp_path / "stand-in"
    file.write_text(STAND_IN)
    file.chmod(0o755)
    return str(file)


def test_a_dry_run_lists_the_commands_of_all_sections():
    commands = run("--dry-run").stdout.splitlines()
    assert sum("bench.gpu" in command for command in commands) == 11
    assert [command.split("-m ")[1].split()[0] for command in commands] == [
        "bench.gpu",
        "pytest",
        "flashcupy",
        *["bench.sanitize_case"] * 3,
        *["bench.gpu"] * 10,
    ]
    assert [tool for tool in ("memcheck", "racecheck", "synccheck") if f"--tool {tool} " in "\n".join(commands)] == [
        "memcheck",
        "racecheck",
        "synccheck",
    ]


def test_sections_are_chosen_and_variables_reach_the_commands():
    commands = run("--dry-run", "bench-fwd", "peers", PYTHON="py", BUDGET="30", QUICK="1").stdout.splitlines()
    assert [command.split(" --output ")[0] for command in commands] == ["py -m bench.gpu fwd", "py -m bench.gpu peers"]
    assert all(command.endswith("--budget 30 --quick") for command in commands)


def test_the_backward_has_a_section_of_its_own():
    (command,) = run("--dry-run", "bench-bwd-matrix", PYTHON="py", BUDGET="240").stdout.splitlines()
    assert command.startswith("py -m bench.gpu bwd-matrix --output bench/results/")
    assert command.endswith("-bench-bwd-matrix --budget 240")
    assert command.split(" --output ")[0] in run("--dry-run", PYTHON="py").stdout


def test_tuning_runs_when_it_is_named_and_rows_can_be_chosen():
    (command,) = run("--dry-run", "tune", PYTHON="py", MATCH=".*D=128", BUDGET="30").stdout.splitlines()
    assert command.startswith("py -m bench.gpu tune --output bench/results/")
    assert command.endswith(" --budget 30 --match .*D=128")
    assert not any("tune" in line for line in run("--dry-run").stdout.splitlines())


def test_a_dry_run_makes_nothing(tmp_path):
    run("--dry-run", OUT=str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_an_unknown_section_is_refused():
    result = run("bench-everything")
    assert result.returncode == 2
    assert "'bench-everything' is no section, expected --dry-run or some of: env test" in result.stderr


def test_a_failing_section_does_not_stop_the_next(python, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    result = run("test", "bench-fwd", PYTHON=python, OUT=str(out))
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1] == "failed: test"
    with tarfile.open(out / "on_gpu.tar.gz") as archive:
        names = {name.rsplit("/", 1)[-1] for name in archive.getnames()}
        logs = [archive.extractfile(name).read().decode() for name in archive.getnames() if name.endswith("log.txt")]
    assert {"log.txt", "result.json"} <= names
    assert any("exit status 3: " in log for log in logs)
    assert any("ran -m pytest -m gpu" in log for log in logs)
    assert [file.name for file in out.iterdir()] == ["on_gpu.tar.gz"]


def test_sections_that_pass_exit_with_zero(python, tmp_path):
    result = run("env", "limits", PYTHON=python, OUT=str(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "failed" not in result.stdout
