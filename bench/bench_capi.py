"""What the C interface costs: a call from C beside the same one from Python, and a program's first.

A row of calls is a thousand, so that its milliseconds are microseconds of one call. Problems are small; device arrays
are those of `bench_host`'s stub.
"""

from __future__ import annotations

import atexit
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import flashcupy
from bench.bench_host import CALLS, Gpu, StubArray, repeat_on
from bench.harness import OURS, Case
from flashcupy.capi.build import Prefix, build, declarations

_PYTHON = "from Python"
_REPEAT = Path(__file__).parent / "repeat.c"


def cases(quick: bool) -> Iterator[Case]:
    """Yield calls on the host and on a device, and first calls."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    library = _Library(Path(folder.name))
    yield from _call_cases(library)
    if not quick:
        python = [
            sys.executable,
            "-c",
            "import numpy, flashcupy as fc; q = numpy.zeros((16, 16)); fc.attention(q, q, q)",
        ]
        yield Case(
            "C interface, a process that makes one call",
            "attention",
            {OURS: partial(_run, [str(library.program)]), _PYTHON: partial(_run, python)},
            untraced=frozenset({OURS, _PYTHON}),
        )


def _call_cases(library: _Library) -> Iterator[Case]:
    group = f"C interface, {CALLS} calls: ms are microseconds a call"
    q, out, lse = np.zeros((2, 16, 16), np.float32), np.empty((2, 16, 16), np.float32), np.empty((2, 16), np.float32)

    def from_python() -> None:
        for _ in range(CALLS):
            flashcupy.attention_fwd(q, q, q, causal=True, out=out, lse_out=lse)

    from_c = library.calls(q, out, lse, causal=1)
    yield Case(group, "attention on the host", {OURS: from_c, _PYTHON: from_python})

    gpu = Gpu()
    dtype = np.dtype(np.float16)
    wide, result = StubArray((4, 16, 1024, 64), dtype), StubArray((4, 16, 1024, 64), dtype)
    logs = StubArray((4, 16, 1024), np.dtype(np.float32))

    def once() -> None:
        # Arrays of its own, as calls from C have: lookups are quicker for those that were there before.
        views = (gpu.view(x.address, x.shape, None, x.dtype) for x in (wide, wide, wide, result, logs))
        q, k, v, out, lse = views
        flashcupy.attention_fwd(q, k, v, causal=True, out=out, lse_out=lse)

    one_call = library.calls(wide, result, logs, causal=1, n=1)
    yield Case(
        group,
        "attention on a device, without array library and launches",
        {OURS: partial(repeat_on, gpu, one_call), _PYTHON: partial(repeat_on, gpu, once)},
    )


class _Library:
    """The C library in this process, and C code that calls it."""

    def __init__(self, folder: Path) -> None:
        import cffi

        prefix = Prefix(folder / "prefix")
        build(prefix)
        flags = [
            "-O2",
            str(_REPEAT),
            f"-I{prefix.include}",
            f"-L{prefix.lib}",
            f"-Wl,-rpath,{prefix.lib}",
            "-lflashcupy",
        ]
        self.program = folder / "first"
        subprocess.run(["cc", *flags, "-o", str(self.program)], check=True)
        shared = folder / "repeat.so"
        subprocess.run(["cc", "-shared", "-fPIC", *flags, "-o", str(shared)], check=True)
        self._ffi = cffi.FFI()
        self._ffi.cdef(declarations(prefix.include / "flashcupy.h"))
        self._ffi.cdef(
            "flashcupy_status repeat(int, const flashcupy_tensor *, const flashcupy_tensor *, "
            "const flashcupy_tensor *, const flashcupy_options *);"
        )
        self._lib = self._ffi.dlopen(str(shared))

    def calls(self, q: Any, out: Any, lse: Any, *, causal: int, n: int = CALLS) -> Callable[[], None]:
        """Something that makes n forward calls from C."""
        tensors = [self._tensor(x) for x in (q, out, lse)]
        options = self._ffi.new("flashcupy_options *", {"struct_size": self._ffi.sizeof("flashcupy_options")})
        options.causal = causal

        def run() -> None:
            status = self._lib.repeat(n, *(tensor for tensor, _ in tensors), options)
            assert not status, status

        return run

    def _tensor(self, array: Any) -> tuple[Any, Any]:
        on_host = isinstance(array, np.ndarray)
        address = array.ctypes.data if on_host else array.address
        shape = self._ffi.new("int64_t[]", list(array.shape))
        fields = {
            "data": self._ffi.cast("void *", address),
            "device": (1 if on_host else 2, 0),
            "ndim": array.ndim,
            "dtype": (2, 8 * array.dtype.itemsize, 1),
            "shape": shape,
        }
        return self._ffi.new("flashcupy_tensor *", fields), shape


def _run(command: list[str]) -> None:
    subprocess.run(command, env={}, check=True)
