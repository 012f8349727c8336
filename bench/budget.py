"""What a tile of the tensor-core forward must cost, by the rates of the hardware: predictions, nothing measured.

``python -m bench.budget`` prints the tables of kernels_cu/BUDGET.md, which also says where the rates are from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Kind = Literal["f16", "bf16", "tf32", "split_tf32"]
Pipe = Literal["tensor", "mufu", "float", "integer", "issue", "shared", "l2", "red"]

WARP = 32
BYTES_OF_LDSM = 512  # four 8 x 8 matrices of 16 bits
BYTES_OF_COPY = 16 * WARP


class Tiles(Protocol):
    """What the model asks of `flashcupy.cuda.config_sm80.MmaTiles`, which says what these are."""

    @property
    def kind(self) -> Kind: ...
    @property
    def owner(self) -> int: ...
    @property
    def walk(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def v_dim(self) -> int: ...
    @property
    def warps(self) -> int: ...


@dataclass(frozen=True)
class Gpu:
    """Rates of one multiprocessor per clock, and what the chip has of it.

    Attributes
    ----------
    mma
        Multiply-adds of mma.sync, by the dtype of the operands; sums are float32.
    float_lanes
        Lanes of FFMA, FADD and FMUL.
    l2_bytes
        Bytes from the L2 cache, all multiprocessors reading.
    red_instructions
        Of a warp, to add 128 numbers to global memory.
    red_bytes
        Bytes that additions to global memory take.
    """

    name: str
    arch: str
    multiprocessors: int
    ghz: float
    mma: Mapping[str, float]
    float_lanes: int
    l2_bytes: float
    red_instructions: int = 4
    red_bytes: float = 16
    integer_lanes: int = 64
    mufu_lanes: int = 16
    issues: int = 4
    shared_rate: int = 128


# mma.sync on Hopper: an assumption, 62 % of what wgmma does. L2: what others have measured, not the vendor's. Additions
# to memory: an assumption everywhere, from 30 GB/s of a multiprocessor of an H200 that others have told.
GPUS = (
    Gpu("A100", "sm_80", 108, 1.41, {"16": 1024, "tf32": 512}, 64, 28),
    Gpu("H100, H200", "sm_90a", 132, 1.83, {"16": 0.62 * 2048, "tf32": 0.62 * 1024}, 128, 24, 1),
    Gpu("RTX 4090", "sm_89", 128, 2.52, {"16": 256, "tf32": 128}, 128, 16),
)


def gpu_of(compute_capability: str) -> Gpu | None:
    """Return the GPU that stands for a compute capability ("9.0"), if there is one."""
    return {"8.0": GPUS[0], "9.0": GPUS[1], "8.9": GPUS[2]}.get(compute_capability)


def instructions(tiles: Tiles, features: Sequence[str] = (), *, masked: bool = False) -> Counter[str]:
    """Return the instructions of one warp for one tile of keys, by the kinds that tests/sass.py counts.

    Loop control, barriers and the schedule are left out: they are few. So is rescaling results, which is rare.
    """
    return of_products(tiles) + of_softmax(tiles, features, masked=masked)


def of_products(tiles: Tiles) -> Counter[str]:
    """Return those of both products: loads of operands, their rounding, sums."""
    found: Counter[str] = Counter()
    _add_products(found, tiles)
    _add_loads(found, tiles)
    if item(tiles) == 4:
        add_roundings(found, tiles, tiles.head_dim, scores_of_lane(tiles))
    if tiles.kind == "split_tf32":
        add_split_sums(found, tiles, tiles.head_dim, _results_of_lane(tiles))
    return found


def of_softmax(tiles: Tiles, features: Sequence[str] = (), *, masked: bool = False) -> Counter[str]:
    """Return those from scores to weights, and of the next tile's copies."""
    found: Counter[str] = Counter()
    _add_softmax(found, tiles)
    _add_copies(found, tiles)
    for feature in (*features, *(["edge"] if masked or HIDES & set(features) else [])):
        for kind, count in OF_SCORE[feature].items():
            found[kind] += round(count * scores_of_lane(tiles))
    return found


def products(tiles: Tiles) -> tuple[int, int]:
    """Return the tensor-core instructions of one warp: those of q k^T, and those of the weights with v."""
    depth = 16 if item(tiles) == 2 else 8
    terms = 3 if tiles.kind == "split_tf32" else 1
    tiles_of_warp = tiles.owner // (16 * tiles.warps)
    columns = terms * tiles_of_warp * tiles.walk
    return columns * tiles.head_dim // (8 * depth), columns * tiles.v_dim // (8 * depth)


def product_name(tiles: Tiles) -> str:
    """Return what the tensor-core instruction is called."""
    return {"f16": "HMMA.16816.F32", "bf16": "HMMA.16816.F32.BF16"}.get(tiles.kind, "HMMA.1688.F32.TF32")


