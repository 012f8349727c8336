"""The C library as its users have it, and what makes calling it from Python short: cffi in ABI mode, by the header."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import EMU_CACHE

from flashcupy.capi.build import BuildError, Prefix, bindings_dir, build, declarations

HEADER = bindings_dir() / "flashcupy.h"
_CODES = {"i": 0, "u": 1, "f": 2, "b": 6, "V": 4}
_FLAGGED = ("scale", "softcap", "window_left", "window_right", "seed", "max_seqlen_q", "max_seqlen_k")
_CAUSAL = {False: 0, True: 1, "bottom-right": 1, "top-left": 2}


@functools.cache
def installed() -> Prefix:
    """The library, built once for all processes of a run and for later runs."""
    parts = [sys.executable, sys.version, *map(str, sys.path)]
    sources = sorted((*bindings_dir().glob("*.h"), *bindings_dir().glob("src/*"), Path(build.__code__.co_filename)))
    digest = hashlib.sha256("\n".join(parts).encode() + b"".join(path.read_bytes() for path in sources)).hexdigest()
    folder = EMU_CACHE.parent / f"capi-{digest[:16]}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            build(Prefix(fresh), extra_flags=("-Wall", "-Wextra", "-Werror"))
        except (BuildError, ImportError) as error:
            shutil.rmtree(fresh)
            if os.environ.get("FLASHCUPY_REQUIRE_ORACLES") == "1":
                raise
            pytest.skip(f"the C library cannot be built here: {error}")
        try:
            fresh.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(fresh)
    return Prefix(folder)


class Failed(Exception):  # noqa: N818  (a status, which callers ask for)
    def __init__(self, status: str, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message = status.removeprefix("FLASHCUPY_"), message


class Library:
    """Calls of flashcupy.h on arrays of NumPy, or of a device by `pointer`."""

    def __init__(self, prefix: Prefix) -> None:
        import cffi

        self.ffi = cffi.FFI()
        self.ffi.cdef(declarations(HEADER))
        self.lib = self.ffi.dlopen(str(prefix.library))
        self._kept: list[Any] = []

    def ok(self, status: int) -> None:
        if status:
            text = self.ffi.string(self.lib.flashcupy_status_string(status)).decode()
            raise Failed(text, self.last_error())

    def last_error(self) -> str:
        return self.ffi.string(self.lib.flashcupy_last_error()).decode()

    def tensor(self, array: Any, **changes: Any) -> Any:
        """A tensor over an array's memory, with some fields changed; NULL for None."""
        if array is None:
            return self.ffi.NULL
        on_host = isinstance(array, np.ndarray)
        own = array if on_host else array._host
        strides = [stride // own.itemsize for stride in own.strides]
        shape, steps = (self.ffi.new("int64_t[]", list(values)) for values in (own.shape, strides))
        code = 4 if own.dtype.name == "bfloat16" else _CODES[own.dtype.kind]
        fields = {
            "data": self.ffi.cast("void *", own.__array_interface__["data"][0] if own.size else 0),
            "device": (1, 0) if on_host else (2, 0),
            "ndim": own.ndim,
            "dtype": (code, 8 * own.itemsize, 1),
            "shape": shape,
            "strides": steps,
            "byte_offset": 0,
        }
        tensor = self.ffi.new("flashcupy_tensor *", {**fields, **changes})
        self._kept += [array, tensor, shape, steps, *changes.values()]
        return tensor

    def options(self, **given: Any) -> Any:
        """An options struct from the arguments of `flashcupy.attention`, or by the struct's own names."""
        words = dict(given)
        left, right = words.pop("window", None) or (None, None)
        words |= {name: side for name, side in (("window_left", left), ("window_right", right)) if side is not None}
        seed = words.pop("seed", None)
        if seed is not None and not isinstance(seed, int):
            words["seed_words"] = seed
        elif seed is not None:
            words["seed"] = seed
        options = self.ffi.new("flashcupy_options *")
        options.struct_size = self.ffi.sizeof("flashcupy_options")
        options.flags = words.pop("flags", 0)
        for name, value in words.items():
            if value is None:
                continue
            if name in _FLAGGED:
                options.flags |= getattr(self.lib, f"FLASHCUPY_HAS_{name.upper()}")
            if name == "deterministic":
                options.flags |= self.lib.FLASHCUPY_DETERMINISTIC * bool(value)
            else:
                setattr(options, name, self._field(name, value))
        return options

    def _field(self, name: str, value: Any) -> Any:
        if name == "causal":
            return _CAUSAL.get(value, value)
        if name == "precision":
            return {"highest": 0, "tf32": 1}.get(value, value)
        if hasattr(value, "shape") or isinstance(value, list):
            return self.tensor(np.asarray(value) if isinstance(value, list) else value)
        return value

    def forward(self, q: Any, k: Any, v: Any, out: Any, lse: Any = None, stream: Any = None, **options: Any) -> None:
        tensors = [x if isinstance(x, self.ffi.CData) else self.tensor(x) for x in (q, k, v, out, lse)]
        self.ok(self.lib.flashcupy_forward(*tensors, self.options(**options), self._pointer(stream)))

    def backward(
        self, forward: Any, dout: Any, grads: Any, dlse: Any = None, stream: Any = None, **options: Any
    ) -> None:
        """`forward` are q, k, v, out and lse, `grads` dq, dk, dv, dbias and dsinks, or None."""
        arrays = (*forward, dout, dlse, *grads)
        tensors = [x if isinstance(x, self.ffi.CData) else self.tensor(x) for x in arrays]
        self.ok(self.lib.flashcupy_backward(*tensors, self.options(**options), self._pointer(stream)))

    def mask_options(self, shape: tuple[int, int], block: tuple[int, int] = (0, 0), **fields: Any) -> Any:
        size = self.ffi.sizeof("flashcupy_block_mask_options")
        own = {"q_len": shape[0], "kv_len": shape[1], "block_q": block[0], "block_k": block[1]}
        return self.ffi.new("flashcupy_block_mask_options *", {"struct_size": size, **own, **fields})

    def mask_from_blocks(self, options: Any, blocks: Any, stream: Any = None) -> Any:
        handle = self.ffi.new("flashcupy_block_mask **")
        tensor = blocks if isinstance(blocks, self.ffi.CData) else self.tensor(blocks)
        self.ok(self.lib.flashcupy_block_mask_from_blocks(options, tensor, self._pointer(stream), handle))
        return handle[0]

    def mask_from_csr(self, options: Any, *lists: Any) -> Any:
        handle = self.ffi.new("flashcupy_block_mask **")
        tensors = map(self.tensor, lists)
        self.ok(self.lib.flashcupy_block_mask_from_csr(options, *tensors, self.ffi.NULL, handle))
        return handle[0]

    def _pointer(self, stream: Any) -> Any:
        return self.ffi.cast("void *", stream or 0)


@functools.cache
def library() -> Library:
    """The library, in this very process: it joins the Python that runs the tests."""
    return Library(installed())
