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
    "compile",
    "test",
    "test-rest",
    "sanitize-memcheck",
    "sanitize-racecheck",
    "sanitize-synccheck",
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
        "flashcupy",
        "bench.compile_cases",
        "pytest",
        "flashcupy",
        "pytest",
        *["bench.sanitize_case"] * 7,
        *["bench.gpu"] * 10,
    ]


def test_each_tool_of_the_sanitizer_comes_after_one_run_without():
    probe, *commands = run("--dry-run", "sanitize-memcheck", "sanitize-synccheck", PYTHON="py").stdout.splitlines()
    assert probe.endswith("--tool memcheck --error-exitcode 9 py -m bench.sanitize_case --probe")
    cores = len(os.sched_getaffinity(0))
    assert commands[::2] == [f"py -m bench.sanitize_case --jobs {cores}"] * 2
    assert [command.split("compute-sanitizer ")[1] for command in commands[1::2]] == [
        f"--tool {tool} --error-exitcode 9 py -m bench.sanitize_case" for tool in ("memcheck", "synccheck")
    ]


def test_tests_of_the_gpu_alone_come_first_and_the_rest_on_all_cores(python):
    first, check = run("--dry-run", "test", PYTHON=python).stdout.splitlines()
    assert first.endswith("/junit.xml tests/test_gpu.py tests/test_gpu_lifetimes.py")
    assert check.endswith("-m flashcupy check")
    (rest,) = run("--dry-run", "test-rest", PYTHON=python).stdout.splitlines()
    assert f" -v -n {len(os.sched_getaffinity(0))} " in rest  # the stand-in imports everything
    assert rest.endswith(" --ignore=tests/test_gpu.py --ignore=tests/test_gpu_lifetimes.py tests")
    (alone,) = run("--dry-run", "test-rest", PYTHON="/no/such/python").stdout.splitlines()
    assert " -n " not in alone


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
    assert "'bench-everything' is no section, expected --dry-run or some of: env compile test" in result.stderr


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


SANITIZER = """\
#!/usr/bin/env bash
echo "========= COMPUTE-SANITIZER"
[[ "$*" == *--probe* ]] && echo "========= {says}"
exit 0
"""


def sanitize(folder, python, says):
    file = folder / "compute-sanitizer"
    file.write_text(SANITIZER.format(says=says))
    file.chmod(0o755)
    sections = [section for section in SECTIONS if section.startswith("sanitize-")]
    return run(*sections, PYTHON=python, OUT=str(folder), PATH=f"{folder}:{os.environ['PATH']}")


def test_a_sanitizer_that_does_not_work_is_told_in_one_line(python, tmp_path):
    result = sanitize(tmp_path, python, "Error: Device not supported")
    assert result.returncode == 1
    assert result.stdout.splitlines() == [
        "compute-sanitizer does not work here, so none of its sections runs: ========= Error: Device not supported",
        "failed: compute-sanitizer",
    ]


def test_a_sanitizer_that_works_runs_every_tool(python, tmp_path):
    result = sanitize(tmp_path, python, "ERROR SUMMARY: 0 errors")
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("COMPUTE-SANITIZER") == 3


def test_a_command_out_of_time_is_interrupted_and_leaves_time_to_the_next(tmp_path):
    slow = tmp_path / "slow"
    # The first command of a section never ends by itself, and says when it is interrupted.
    slow.write_text(
        "#!/usr/bin/env bash\n"
        'echo "ran $*"\n'
        '[ "$2" = pytest ] || exit 0\n'
        "trap 'echo interrupted; exit 1' INT\n"
        "while :; do sleep 0.1; done\n"
    )
    slow.chmod(0o755)
    result = run("test", PYTHON=str(slow), OUT=str(tmp_path), LIMIT="4")
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    assert "interrupted" in lines
    assert any(line.startswith("stopped after 2 s: ") for line in lines)
    assert "ran -m flashcupy check" in lines
