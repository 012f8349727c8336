"""One call on device arrays: its operands, their addresses, and the key of its plan."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from flashcupy.cuda.block_lists import lists_on, mask_grid
from flashcupy.cuda.config import tile_table
from flashcupy.cuda.device import Device, runtime
from flashcupy.cuda.device_lists import DeviceLists
from flashcupy.cuda.launch import ReadyPlan
from flashcupy.cuda.operands import Layout
from flashcupy.cuda.plan import DIMS, PlanBuilder, Request
from flashcupy.spec import AttentionProblem

_LARGE = (("q", "q"), ("k", "k"), ("v", "v"), ("mask", "mask"), ("bias", "bias"))
_SMALL = (
    ("slopes", "alibi_slopes"),
    ("sinks", "sinks"),
    ("q_lengths", "q_lengths"),
    ("kv_lengths", "kv_lengths"),
    ("cu_seqlens_q", "cu_seqlens_q"),
    ("cu_seqlens_k", "cu_seqlens_k"),
)
_SMALL_SLOTS = frozenset(slot for slot, _ in _SMALL)


class Call:
    """Gathers what a plan is made from and what running it needs.

    ``key`` tells calls with different plans apart: everything that a plan depends on, and no values.
    """

    def __init__(self, problem: AttentionProblem) -> None:
        self.problem = problem
        self.runtime = runtime()
        self.device: Device = self.runtime.device_of(problem.q)
        self.arrays: dict[str, Any] = {}
        self.host: list[tuple[str, np.ndarray]] = []
        self.addresses: dict[str, int] = {}
        self._lists: list[DeviceLists] = []
        self._key: list[Any] = [problem.spec, tile_table(), self.device]
        for slot, name in _LARGE:
            array = getattr(problem, name)
            if array is not None:
                self.add(slot, array)
        for slot, name in _SMALL:
            array = getattr(problem, name)
            if array is not None:
                self._add_small(slot, array)
        if problem.block_mask is not None:
            self._key.append(mask_grid(problem.block_mask))
        self._add_seed()

    @property
    def key(self) -> tuple[Any, ...]:
        return tuple(self._key)

    def add(self, slot: str, array: Any) -> None:
        """Add an array on the device."""
        self.arrays[slot] = array
        self.addresses[slot] = address = self.runtime.pointer(array)
        self._key += (slot, array.shape, array.strides, array.dtype, address & 7)

    def add_metadata(self, slot: str, array: Any) -> None:
        """Add an array that need not exist: one that the library would allocate, so it is aligned."""
        self.arrays[slot] = array
        self.addresses[slot] = 0
        self._key += (slot, array.shape, array.strides, array.dtype, 0)

    def add_lists(self, *, transposed: bool) -> None:
        """Bring the block mask's lists to the device, if there is one."""
        if self.problem.block_mask is not None:
            lists = lists_on(self.device, self.problem.block_mask, transposed=transposed)
            self._lists.append(lists)
            self.addresses |= lists.slots("transposed_lists" if transposed else "lists")

    def run(self, ready: ReadyPlan) -> None:
        """Launch a plan; what others may reuse too early outlives the launches."""
        ready.run(self.device, self.addresses, self.host)
        self.device.keep_until_done(self._at_risk())
        for lists in self._lists:
            lists.keep()

    def _at_risk(self) -> Iterator[Any]:
        """Arrays on the device that their library may reuse too early.

        Torch does so in the order of its current stream, which waits for the results that are handed over to it. It
        would run short of memory if large ones were kept longer. Small ones may be of any library.
        """
        in_order = self.problem.library == "torch"
        for slot, array in self.arrays.items():
            if not in_order or slot in _SMALL_SLOTS:
                yield array
        if self.problem.seed is not None and not isinstance(self.problem.seed, tuple):
            yield self.problem.seed

    @property
    def tails(self) -> bool:
        """Whether packed rows may lie in no sequence."""
        problem = self.problem
        if not problem.spec.varlen:
            return False
        ends = ((problem.cu_seqlens_q, problem.q), (problem.cu_seqlens_k, problem.k))
        return not all(isinstance(cu, np.ndarray) and cu[-1] == x.shape[-2] for cu, x in ends)

    def request(self) -> Request:
        layouts = {slot: Layout.of(array, DIMS[slot], self.addresses[slot]) for slot, array in self.arrays.items()}
        for slot, array in self.host:
            layouts[slot] = Layout.packed(array.shape, array.dtype.name, array.itemsize, DIMS[slot])
        mask = self.problem.block_mask
        return Request(self.problem.spec, layouts, None if mask is None else mask_grid(mask), self.device.properties)

    def builder(self) -> PlanBuilder:
        return PlanBuilder(self.request())

    def _add_small(self, slot: str, array: Any) -> None:
        if not isinstance(array, np.ndarray):
            self.add(slot, array)
            return
        if slot in ("q_lengths", "kv_lengths"):
            array = array.reshape(self.problem.spec.batch)
        # Rows fit into 32 bits, and what travels is small.
        dtype = np.int32 if array.dtype.kind == "i" else array.dtype.newbyteorder("=")
        native = np.ascontiguousarray(array, dtype)
        self.host.append((slot, native))
        self._key += (slot, native.shape, native.dtype)

    def _add_seed(self) -> None:
        seed = self.problem.seed
        if self.problem.spec.dropout == 0:
            return
        if isinstance(seed, tuple):
            self.addresses |= {"seed_words": 0, "seed": seed[0], "offset": seed[1]}
        elif seed is not None:
            address = self.runtime.pointer(seed)
            if seed.strides != (8,) or address % 8:
                raise ValueError(
                    f"seed has strides {seed.strides}, expected two uint64 that are neighbours and aligned"
                )
            self.addresses |= {"seed_words": address, "seed": 0, "offset": 0}
