"""Tiny kernels, written in a test: a body, its arguments, and optionally shared memory."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path
from typing import Any

from emu.arrays import EmuArray
from emu.device import EmuDevice

KERNELS = Path(__file__).parents[2] / "kernels_cu"
PTX = Path(__file__).parent / "ptx"

_TYPES = {
    "float32": "float",
    "float64": "double",
    "uint8": "u8",
    "uint16": "u16",
    "int32": "i32",
    "uint32": "u32",
    "int64": "i64",
    "uint64": "u64",
}


def unit(body: str, fields: tuple[tuple[str, str], ...], threads: int, shared: str = "", includes: str = "") -> str:
    """Return a translation unit whose kernel ``tiny`` runs `body`.

    The body sees ``p`` (its arguments by name), ``t`` and ``b`` (thread and block) and ``s``, a struct with the members
    `shared`. `includes` is a header more.
    """
    headers = [*(f"ptx/{path.name}" for path in sorted(PTX.glob("*.cuh"))), *([includes] if includes else [])]
    members = " ".join(f"{kind} {name};" for name, kind in fields)
    plan = f"struct Plan {{ {shared} }};" if shared else ""
    view = "Plan& s = shared_memory<Plan>();" if shared else ""
    return (
        "".join(f"#include <{header}>\n" for header in headers) + f"struct Params {{ {members} }};\n{plan}\n"
        f'extern "C" __global__ void __launch_bounds__({threads}) tiny(const __grid_constant__ Params p) {{\n'
        f"u32 t = thread_index(), b = block_index();\n(void)t; (void)b;\n{view}\n#line 1\n{body}\n}}\n"
    )


_kernels: dict[tuple[str, str, int], Any] = {}


def _loaded(device: EmuDevice, source: str, shared_bytes: int) -> Any:
    key = device.properties.compiler, source, shared_bytes
    if key not in _kernels:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "tiny")
            path.write_bytes(device.compile(source, "tiny", KERNELS))
            _kernels[key] = device.load(path, "tiny", shared_bytes)
    return _kernels[key]


def run(
    device: EmuDevice,
    body: str,
    threads: int = 64,
    blocks: int = 1,
    shared: str = "",
    shared_bytes: int = 1024,
    includes: str = "",
    **arguments: EmuArray | int,
) -> None:
    """Compile, load and launch; raises what the launch raises."""
    kinds = {
        name: f"{_TYPES[value.dtype.name]}*" if isinstance(value, EmuArray) else "i64"
        for name, value in arguments.items()
    }
    source = unit(body, tuple(kinds.items()), threads, shared, includes)
    for value in arguments.values():
        if isinstance(value, EmuArray):
            device.register(value._host)
    words = [v._host.ctypes.data if isinstance(v, EmuArray) else v for v in arguments.values()]
    # An empty struct has one byte in C++.
    params = struct.pack(f"{len(words)}q", *words) if words else b"\0"
    device.launch(_loaded(device, source, shared_bytes), blocks, threads, shared_bytes, params)
