"""What building a block mask on a device launches: words of a source, and from them lists, both ways.

Words are a bit for each block of a row: see kernels_cu/lists/params.cuh.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flashcupy.blocks import bits as bitops
from flashcupy.blocks.grid import Grid
from flashcupy.cuda import config
from flashcupy.cuda.config import PlainConfig
from flashcupy.cuda.operands import MATRIX, ROWS, Batch, Layout
from flashcupy.cuda.params import (
    BlocksParams,
    DenseParams,
    IdsParams,
    ListParams,
    ListSide,
    Operand,
    TopkParams,
)
from flashcupy.cuda.plan import LIST_ARRAYS, LaunchRecord, Plan

Kind = Literal["blocks", "ids", "topk", "dense"]

_WORD = 32
_ALIGNMENT = 256
_MOST_BLOCKS = 1 << 16  # the kernels stride over what is left
_SCRATCH = ("full_words", "partial_words", "counts")
_DIMS = {"counts": ROWS}


@dataclass(frozen=True, eq=False)
class Source:
    """Where blocks come from. `layouts` are those of its arrays, by their names in the kernel's parameters."""

    kind: Kind
    layouts: Mapping[str, Layout]
    numbers: Mapping[str, int]

    @property
    def partial(self) -> bool:
        """Whether some of its blocks are PARTIAL."""
        return self.kind == "dense"

    @property
    def wide(self) -> bool:
        """Whether scores take 64 bits to be ordered by."""
        return self.kind == "topk" and self.layouts["scores"].dtype in ("float64", "int32", "int64")

    @property
    def key(self) -> tuple[Any, ...]:
        return self.kind, *self.layouts.items(), *self.numbers.items()


def dims_of(name: str) -> tuple[str, ...]:
    """What the trailing dims of a source's array are."""
    return _DIMS.get(name, MATRIX)


