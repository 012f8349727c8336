"""Bank conflicts of shared memory, as `runtime/banks.hpp` counts them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

from emu.places import places


@dataclass(frozen=True)
class BankConflicts:
    """Accesses of warps to shared memory at one place in a kernel, and the wavefronts they took."""

    kind: str  # "read", "write", "load_matrices" or "copy_async"
    place: str  # function file:line, innermost first, each followed by " < " and its caller where it is inlined
    bytes: int  # of a lane
    accesses: int
    wavefronts: int
    least: int  # wavefronts that would carry as many bytes


_KINDS = ("read", "write", "load_matrices", "copy_async")


class _Wavefronts(ctypes.Structure):
    """`Wavefronts` in runtime/banks.hpp."""

    _fields_ = (
        ("place", ctypes.c_uint64),
        *((name, ctypes.c_uint32) for name in ("traffic", "bytes")),
        *((name, ctypes.c_uint64) for name in ("accesses", "wavefronts", "least")),
    )


def bank_conflicts(runtime: ctypes.CDLL, binary: Path) -> list[BankConflicts]:
    """Return what the last launch counted, of the kernel in `binary`."""
    runtime.emu_wavefronts.argtypes = (ctypes.POINTER(_Wavefronts), ctypes.c_uint64)
    runtime.emu_wavefronts.restype = ctypes.c_uint64
    count = runtime.emu_wavefronts(None, 0)
    rows = (_Wavefronts * count)()
    runtime.emu_wavefronts(rows, count)
    names = places([row.place for row in rows], binary)
    # The compiler makes several instructions of one line where it unrolls or inlines.
    sums: dict[tuple[str, str, int], list[int]] = {}
    for row, place in zip(rows, names, strict=True):
        total = sums.setdefault((_KINDS[row.traffic], place, row.bytes), [0, 0, 0])
        total[:] = [a + b for a, b in zip(total, (row.accesses, row.wavefronts, row.least), strict=True)]
    return [BankConflicts(*key, *total) for key, total in sorted(sums.items(), key=lambda item: item[0])]
