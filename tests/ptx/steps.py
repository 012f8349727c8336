"""What each instruction does to the lanes of a machine: PTX ISA, "Instruction Set"."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ptx import values, warps
from ptx.memory import WINDOWS
from ptx.parse import (
    SIZES,
    Address,
    Immediate,
    Instruction,
    Kernel,
    Operand,
    PtxError,
    Register,
    Symbol,
    Vector,
    float_of,
)
from ptx.values import Array

if TYPE_CHECKING:
    from ptx.machine import Machine

# Done to the machine for the lanes of a mask (None: for all).
Step = Callable[["Machine", "Array | None"], None]
_SPECIAL = ("%tid.x", "%ctaid.x", "%nctaid.x")


class Builder:
    """Makes steps of the instructions of a kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.numbers = {name: n for n, name in enumerate(kernel.registers)}

    def step(self, instruction: Instruction) -> Step:
        plain = self._plain(instruction)
        if instruction.guard is None:
            return plain
        if instruction.role == "warp":
            raise PtxError("unknown: a guard before what a warp does together")
        guard, negated = self.numbers[instruction.guard.name], instruction.negated

        def guarded(machine: Machine, mask: Array | None) -> None:
            chosen = machine.registers[guard] ^ negated
            plain(machine, chosen if mask is None else mask & chosen)

        return guarded

    def _plain(self, instruction: Instruction) -> Step:
        parts, operands = instruction.parts, instruction.operands
        special = {
            "ld": self._load,
            "st": self._store,
            "red": self._add,
            "setp": self._compare,
            "cvta": self._cvta,
            "shfl": self._shuffle,
            "vote": self._vote,
            "mma": self._multiply,
            "ldmatrix": self._load_matrices,
            "cp": self._copy,
        }
        if parts[0] in special:
            return special[parts[0]](parts, operands)
        if parts[:2] == ["bar", "warp"]:
            return self._sync(operands[0])
        if parts[0] == "mov" and isinstance(operands[0], Vector):
            return self._unpack(parts, *operands)
        if parts[0] == "mov" and isinstance(operands[1], Vector):
            return self._pack(parts, *operands)
        function, sources, result = values.operation(parts)
        return self._compute(
            function, operands[0], [self._get(x, t) for x, t in zip(operands[1:], sources, strict=True)], result
        )

    def _compute(self, function: Any, target: Operand, gets: list[Any], result: str) -> Step:
        put = self._put(target, result)
        if len(gets) == 1:
            (one,) = gets
            return lambda machine, mask: put(machine, function(one(machine)), mask)
        if len(gets) == 2:
            first, second = gets
            return lambda machine, mask: put(machine, function(first(machine), second(machine)), mask)
        return lambda machine, mask: put(machine, function(*[get(machine) for get in gets]), mask)

    def _get(self, operand: Operand, type_: str) -> Callable[[Machine], Array]:
        """How an operand is read as a type; an immediate is a scalar."""
        dtype = values.DTYPES[type_]
        if isinstance(operand, Register):
            number = self.numbers[operand.name]
            if values.DTYPES[operand.type] == dtype:
                return lambda machine: machine.registers[number]
            return lambda machine: values.as_type(machine.registers[number], dtype)
        if isinstance(operand, Immediate):
            constant = _constant(operand, dtype)
            return lambda machine: constant
        if isinstance(operand, Symbol) and operand.name in self.kernel.symbols:
            space, offset = self.kernel.symbols[operand.name]
            # An address in its own space; that of parameters is generic from the start, as no cvta makes it so.
            address = dtype.type(offset + (WINDOWS["param"] if space == "param" else 0))
            return lambda machine: address
        if isinstance(operand, Symbol):
            name = operand.name
            if name not in _SPECIAL:
                raise PtxError(f"unknown: the operand {name}")
            return lambda machine: machine.special[name]
        raise PtxError(f"unknown: the operand {operand}")

    def _put(self, operand: Operand, type_: str) -> Callable[[Machine, Array, Array | None], None]:
        if not isinstance(operand, Register):
            raise PtxError(f"unknown: the result {operand}")
        number, dtype = self.numbers[operand.name], values.DTYPES[operand.type]
        signed = type_[0] == "s"

        def put(machine: Machine, value: Array, mask: Array | None) -> None:
            if value.dtype.itemsize < dtype.itemsize and signed:
                value = value.astype(f"i{dtype.itemsize}")
            machine.put(number, value if value.dtype == dtype else values.as_type(value, dtype), mask)

        return put

    def _address(self, operand: Operand, space: str) -> Callable[[Machine], Array]:
        """Addresses of all lanes, in their space; generic ones where that is ""."""
        if not isinstance(operand, Address):
            raise PtxError(f"unknown: the address {operand}")
        offset = np.uint64(operand.offset & (1 << 64) - 1)
        if space == "param":
            offset = np.uint64(operand.offset - WINDOWS["param"] & (1 << 64) - 1)
        base = operand.base
        short = isinstance(base, Register) and values.DTYPES[base.type].itemsize == 4
        get = self._get(base, "u32" if short else "u64")

        def addresses(machine: Machine) -> Array:
            found = get(machine).astype(np.uint64) + offset
            return found if found.ndim else np.full(machine.lanes, found)

        return addresses

    def _load(self, parts: list[str], operands: tuple[Operand, ...]) -> Step:
        space, type_ = _space(parts, "volatile", "nc"), parts[-1]
        targets = operands[0].items if isinstance(operands[0], Vector) else (operands[0],)
        puts, addresses = [self._put(x, type_) for x in targets], self._address(operands[1], space)
        dtype = values.DTYPES[type_]

        def step(machine: Machine, mask: Array | None) -> None:
            lanes = machine.all if mask is None else np.flatnonzero(mask)
            found = machine.spaces.load(space, addresses(machine)[lanes], lanes, dtype.itemsize, len(puts))
            for put, words in zip(puts, found, strict=True):
                value = words.view(dtype)
                if mask is not None:
                    whole = np.zeros(machine.lanes, dtype)
                    whole[lanes] = value
                    value = whole
                put(machine, value, mask)

        return step

    def _store(self, parts: list[str], operands: tuple[Operand, ...]) -> Step:
        space, sources = _space(parts, "volatile"), _items(operands[1])
        gets = [self._get(x, f"u{8 * SIZES[parts[-1]]}" if isinstance(x, Register) else parts[-1]) for x in sources]
        return self._write(space, operands[0], gets, "store")

    def _add(self, parts: list[str], operands: tuple[Operand, ...]) -> Step:
        space = _space(parts, "relaxed", "gpu", "add")
        if space != "global" or parts[-1] != "f32":
            raise PtxError(f"unknown: the instruction {'.'.join(parts)}")
        return self._write(space, operands[0], [self._get(x, parts[-1]) for x in _items(operands[1])], "add")

    def _write(self, space: str, address: Operand, gets: list[Any], how: str) -> Step:
        addresses = self._address(address, space)

        def step(machine: Machine, mask: Array | None) -> None:
            lanes = machine.all if mask is None else np.flatnonzero(mask)
            given = [np.broadcast_to(get(machine), machine.lanes)[lanes] for get in gets]
            if how == "store":
                given = [x.view(f"u{x.dtype.itemsize}") for x in given]
            getattr(machine.spaces, how)(space, addresses(machine)[lanes], lanes, given)

        return step

    def _compare(self, parts: list[str], operands: tuple[Operand, ...]) -> Step:
        function, type_ = values.compare(parts), parts[-1]
        gets = [self._get(x, type_) for x in operands[1:3]]
        if len(operands) == 3:
            return self._compute(function, operands[0], gets, "pred")
        combine = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[parts[2]]
        gets.append(self._get(operands[3], "pred"))
        return self._compute(lambda a, b, c: combine(function(a, b), c), operands[0], gets, "pred")

    def _cvta(self, parts: list[str], operands: tuple[Operand, ...]) -> Step:
        to = parts[1] == "to"
        window = np.uint64(WINDOWS.get(parts[2] if to else parts[1], 0))
        if "param" in parts:
            window = np.uint64(0)  # see _get
        function = (lambda x: x - window) if to else (lambda x: x + window)
        return self._compute(function, operands[0], [self._get(operands[1], "u64")], "u64")

    def _shuffle(self, parts: list[str], operands: tuple[Operand, ...]) -> Step:
        if parts != ["shfl", "sync", "bfly", "b32"]:
            raise PtxError(f"unknown: the instruction {'.'.join(parts)}")
        target, *in_range = _items(operands[0])
        put, puts = self._put(target, "b32"), [self._put(x, "pred") for x in in_range]
        value, by, clamp, members = (self._get(x, "b32") for x in operands[1:])

        def step(machine: Machine, mask: Array | None) -> None:
            _require_all(members(machine), mask)
            own, within = _where(by(machine), mask, 0), _where(clamp(machine), mask, warps.LANES - 1)
            put(machine, warps.shuffle(value(machine), own, within), mask)
            for one in puts:
                one(machine, np.bool_(True), mask)

        return step

    def _vote(self, parts: list[str], operands: tuple[Operand, ...]) -> Step:
        if parts[1] != "sync" or parts[2:] not in (["any", "pred"], ["ballot", "b32"]):
            raise PtxError(f"unknown: the instruction {'.'.join(parts)}")
        put, condition, members = self._put(operands[0], parts[-1]), *map(self._get, operands[1:], ("pred", "b32"))

        def step(machine: Machine, mask: Array | None) -> None:
            _require_all(members(machine), mask)
            put(machine, warps.vote(condition(machine), ballot=parts[2] == "ballot"), mask)

        return step

    def _sync(self, operand: Operand) -> Step:
        members = self._get(operand, "b32")
        return lambda machine, mask: _require_all(members(machine), mask)

    def _multiply(self, parts: list[str], operands: tuple[Operand, ...]) -> Step:
        multiply = warps.multiplication(parts)
        puts = [self._put(x, "f32") for x in _items(operands[0])]
        a, b = ([self._get(x, "b32") for x in _items(one)] for one in operands[1:3])
        c = [self._get(x, "f32") for x in _items(operands[3])]

        def step(machine: Machine, mask: Array | None) -> None:
            given = [[np.broadcast_to(get(machine), machine.lanes) for get in gets] for gets in (a, b, c)]
            for put, value in zip(puts, multiply(*given), strict=True):
                put(machine, value, mask)

        return step

    def _load_matrices(self, parts: list[str], operands: tuple[Operand, ...]) -> Step:
        if parts[3:5] != ["m8n8", "x4"] or parts[-2:] != ["shared", "b16"]:
            raise PtxError(f"unknown: the instruction {'.'.join(parts)}")
        puts = [self._put(x, "b32") for x in _items(operands[0])]
        addresses, transposed = self._address(operands[1], "shared"), "trans" in parts

        def step(machine: Machine, mask: Array | None) -> None:
            lanes = machine.all if mask is None else np.flatnonzero(mask)
            rows = np.zeros((machine.lanes, 4), np.uint32)
            rows[lanes] = np.stack(machine.spaces.load("shared", addresses(machine)[lanes], lanes, 4, 4), 1)
            for put, value in zip(puts, warps.spread_matrices(rows, transposed), strict=True):
                put(machine, value, mask)

        return step

    def _copy(self, parts: list[str], operands: tuple[Operand, ...]) -> Step:
        if parts == ["cp", "async", "commit_group"]:
            return lambda machine, mask: machine.copies.commit(mask)
        if parts == ["cp", "async", "wait_group"]:
            pending = _integer(operands[0])
            return lambda machine, mask: machine.copies.wait(machine.spaces, mask, pending)
        # The last is a hint to the cache.
        if ".".join(parts) not in (f"cp.async.{cache}.shared.global.L2::128B" for cache in ("ca", "cg")):
            raise PtxError(f"unknown: the instruction {'.'.join(parts)}")
        to, source = self._address(operands[0], "shared"), self._address(operands[1], "global")
        size = _integer(operands[2])
        read = self._get(operands[3], "u32")

        def step(machine: Machine, mask: Array | None) -> None:
            lanes = machine.all if mask is None else np.flatnonzero(mask)
            read_bytes = np.broadcast_to(read(machine), machine.lanes)[lanes]
            machine.copies.issue(machine.spaces, lanes, to(machine)[lanes], source(machine)[lanes], size, read_bytes)

        return step

    def _unpack(self, parts: list[str], targets: Operand, source: Operand) -> Step:
        items, whole = _items(targets), self._get(source, f"u{8 * SIZES[parts[-1]]}")
        width = 8 * SIZES[parts[-1]] // len(items)
        puts = [None if isinstance(x, Symbol) else self._put(x, f"b{width}") for x in items]

        def step(machine: Machine, mask: Array | None) -> None:
            bits = whole(machine)
            for n, put in enumerate(puts):
                if put is not None:
                    put(machine, (bits >> bits.dtype.type(n * width)).astype(f"u{width // 8}"), mask)

        return step

    def _pack(self, parts: list[str], target: Operand, sources: Operand) -> Step:
        items = _items(sources)
        dtype = np.dtype(f"u{SIZES[parts[-1]]}")
        width = 8 * dtype.itemsize // len(items)

        def pack(*given: Array) -> Array:
            return sum((x.astype(dtype) << dtype.type(n * width) for n, x in enumerate(given)), dtype.type(0))

        return self._compute(pack, target, [self._get(x, f"b{width}") for x in items], parts[-1])


