"""A plan: what a call launches, made from integers only. Addresses come in when it runs.

Plans are what caches, CUDA graphs and workspace queries need: launches in order, and one workspace that all temporary
arrays are slices of.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from flashcupy.cuda.compile import KernelConfig
from flashcupy.cuda.device import DeviceProperties
from flashcupy.cuda.operands import ENTRIES, HEADS, MATRIX, ROWS, SEQUENCES, Batch, Layout
from flashcupy.cuda.params import FAR, LONGEST, AttentionParams, BlockLists, Operand
from flashcupy.errors import UnsupportedError
from flashcupy.philox import keep_threshold
from flashcupy.spec import AttentionSpec

SEGMENT = 16  # rows of schedule/segments.cuh
_ALIGNMENT = 256  # of workspace slices: what CuPy's pool aligns to
_MAX_GRID = (1 << 31) - 1

# The dims of every operand of AttentionParams.
DIMS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("q", "k", "v", "mask", "bias", "out", "stats", "dout", "dq", "dk", "dv", "dbias"), MATRIX),
    **dict.fromkeys(("lse", "dlse", "delta", "sink_rows"), ROWS),
    **dict.fromkeys(("dq_sum", "dk_sum", "dv_sum"), MATRIX),
    **dict.fromkeys(("q_means", "k_means", "scores"), MATRIX),  # a row is a block
    **dict.fromkeys(("row_terms", "dq_parts"), MATRIX),  # a row is a segment of SEGMENT query rows
    **dict.fromkeys(("slopes", "sinks", "dsinks"), HEADS),
    **dict.fromkeys(("q_lengths", "kv_lengths"), ENTRIES),
    **dict.fromkeys(("cu_seqlens_q", "cu_seqlens_k"), SEQUENCES),
}
INPUTS = (
    *("q", "k", "v", "mask", "bias", "slopes", "sinks"),
    *("q_lengths", "kv_lengths", "cu_seqlens_q", "cu_seqlens_k"),
)
SEQUENCE_OPERANDS = ("q_lengths", "kv_lengths", "cu_seqlens_q", "cu_seqlens_k")


@dataclass(frozen=True, slots=True)
class LaunchRecord:
    """One launch: `params` with zeros where the 64-bit addresses of `slots` (offset, name) go."""

    config: KernelConfig
    grid: int
    params: bytes
    slots: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Launches in order; `workspace` gives the offset of each temporary array."""

    launches: tuple[LaunchRecord, ...]
    workspace: Mapping[str, int]
    workspace_bytes: int


class Work(NamedTuple):
    """Blocks of a launch, and into how many chunks the columns of their results are cut."""

    grid: int
    chunks: int


