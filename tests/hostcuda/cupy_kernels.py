"""CuPy's own kernels on a CPU: elementwise ones compiled by g++, for one thread, and reductions by NumPy."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from hostcuda import build

_COMPILER = ("g++", "-std=c++17", "-O1", "-w", "-fpermissive", "-fPIC", "-shared")
_ELEMENTS = {"bool": "?", "signed char": "b", "unsigned char": "B", "short": "h", "unsigned short": "H", "int": "i"}
_ELEMENTS |= {"unsigned int": "I", "long": "l", "unsigned long": "L", "long long": "q", "unsigned long long": "Q"}
_ELEMENTS |= {"ptrdiff_t": "q", "size_t": "Q", "float16": "e", "float": "f", "double": "d"}
_REDUCTIONS = {"max": np.max, "min": np.min, "sum": np.sum, "mean": np.mean, "all": np.all, "any": np.any}
_REDUCTIONS |= {"argmax": np.argmax, "argmin": np.argmin}

_UNIT = """#include <host.hpp>
{source}
extern "C" void run(void** parameters) {{ call_kernel({name}, parameters); }}
"""


@dataclass(frozen=True)
class _Parameter:
    """A CArray is its address, its size, and its shape and strides; a CIndexer its size, its shape and a position."""

    role: Literal["array", "indexer", "scalar"]
    element: str
    ndim: int

    @property
    def size(self) -> int:
        if self.role == "scalar":
            return np.dtype(_ELEMENTS[self.element]).itemsize
        return (16 if self.role == "array" else 8) + 16 * self.ndim

    def array(self, content: bytes) -> np.ndarray:
        words = np.frombuffer(content, np.int64)
        dtype = np.dtype(_ELEMENTS[self.element])
        shape, strides = words[2 : 2 + self.ndim], words[2 + self.ndim :]
        span = int(np.sum((shape - 1) * strides)) + dtype.itemsize if words[1] else 0
        memory = (ctypes.c_ubyte * span).from_address(int(words[0]))
        return np.ndarray(tuple(shape), dtype, memory, strides=tuple(strides))


class CupyKernel:
    """One kernel of a source that CuPy wrote; `sizes` are the bytes of its parameters."""

    def __init__(self, source: str, name: str) -> None:
        self.name, self._source = name, source
        text = " ".join(source.split())
        types = {alias: element for element, alias in re.findall(r"typedef ([\w ]+?) (\w+);", text)}
        found = re.search(rf"\b{name} ?\((.*?)\) ?{{", text)
        if found is None:
            raise NotImplementedError(f"{name}: no such kernel in what CuPy compiled")
        parameters = re.split(r", ?(?![^<]*>)", found[1].replace("const ", ""))
        self._parameters = [_parameter(parameter, types) for parameter in parameters]
        self.sizes = [parameter.size for parameter in self._parameters]

    def __call__(self, content: bytes) -> None:
        ends = np.cumsum([-(-size // 8) * 8 for size in self.sizes])
        starts = [0, *map(int, ends[:-1])]
        if [parameter.role for parameter in self._parameters].count("indexer") == 1:
            memory = ctypes.create_string_buffer(content, len(content))
            self._compiled.run((ctypes.c_void_p * len(starts))(*(ctypes.addressof(memory) + start for start in starts)))
            return
        pieces = [content[start : start + size] for start, size in zip(starts, self.sizes, strict=True)]
        both = zip(self._parameters, pieces, strict=True)
        self._reduce(*(parameter.array(piece) for parameter, piece in both if parameter.role == "array"))

    def _reduce(self, source: np.ndarray, out: np.ndarray) -> None:
        """The axes that are reduced come first."""
        name = self.name.removeprefix("cupy_")
        function = _REDUCTIONS.get(name) or _REDUCTIONS[name.removeprefix("a")]
        out[...] = function(source.reshape(-1, max(1, out.size)), axis=0).reshape(out.shape)

    @functools.cached_property
    def _compiled(self) -> ctypes.CDLL:
        unit = _UNIT.format(source=self._source, name=self.name)
        digest = hashlib.sha256(f"{_COMPILER} {unit}".encode()).hexdigest()
        library = build.site() / f"{digest[:16]}.so"
        if not library.exists():
            with tempfile.TemporaryDirectory(dir=build.site()) as folder:  # several processes may be at it
                source, made = Path(folder, "kernel.cpp"), Path(folder, "kernel.so")
                source.write_text(unit)
                includes = (f"-I{build.FOLDER / 'include'}", f"-I{build.site() / 'cupy/_core/include'}")
                subprocess.run([*_COMPILER, *includes, str(source), "-o", str(made)], check=True)
                made.replace(library)
        return ctypes.CDLL(str(library))


def _parameter(text: str, types: dict[str, str]) -> _Parameter:
    if array := re.match(r"CArray<([\w ]+), (\d+),", text):
        return _Parameter("array", types.get(array[1], array[1]), int(array[2]))
    if indexer := re.match(r"CIndexer<(\d+)", text):
        return _Parameter("indexer", "", int(indexer[1]))
    element = text.strip().rpartition(" ")[0]
    return _Parameter("scalar", types.get(element, element), 0)