def item(tiles: Tiles) -> int:
    """Return the bytes of an element."""
    return 2 if tiles.kind in ("f16", "bf16") else 4


def scores_of_lane(tiles: Tiles) -> int:
    """Return the scores of a tile that one thread holds."""
    return tiles.owner * tiles.walk // (WARP * tiles.warps)


def _results_of_lane(tiles: Tiles) -> int:
    return tiles.owner * tiles.v_dim // (WARP * tiles.warps)


def _add_products(found: Counter[str], tiles: Tiles) -> None:
    found[product_name(tiles)] += sum(products(tiles))


def _add_loads(found: Counter[str], tiles: Tiles) -> None:
    """Each warp reads its rows of q, all of k and all of v."""
    found["LDSM"] += (tiles.owner // tiles.warps + tiles.walk) * tiles.head_dim * item(tiles) // BYTES_OF_LDSM
    values = tiles.walk * tiles.v_dim * item(tiles)
    if item(tiles) == 2:
        found["LDSM"] += values // BYTES_OF_LDSM
    else:  # ldmatrix transposes 16 bits at a time; each tile of 16 rows loads them anew
        found["LDS"] += values // (4 * WARP) * (tiles.owner // (16 * tiles.warps) if tiles.kind == "split_tf32" else 1)
    found["LOP3"] += found["LDSM"] + found["LDS"]  # swizzled addresses


def add_roundings(found: Counter[str], tiles: Tiles, columns: int, weights: int) -> None:
    """Half a unit is added, but to no NaN: to weights in registers, to the others once in shared memory.

    Operands that are split are rounded where they are loaded, and keep what is left. `columns` are those of the rows of
    both operands of scores; `weights` are a thread's.
    """
    split = tiles.kind == "split_tf32"
    if split:
        operands = (tiles.owner // tiles.warps + tiles.walk) * columns // WARP + found["LDS"]
    else:
        pieces = tile_bytes(tiles) // (BYTES_OF_COPY * tiles.warps)
        operands = 4 * pieces
        for kind in ("LDS.128", "STS.128", "LOP3"):
            found[kind] += pieces
    for kind in ("FSETP", "IADD", *(("LOP3", "FADD", "IADD") if split else ())):
        found[kind] += operands + weights


def _add_softmax(found: Counter[str], tiles: Tiles) -> None:
    scores, rows = scores_of_lane(tiles), tiles.owner // (8 * tiles.warps)
    found["FMNMX"] += scores + 2 * rows
    found["SHFL"] += 2 * rows
    found["FMUL"] += rows
    found["FSETP"] += 2 * rows
    found["FFMA"] += scores
    found["MUFU.EX2"] += scores
    found["FADD"] += scores + 2 * rows
    if item(tiles) == 2:
        found["F2FP"] += scores // 2

    if tiles.kind == "split_tf32":  # the scale is a sum of two; subnormal weights are not flushed
        found["FFMA"] += scores
        found["FMUL"] += 3 * scores
        found["FSETP"] += scores


def _add_copies(found: Counter[str], tiles: Tiles) -> None:
    """Each warp copies its share of keys and values; a copy's address, and whether there is anything, beside it."""
    copies = tile_bytes(tiles) // (BYTES_OF_COPY * tiles.warps)
    for kind, count in {"LDGSTS": 1, "IADD": 3, "ISETP": 1}.items():
        found[kind] += count * copies


def add_split_sums(found: Counter[str], tiles: Tiles, columns: int, results: int) -> None:
    """Of split TF32: FADD adds the steps of 8, and a thread's sums over tiles keep what rounding loses."""
    scores = scores_of_lane(tiles)
    found["FADD"] += scores * columns // 8 + results * tiles.walk // 8 + (2 + 6) * results
    found["FSETP"] += results  # of infinite values
    found["FSEL"] += results
    found["LOP3"] += results  # what was lost so far, two in a register
    found["F2FP"] += results // 2


# What a feature adds to each score, by instruction, at least; "edge" is a tile of which some scores are hidden.
OF_SCORE: Mapping[str, Mapping[str, float]] = {
    "softcap": {"FMUL": 2, "MUFU.EX2": 1, "FADD": 1, "MUFU": 1, "FFMA": 1},
    "bias": {"IADD": 2, "LDG": 1, "PRMT": 1, "FSETP": 1, "LOP3": 1, "FMUL": 1, "FFMA": 1},
    # Scores on one diagonal share a penalty; of a thread's scores a third are on diagonals of their own.
    "alibi": {"IADD": 2 / 3, "I2F": 1 / 3, "FMUL": 1 / 3, "FFMA": 1},
    "mask": {"IADD": 2, "LDG": 1, "ISETP": 1, "LOP3": 1},
    # A call of 7 rounds, 2 wide products and 2 xor each, serves 8 scores of a thread; then its byte, and a choice.
    "dropout": {"IMAD": 2 * 7 / 8, "LOP3": 2 * 7 / 8 + 2, "ISETP": 1, "FSEL": 1},
    "edge": {"ISETP": 2, "LOP3": 2, "FSEL": 1},
}
HIDES = frozenset({"bias", "mask"})  # every tile is an edge tile
OF_SCORE_BYTES = {"bias": 2, "mask": 1}  # from L2; a bias of 16 bits

_FLOAT = ("FFMA", "FADD", "FMUL")
_INTEGER = ("FMNMX", "FSEL", "FSETP", "F2FP", "IADD", "IMAD", "ISETP", "LOP3", "PRMT")
_MUFU = ("MUFU.EX2", "MUFU", "I2F")


def tile_bytes(tiles: Tiles) -> int:
    """Return the bytes of a tile of keys and of values."""
    return tiles.walk * (tiles.head_dim + tiles.v_dim) * item(tiles)


def multiply_adds(tiles: Tiles) -> int:
    """Return those that count: three products of split TF32 are one."""
    return tiles.owner * tiles.walk * (tiles.head_dim + tiles.v_dim)


def issued(found: Mapping[str, int], tiles: Tiles, gpu: Gpu) -> dict[Pipe, float]:
    """Return the clocks of a block's instructions by pipe, `found` being one warp's."""

    def lanes(kinds: Sequence[str], rate: float) -> float:
        return WARP * tiles.warps * sum(found.get(kind, 0) for kind in kinds) / rate

    wide = sum(found.get(kind, 0) for kind in ("LDSM", "LDS.128", "STS.128"))
    narrow = sum(found.get(kind, 0) for kind in ("LDS", "STS"))
    loaded = tiles.warps * (wide * BYTES_OF_LDSM + narrow * 4 * WARP)
    return {
        "mufu": lanes(_MUFU, gpu.mufu_lanes),
        "float": lanes(_FLOAT, gpu.float_lanes),
        "integer": lanes(_INTEGER, gpu.integer_lanes),
        "issue": tiles.warps * sum(found.values()) / gpu.issues,
        "shared": loaded / gpu.shared_rate,
    }


def tensor_clocks(tiles: Tiles, gpu: Gpu, multiply_adds: int) -> float:
    """Return the clocks of so many multiply-adds; split TF32 takes three products for one."""
    terms = 3 if tiles.kind == "split_tf32" else 1
    return terms * multiply_adds / gpu.mma["16" if item(tiles) == 2 else "tf32"]


def cycles(tiles: Tiles, gpu: Gpu, features: Sequence[str] = (), *, masked: bool = False) -> dict[Pipe, float]:
    """Return the clocks that each pipe of a multiprocessor works for one tile of keys of one block."""
    found = issued(instructions(tiles, features, masked=masked), tiles, gpu)
    found["tensor"] = tensor_clocks(tiles, gpu, multiply_adds(tiles))
    found["shared"] += tile_bytes(tiles) / gpu.shared_rate
    of_scores = sum(OF_SCORE_BYTES.get(feature, 0) for feature in features)
    found["l2"] = (tile_bytes(tiles) + tiles.owner * tiles.walk * of_scores) / gpu.l2_bytes
    return found


@dataclass(frozen=True)
class Prediction:
    """The clocks of a multiprocessor from one tile of keys of a block to the next.

    Attributes
    ----------
    cycles
        Work of each pipe.
    best
        Where products of some warps overlap all the rest of others: the pipe that takes longest.
    in_turn
        Where they do not, as in a block whose warps wait for each other: products, then the rest.
    """

    cycles: Mapping[Pipe, float]
    best: float
    in_turn: float

    @property
    def bound(self) -> Pipe:
        """Return the pipe that takes longest."""
        return max(self.cycles, key=lambda pipe: self.cycles[pipe])

    @property
    def shares(self) -> tuple[float, float]:
        """Return the least and the most of the time in which tensor cores work."""
        return self.cycles["tensor"] / self.in_turn, self.cycles["tensor"] / self.best


def predict(tiles: Tiles, gpu: Gpu, features: Sequence[str] = (), *, masked: bool = False) -> Prediction:
    """Predict a tile's time; barriers and waiting for copies are left out."""
    found = cycles(tiles, gpu, features, masked=masked)
    best = max(found.values())
    multiplying = max(found["tensor"], *issued(of_products(tiles), tiles, gpu).values())
    weighing = max(issued(of_softmax(tiles, features, masked=masked), tiles, gpu).values())
    return Prediction(found, best, max(best, multiplying + weighing))
