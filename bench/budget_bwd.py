"""What a tile of the tensor-core backward must cost: predictions as in `bench.budget`, nothing measured.

A block owns `owner` keys (or, of the kernel "dq", queries) and walks tiles of `walk` queries (or keys).
"""

from __future__ import annotations

from collections import Counter
from typing import Literal, NamedTuple, Protocol

from bench.budget import (
    BYTES_OF_COPY,
    BYTES_OF_LDSM,
    OF_SCORE,
    WARP,
    Gpu,
    Pipe,
    Prediction,
    Tiles,
    add_roundings,
    add_split_sums,
    issued,
    item,
    product_name,
    scores_of_lane,
    tensor_clocks,
    tile_bytes,
)

# dk, dv and dq; dk and dv; dq.
Kernel = Literal["dkvq", "dkv", "dq"]

MOST_SUMS = 32  # of a thread, for dq beside dk and dv
NUMBERS_OF_RED = 128  # of a warp


class GradientTiles(Tiles, Protocol):
    """What the model asks of `flashcupy.cuda.config_sm80_bwd.GradientTiles`, which says what these are."""

    @property
    def head_chunk(self) -> int: ...
    @property
    def v_chunk(self) -> int: ...


class Units(NamedTuple):
    """How warps share a tile's product dS k: `number` units of 16 * `row_tiles` queries and `columns` columns."""

    row_tiles: int
    columns: int
    number: int

    def of_warp(self, warps: int) -> int:
        """Return how many the busiest warp does."""
        return -(-self.number // warps)


def query_units(tiles: GradientTiles) -> Units:
    """Return what QueryUnits of kernels_cu/tile/mma_reduce.cuh chooses."""
    for row_tiles in (2, 1):
        for columns in (64, 48, 32, 16):
            count = tiles.walk // (16 * row_tiles) * (tiles.head_chunk // columns)
            whole = tiles.walk % (16 * row_tiles) == 0 and tiles.head_chunk % columns == 0
            if whole and row_tiles * columns // 2 <= MOST_SUMS and count % tiles.warps == 0:
                return Units(row_tiles, columns, count)
    columns = 32 if tiles.head_chunk % 32 == 0 else 16
    return Units(1, columns, tiles.walk // 16 * (tiles.head_chunk // columns))


def result_columns(kernel: Kernel, tiles: GradientTiles) -> int:
    """Return the columns of the results that a block keeps in registers."""
    return tiles.head_chunk + (0 if kernel == "dq" else tiles.v_chunk)


def chunks(kernel: Kernel, tiles: GradientTiles) -> int:
    """Return how many blocks share a tile's results by columns; each computes P and dS again."""
    of_head = -(-tiles.head_dim // tiles.head_chunk)
    return of_head if kernel == "dq" else max(of_head, -(-tiles.v_dim // tiles.v_chunk))


def multiply_adds(kernel: Kernel, tiles: GradientTiles) -> int:
    """Return those of one pair of tiles: q k^T and dout v^T, and what each result takes."""
    columns = tiles.head_dim + tiles.v_dim + result_columns(kernel, tiles)
    return tiles.owner * tiles.walk * (columns + (tiles.head_chunk if kernel == "dkvq" else 0))


def products(kernel: Kernel, tiles: GradientTiles) -> tuple[int, int, int]:
    """Return the tensor-core instructions of one warp: for P and dP, for results in registers, for dq in memory."""
    depth = 16 if item(tiles) == 2 else 8
    terms = 3 if tiles.kind == "split_tf32" else 1
    rows = terms * tiles.owner // (16 * tiles.warps)
    scores = rows * tiles.walk // 8 * (tiles.head_dim + tiles.v_dim) // depth
    results = rows * result_columns(kernel, tiles) // 8 * tiles.walk // depth
    if kernel != "dkvq":
        return scores, results, 0
    units = query_units(tiles)
    of_unit = units.row_tiles * units.columns // 8 * tiles.owner // depth
    return scores, results, units.of_warp(tiles.warps) * of_unit


def instructions(
    kernel: Kernel, tiles: GradientTiles, *, red_instructions: int = 1, masked: bool = False
) -> Counter[str]:
    """Return the instructions of one warp for one tile, by the kinds that tests/sass.py counts; "RED" adds to memory.

    Loop control, barriers and the schedule are left out, as for the forward.
    """
    return of_products(kernel, tiles, red_instructions) + of_weighing(kernel, tiles, masked=masked)


def of_products(kernel: Kernel, tiles: GradientTiles, red_instructions: int = 1) -> Counter[str]:
    """Return those of the products: loads of operands, their rounding, sums, additions to memory."""
    found: Counter[str] = Counter({product_name(tiles): sum(products(kernel, tiles))})
    _add_loads(found, kernel, tiles)
    scores = scores_of_lane(tiles) * (1 if kernel == "dq" else 2)  # as operands: dS, and P
    if item(tiles) == 4:
        add_roundings(found, tiles, _columns(tiles), scores)
    if tiles.kind == "split_tf32":
        results = tiles.owner * result_columns(kernel, tiles) // (WARP * tiles.warps)
        add_split_sums(found, tiles, _columns(tiles), results)
        found["FADD"] += results
        for kind in ("FADD", "FSETP", "FSEL"):  # small products of both products of scores, where they are finite
            found[kind] += 2 * scores_of_lane(tiles)
    if kernel == "dkvq":
        units = query_units(tiles)
        numbers = units.of_warp(tiles.warps) * units.row_tiles * 16 * units.columns
        found["RED"] += numbers // NUMBERS_OF_RED * red_instructions
    return found


def of_weighing(kernel: Kernel, tiles: GradientTiles, *, masked: bool = False) -> Counter[str]:
    """Return those from scores to P and dS, and of the next tile's copies."""
    found: Counter[str] = Counter()
    scores, split = scores_of_lane(tiles), tiles.kind == "split_tf32"
    # P = exp2(s - lse), dS = P * (dP - delta): the compiler makes FFMA of what could be FADD.
    for kind, count in {"FFMA": 2, "MUFU.EX2": 1, "FMUL": 1}.items():
        found[kind] += count * scores
    if split:  # times 1 / sum, and subnormal weights are not flushed
        found["FFMA"] += scores
        found["FMUL"] += 4 * scores
        found["FSETP"] += scores
    if item(tiles) == 2:
        found["F2FP"] += scores // 2 * (1 if kernel == "dq" else 2)
    if kernel == "dkvq":
        found["STS"] += scores // 2
        found["LOP3"] += scores // 2
    if kernel != "dq":  # each lane reads the terms of two neighbouring queries at once
        found["LDS.128"] += (16 if split else 8) * tiles.walk // (16 * 4)
    if not split:  # whether lse is large anywhere: all factors of a tile are looked at, or the lane's rows'
        looks = scores_of_lane(tiles) * 4 // tiles.walk if kernel == "dq" else -(-tiles.walk // WARP)
        found["FSETP"] += looks
        if kernel != "dq":
            found["LDS"] += looks
    if masked:
        for kind, share in (*OF_SCORE["edge"].items(), *([] if kernel == "dq" else [("FSEL", 1.0)])):
            found[kind] += round(share * scores)
    _add_copies(found, kernel, tiles)
    return found


def _columns(tiles: GradientTiles) -> int:
    """Columns of the rows of both operands that a product of scores takes, side by side."""
    return tiles.head_dim + tiles.v_dim


def _terms_bytes(tiles: GradientTiles) -> int:
    return 16 if tiles.kind == "split_tf32" else 12


def _add_loads(found: Counter[str], kernel: Kernel, tiles: GradientTiles) -> None:
    """Each warp reads its own rows, and all that walk, for P and dP, and of those the results' columns once more."""
    found["LDSM"] += (tiles.owner // tiles.warps + tiles.walk) * _columns(tiles) * item(tiles) // BYTES_OF_LDSM
    again = tiles.walk * result_columns(kernel, tiles) * item(tiles)
    if item(tiles) == 2:
        found["LDSM"] += again // BYTES_OF_LDSM
    else:
        row_tiles = tiles.owner // (16 * tiles.warps) if tiles.kind == "split_tf32" else 1
        found["LDS"] += again // (4 * WARP) * row_tiles
    if kernel == "dkvq":  # a step of a unit: dS of its rows, k of its columns, 16 keys each
        units = query_units(tiles)
        of_step = units.row_tiles + units.columns // 16
        found["LDSM"] += units.of_warp(tiles.warps) * tiles.owner // 16 * of_step
    found["LOP3"] += found["LDSM"] + found["LDS"]  # swizzled addresses


def _add_copies(found: Counter[str], kernel: Kernel, tiles: GradientTiles) -> None:
    """Each warp copies its share of what walks; a copy's address, and whether there is anything, beside it."""
    copies = -(-tile_bytes(tiles) // (BYTES_OF_COPY * tiles.warps))
    if kernel != "dq":
        copies += -(-tiles.walk * _terms_bytes(tiles) // (BYTES_OF_COPY * tiles.warps))
    for kind, count in {"LDGSTS": 1, "IADD": 3, "ISETP": 1}.items():
        found[kind] += count * copies


def cycles(kernel: Kernel, tiles: GradientTiles, gpu: Gpu, *, masked: bool = False) -> dict[Pipe, float]:
    """Return the clocks that each pipe of a multiprocessor works for one tile of one block."""
    every = instructions(kernel, tiles, red_instructions=gpu.red_instructions, masked=masked)
    found = issued(every, tiles, gpu)
    copied = tile_bytes(tiles) + (0 if kernel == "dq" else tiles.walk * _terms_bytes(tiles))
    found["tensor"] = tensor_clocks(tiles, gpu, multiply_adds(kernel, tiles))
    found["shared"] += copied / gpu.shared_rate
    found["l2"] = copied / gpu.l2_bytes
    found["red"] = (4 * tiles.walk * tiles.head_chunk if kernel == "dkvq" else 0) / gpu.red_bytes
    return found


def predict(kernel: Kernel, tiles: GradientTiles, gpu: Gpu, *, masked: bool = False) -> Prediction:
    """Predict a tile's time; barriers and waiting for copies or for additions are left out."""
    found = cycles(kernel, tiles, gpu, masked=masked)
    best = max(found.values())
    multiplying = max(found["tensor"], *issued(of_products(kernel, tiles, gpu.red_instructions), tiles, gpu).values())
    weighing = max(issued(of_weighing(kernel, tiles, masked=masked), tiles, gpu).values())
    return Prediction(found, best, max(best, multiplying + weighing))
