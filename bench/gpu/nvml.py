"""Clock and temperature of a GPU by NVML, the driver's library behind nvidia-smi: microseconds, not a process."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

SM_CLOCK, GPU_SENSOR = 1, 0  # nvml.h: NVML_CLOCK_SM, NVML_TEMPERATURE_GPU


def state(bus_id: str) -> dict[str, int]:
    """Return "sm_mhz" and "celsius" of the GPU with this PCI bus id now; without what the driver does not tell."""
    found = {
        "sm_mhz": _asked("nvmlDeviceGetClockInfo", bus_id, SM_CLOCK),
        "celsius": _asked("nvmlDeviceGetTemperature", bus_id, GPU_SENSOR),
    }
    return {name: value for name, value in found.items() if value is not None}


def _asked(function: str, bus_id: str, which: int) -> int | None:
    value = ctypes.c_uint()
    try:
        library, device = _opened(bus_id)
        status = getattr(library, function)(device, which, ctypes.byref(value))
    except (OSError, AttributeError):
        return None
    return value.value if status == 0 else None


@functools.cache
def _opened(bus_id: str) -> tuple[Any, ctypes.c_void_p]:
    library, device = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_void_p()
    if library.nvmlInit_v2() or library.nvmlDeviceGetHandleByPciBusId_v2(bus_id.encode(), ctypes.byref(device)):
        raise OSError("NVML does not know the device")
    return library, device