def scratch_bytes(grid: Grid, *, partial: bool) -> dict[str, int]:
    """Bytes of words and counts, by slot, for rows and columns."""
    sizes: dict[str, int] = {}
    for side, own in (("rows", grid), ("columns", grid.mT)):
        words = 4 * own.rows * -(-own.nk // _WORD)
        sizes |= {f"{side}.full_words": words, f"{side}.counts": 8 * own.rows}
        if partial:
            sizes[f"{side}.partial_words"] = words
    return {slot: -(-nbytes // _ALIGNMENT) * _ALIGNMENT for slot, nbytes in sizes.items()}


class MaskPlan:
    """Collects the launches of a mask's lists, of some capacity."""

    def __init__(self, grid: Grid, capacity: int, partial_capacity: int, *, partial: bool) -> None:
        self._grid, self._partial = grid, partial
        self._capacity, self._partial_capacity = capacity, partial_capacity
        self._launches: list[LaunchRecord] = []

    def finish(self, scratch: Mapping[str, int]) -> Plan:
        """Make the plan. `scratch` is what its own workspace holds: nothing where the mask keeps words."""
        offsets, end = {}, 0
        for slot, nbytes in scratch.items():
            offsets[slot] = end
            end += nbytes
        return Plan(tuple(self._launches), offsets, end)

    def from_source(self, source: Source) -> None:
        """Write the lists of rows."""
        self._words(source)
        self._lists("rows", None, clear_ids=source.kind != "ids")
        if source.partial:
            self._dense(config.PACK_BITS, source, self._grid.cells)

    def transpose(self) -> None:
        """Write the lists of columns, from words and lists of rows."""
        grid = self._grid
        tiles = grid.groups * -(-grid.nq // _WORD) * -(-grid.nk // _WORD)
        self._launch(config.TRANSPOSE_WORDS, tiles, *self._params("columns", "rows"))
        self._lists("columns", "rows")
        if self._partial:
            self._launch(config.TRANSPOSE_BITS, self._partial_capacity, *self._params("columns", "rows"))

    def _lists(self, own: str, other: str | None, *, clear_ids: bool = False) -> None:
        rows = self._grid.rows if own == "rows" else self._grid.mT.rows
        params = self._params(own, other)
        ids = [(ListParams.no_bad_ids.offset, "bad_ids")] if clear_ids else []
        self._launch(config.COUNT_BLOCKS, rows, params[0], [*params[1], *ids])
        self._launches.append(LaunchRecord(config.SCAN_ROWS, 3, bytes(params[0]), tuple(params[1])))
        self._launch(config.WRITE_LISTS, rows, *params)

    def _words(self, source: Source) -> None:
        make = {"blocks": self._of_blocks, "ids": self._of_ids, "topk": self._of_topk, "dense": self._of_dense}
        make[source.kind](source)

    def _of_blocks(self, source: Source) -> None:
        words = self._grid.rows * -(-self._grid.nk // _WORD)
        self._launch(config.WORDS_OF_BLOCKS, words, *self._with_source(BlocksParams(), source))

    def _of_ids(self, source: Source) -> None:
        params, slots = self._with_source(IdsParams(slots=source.numbers["slots"]), source)
        slots.append((IdsParams.bad_ids.offset, "bad_ids"))
        self._launch(config.WORDS_OF_IDS, self._grid.rows, params, slots)

    def _of_topk(self, source: Source) -> None:
        kernel = config.topk_config("u64" if source.wide else "u32")
        self._launch(kernel, self._grid.rows, *self._with_source(TopkParams(k=source.numbers["k"]), source))

    def _of_dense(self, source: Source) -> None:
        words = self._grid.rows * -(-self._grid.nk // _WORD)
        self._dense(config.WORDS_OF_DENSE, source, words * 32)

    def _dense(self, kernel: PlainConfig, source: Source, warps: int) -> None:
        grid = self._grid
        params = DenseParams(q_len=grid.seqlen_q, kv_len=grid.seqlen_k, column_size=grid.block_k)
        self._launch(kernel, warps, *self._with_source(params, source))

    def _with_source(self, params: Any, source: Source) -> tuple[Any, list[tuple[int, str]]]:
        params.lists, slots = self._params("rows", None)
        for name, layout in source.layouts.items():
            setattr(params, name, _operand(layout))
            slots.append((getattr(type(params), name).offset + Operand.data.offset, name))
        return params, slots

    def _params(self, own: str, other: str | None) -> tuple[ListParams, list[tuple[int, str]]]:
        grid = self._grid
        params = ListParams(
            capacity=self._capacity, partial_capacity=self._partial_capacity, batch=grid.batch, heads=grid.heads
        )
        slots = list(self._side(params.own, ListParams.own.offset, own))
        if other is not None:
            slots += self._side(params.other, ListParams.other.offset, other)
        return params, slots

    def _side(self, side: ListSide, start: int, name: str) -> Iterator[tuple[int, str]]:
        grid = self._grid if name == "rows" else self._grid.mT
        side.rows, side.columns, side.row_words = grid.nq, grid.nk, -(-grid.nk // _WORD)
        side.row_size, side.words, side.last_first = grid.block_q, bitops.words(grid.block_k), name == "rows"
        for slot in (*LIST_ARRAYS, *_SCRATCH):
            if slot != "partial_words" or self._partial:
                yield start + getattr(ListSide, slot).offset, f"{name}.{slot}"

    def _launch(self, kernel: PlainConfig, warps: int, params: ctypes.Structure, slots: list[tuple[int, str]]) -> None:
        grid = min(-(-warps // (kernel.threads // 32)), _MOST_BLOCKS)
        if grid:
            self._launches.append(LaunchRecord(kernel, grid, bytes(params), tuple(slots)))


def _operand(layout: Layout) -> Operand:
    batch = () if len(layout.shape) <= len(layout.dims) else layout.shape[:1]
    return Batch(batch or (1,), [layout]).operand(layout)
