"""Kernel parameters have one layout: what ctypes packs is what the compilers read."""

from __future__ import annotations

import ctypes

import pytest
from emu import build
from nvrtc import KERNELS, WHEELS
from oracles import nvrtc_library

from flashcupy.cuda import params
from flashcupy.errors import KernelCompileError

_KERNEL = '#include <params.cuh>\nextern "C" __global__ void layout(const __grid_constant__ Operand params) {}\n'


def _assertions(struct: type[ctypes.Structure], source: str | None = None) -> str:
    name, source = struct.__name__, source or params.STRUCTS[struct]
    # __INTADDR__ is how the front end of NVRTC spells offsetof; it has no header that would.
    offset = "#ifdef __CUDACC_RTC__\n#define OFFSET(S, f) __INTADDR__(&(((S*)0)->f))\n#else\n"
    offset += "#define OFFSET(S, f) __builtin_offsetof(S, f)\n#endif"
    lines = [offset, f"#include <{source}>", f'static_assert(sizeof({name}) == {ctypes.sizeof(struct)}, "size");']
    lines += [
        f'static_assert(OFFSET({name}, {field[0]}) == {getattr(struct, field[0]).offset}, "{field[0]}");'
        for field in struct._fields_
    ]
    return "\n".join(lines) + "\n"


def _declared_fields(struct: type[ctypes.Structure]) -> list[str]:
    """Field names in the order of the C++ declaration, read from its text."""
    text = (KERNELS / params.STRUCTS[struct]).read_text()
    body = text.split(f"struct {struct.__name__} {{", 1)[1].split("\n};", 1)[0]
    names = []
    for line in body.splitlines():
        statement = line.split("//")[0].strip().rstrip(";")
        if statement:
            _, _, declared = statement.replace("const ", "").partition(" ")
            names += [name.strip().lstrip("*").split("[")[0].strip() for name in declared.split(",")]
    return names


@pytest.mark.parametrize("struct", params.STRUCTS, ids=lambda struct: struct.__name__)
def test_every_field_is_there_in_the_same_order(struct):
    assert [field[0] for field in struct._fields_] == _declared_fields(struct)


@pytest.mark.parametrize("major", WHEELS)
@pytest.mark.parametrize("struct", params.STRUCTS, ids=lambda struct: struct.__name__)
def test_layout_in_device_code(struct, major):
    nvrtc_library(major).compile(_assertions(struct), "sm_80")


@pytest.mark.parametrize("struct", params.STRUCTS, ids=lambda struct: struct.__name__)
def test_layout_in_the_emulator(struct):
    build.compile_kernel(_assertions(struct) + _KERNEL, "layout", KERNELS)


def test_a_layout_that_differs_does_not_compile():
    class Extents(ctypes.Structure):
        _fields_ = (("heads", ctypes.c_int32), ("batch", ctypes.c_int32 * 4), ("rows", ctypes.c_int32))

    with pytest.raises(KernelCompileError, match="static assertion"):
        build.compile_kernel(_assertions(Extents, "elementwise.cuh") + _KERNEL, "layout", KERNELS)


def test_parameters_fit_into_a_launch():
    assert all(ctypes.sizeof(struct) <= 4096 for struct in params.STRUCTS)