@dataclass(frozen=True, slots=True)
class MaskGrid:
    """What a plan needs to know of a block mask."""

    batch: int
    heads: int
    rows: int
    columns: int
    block_size: tuple[int, int]
    may_overflow: bool = False

    def pieces(self, per_block: int, heads: int, batch: int, *, transposed: bool) -> int:
        """Pieces of work that a ListScheduler hands out, `per_block` rows each, for one chunk of columns."""
        rows, size = (self.columns, self.block_size[1]) if transposed else (self.rows, self.block_size[0])
        sharing = max(1, heads // self.heads) * (batch if self.batch == 1 else 1)
        return size // per_block * rows * self.heads * self.batch * sharing

    def lists(self, *, transposed: bool) -> BlockLists:
        (row, column), rows = self.block_size, self.rows
        if transposed:
            row, column, rows = column, row, self.columns
        return BlockLists(
            batch=self.batch, heads=self.heads, rows=rows, row_size=row, column_size=column, words=-(-column // 32)
        )


LIST_ARRAYS = ("full_indptr", "full_indices", "partial_indptr", "partial_indices", "bits_id", "bits", "order")
# What the arrays hold is a matter of the mask, and plans know its shape alone.
LIST_SLOTS = (*LIST_ARRAYS, "capacity", "partial_capacity", "patterns")


class Request(NamedTuple):
    """All that choosing a family and making a plan go by; `layouts` has the arrays of the call by operand name."""

    spec: AttentionSpec
    layouts: Mapping[str, Layout]
    mask: MaskGrid | None
    properties: DeviceProperties


class PlanBuilder:
    """Collects the launches and the workspace of one call; `array` adds temporary arrays to its layouts."""

    def __init__(self, request: Request) -> None:
        self.request = request
        spec, layouts, self.mask, self.properties = request
        check_sizes(spec)
        self.spec = spec
        self.layouts = dict(layouts)
        self.batch = Batch(spec.batch, [layout for name, layout in layouts.items() if DIMS.get(name) != SEQUENCES])
        self._launches: list[LaunchRecord] = []
        self._offsets: dict[str, int] = {}
        self._bytes = 0
        self._template = self._attention_params()

    @property
    def acc_dtype(self) -> str:
        return "float64" if self.spec.dtype == "float64" else "float32"

    @property
    def acc_bytes(self) -> int:
        return 8 if self.spec.dtype == "float64" else 4

    def reserve(self, slot: str, nbytes: int) -> None:
        """Add a slice to the workspace."""
        self._offsets[slot] = self._bytes
        self._bytes += -(-nbytes // _ALIGNMENT) * _ALIGNMENT

    def array(self, name: str, shape: tuple[int, ...]) -> None:
        """Make an operand a temporary, row-major array in the accumulation dtype."""
        self.layouts[name] = Layout.packed(shape, self.acc_dtype, self.acc_bytes, DIMS[name])
        self.reserve(name, math.prod(shape) * self.acc_bytes)

    def segments(self, name: str, columns: int) -> None:
        """Make an operand a temporary array of `columns` for every query row, by segments of rows of a sequence."""
        spec = self.spec
        rows = -(-spec.operand("q").shape[-2] // SEGMENT) + (spec.batch_size if spec.varlen else 0)
        rows = max(2, rows)  # kernels take a segment's size from the step to the next one
        batch = () if spec.varlen else spec.batch
        self.array(name, (*batch, spec.q_heads, rows, SEGMENT * columns))

    def launch(
        self, kernel: KernelConfig, grid: int, params: ctypes.Structure, slots: Iterable[tuple[int, str]]
    ) -> None:
        """Append a launch; nothing where the grid is empty."""
        if grid > _MAX_GRID:
            raise UnsupportedError(f"{kernel.name} would need {grid} blocks, the CUDA backend has at most {_MAX_GRID}")
        if grid:
            self._launches.append(LaunchRecord(kernel, grid, bytes(params), tuple(slots)))

    def attention(self, kernel: KernelConfig, work: Work, operands: Iterable[str], *, lists: str | None = None) -> None:
        """Append a launch of a kernel that takes AttentionParams with the operands that the call has."""
        params, slots = self.attention_params(operands, lists=lists)
        params.chunks = work.chunks
        self.launch(kernel, work.grid, params, slots)

    def attention_params(
        self, operands: Iterable[str], *, lists: str | None = None
    ) -> tuple[AttentionParams, list[tuple[int, str]]]:
        """Fill in those operands that the call has; sums over the whole batch stand in for what broadcasts over it."""
        params = AttentionParams.from_buffer_copy(self._template)
        slots = []
        for name in operands:
            slot = f"{name}_sum" if f"{name}_sum" in self.layouts else name
            if slot in self.layouts:
                setattr(params, name, self.batch.operand(self.layouts[slot]))
                slots.append((getattr(AttentionParams, name).offset + Operand.data.offset, slot))
        if self.spec.dropout:
            slots += [(getattr(AttentionParams, name).offset, name) for name in ("seed_words", "seed", "offset")]
        if self.mask is not None and lists is not None:
            setattr(params, lists, self.mask.lists(transposed=lists == "transposed_lists"))
            start = getattr(AttentionParams, lists).offset
            slots += [(start + getattr(BlockLists, name).offset, f"{lists}.{name}") for name in LIST_SLOTS]
        return params, slots

    def finish(self) -> Plan:
        return Plan(tuple(self._launches), self._offsets, self._bytes)

    def work(self, rows: int, per_block: int, columns: int, per_chunk: int, heads: int) -> Work:
        """What the StaticScheduler hands out: tiles x column chunks x heads x batch entries."""
        chunks = max(1, -(-columns // per_chunk))
        return Work(-(-rows // per_block) * chunks * heads * self.spec.batch_size, chunks)

    def query_work(self, per_block: int, columns: int, per_chunk: int, *, heads: int = 1) -> Work:
        """Pieces of a kernel whose blocks own `per_block` queries of each of `heads`, by the schedule it has."""
        tiles_of_heads = self.spec.q_heads // heads
        work = self.work(self.spec.q_len, per_block, columns, per_chunk, tiles_of_heads)
        return self._listed(work, per_block, tiles_of_heads, transposed=False)

    def key_work(self, per_block: int, columns: int, per_chunk: int) -> Work:
        """The same of one whose blocks own keys."""
        work = self.work(self.spec.kv_len, per_block, columns, per_chunk, self.spec.kv_heads)
        return self._listed(work, per_block, self.spec.kv_heads, transposed=True)

    def _listed(self, work: Work, per_block: int, heads: int, *, transposed: bool) -> Work:
        if self.mask is None or work.grid == 0:
            return work
        pieces = self.mask.pieces(per_block, heads, self.spec.batch_size, transposed=transposed)
        return Work(pieces * work.chunks, work.chunks)

    def dbias_extents(self) -> tuple[tuple[int, ...], int, int, int]:
        """Extents of dbias by merged batch dim, head, row and column: 1 where it broadcasts."""
        layout = self.layouts["dbias"]
        trailing = (1,) * max(0, 3 - len(layout.shape)) + layout.shape[-3:]
        heads, rows, columns = trailing
        return self.batch.extents_of(layout), heads, rows, columns

    def _attention_params(self) -> AttentionParams:
        spec = self.spec
        left, right = (clipped(side, spec) for side in spec.window)
        params = AttentionParams(
            scale=spec.scale,
            softcap=spec.softcap or 0.0,
            batch=spec.batch_size,
            q_heads=spec.q_heads,
            kv_heads=spec.kv_heads,
            q_len=spec.q_len,
            kv_len=spec.kv_len,
            q_rows=spec.operand("q").shape[-2],
            kv_rows=spec.operand("k").shape[-2],
            head_dim=spec.head_dim,
            v_dim=spec.v_dim,
            left=left,
            right=right if spec.causal is None else 0,
            top_left=spec.causal == "top-left",
            keep_threshold=keep_threshold(spec.dropout),
        )
        params.batch_extent[:] = self.batch.extents
        if "dbias" in self.layouts:
            extents, params.bias_heads, params.bias_rows, params.bias_columns = self.dbias_extents()
            params.bias_batch_extent[:] = extents
        return params


def clipped(side: int | None, spec: AttentionSpec) -> int:
    """A window side as kernels take it: beyond all rows and keys it is unbounded."""
    return FAR if side is None or side >= spec.q_len + spec.kv_len else side


def check_sizes(spec: AttentionSpec) -> None:
    """Refuse what 32-bit coordinates cannot hold."""
    for name, rows in (
        ("q", max(spec.q_len, spec.operand("q").shape[-2])),
        ("k", max(spec.kv_len, spec.operand("k").shape[-2])),
    ):
        if rows >= LONGEST:
            raise UnsupportedError(f"{name} has {rows} rows, the CUDA backend takes fewer than {LONGEST}")
    for name, count in (("head_dim", spec.head_dim), ("v's last dim", spec.v_dim), ("batch size", spec.batch_size)):
        if count > _MAX_GRID:
            raise UnsupportedError(f"the {name} is {count}, the CUDA backend takes at most {_MAX_GRID}")


def plan_bytes(plan: Plan) -> dict[str, Any]:
    """Serialise a plan: names, integers and bytes only."""
    return {
        "workspace": dict(plan.workspace),
        "workspace_bytes": plan.workspace_bytes,
        "launches": [
            {
                "entry": record.config.name,
                "grid": record.grid,
                "block": record.config.threads,
                "shared_bytes": record.config.shared_bytes,
                "params": record.params.hex(),
                "slots": list(record.slots),
            }
            for record in plan.launches
        ],
    }
