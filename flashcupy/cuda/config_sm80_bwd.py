"""Configurations of the sm80 family's backward: tiles of tensor cores. `table_sm80_bwd` chooses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flashcupy.cuda.config import Schedule, hooks
from flashcupy.cuda.config_sm80 import (
    MOST_ACCUMULATORS,
    TAGS,
    Kind,
    OperandTiles,
    pitch,
    rounded_up,
    schedule_bytes,
    schedule_type,
)

# dk and dv; dk, dv and dq; dq; dbias.
Kernel = Literal["dkv", "dkvq", "dq", "dbias"]

_WORK, _POINTERS, _SEGMENTS = 32, 16, 36  # bytes of what the loop over tiles has no registers for
_NO_GRADIENTS = 16


@dataclass(frozen=True, slots=True)
class GradientTiles(OperandTiles):
    """MmaGradientTiles of kernels_cu/tile/mma_gradient.cuh: its template arguments, and what follows from them.

    ``head_chunk`` and ``v_chunk`` are the columns of dq or dk, and of dv, that a block computes.
    """

    head_chunk: int
    v_chunk: int

    def problems(self) -> dict[str, bool]:
        uneven = self.head_chunk % 32 != 0 or self.v_chunk % 32 != 0
        return OperandTiles.problems(self) | {"chunks must be multiples of 32 columns": uneven}

    @property
    def pair_bytes(self) -> int:
        """A row of q or k, and one of dout or v."""
        return pitch(self.head_dim, self.item) + pitch(self.v_dim, self.item)

    @property
    def precise(self) -> bool:
        """Whether results have float32's accuracy."""
        return self.kind == "split_tf32"

    def accumulators(self, kernel: Kernel) -> int:
        """Registers of a thread for products of scores and of upstream gradients, and for results."""
        columns = {"dkv": self.head_chunk + self.v_chunk, "dq": self.head_chunk, "dbias": self.walk}
        results = self.owner * columns["dkv" if kernel == "dkvq" else kernel]
        return (2 * self.owner * self.walk + (results + results // 2 if self.precise else results)) // self.threads

    @property
    def cpp(self) -> str:
        tile = (self.owner, self.walk, self.head_dim, self.v_dim, self.warps, self.stages)
        numbers = (*tile, self.head_chunk, self.v_chunk, self.heads)
        return f"MmaGradientTiles<{TAGS[self.kind]}, {', '.join(map(str, numbers))}>"

    def __str__(self) -> str:
        dims = f"d{self.head_dim}c{self.head_chunk}v{self.v_dim}c{self.v_chunk}"
        return f"{self.kind}_{self.owned}k{self.walk}_{dims}_w{self.warps}s{self.stages}"


_KERNELS: dict[Kernel, tuple[str, str, str]] = {  # source, function, shared struct
    "dkv": ("bwd_sm80.cu", "bwd_dkv_sm80", "MmaKeyShared"),
    "dkvq": ("bwd_sm80.cu", "bwd_dkv_sm80", "MmaKeyShared"),
    "dq": ("bwd_sm80.cu", "bwd_dq_sm80", "MmaQueryShared"),
    "dbias": ("bwd_dbias_sm80.cu", "bwd_dbias_sm80", "MmaBiasShared"),
}


@dataclass(frozen=True, slots=True)
class GradientConfig:
    """One kernel of the sm80 family's backward; ``blocks`` of it shall fit into the registers of a multiprocessor."""

    kernel: Kernel
    tiles: GradientTiles
    blocks: int
    schedule: Schedule
    features: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.tiles.heads != 1 and self.kernel != "dq":
            raise ValueError(f"tiles of several heads are for dq, got {self}")
        sums = self.tiles.accumulators(self.kernel)
        if sums > MOST_ACCUMULATORS:
            raise ValueError(f"a thread would hold {sums} sums, at most {MOST_ACCUMULATORS} fit, got {self}")

    @property
    def name(self) -> str:
        return "_".join((self.kernel, "sm80", f"{self.tiles}b{self.blocks}", self.schedule, *self.features))

    @property
    def threads(self) -> int:
        return self.tiles.threads

    @property
    def shared_bytes(self) -> int:
        return gradient_bytes(self.kernel, self.tiles, self.schedule)

    def translation_unit(self) -> str:
        source, function, shared = _KERNELS[self.kernel]
        adds = {"dkv": ", false", "dkvq": ", true"}.get(self.kernel, "")
        return (
            f"#include <{source}>\n"
            f"using Tiles = {self.tiles.cpp};\n"
            f"using Schedule = {schedule_type(self.schedule, self.tiles.walk, self.tiles.stages)};\n"
            f"static_assert(sizeof({shared}<Tiles, Schedule{adds}>) == {self.shared_bytes}, "
            '"the host\'s shared_bytes");\n'
            f'extern "C" __global__ void __launch_bounds__({self.threads}, {self.blocks}) {self.name}('
            "const __grid_constant__ AttentionParams params) {\n"
            f"    {function}<Tiles, Schedule, {hooks(self.features)}{adds}>(params);\n"
            "}\n"
        )


def gradient_bytes(kernel: Kernel, tiles: GradientTiles, schedule: Schedule) -> int:
    """Size of a kernel's shared struct."""
    operands = (tiles.owner + tiles.stages * tiles.walk) * tiles.pair_bytes
    fixed = _WORK + _POINTERS + schedule_bytes(schedule, tiles.walk, tiles.stages)
    if kernel in ("dq", "dbias"):
        pair = rounded_up(operands + fixed)
        return max(pair, rounded_up(4 * tiles.owner * tiles.walk)) if kernel == "dbias" else pair
    terms = tiles.stages * tiles.walk * (16 if tiles.precise else 12)
    shared = tiles.owner * (pitch(tiles.walk, 2) + 2) if kernel == "dkvq" else _NO_GRADIENTS
    return rounded_up(operands + terms + shared + fixed + _SEGMENTS)


_SUMS_WARPS = 4


@dataclass(frozen=True, slots=True)
class QuerySumsConfig:
    """bwd_dq_sums: dq from what blocks added up, for heads of one bucket."""

    kind: Kind
    head_dim: int

    owner = 16 * _SUMS_WARPS
    threads = 32 * _SUMS_WARPS
    shared_bytes = owner * 128

    @property
    def name(self) -> str:
        return f"bwd_dq_sums_{self.kind}_d{self.head_dim}"

    def translation_unit(self) -> str:
        tiles = f"MmaTiles<{TAGS[self.kind]}, {self.owner}, 16, {self.head_dim}, {self.head_dim}, {_SUMS_WARPS}, 1>"
        return (
            "#include <bwd_dq_sums.cu>\n"
            f"using Tiles = {tiles};\n"
            f'static_assert(sizeof(DqSumsShared<Tiles>) == {self.shared_bytes}, "the host\'s shared_bytes");\n'
            f'extern "C" __global__ void __launch_bounds__({self.threads}) {self.name}('
            "const __grid_constant__ AttentionParams params) {\n"
            "    bwd_dq_sums<Tiles>(params);\n"
            "}\n"
        )
