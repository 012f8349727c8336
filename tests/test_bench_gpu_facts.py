"""What the benchmark says of a GPU: facts, clock and temperature, limits."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from host_gpu import HostGpu
from oracles import nvrtc_library

from bench import environment
from bench.gpu import __main__ as command
from bench.gpu import facts, limits, nvml, report


def test_the_commit_can_be_given(monkeypatch):
    monkeypatch.setenv("FLASHCUPY_COMMIT", "0123abc")
    assert environment.commit() == "0123abc"


def smi_without(*refused):
    """What stands for nvidia-smi: one field that it does not know makes it refuse all."""

    def output(command):
        fields = next(word for word in command if word.startswith("--query-gpu=")).partition("=")[2].split(",")
        return None if set(fields) & set(refused) else ", ".join(f"the {field}" for field in fields) + "\n"

    return output


def test_nvidia_smi_is_read(monkeypatch):
    monkeypatch.setattr(facts, "_output", smi_without())
    assert facts.smi() == {field: f"the {field}" for field in (*facts.QUERY, "clocks_event_reasons.active")}
    monkeypatch.setattr(facts, "_output", smi_without("clocks_event_reasons.active"))
    assert facts.smi()["clocks_throttle_reasons.active"] == "the clocks_throttle_reasons.active"
    monkeypatch.setattr(facts, "_output", lambda command: None)
    assert facts.smi() == {}


def test_a_field_that_nvidia_smi_refuses_is_all_that_is_missing(monkeypatch):
    monkeypatch.setattr(facts, "_output", smi_without("power.limit", *facts.THROTTLING))
    assert set(facts.smi()) == {*facts.QUERY} - {"power.limit"}


def test_the_name_is_known_without_nvidia_smi(monkeypatch):
    runtime = SimpleNamespace(
        getDeviceProperties=lambda ordinal: {"name": b"NVIDIA H200", "major": 9, "minor": 0},
        runtimeGetVersion=lambda: 13000,
        driverGetVersion=lambda: 13000,
    )
    nvrtc = SimpleNamespace(getVersion=lambda: (13, 0))
    cuda = SimpleNamespace(Device=lambda: SimpleNamespace(id=0), runtime=runtime, nvrtc=nvrtc)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    monkeypatch.setitem(sys.modules, "cupy.cuda", cuda)
    monkeypatch.setattr(facts, "_output", lambda command: None)
    found = facts.facts()
    assert report.title(found).startswith("NVIDIA H200, commit ")
    assert found["gpu"]["compute_capability"] == "9.0"


def test_the_environment_is_written_without_a_gpu(tmp_path, capsys):
    assert command.main(["env", "--output", str(tmp_path / "new")]) == 0
    written = json.loads((tmp_path / "new" / "result.json").read_text())
    assert written["versions"]["numpy"] == np.__version__
    assert "gpu" in written


def test_a_limit_that_cannot_be_measured_says_why():
    def broken():
        raise RuntimeError("no such thing")

    values = iter(range(100))
    found = [limits.measured("counts", "GB/s", lambda: float(next(values))), limits.measured("broken", "us", broken)]
    assert found[0].samples == tuple(range(1, 11))
    lines = limits.table(found).splitlines()
    assert lines[2] == "| counts | 5.5 | 1..10 | GB/s |"
    assert lines[3].startswith("| broken | | | RuntimeError: no such thing")


def test_the_matmul_rate_counts_two_per_product(monkeypatch):
    class Gpu(HostGpu):
        def sample(self, call):
            return 1e-3

    monkeypatch.setattr(limits, "_has_torch", lambda: False)
    monkeypatch.setattr(limits, "WARM_SECONDS", 0.0)
    monkeypatch.setitem(limits.MATMUL_SIZES, "float32", 100)
    assert limits.matmul_rates(Gpu(), {"float32", "bfloat16"}) == {"float32": pytest.approx(2e6 / 1e-3 * 1e-12)}


def test_the_matmul_rate_is_taken_of_a_device_at_work(monkeypatch):
    log = []

    class Gpu(HostGpu):
        def synchronize(self):
            log.append("wait")

        def sample(self, call):
            log.append("clock")
            return 1e-3

        def state(self):
            log.append("state")
            return {"sm_mhz": 1980}

    ticks = iter((0.0, 0.1, 0.4, 0.6))
    monkeypatch.setattr(limits, "_has_torch", lambda: False)
    monkeypatch.setattr(limits.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setitem(limits.MATMUL_SIZES, "float32", 8)
    assert limits.matmul(Gpu(), "float32").state == {"sm_mhz": 1980}
    assert log == ["wait"] * 2 + ["clock"] * 11 + ["state"]


class _Nvml:
    """nvidia-ml-py, as far as it is used; `error` is what it raises."""

    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = "sm", "gpu"

    class NVMLError(Exception):
        pass

    def __init__(self, error=None):
        self.error = error

    def nvmlInit(self):  # noqa: N802
        if self.error:
            raise self.error

    def nvmlDeviceGetHandleByPciBusId(self, bus_id):  # noqa: N802
        return bus_id

    def nvmlDeviceGetClockInfo(self, device, which):  # noqa: N802
        return {("0000:00:00.0", "sm"): 1980}[device, which]

    def nvmlDeviceGetTemperature(self, device, which):  # noqa: N802
        return {("0000:00:00.0", "gpu"): 45}[device, which]


@pytest.mark.parametrize(
    ("module", "told"),
    [(_Nvml(), {"sm_mhz": 1980, "celsius": 45}), (_Nvml(_Nvml.NVMLError("no driver")), {}), (None, {})],
    ids=["driver", "no driver", "no package"],
)
def test_clock_and_temperature_stand_with_a_row_where_nvml_tells(monkeypatch, module, told):
    monkeypatch.setitem(sys.modules, "pynvml", module)
    nvml._opened.cache_clear()
    assert nvml.state("0000:00:00.0") == told
    nvml._opened.cache_clear()


def test_the_l2_reader_compiles():
    assert nvrtc_library(12).compile(limits.L2_READER, "sm_90a").usage["read_l2"].spill_stores == 0
