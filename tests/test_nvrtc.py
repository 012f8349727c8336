"""The kernels through NVRTC, which needs no GPU: they compile everywhere, and take what a block may have."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import nvrtc
import pytest
from nvrtc import KERNELS, SHARED_LIMITS, CompileError, Row, Usage
from oracles import nvrtc_library

from flashcupy.cuda.config import PlainConfig
from flashcupy.cuda.config_sm80_bwd import GradientConfig

WRAPPERS = (Path(__file__).parent / "data" / "every_ptx_wrapper.cu").read_text()
# One NVRTC compiles the whole matrix, the other sentinels: enough to see that it knows the language used.
MATRIX_NVRTC, OTHER_NVRTC = 12, 13
MOST_SPILLED = 512  # bytes a thread stores and loads
# Bytes a thread stores and loads without options.
ARGUED_SPILLS = {
    # Three words once a head, where a GeForce leaves 16 queries a tile: ptxas keeps that many loads in flight.
    ("dkv_sm80_tf32_o32k16_d256c128v256c128_w2s1b1_band", "sm_120"): 24,
    # One word, which ptxas finds a register for on A100 and Hopper.
    ("dq_sm80_bf16_o128k64_d64c64v64c32_w4s2b1_band", "sm_120"): 8,
    # Two words in a tile of four heads, read back once a tile each, which ptxas finds registers for on A100 and Hopper.
    ("dq_sm80_bf16_o128h4k64_d64c64v64c32_w4s2b1_list", "sm_120"): 28,
}
MATRIX_ARCHS = ("sm_80", "sm_90a", "sm_120")
SENTINEL_ARCHS = ("sm_70", "sm_75", "sm_86", "sm_89", "sm_100")


def configs(which: str, arch: str) -> list:
    """Configurations of the matrix; those of float16 are those of bfloat16 with two other instructions."""
    from flashcupy.cuda.matrix import compile_configs

    return [config for config in compile_configs(which, arch) if "_sm80_f16_" not in config.name]


def spread(items: list, count: int) -> list:
    """Take `count` of the items, evenly over the list."""
    return [items[i * len(items) // count] for i in range(min(count, len(items)))]


def require_no_faults(rows: list[Row], *, spills_allowed: bool = False) -> None:
    print(nvrtc.table(rows))
    faults = [fault for row in rows for fault in row.faults(spills_allowed or _argued(row))]
    assert rows
    assert not faults, "\n".join(faults)


def _argued(row: Row) -> bool:
    return 0 < row.usage.spill_stores + row.usage.spill_loads <= ARGUED_SPILLS.get((row.name, row.arch), 0)


@pytest.mark.parametrize("arch", SHARED_LIMITS)
def test_every_ptx_wrapper_compiles(arch):
    compiled = nvrtc_library(MATRIX_NVRTC).compile(WRAPPERS, arch)
    assert compiled.cubin.startswith(b"\x7fELF")
    assert list(compiled.usage) == ["every_ptx_wrapper"]


@pytest.mark.parametrize("arch", [arch for arch in SHARED_LIMITS if arch != "sm_70"])
def test_every_ptx_wrapper_compiles_with_the_other_nvrtc(arch):
    assert nvrtc_library(OTHER_NVRTC).compile(WRAPPERS, arch).usage["every_ptx_wrapper"].spill_stores == 0


def test_no_ptx_wrapper_is_forgotten():
    for header in sorted((KERNELS / "ptx").glob("*.cuh")):
        text = header.read_text()
        assert f"#include <ptx/{header.name}>" in WRAPPERS
        functions = re.findall(r"__forceinline__[\w\s&*<>:,]*?\b(\w+)\(", text)
        assert functions, f"{header.name} has no wrapper that this test can find"
        for function in functions:
            assert re.search(rf"\b{function}[<(]", WRAPPERS), f"{header.name}: {function}"


@pytest.mark.parametrize("arch", ["sm_90a", pytest.param("sm_80", marks=pytest.mark.slow)])
def test_sentinels_compile(arch):
    require_no_faults(nvrtc.compile_all(nvrtc_library(MATRIX_NVRTC), spread(configs("plain", arch), 3), arch))


@pytest.mark.slow
@pytest.mark.parametrize("arch", SENTINEL_ARCHS)
def test_sentinels_on_the_other_architectures(arch):
    require_no_faults(nvrtc.compile_all(nvrtc_library(MATRIX_NVRTC), spread(configs("plain", arch), 4), arch))


@pytest.mark.slow
@pytest.mark.parametrize("arch", MATRIX_ARCHS)
def test_sentinels_with_the_other_nvrtc(arch):
    require_no_faults(nvrtc.compile_all(nvrtc_library(OTHER_NVRTC), spread(configs("plain", arch), 4), arch))


@pytest.mark.slow
@pytest.mark.parametrize("arch", MATRIX_ARCHS)
def test_plain_matrix(arch):
    """All without tiles; of those with, all of tensor cores on Hopper, every second on A100, a sixth of the rest."""
    every = configs("plain", arch)
    small = [one for one in every if isinstance(one, PlainConfig)]
    large = [one for one in every if one not in small]
    shares = {"sm_90a": 1, "sm_80": 2}
    tensor_cores = [one for one in large if "_sm80_" in one.name and arch in shares]
    rest = [one for one in large if one not in tensor_cores]
    kept = [*small, *spread(tensor_cores, len(tensor_cores) // shares.get(arch, 1)), *spread(rest, len(rest) // 6)]
    require_no_faults(nvrtc.compile_all(nvrtc_library(MATRIX_NVRTC), kept, arch))


def with_all_options(arch: str) -> list:
    """A twelfth: gradients, which take longest to compile, for the head dims of most models and on one architecture."""
    usual = re.compile(r"(dkvq?|dq|dbias)_sm80_\w*_d(64|128)c")
    found = configs("all", arch)
    kept = [one for one in found if not isinstance(one, GradientConfig) or (arch == "sm_80" and usual.match(one.name))]
    return spread(kept, len(kept) // 12)


@pytest.mark.slow
@pytest.mark.parametrize("arch", MATRIX_ARCHS)
def test_matrix_with_all_options(arch):
    """Kernels that carry every option at once may spill: those of tensor cores up to a ceiling."""
    rows = nvrtc.compile_all(nvrtc_library(MATRIX_NVRTC), with_all_options(arch), arch)
    require_no_faults(rows, spills_allowed=True)
    spilled = {row.name: row.usage.spill_stores + row.usage.spill_loads for row in rows if "_sm80_" in row.name}
    assert spilled
    assert {name: nbytes for name, nbytes in spilled.items() if nbytes > MOST_SPILLED} == {}


# What follows tests the instrument.

LOG_OF_TWO_ENTRIES = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_90a'
ptxas info    : Function properties for first
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 14 registers, used 1 barriers, 128 bytes smem
ptxas info    : Compile time = 2.771 ms
ptxas info    : Compiling entry function 'second' for 'sm_90a'
ptxas info    : Function properties for second
ptxas         .     584 bytes stack frame, 1128 bytes spill stores, 1136 bytes spill loads
ptxas info    : Used 254 registers, used 1 barriers, 592 bytes cumulative stack size
ptxas info    : Function properties for _Z6calleei
ptxas         .     8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
"""


