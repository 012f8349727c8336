"""Clock and temperature of a GPU by NVML, the driver's library behind nvidia-smi: microseconds, not a process."""

from __future__ import annotations

import functools
from typing import Any


def state(bus_id: str) -> dict[str, int]:
    """Return "sm_mhz" and "celsius" of the GPU with this PCI bus id now; nothing without nvidia-ml-py or a driver."""
    try:
        import pynvml
    except ImportError:
        return {}
    try:
        device = _opened(bus_id)
        return {
            "sm_mhz": pynvml.nvmlDeviceGetClockInfo(device, pynvml.NVML_CLOCK_SM),
            "celsius": pynvml.nvmlDeviceGetTemperature(device, pynvml.NVML_TEMPERATURE_GPU),
        }
    except pynvml.NVMLError:
        return {}


@functools.cache
def _opened(bus_id: str) -> Any:
    import pynvml

    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByPciBusId(bus_id)
