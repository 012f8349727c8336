"""A device without hardware: its binaries are text, it loads what it compiled itself and launches nothing."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field

from flashcupy.cuda.device import DeviceProperties
from flashcupy.errors import KernelCompileError

PROPERTIES = DeviceProperties(
    name="Fake GPU",
    compute_capability=(9, 0),
    arch="sm_90a",
    multiprocessors=4,
    shared_memory=227 << 10,
    compiler="fake 1.0",
    driver="fake 2.0",
)


@dataclass(frozen=True)
class FakeConfig:
    name: str = "fwd_fake"
    body: str = ""
    threads: int = 128
    shared_bytes: int = 1024

    def translation_unit(self):
        return f"#include <fwd.cu>\n{self.body}\n"


class KernelFaultError(RuntimeError):
    """What a kernel does to its device."""


@dataclass(eq=False)
class FakeDevice:
    """`broken` makes every load fail; `seconds` is what compiling takes; `fault` is what earlier work did wrong."""

    name: str = "cuda:0"
    properties: DeviceProperties = PROPERTIES
    seconds: float = 0.0
    broken: bool = False
    fault: Exception | None = None
    compiled: list = field(default_factory=list)
    loaded: list = field(default_factory=list)

    def scope(self):
        return contextlib.nullcontext()

    def synchronize(self):
        if self.fault is not None:
            raise self.fault

    def is_kernel_fault(self, error):
        return isinstance(error, KernelFaultError)

    def compile(self, source, entry, include):
        self.compiled.append(entry)
        time.sleep(self.seconds)
        if "syntax error" in source:
            raise KernelCompileError(entry, ("-fake",), "line 2: syntax error")
        included = (include / "fwd.cu").read_text()
        return f"binary of {entry} for {self.properties.arch}: {source} {included}".encode()

    def load(self, path, entry, shared_bytes):
        content = path.read_bytes()
        if self.broken or not content.startswith(f"binary of {entry} for {self.properties.arch}".encode()):
            raise OSError(f"{path} is no binary of {entry}")
        self.loaded.append(path)
        return path, shared_bytes
