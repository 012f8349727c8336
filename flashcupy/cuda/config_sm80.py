"""Configurations of the sm80 family: tiles of tensor cores. `table_sm80` chooses them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from flashcupy.cuda.config import Schedule, hooks

Kind = Literal["f16", "bf16", "tf32", "split_tf32"]

# The C++ tag of what the tensor cores multiply.
TAGS: dict[Kind, str] = {"f16": "F16", "bf16": "BF16", "tf32": "TF32", "split_tf32": "SplitTF32"}

# Extents of a row in shared memory that are compiled in; head dims in between are filled up with zeros.
BUCKETS = (32, 64, 96, 128, 192, 256)

_WORK, _BOUNDS = 48, 32  # bytes of what the loop over tiles has no registers for
_ROW = 128  # bytes of shared memory that a row is a multiple of, or half of it
MOST_ACCUMULATORS = 224  # of a thread's 255 registers; the rest is for operands and addresses


def pitch(dim: int, item: int) -> int:
    """Bytes of a row in shared memory."""
    nbytes = dim * item
    return _ROW // 2 if nbytes <= _ROW // 2 else -(-nbytes // _ROW) * _ROW


@dataclass(frozen=True, slots=True)
class OperandTiles:
    """What tiles of forward and backward share: what is multiplied, the tile, buckets of columns, warps.

    ``stages`` counts the tiles of each walked operand that have a place in shared memory at once. The ``owner`` rows
    are the same ``head_rows`` rows of each of ``heads`` heads.
    """

    kind: Kind
    owner: int
    walk: int
    head_dim: int
    v_dim: int
    warps: int
    stages: int
    heads: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        for problem, broken in self.problems().items():
            if broken:
                raise ValueError(f"{problem}, got {self}")

    def problems(self) -> dict[str, bool]:
        """What no kernel can have, and whether it is so here."""
        return {
            "kind must be f16, bf16, tf32 or split_tf32": self.kind not in TAGS,
            "a block must have 1 to 32 warps": not 1 <= self.warps <= 32,
            "owner must be a multiple of 16 rows a warp": self.owner <= 0
            or self.owner % (16 * max(1, self.warps)) != 0,
            "the rows of a warp must be one head's": self.heads <= 0 or self.warps % self.heads != 0,
            "walk must be 16, 32, 64 or 128": self.walk not in (16, 32, 64, 128),
            "sums of split_tf32 are of at most 64 positions": self.kind == "split_tf32" and self.walk > 64,
            "head_dim and v_dim must be buckets": not {self.head_dim, self.v_dim} <= set(BUCKETS),
            "stages must be 1 or 2": self.stages not in (1, 2),
        }

    @property
    def threads(self) -> int:
        return 32 * self.warps

    @property
    def head_rows(self) -> int:
        """Rows of the sequence that a tile spans."""
        return self.owner // self.heads

    @property
    def owned(self) -> str:
        """Owner rows and heads, as they are in names."""
        return f"o{self.owner}" if self.heads == 1 else f"o{self.owner}h{self.heads}"

    @property
    def item(self) -> int:
        return 2 if self.kind in ("f16", "bf16") else 4


@dataclass(frozen=True, slots=True)
class MmaTiles(OperandTiles):
    """MmaTiles of kernels_cu/tile/mma_tile.cuh: its template arguments, and what follows from them.

    ``v_dim`` is the bucket of one chunk of v's columns.
    """

    def __post_init__(self) -> None:
        OperandTiles.__post_init__(self)  # super() does not know a class with slots
        if self.accumulators > MOST_ACCUMULATORS:
            raise ValueError(
                f"a thread would hold {self.accumulators} sums, at most {MOST_ACCUMULATORS} fit, got {self}"
            )

    def problems(self) -> dict[str, bool]:
        too_wide = self.kind == "split_tf32" and self.v_dim > 128
        return OperandTiles.problems(self) | {"chunks of split_tf32 have at most 128 columns": too_wide}

    @property
    def chunk(self) -> int:
        """Result columns of a block."""
        return self.v_dim

    @property
    def accumulators(self) -> int:
        """Registers of a thread for scores and results; weights take the place of the scores they come from.

        split_tf32 has its results twice: those of a tile are added to those of all tiles.
        """
        results = self.owner * self.v_dim * (2 if self.kind == "split_tf32" else 1)
        return (self.owner * self.walk + results) // self.threads

    @property
    def tile_bytes(self) -> int:
        """What MmaShared holds before the schedule's part: queries, and the stages of keys and values."""
        walked = self.stages * self.walk * (pitch(self.head_dim, self.item) + pitch(self.v_dim, self.item))
        return self.owner * pitch(self.head_dim, self.item) + walked

    @property
    def cpp(self) -> str:
        numbers = (self.owner, self.walk, self.head_dim, self.v_dim, self.warps, self.stages, self.heads)
        return f"MmaTiles<{TAGS[self.kind]}, {', '.join(map(str, numbers))}>"

    def __str__(self) -> str:
        return f"{self.kind}_{self.owned}k{self.walk}_d{self.head_dim}v{self.v_dim}_w{self.warps}s{self.stages}"


@dataclass(frozen=True, slots=True)
class MmaConfig:
    """One kernel of the sm80 family; ``blocks`` of it shall fit into the registers of a multiprocessor."""

    kernel: Literal["fwd"]
    tiles: MmaTiles
    blocks: int
    schedule: Schedule
    features: tuple[str, ...]

    @property
    def name(self) -> str:
        return "_".join((self.kernel, "sm80", f"{self.tiles}b{self.blocks}", self.schedule, *self.features))

    @property
    def threads(self) -> int:
        return self.tiles.threads

    @property
    def shared_bytes(self) -> int:
        return shared_bytes(self.tiles, self.schedule)

    def translation_unit(self) -> str:
        return (
            "#include <fwd_sm80.cu>\n"
            f"using Tiles = {self.tiles.cpp};\n"
            f"using Schedule = {schedule_type(self.schedule, self.tiles.walk, self.tiles.stages)};\n"
            f'static_assert(sizeof(MmaShared<Tiles, Schedule>) == {self.shared_bytes}, "the host\'s shared_bytes");\n'
            f'extern "C" __global__ void __launch_bounds__({self.threads}, {self.blocks}) {self.name}('
            "const __grid_constant__ AttentionParams params) {\n"
            f"    fwd_sm80<Tiles, Schedule, {hooks(self.features)}>(params);\n"
            "}\n"
        )


def schedule_type(schedule: Schedule, walk: int, stages: int) -> str:
    """The C++ type of a schedule that is asked ahead: a list has room for one tile more than there are stages."""
    return f"ListSchedule<{walk}, {stages + 1}, true>" if schedule == "list" else f"BandSchedule<{walk}, true>"


def schedule_bytes(schedule: Schedule, walk: int, stages: int) -> int:
    """Size of its part of shared memory."""
    return _BOUNDS + ((stages + 1) * 12 * walk // 16 if schedule == "list" else 0)


def shared_bytes(tiles: MmaTiles, schedule: Schedule) -> int:
    """Size of MmaShared."""
    return rounded_up(tiles.tile_bytes + _WORK + schedule_bytes(schedule, tiles.walk, tiles.stages))


def rounded_up(nbytes: int) -> int:
    """Shared memory as it is aligned."""
    return -(-nbytes // _ROW) * _ROW