def _space(parts: list[str], *modifiers: str) -> str:
    """The state space of an access, "" for generic addresses; only `modifiers` and a vector may stand beside it."""
    spaces = [part for part in parts[1:-1] if part in ("global", "shared", "param", "local")]
    if set(parts[1:-1]) - {*spaces, *modifiers, "v2", "v4"}:
        raise PtxError(f"unknown: the instruction {'.'.join(parts)}")
    return spaces[0] if spaces else ""


def _items(operand: Operand) -> tuple[Any, ...]:
    return operand.items if isinstance(operand, Vector) else (operand,)


def _where(value: Array, mask: Array | None, otherwise: int) -> Array:
    """The value, and of lanes that are elsewhere, whose registers hold anything, `otherwise`."""
    return value if mask is None else np.where(mask, value, np.int64(otherwise).astype(value.dtype))


def _require_all(members: Array, mask: Array | None) -> None:
    """All 32 lanes take part, wherever kernels name members."""
    if (_where(members, mask, -1) != np.uint32(0xFFFFFFFF)).any():
        raise PtxError("divergence: not all lanes of a warp are named as members")


def _integer(operand: Operand) -> int:
    if not isinstance(operand, Immediate):
        raise PtxError(f"unknown: {operand} where a number is expected")
    return operand.bits


def _constant(immediate: Immediate, dtype: np.dtype[Any]) -> Array:
    if immediate.type != "int":
        return np.array(float_of(immediate)).astype(f"f{4 if immediate.type == 'f32' else 8}").view(dtype)[()]
    if dtype.kind == "b":
        return np.bool_(immediate.bits)
    if dtype.kind == "f":
        raise PtxError("unknown: an integer where a number is expected")
    return np.array(immediate.bits & (1 << 8 * dtype.itemsize) - 1, f"u{dtype.itemsize}").view(dtype)[()]
