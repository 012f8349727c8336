"""The ``flashcupy`` command and the folders it reports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flashcupy import __main__ as cli
from flashcupy.paths import cache_dir


def run_info(capsys, *options):
    assert cli.main(["info", *options]) == 0
    return capsys.readouterr().out


def test_info_text_names_versions_backends_and_cache(capsys):
    text = run_info(capsys)
    for expected in (np.__version__, "NumPy backend  usable", "CUDA backend   not usable", str(cache_dir())):
        assert expected in text


def test_info_json_holds_the_same_facts(capsys):
    facts = json.loads(run_info(capsys, "--json"))
    assert facts == cli.collect_info()
    assert facts["numpy"] == np.__version__
    assert facts["backends"]["numpy"]["threads"] >= 1


def test_info_reports_missing_packages(capsys, monkeypatch):
    monkeypatch.setattr(cli, "OPTIONAL_PACKAGES", ("no-such-distribution",))
    assert "no-such-distribution not installed" in run_info(capsys)


def test_info_reports_a_gpu_and_still_says_why_cuda_is_not_usable(capsys, monkeypatch, tmp_path):
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 'NVIDIA Example, 600.1'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    text = run_info(capsys)
    assert "NVIDIA Example, driver 600.1" in text
    assert "has the NumPy backend only" in text


def test_info_survives_a_failing_nvidia_smi(capsys, monkeypatch, tmp_path):
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\nexit 9\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert "none found" in run_info(capsys)


def test_module_runs_as_a_program():
    command = [sys.executable, "-m", "flashcupy", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith("flashcupy ")


def test_a_command_is_required(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main([])
    assert "info" in capsys.readouterr().err


def test_cache_dir_prefers_its_own_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("FLASHCUPY_CACHE_DIR", str(tmp_path / "kernels"))
    assert cache_dir() == tmp_path / "kernels"


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="XDG directories are a Unix convention")
@pytest.mark.parametrize("xdg", ["/elsewhere/cache", "relative", None])
def test_cache_dir_follows_xdg_unless_it_is_relative_or_unset(monkeypatch, tmp_path, xdg):
    monkeypatch.delenv("FLASHCUPY_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    if xdg is None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    root = Path("/elsewhere/cache") if xdg == "/elsewhere/cache" else tmp_path / ".cache"
    assert cache_dir() == root / "flashcupy"
