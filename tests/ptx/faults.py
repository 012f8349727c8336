"""Mistakes in what kernels_cu/ptx/ says to the compiler. The emulator takes files of its own, and cannot see them."""

from __future__ import annotations

from emu.faults.fault import Fault, faults_in

_MMA = "mma.sync.aligned.m16n8k16.row.col.f32"
_LDMATRIX = '"ldmatrix.sync.aligned.m8n8.x4'

SM90_FAULTS: tuple[Fault, ...] = (
    *faults_in(
        "ptx/mma.cuh",
        (
            "A's lower rows and upper columns are exchanged",
            f"{_MMA}.bf16.bf16.f32 {{%0, %1, %2, %3}}, {{%4, %5, %6, %7}}",
            f"{_MMA}.bf16.bf16.f32 {{%0, %1, %2, %3}}, {{%4, %6, %5, %7}}",
            "mma bfloat16",
        ),
        (
            "B's halves are exchanged",
            f"{_MMA}.bf16.bf16.f32 {{%0, %1, %2, %3}}, {{%4, %5, %6, %7}}, {{%8, %9}}",
            f"{_MMA}.bf16.bf16.f32 {{%0, %1, %2, %3}}, {{%4, %5, %6, %7}}, {{%9, %8}}",
            "mma bfloat16",
        ),
        ("float16 is taken for bfloat16", f"{_MMA}.f16.f16.f32", f"{_MMA}.bf16.bf16.f32", "mma"),
        (
            "results of tf32 are exchanged",
            "tf32.tf32.f32 {%0, %1, %2, %3}, {%4",
            "tf32.tf32.f32 {%0, %2, %1, %3}, {%4",
            "mma tf32",
        ),
    ),
    *faults_in(
        "ptx/ldmatrix.cuh",
        ("transposed", f"{_LDMATRIX}.shared", f"{_LDMATRIX}.trans.shared", "mma"),
        ("not transposed", f"{_LDMATRIX}.trans.shared", f"{_LDMATRIX}.shared", "mma"),
        (
            "matrices in another order",
            f"{_LDMATRIX}.shared.b16 {{%0, %1, %2, %3}}",
            f"{_LDMATRIX}.shared.b16 {{%0, %2, %1, %3}}",
            "mma",
        ),
    ),
    *faults_in(
        "ptx/copy_async.cuh",
        ("all 16 bytes are read", "[%0], [%1], 16, %2;", "[%0], [%1], 16, 16;", "mma", "bounds"),
        ("4 bytes of 8", "[%0], [%1], 8, %2;", "[%0], [%1], 4, %2;", "mma halves", "undefined wrong nan"),
        (
            "4 bytes, whatever there is",
            "[%0], [%1], 4, %2;",
            "[%0], [%1], 4, 4;",
            "mma halves",
            "bounds wrong nan bits",
        ),
        ("waits for all but one more", '"n"(kPending)', '"n"(kPending + 1)', "mma two stages", "wrong nan"),
        ("no commit", 'asm volatile("cp.async.commit_group;"', 'asm volatile(""', "mma two stages", "wrong nan"),
    ),
    *faults_in(
        "ptx/convert.cuh",
        (
            "halves are exchanged",
            '("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low))',
            '("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(low), "f"(high))',
            "mma",
        ),
        (
            "bfloat16's halves are exchanged",
            '("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low))',
            '("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(low), "f"(high))',
            "mma bfloat16",
        ),
        ("float16 as an integer", "cvt.f32.f16 %0, %1;", "cvt.rn.f32.u16 %0, %1;", "mma backward", "wrong nan"),
    ),
    *faults_in(
        "ptx/reduce.cuh",
        ("four in another order", '"f"(own[0]), "f"(own[1]), "f"', '"f"(own[1]), "f"(own[0]), "f"', "mma backward"),
        ("the last for the first", "own[0] = four.x", "own[0] = four.w", "mma backward"),
        ("four at the place of one", "quads + 4 * lane)), ", "quads + lane)), ", "mma backward", "misaligned"),
    ),
    *faults_in(
        "ptx/approximate.cuh",
        ("the number for its reciprocal", "rcp.approx.ftz.f32 %0, %1;", "mov.f32 %0, %1;", "mma softcap", "wrong nan"),
        ("the logarithm for the power", "ex2.approx.ftz.f32 %0, %1;", "lg2.approx.ftz.f32 %0, %1;", "mma", "wrong nan"),
    ),
    *faults_in(
        "ptx/special_registers.cuh",
        ("the block for the thread", "%%tid.x", "%%ctaid.x", "mma", "wrong nan bits bounds uninitialised"),
    ),
    *faults_in(
        "ptx/shared_memory.cuh",
        (
            "half of a generic address",
            "static_cast<u32>(__cvta_generic_to_shared(pointer))",
            "static_cast<u32>(reinterpret_cast<u64>(pointer))",
            "mma",
            "bounds",
        ),
    ),
    *faults_in(
        "ptx/shuffle.cuh",
        ("the neighbour above for the other", "__shfl_xor_sync", "__shfl_up_sync", "mma", "unknown"),
    ),
    *faults_in(
        "ptx/barrier.cuh",
        ("none of the block", "{ __syncthreads(); }", "{ __syncwarp(); }", "mma two stages", "wrong nan"),
    ),
    *faults_in(
        "ptx/bits.cuh",
        ("zeros are counted", "__popc(bits)", "__popc(~bits)", "mask of blocks", "bits bounds wrong"),
    ),
    *faults_in(
        "ptx/multiply.cuh",
        ("rounded down", "mul.rn.f32 %0", "mul.rm.f32 %0", "mma softcap", "unknown"),
    ),
    *faults_in(
        "ptx/vote.cuh",
        (
            "of a single lane",
            "__any_sync(0xffffffffu",
            "__any_sync(1u << threadIdx.x % 32",
            "mma backward",
            "divergence",
        ),
        (
            "not in it",
            "__ballot_sync(0xffffffffu, condition)",
            "__ballot_sync(0xffffffffu, !condition)",
            "mask of blocks",
            "bits wrong bounds",
        ),
    ),
    *faults_in(
        "ptx/multiply_high.cuh",
        ("the lower half", "__umulhi(a, b)", "a * b", "mma dropout of two tiles a warp"),
    ),
)

# What older GPUs take instead, which add a number at a time.
SM80_FAULTS: tuple[Fault, ...] = faults_in(
    "ptx/reduce.cuh",
    ("the first for each", '"f"(own[n])', '"f"(own[0])', "mma backward"),
    ("neighbours", "quads + 32 * n + lane)), ", "quads + n + lane)), ", "mma backward"),
    ("another's", "own[n] = quads[32 * n + lane]", "own[n] = quads[32 * n + (lane ^ 1)]", "mma backward"),
)
