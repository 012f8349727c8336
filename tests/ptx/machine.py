"""Runs a kernel: all lanes of some blocks together, an instruction at a time, wherever most of them are.

Lanes that branch apart go on in groups. The group that is furthest back in the text goes first, so that those ahead are
met again; at a barrier, and where a warp acts together, lanes wait for the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ptx import warps
from ptx.copies import Copies
from ptx.memory import AccessError, GlobalMemory, Spaces
from ptx.parse import Immediate, Instruction, Kernel, PtxError, Symbol
from ptx.steps import Builder, Step
from ptx.values import DTYPES, Array

_MOST_LANES = 2048  # that run together, unless a block has more


@dataclass(frozen=True)
class Order:
    """Whether all warps go together or, as far as each can, half of them before the others, chosen by this seed.

    Asynchronous copies arrive when they are issued, or where `lazy` at the wait that covers them.
    """

    apart: int | None = None
    lazy: bool = False


@dataclass(frozen=True)
class Program:
    """A kernel ready to run: for each instruction its step, or none where it steers."""

    kernel: Kernel
    steps: list[Step | None]
    roles: list[str]
    numbers: dict[str, int]  # of registers
    starts: frozenset[int]  # instructions with a label, where groups may meet


@dataclass(frozen=True)
class Launch:
    """What a kernel is run with."""

    grid: int
    block: int
    shared_bytes: int
    params: bytes
    order: Order = Order()


def prepare(kernel: Kernel) -> Program:
    """Translate each instruction; what is unknown raises here, whether or not it would run.

    Raises
    ------
    PtxError
        Naming the instruction and its line.
    """
    builder, roles = Builder(kernel), [instruction.role for instruction in kernel.instructions]
    steps = []
    for instruction, role in zip(kernel.instructions, roles, strict=True):
        try:
            steps.append(builder.step(instruction) if role in ("lane", "warp") else None)
            if role == "barrier":
                _require_plain(instruction)
        except (PtxError, KeyError) as error:
            raise PtxError(f"{error}; line {instruction.line}: {instruction.opcode}") from error
    return Program(kernel, steps, roles, builder.numbers, frozenset(kernel.labels.values()))


def _require_plain(barrier: Instruction) -> None:
    if (barrier.opcode, barrier.operands, barrier.guard) != ("bar.sync", (Immediate(0, "int"),), None):
        raise PtxError("unknown: a barrier that is not of all threads")


def run(program: Program, known: GlobalMemory, launch: Launch) -> int:
    """Run a grid, a few blocks at a time; return how many instructions were issued.

    Raises
    ------
    AccessError, PtxError
        Naming the instruction and its line.
    """
    if "warp" in program.roles and launch.block % warps.LANES:
        raise PtxError(f"limits: {launch.block} threads, which are not whole warps")
    issued, together = 0, max(1, _MOST_LANES // launch.block)
    for first in range(0, launch.grid, together):
        machine = Machine(program, known, launch, range(first, min(launch.grid, first + together)))
        with np.errstate(all="ignore"):
            issued += machine.run()
    return issued


class Machine:
    """The lanes of some blocks, in their order: registers by number, memory, and where each lane is."""

    def __init__(self, program: Program, known: GlobalMemory, launch: Launch, blocks: range) -> None:
        self.program, self._block = program, launch.block
        self.lanes = lanes = len(blocks) * launch.block
        self.all = np.arange(lanes)
        block_of_lane = self.all // launch.block
        self.special = {
            "%tid.x": (self.all % launch.block).astype(np.uint32),
            "%ctaid.x": (block_of_lane + blocks.start).astype(np.uint32),
            "%nctaid.x": np.full(lanes, launch.grid, np.uint32),
        }
        kernel = program.kernel
        self.spaces = Spaces(known, launch.params, launch.shared_bytes, kernel.local_bytes, block_of_lane)
        self.copies = Copies(lanes, launch.order.lazy)
        unset = {dtype: np.full(lanes, np.nan if dtype.kind == "f" else 0x65, dtype) for dtype in DTYPES.values()}
        self.registers = [unset[DTYPES[one.type]] for one in kernel.registers.values()]
        self._at = 0
        self._places = np.zeros(lanes, np.int64)  # the instruction that each lane is at
        self._live = np.ones(lanes, bool)
        self._random = np.random.default_rng(launch.order.apart)
        self._half = np.ones(lanes, bool)  # those of them whose turn it is go on before the others do
        if launch.order.apart is not None:
            self._half = np.isin(self.all // warps.LANES, self._random.permutation(-(-lanes // warps.LANES))[::2])
        self._turn = self._half

    def put(self, register: int, value: Array, mask: Array | None) -> None:
        if mask is not None:
            value = np.where(mask, value, self.registers[register])
        elif not value.ndim:
            value = np.full(self.lanes, value)
        self.registers[register] = value

    def run(self) -> int:
        issued = 0
        while self._live.any():
            self._at, mask = self._next_group()
            try:
                issued += self._go(mask)
            except (AccessError, PtxError) as error:
                line = self.program.kernel.instructions[self._at].line
                raise type(error)(f"{error}; {self.program.kernel.name}, line {line} of its PTX") from error
        self.copies.finish(self.spaces)
        return issued

    def _next_group(self) -> tuple[int, Array | None]:
        while True:
            for at in np.unique(self._places[self._live & self._turn]):
                mask = self._able(int(at), self._turn)
                if mask.any():
                    return int(at), None if mask.all() else mask
            self._turn = self._next_turn()

    def _next_turn(self) -> Array:
        """Lanes of the half of the warps that can go on, one of them where both can."""
        able = np.logical_or.reduce([self._able(int(at), self._live) for at in np.unique(self._places[self._live])])
        halves = [half for half in (self._half, ~self._half) if (able & half).any()]
        if not halves:
            raise PtxError(f"deadlock: lanes wait at {self._waiting()}")
        return halves[self._random.integers(len(halves))]

    def _waiting(self) -> str:
        waiting = [self.program.kernel.instructions[at] for at in np.unique(self._places[self._live])]
        return ", ".join(f"line {one.line}: {one.opcode}" for one in waiting)

    def _able(self, at: int, among: Array) -> Array:
        """Lanes at an instruction that may go on, of `among`; at a barrier, of all."""
        there = self._live & (self._places == at)
        return self._together(at, there if self.program.roles[at] == "barrier" else there & among)

    def _together(self, at: int, mask: Array) -> Array:
        """Of lanes at an instruction those in whole warps, or whole blocks, where it asks for that."""
        role = self.program.roles[at]
        if role == "warp":
            return np.repeat(mask.reshape(-1, warps.LANES).all(1), warps.LANES)
        if role == "barrier":
            arrived = (mask | ~self._live).reshape(-1, self._block).all(1)
            return np.repeat(arrived, self._block) & mask
        return mask

    def _go(self, mask: Array | None) -> int:
        """Carry out instructions of a group until it parts, or comes to where others may be met; how many."""
        program, issued, goes_on = self.program, 0, True
        while goes_on:
            issued += 1
            step = program.steps[self._at]
            if step is None:
                goes_on = self._steer(program.kernel.instructions[self._at], mask)
            else:
                if mask is not None and program.roles[self._at] == "warp":
                    mask = self._whole_warps(mask)
                    if not mask.any():
                        break
                step(self, mask)
                self._at += 1
            if goes_on and mask is not None and self._at in program.starts:
                self._places[mask] = self._at
                break
        return issued

    def _whole_warps(self, mask: Array) -> Array:
        """Leave behind who has to wait for other lanes of its warp, where that is allowed."""
        whole = self._together(self._at, mask)
        left = mask & ~whole
        if left.any() and "aligned" in self.program.kernel.instructions[self._at].parts:
            raise PtxError("divergence: a part of a warp at an instruction that all lanes come to together")
        self._places[left] = self._at
        return whole

    def _steer(self, instruction: Instruction, mask: Array | None) -> bool:
        """Branch, exit or meet at a barrier; whether the group is as it was, at `_at`."""
        role, group = self.program.roles[self._at], self._live if mask is None else mask
        if role == "barrier":
            return self._meet(group, everybody=mask is None)
        chosen = self._chosen(instruction, group)
        self._places[group] = self._at + 1
        if role == "exit":
            self._live = self._live & ~chosen
            return False
        (label,) = instruction.operands
        assert isinstance(label, Symbol)
        target = self.program.kernel.labels[label.name]
        self._places[chosen] = target
        if mask is not None or (chosen.any() and not chosen.all()):
            return False
        self._at = target if chosen.any() else self._at + 1
        return True

    def _meet(self, group: Array, *, everybody: bool) -> bool:
        arrived = group if everybody else self._together(self._at, group)
        self._places[group] = self._at
        self._places[arrived] = self._at + 1
        self._at += 1
        return everybody

    def _chosen(self, instruction: Instruction, group: Array) -> Array:
        if instruction.guard is None:
            return group
        return group & (self.registers[self.program.numbers[instruction.guard.name]] ^ instruction.negated)
