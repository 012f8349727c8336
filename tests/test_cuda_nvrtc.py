"""Compiling through CuPy's NVRTC, for real: it needs no GPU."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from oracles import oracle

from flashcupy.cuda import cupy_device, nvrtc
from flashcupy.errors import KernelCompileError, UnsupportedError

KERNEL = """#include <scale.cuh>
struct Params { float* x; int n; };
extern "C" __global__ void __launch_bounds__(64) scale_kernel(const __grid_constant__ Params p) {
    if (threadIdx.x < p.n) p.x[threadIdx.x] *= kScale;
}
"""


@pytest.mark.parametrize(
    ("capability", "known", "arch"),
    [
        ((7, 0), (70, 90), "sm_70"),
        ((8, 9), (80, 86, 89, 90), "sm_89"),
        ((9, 0), (80, 90), "sm_90a"),
        ((9, 0), (70, 80), "compute_80"),
        ((12, 1), (90, 100, 120), "compute_120"),
        ((10, 3), (90, 100, 120), "compute_100"),
    ],
)
def test_architecture(capability, known, arch):
    assert nvrtc.arch_for(capability, known, "NVRTC 12.9") == arch


def test_architecture_that_nvrtc_has_dropped():
    with pytest.raises(UnsupportedError, match=r"NVRTC 13\.0 no longer compiles for compute capability 7\.0"):
        nvrtc.arch_for((7, 0), (75, 90), "NVRTC 13.0")


@pytest.fixture
def include(tmp_path):
    oracle("cupy")
    cupy_device._cupy.cache_clear()
    cupy_device._nvrtc.cache_clear()
    try:
        cupy_device.compiler_version()
    except ImportError as error:
        if os.environ.get("FLASHCUPY_REQUIRE_ORACLES") == "1":
            raise
        pytest.skip(str(error))
    (tmp_path / "scale.cuh").write_text("constexpr float kScale = 3.0f;")
    return tmp_path


class TestCompile:
    def test_cubin(self, include):
        binary, used = cupy_device.nvrtc_compile(KERNEL, "scale_kernel", "sm_90a", include)
        assert binary[:4] == b"\x7fELF"
        assert b"scale_kernel" in binary
        assert used.registers > 0
        assert used.spill_bytes == 0
        assert elf_end(binary) == len(binary)

    def test_is_reproducible_wherever_the_sources_lie(self, include, tmp_path_factory):
        elsewhere = tmp_path_factory.mktemp("elsewhere")
        (elsewhere / "scale.cuh").write_text((include / "scale.cuh").read_text())
        first, second = (
            cupy_device.nvrtc_compile(KERNEL, "scale_kernel", "sm_80", where)[0] for where in (include, elsewhere)
        )
        assert first == second

    def test_ptx_for_gpus_that_are_newer(self, include):
        binary, used = cupy_device.nvrtc_compile(KERNEL, "scale_kernel", "compute_80", include)
        assert b".target sm_80" in binary
        assert b".entry scale_kernel" in binary
        assert not binary.endswith(b"\0")
        assert used is None

    def test_line_information(self, include, monkeypatch):
        plain, _ = cupy_device.nvrtc_compile(KERNEL, "scale_kernel", "sm_80", include)
        monkeypatch.setenv("FLASHCUPY_LINEINFO", "1")
        lines, _ = cupy_device.nvrtc_compile(KERNEL, "scale_kernel", "sm_80", include)
        assert b".debug_line" in lines
        assert b".debug_line" not in plain

    def test_subnormals_are_kept(self, include):
        """Flush-to-zero would show as the .ftz of PTX arithmetic."""
        binary, _ = cupy_device.nvrtc_compile(KERNEL, "scale_kernel", "compute_80", include)
        assert b"mul.f32" in binary
        assert b".ftz" not in binary

    def test_an_error_has_the_log(self, include):
        with pytest.raises(KernelCompileError, match="kScale") as caught:
            cupy_device.nvrtc_compile(KERNEL.replace("#include <scale.cuh>", ""), "scale_kernel", "sm_80", include)
        assert caught.value.config == "scale_kernel"
        assert "-arch=sm_80" in caught.value.options

    def test_an_unknown_architecture_is_an_error_too(self, include):
        with pytest.raises(KernelCompileError, match="gpu-architecture"):
            cupy_device.nvrtc_compile(KERNEL, "scale_kernel", "sm_1", include)

    def test_the_device_compiles_for_its_architecture(self, include, monkeypatch):
        device = cupy_device.CupyDevice(0)
        device.__dict__["properties"] = SimpleNamespace(arch="sm_80")
        assert device.compile(KERNEL, "scale_kernel", include).startswith(b"\x7fELF")


_NOBITS = 8  # a section that takes no room in the file


def elf_end(binary):
    """Where the last section or header of a 64-bit ELF file ends: a file cut short ends before."""
    number = lambda at, size: int.from_bytes(binary[at : at + size], "little")  # noqa: E731
    headers, header_size, count = number(0x28, 8), number(0x3A, 2), number(0x3C, 2)
    program, program_size, program_count = number(0x20, 8), number(0x36, 2), number(0x38, 2)
    sections = [at for at in range(headers, headers + header_size * count, header_size) if number(at + 4, 4) != _NOBITS]
    ends = [number(at + 0x18, 8) + number(at + 0x20, 8) for at in sections]
    return max(headers + header_size * count, program + program_size * program_count, *ends)


def test_usage_without_a_report():
    assert nvrtc.usage("") is None


def test_usage_adds_spills_up():
    log = (
        "1536 bytes stack frame, 1536 bytes spill stores, 40 bytes spill loads\nptxas info : Used 64 registers, used 1"
    )
    assert nvrtc.usage(log) == nvrtc.Usage(64, 1576)
