"""The ``flashcupy`` command and the folders it reports."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fake_device import FakeConfig, FakeDevice

from flashcupy import __main__ as cli
from flashcupy import info
from flashcupy.cuda import cache, commands, cupy_device, device
from flashcupy.cuda.nvrtc import Usage
from flashcupy.errors import KernelCompileError
from flashcupy.paths import cache_dir


def run_info(capsys, *options):
    assert cli.main(["info", *options]) == 0
    return capsys.readouterr().out


def test_info_text_names_versions_backends_and_cache(capsys):
    text = run_info(capsys)
    for expected in (np.__version__, "NumPy backend  usable", "CUDA backend   ", str(cache_dir())):
        assert expected in text


def test_info_json_holds_the_same_facts(capsys):
    facts = json.loads(run_info(capsys, "--json"))
    assert facts == info.collect_info()
    assert facts["numpy"] == np.__version__
    assert facts["backends"]["numpy"]["threads"] >= 1


def test_info_reports_missing_packages(capsys, monkeypatch):
    monkeypatch.setattr(info, "OPTIONAL_PACKAGES", ("no-such-distribution",))
    assert "no-such-distribution not installed" in run_info(capsys)


def test_info_reports_a_gpu_that_nvidia_smi_knows(capsys, monkeypatch, tmp_path):
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 'NVIDIA Example, 600.1'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert "NVIDIA Example, driver 600.1" in run_info(capsys)


def test_info_without_cupy_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    cupy_device._cupy.cache_clear()
    cupy_device._nvrtc.cache_clear()
    text = run_info(capsys)
    assert "not usable: arrays on a GPU need CuPy" in text
    assert "  NVRTC        not found" in text


@pytest.mark.parametrize("error", [RuntimeError("cuda:0 cannot be used\nmore"), AssertionError(), OSError("libcuda")])
def test_info_survives_whatever_a_broken_installation_raises(capsys, monkeypatch, error):
    def fail():
        raise error

    monkeypatch.setattr(cupy_device, "CupyRuntime", fail)
    monkeypatch.setattr(cupy_device, "compiler_version", lambda: "NVRTC 12.9")
    text = run_info(capsys)
    assert f"not usable: {str(error).splitlines()[0] if str(error) else 'AssertionError'}\n" in text
    assert "  NVRTC        12.9" in text


def test_info_of_a_usable_gpu(capsys, monkeypatch):
    runtime = SimpleNamespace(device=lambda ordinal: FakeDevice())
    monkeypatch.setattr(cupy_device, "CupyRuntime", lambda: runtime)
    monkeypatch.setattr(cupy_device, "compiler_version", lambda: "NVRTC 12.9")
    assert "CUDA backend   usable\n" in run_info(capsys)


def test_info_counts_the_kernels_in_the_cache(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("FLASHCUPY_CACHE_DIR", str(tmp_path))
    assert "  kernels      0, 0.0 MiB" in run_info(capsys)
    for name in ("fwd", "bwd"):
        cache.store(name, "key", bytes(2**20))
    assert "  kernels      2, 2.0 MiB" in run_info(capsys)


def test_info_survives_a_failing_nvidia_smi(capsys, monkeypatch, tmp_path):
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\nexit 9\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert "none found" in run_info(capsys)


class Runtime:
    """As many fake GPUs as asked for."""

    def __init__(self, count):
        self.devices = [FakeDevice(f"cuda:{ordinal}") for ordinal in range(count)]

    def count(self):
        return len(self.devices)

    def device(self, ordinal):
        return self.devices[ordinal]


@pytest.fixture
def gpus(monkeypatch):
    monkeypatch.setattr(device, "_installed", [])
    return lambda count: device.use(Runtime(count))


def case(name, outcome):
    def run(gpu):
        assert gpu.name == "cuda:0"
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return SimpleNamespace(name=name, run=run)


def use_cases(monkeypatch, *cases):
    monkeypatch.setattr(commands, "matrix", SimpleNamespace(check_cases=lambda compute_capability: cases))


def test_check_prints_a_table(capsys, monkeypatch, gpus):
    gpus(1)
    use_cases(monkeypatch, case("fwd causal", None), case("bwd", None))
    assert cli.main(["check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Fake GPU, sm_90a, fake 1.0, driver fake 2.0"
    assert [line.split()[-1] for line in lines[2:4]] == ["right", "right"]
    assert re.fullmatch(r"fwd causal +\d+\.\d  right", lines[2])
    assert lines[4].startswith("2 of 2 cases are right")


def test_check_goes_on_after_a_failure_and_tells_it_by_its_status(capsys, monkeypatch, gpus):
    gpus(2)
    crash = RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS\nlong story")
    use_cases(monkeypatch, case("fwd", "row 3 is off"), case("bwd", crash), case("merge", None))
    assert cli.main(["check"]) == 1
    text = capsys.readouterr().out
    assert "  row 3 is off\n" in text
    assert "  RuntimeError: CUDA_ERROR_ILLEGAL_ADDRESS\n" in text
    assert "1 of 3 cases are right" in text


def test_check_without_a_gpu_is_one_sentence(capsys, gpus):
    gpus(0)
    assert cli.main(["check"]) == 2
    assert capsys.readouterr().err == (
        "flashcupy: check needs an NVIDIA GPU, and CuPy finds none: 'flashcupy info' tells why\n"
    )


def test_check_and_compile_without_cupy_are_one_sentence(capsys, monkeypatch):
    monkeypatch.setattr(device, "_installed", [])
    monkeypatch.setitem(sys.modules, "cupy", None)
    cupy_device._cupy.cache_clear()
    cupy_device._nvrtc.cache_clear()
    for command in ("check", "compile"):
        assert cli.main([command]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert re.fullmatch(r"flashcupy: arrays on a GPU need CuPy.*pip install.*\n", output.err)


@pytest.fixture
def compiler(monkeypatch, tmp_path, gpus):
    """NVRTC stubbed; the calls it got."""
    calls = []

    def compile_fake(source, entry, arch, include):
        calls.append((entry, arch))
        if "syntax error" in source:
            raise KernelCompileError(entry, (), "line 2: syntax error")
        return f"{entry} {arch}".encode(), Usage(168, 24)

    configs = {"plain": [FakeConfig("fwd"), FakeConfig("bwd")]}
    configs["all"] = [*configs["plain"], FakeConfig("fwd_bias")]
    monkeypatch.setenv("FLASHCUPY_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(cupy_device, "nvrtc_compile", compile_fake)
    monkeypatch.setattr(cupy_device, "compiler_version", lambda: "fake 1.0")
    monkeypatch.setattr(cupy_device, "known_archs", lambda: (80, 90))
    monkeypatch.setattr(commands, "matrix", SimpleNamespace(compile_configs=lambda which, arch: configs[which]))
    gpus(0)
    return SimpleNamespace(calls=calls, configs=configs, gpus=gpus)


def test_compile_warms_the_cache_without_a_gpu(capsys, compiler):
    assert cli.main(["compile", "--arch", "sm_80,sm_90", "--jobs", "2"]) == 0
    expected = [("bwd", "sm_80"), ("bwd", "sm_90a"), ("fwd", "sm_80"), ("fwd", "sm_90a")]
    assert sorted(compiler.calls) == expected
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:5] for line in lines[1:3]] == [
        ["fwd", "sm_80", "128", "168", "24"],
        ["bwd", "sm_80", "128", "168", "24"],
    ]
    assert lines[-1] == "4 compiled, 0 failed, 4 in all"
    assert cache.usage()[0] == 4

    assert cli.main(["compile", "--arch", "sm_90a", "--what", "all"]) == 0
    assert compiler.calls[4:] == [("fwd_bias", "sm_90a")]
    assert capsys.readouterr().out.count("cached") == 2


def test_what_was_compiled_ahead_is_what_a_gpu_asks_for(compiler):
    compiler.gpus(1)
    assert cli.main(["compile"]) == 0
    gpu = device.runtime().device(0)
    assert all(commands.unit_of(config, gpu.properties.arch, "fake 1.0").find() for config in compiler.configs["plain"])


def test_compile_tells_what_failed_and_compiles_the_rest(capsys, compiler):
    compiler.configs["plain"].insert(0, FakeConfig("broken", body="syntax error"))
    assert cli.main(["compile", "--arch", "sm_80"]) == 1
    text = capsys.readouterr().out
    assert "line 2: syntax error" in text
    assert text.splitlines()[-1] == "2 compiled, 1 failed, 3 in all"


def test_compile_without_tqdm_counts_in_lines(capsys, monkeypatch, compiler):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert cli.main(["compile", "--arch", "sm_80", "--jobs", "1"]) == 0
    assert capsys.readouterr().err == "1/2 fwd\n2/2 bwd\n"


def test_compile_without_a_gpu_asks_for_an_architecture(capsys, compiler):
    assert cli.main(["compile"]) == 2
    assert "name an architecture, as in --arch sm_90a" in capsys.readouterr().err


@pytest.mark.parametrize("arch", ["sm_70", "sm_80a", "hopper", "compute_120", "sm_90aa"])
def test_compile_refuses_an_architecture_it_does_not_know(capsys, compiler, arch):
    assert cli.main(["compile", "--arch", f"sm_80,{arch}"]) == 2
    assert f"--arch {arch} is nothing that fake 1.0 compiles kernels for, expected of sm_80, sm_90" in (
        capsys.readouterr().err
    )
    assert compiler.calls == []


@pytest.mark.parametrize("options", [["--jobs", "0"], ["--jobs", "two"], ["--arch", ","], ["--what", "some"]])
def test_compile_refuses_options_that_make_no_sense(capsys, options):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["compile", *options])
    assert options[0] in capsys.readouterr().err


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