def test_the_log_is_read_by_entry():
    assert nvrtc.usage(LOG_OF_TWO_ENTRIES) == {
        "first": Usage(registers=14, static_shared=128),
        "second": Usage(registers=254, stack=592, spill_stores=1132, spill_loads=1140),
    }


def test_a_kernel_that_spills_is_caught():
    source = (Path(__file__).parent / "data" / "spills.cu").read_text()
    config = Config("spills", 1024, 0, source)
    (fault,) = nvrtc.compile_config(nvrtc_library(MATRIX_NVRTC), config, "sm_80").faults()
    assert fault.startswith("spills on sm_80: spills ")


@pytest.mark.parametrize(("index", "fault"), [("n + i & 31", ["128 bytes of stack besides spills"]), ("i", [])])
def test_an_array_that_registers_cannot_hold_is_caught(index, fault):
    source = f"""extern "C" __global__ void __launch_bounds__(32) indexed(int* x, int n) {{
        int kept[32] = {{}};
        for (int i = 0; i < 32; i++) kept[{index}] += x[32 * i + threadIdx.x];
        for (int i = 0; i < 32; i++) x[32 * i + threadIdx.x] = kept[i];
    }}"""
    row = nvrtc.compile_config(nvrtc_library(MATRIX_NVRTC), Config("indexed", 32, 0, source), "sm_80")
    for allowed in (False, True):
        assert row.faults(allowed) == [f"indexed on sm_80: {one}" for one in fault]


def test_a_stack_of_spills_is_no_fault_of_its_own():
    assert Usage(255, stack=16, spill_stores=4, spill_loads=4).arrays == 0
    assert Usage(255, stack=32, spill_stores=4, spill_loads=4).arrays == 16


def test_faults_name_what_a_block_may_not_have():
    row = Row("k", "sm_75", 512, Usage(registers=129, static_shared=1024), 64 << 10, 0, 0.0)
    assert row.faults() == [
        "k on sm_75: 69632 registers a block, of 65536",
        "k on sm_75: 66560 bytes of shared memory, of 65536",
    ]
    assert not Row("k", "sm_75", 512, Usage(registers=128), 64 << 10, 0, 0.0).faults()


def test_an_entry_under_another_name_is_refused():
    config = Config("expected", 32, 0, 'extern "C" __global__ void other() {}')
    with pytest.raises(CompileError, match="expected: the translation unit has the entries \\['other'\\]"):
        nvrtc.compile_config(nvrtc_library(MATRIX_NVRTC), config, "sm_80")


def test_a_source_that_does_not_compile_raises_its_log():
    with pytest.raises(CompileError, match=r"-arch=sm_80 .*: kernel\.cu\(1\): error: identifier"):
        nvrtc_library(MATRIX_NVRTC).compile("__device__ int f() { return missing; }", "sm_80")


def test_the_table_sums_up():
    rows = [
        Row("k", "sm_80", 128, Usage(40), 1024, 5000, 0.25),
        Row("longer", "sm_80", 128, Usage(255, 8, 4, 4), 0, 1, 1.5),
    ]
    assert nvrtc.table(rows).splitlines()[-1] == "2 kernels, 1 spill, 2 s to compile, the slowest 1.50 s"


@dataclass(frozen=True)
class Config:
    """A configuration as the matrix has them."""

    name: str
    threads: int
    shared_bytes: int
    source: str

    def translation_unit(self) -> str:
        return self.source
