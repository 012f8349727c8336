"""`PtxDevice`: the emulated device, with kernels as NVRTC compiles them for a real one."""

from __future__ import annotations

import weakref
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import nvrtc
from emu.device import SHARED, EmuDevice, EmuError

from flashcupy.cuda.device import DeviceProperties
from ptx.backend import Target
from ptx.machine import Launch, Order, Program, prepare, run
from ptx.memory import AccessError, GlobalMemory
from ptx.parse import PtxError, parse

_KNOWN = GlobalMemory()  # one for all devices, as the process has one memory


class _Loaded(NamedTuple):
    name: str
    program: Program
    shared_bytes: int

    @property
    def params_bytes(self) -> int:
        return self.program.kernel.params_bytes

    @property
    def most_threads(self) -> int:
        return self.program.kernel.most_threads


class PtxDevice(EmuDevice):
    """Compiles for `target`, and runs the PTX in NumPy; mistakes raise `EmuError`.

    Of `settings` it heeds the order of lanes and of copies. By default warps go apart, and launches take turns, copies
    eager and lazy; ``lane_order="forward"`` has all warps go together.
    """

    def __init__(self, target: Target, ordinal: int = 0) -> None:
        super().__init__(ordinal, compute_capability=target.compute_capability)
        self.target = target
        self.issued = 0  # instructions of the last launch, of all lanes together

    @cached_property
    def properties(self) -> DeviceProperties:
        version = ".".join(map(str, nvrtc.load(self.target.compiler).version()))
        return DeviceProperties(
            name=f"{self.target.arch} in NumPy",
            compute_capability=self.compute_capability,
            arch=self.target.arch,
            multiprocessors=132,
            shared_memory=SHARED[self.compute_capability] << 10,
            compiler=f"NVRTC {version}, PTX for {self.target.arch}",
            driver="none",
        )

    def _know(self, root: np.ndarray, begin: int, nbytes: int, label: str) -> None:
        self._registered[id(root)] = _KNOWN.know(root, begin, nbytes, root.flags.writeable)
        weakref.finalize(root, self._registered.pop, id(root), None).atexit = False

    def compile(self, source: str, entry: str, include: Path) -> bytes:
        return nvrtc.load(self.target.compiler).ptx(source, self.target.arch, include)

    def load(self, path: Path, entry: str, shared_bytes: int) -> Any:
        try:
            return _Loaded(entry, prepare(parse(Path(path).read_text())), shared_bytes)
        except PtxError as error:
            raise EmuError(str(error)) from error

    def launch(self, kernel: Any, grid: int, block: int, shared_bytes: int, params: bytes | bytearray) -> None:
        self._check_limits(kernel, grid, block, shared_bytes, len(params))
        turn, self.launches = self.launches, self.launches + 1
        try:
            self.issued = run(
                kernel.program, _KNOWN, Launch(grid, block, shared_bytes, bytes(params), self._order(turn))
            )
        except (AccessError, PtxError) as error:
            raise EmuError(str(error)) from error

    def _order(self, turn: int) -> Order:
        settings = self.settings
        if settings.count_bank_conflicts:
            raise NotImplementedError("bank conflicts are counted by the emulator of sources")
        seed = settings.seed + turn + (settings.lane_order == "reverse")
        return Order(
            apart=None if settings.lane_order == "forward" else seed,
            lazy=turn % 2 == 1 if settings.copies is None else settings.copies == "lazy",
        )
