"""Configurations of the generic family: its tiles, and the table that chooses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flashcupy.cuda.config import Schedule, accumulator, features, hooks, tile_table
from flashcupy.spec import AttentionSpec


@dataclass(frozen=True, slots=True)
class Tiles:
    """FmaTiles of kernels_cu/tile/fma_tile.cuh: its template arguments, and what follows from them."""

    acc: Literal["float", "double"]
    owner: int
    walk: int
    depth: int
    thread_rows: int
    lanes: int
    groups: int

    def __post_init__(self) -> None:
        problems = {
            "owner must be a multiple of 16 and of thread_rows": self.owner % 16 or self.owner % self.thread_rows,
            "walk must be 16, 32, 48 or 64 and a multiple of lanes": self.walk % 16
            or self.walk > 64
            or self.walk % self.lanes,
            "lanes must divide a warp": 32 % self.lanes,
            "threads must be whole warps, at most 1024": self.threads % 32 or self.threads > 1024,
            "depth must be whole vectors": self.depth % self.vec,
            "a thread may hold at most 32 scores": self.owner * self.walk // self.threads > 32,
        }
        for problem, broken in problems.items():
            if broken:
                raise ValueError(f"{problem}, got {self}")

    @property
    def threads(self) -> int:
        return self.thread_rows * self.lanes

    @property
    def vec(self) -> int:
        return 16 // self.item

    @property
    def item(self) -> int:
        return 4 if self.acc == "float" else 8

    @property
    def chunk(self) -> int:
        """Result columns of a block."""
        return self.groups * self.lanes * self.vec

    @property
    def product_bytes(self) -> int:
        """ProductShared."""
        operands = (self.owner + self.walk) * (self.depth + self.vec)
        rows = self.walk * self.lanes * self.vec
        return self.item * (max(operands, rows) + self.owner * (self.walk + self.vec))

    @property
    def cpp(self) -> str:
        numbers = (self.owner, self.walk, self.depth, self.thread_rows, self.lanes, self.groups)
        return f"FmaTiles<{self.acc}, {', '.join(map(str, numbers))}>"

    def __str__(self) -> str:
        acc = "f32" if self.acc == "float" else "f64"
        return f"{acc}_o{self.owner}w{self.walk}d{self.depth}_t{self.thread_rows}x{self.lanes}g{self.groups}"


_GENERIC = {  # kernel: source, function, shared struct, walked rows' statistics in shared memory
    "fwd": ("fwd_generic.cu", "fwd_generic", "TileShared", False),
    "dq": ("bwd_generic.cu", "bwd_dq_generic", "TileShared", False),
    "dkv": ("bwd_generic.cu", "bwd_dkv_generic", "KeyShared", True),
    "dbias": ("bwd_dbias_generic.cu", "bwd_dbias_generic", "TileShared", False),
}


@dataclass(frozen=True, slots=True)
class GenericConfig:
    """One kernel of the generic family."""

    kernel: Literal["fwd", "dq", "dkv", "dbias"]
    tiles: Tiles
    schedule: Schedule
    features: tuple[str, ...]

    @property
    def name(self) -> str:
        return "_".join((self.kernel, "generic", str(self.tiles), self.schedule, *self.features))

    @property
    def threads(self) -> int:
        return self.tiles.threads

    @property
    def shared_bytes(self) -> int:
        stats = 3 * self.tiles.item * self.tiles.walk if _GENERIC[self.kernel][3] else 0
        segments = 12 * self.tiles.walk // 16 if self.schedule == "list" else 1
        alignment = 16
        return -(-(self.tiles.product_bytes + stats + segments) // alignment) * alignment

    @property
    def resident_blocks(self) -> str:
        """Blocks that a multiprocessor shall hold: two hide latency better, where ptxas need not spill for the second.

        Left to itself it spills for one more in many kernels. On Volta it spills in this one too, and Turing has shared
        memory for one: there the second would take registers for nothing.
        """
        roomy = self.kernel == "fwd" and self.tiles.acc == "float" and self.tiles.groups == 1
        two = roomy and self.schedule == "band" and not self.features
        return "__CUDA_ARCH__ < 800 ? 1 : 2" if two else "1"

    def translation_unit(self) -> str:
        source, function, shared, _ = _GENERIC[self.kernel]
        schedule = "ListSchedule" if self.schedule == "list" else "BandSchedule"
        return (
            f"#include <{source}>\n"
            f"using Tiles = {self.tiles.cpp};\n"
            f"using Schedule = {schedule}<{self.tiles.walk}>;\n"
            f'static_assert(sizeof({shared}<Tiles, Schedule>) == {self.shared_bytes}, "the host\'s shared_bytes");\n'
            f'extern "C" __global__ void __launch_bounds__({self.threads}, {self.resident_blocks}) {self.name}('
            "const __grid_constant__ AttentionParams params) {\n"
            f"    {function}<Tiles, Schedule, {hooks(self.features)}>(params);\n"
            "}\n"
        )


def real_tiles(acc: Literal["float", "double"], columns: int, owner: int) -> Tiles:
    """256 threads with 4 x 4 scores each (2 x 2 in double), and result chunks of 64 or 128 columns."""
    wide = columns > 64
    if acc == "float":
        return Tiles(acc, owner, 64, 32, 16, 16, 2 if wide else 1)
    return Tiles(acc, owner, 32, 16, 16, 16, 4 if wide else 2)


def small_tiles(acc: Literal["float", "double"], columns: int, owner: int) -> Tiles:
    """For tests: two warps, and tiles that problems of a few dozen rows walk many of."""
    return Tiles(acc, 16, 32, 16, 16, 4, 1)


def generic_config(spec: AttentionSpec, kernel: Literal["fwd", "dq", "dkv", "dbias"]) -> GenericConfig:
    """Choose the configuration of one generic kernel."""
    columns = {"fwd": spec.v_dim, "dq": spec.head_dim, "dkv": max(spec.head_dim, spec.v_dim), "dbias": 0}[kernel]
    block = None if spec.block_size is None else spec.block_size[kernel == "dkv"]
    acc = accumulator(spec)
    choose = small_tiles if tile_table() == "small" else real_tiles
    tiles = choose(acc, columns, owner_rows(acc, kernel, columns, block))
    return GenericConfig(kernel, tiles, "band" if block is None else "list", features(spec))


def owner_rows(acc: Literal["float", "double"], kernel: str, columns: int, block: int | None) -> int:
    """Owner rows of a tile: within one block of a list, and as many as registers hold.

    dk and dv are two results: wide ones leave room for half as many rows.
    """
    rows = 64 if acc == "float" else 32
    if kernel == "dkv" and columns > 64:
        rows //= 2
    return rows if block is None else min(rows, block)
