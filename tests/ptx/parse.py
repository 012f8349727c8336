"""The text of a PTX module with one kernel, as instructions: PTX ISA, "Syntax" and "Instruction Statements"."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field, replace

# Bytes of a type, after which its registers, loads and immediates are.
SIZES = {
    f"{kind}{bits}": bits // 8
    for kind, widths in {"b": (8, 16, 32, 64), "u": (8, 16, 32, 64), "s": (8, 16, 32, 64), "f": (16, 32, 64)}.items()
    for bits in widths
} | {"pred": 1}


class PtxError(Exception):
    """A text that is not what NVRTC makes, or that has something nobody has asked for yet."""


@dataclass(frozen=True)
class Register:
    name: str
    type: str  # of its declaration


@dataclass(frozen=True)
class Immediate:
    """An integer as it stands there, or a number by its bits; `type` is that of the notation."""

    bits: int
    type: str  # "int", "f32", "f64"


@dataclass(frozen=True)
class Symbol:
    name: str


@dataclass(frozen=True)
class Address:
    base: Register | Symbol | Immediate
    offset: int


@dataclass(frozen=True)
class Vector:
    items: tuple[Register | Immediate, ...]


Operand = Register | Immediate | Symbol | Address | Vector


_STEERING = {"bra": "branch", "ret": "exit", "exit": "exit", "bar": "barrier", "barrier": "barrier"}


@dataclass(frozen=True)
class Instruction:
    """``@guard opcode operands;``, at which line of the text."""

    opcode: str
    operands: tuple[Operand, ...]
    line: int
    guard: Register | None = None
    negated: bool = False  # the guard lets through where it is false

    @property
    def parts(self) -> list[str]:
        return self.opcode.split(".")

    @property
    def role(self) -> str:
        """Who carries it out: each "lane", a "warp" together; or how it steers: "branch", "exit", "barrier"."""
        first = self.parts[0]
        if first in _STEERING:
            return "warp" if self.opcode.startswith("bar.warp") else _STEERING[first]
        return "warp" if first in ("shfl", "vote", "mma", "ldmatrix") else "lane"


@dataclass(frozen=True)
class Kernel:
    """`labels` say at which instruction they stand, `symbols` where they are in memory: state space and offset."""

    name: str
    params_bytes: int
    most_threads: int
    registers: dict[str, Register]
    symbols: dict[str, tuple[str, int]]
    local_bytes: int
    instructions: list[Instruction]
    labels: dict[str, int] = field(default_factory=dict)


_DECLARED = re.compile(r"\.reg\s+\.(\w+)\s+(%\w+)(?:<(\d+)>)?$")
_PARAM = re.compile(r"\.param\s+\.align\s+\d+\s+\.b8\s+(\w+)\[(\d+)\]")
_LOCAL = re.compile(r"\.local\s+\.align\s+\d+\s+\.b8\s+(\w+)\[(\d+)\]$")
_SHARED = re.compile(r"\.extern\s+\.shared\s+\.align\s+\d+\s+\.b8\s+(\w+)\[\]")
_GUARDED = re.compile(r"@(!?)(%\w+)\s+(.*)$", re.DOTALL)


def parse(text: str) -> Kernel:
    """Read the one kernel of a module.

    Raises
    ------
    PtxError
        If it has not one entry, or functions besides, or a statement of unknown form.
    """
    code = "\n".join(line.partition("//")[0] for line in text.splitlines())
    entries = list(re.finditer(r"\.entry\s+(\w+)\s*\((.*?)\)([^{]*)\{", code, re.DOTALL))
    if len(entries) != 1 or ".func" in code:
        raise PtxError(f"{len(entries)} kernels, or functions besides; expected a single kernel")
    (entry,) = entries
    params = _PARAM.findall(entry[2])
    if len(params) != 1:
        raise PtxError(f"parameters {entry[2]!r}, expected a single struct")
    symbols = dict.fromkeys(_SHARED.findall(code), ("shared", 0))
    symbols[params[0][0]] = ("param", 0)
    threads = re.search(r"\.maxntid\s+(\d+)", entry[3])
    kernel = Kernel(entry[1], int(params[0][1]), int(threads[1]) if threads else 1024, {}, symbols, 0, [])
    return _body(kernel, code[entry.end() : code.rindex("}")], code[: entry.end()].count("\n") + 1)


def _body(kernel: Kernel, body: str, line: int) -> Kernel:
    """Read declarations and instructions into a kernel that has none; `line` is where the body starts."""
    local_bytes = 0
    for statement in _statements(body):
        at, line = (
            line + statement[: len(statement) - len(statement.lstrip())].count("\n"),
            line + statement.count("\n"),
        )
        rest = statement.strip()
        while label := re.match(r"(\$\w+):\s*", rest):
            kernel.labels[label[1]] = len(kernel.instructions)
            rest = rest[label.end() :]
        if not rest or rest.startswith(".pragma"):
            continue
        if declared := _DECLARED.match(rest):
            _declare(kernel, *declared.groups())
        elif local := _LOCAL.match(rest):
            kernel.symbols[local[1]] = ("local", local_bytes)
            local_bytes += -(-int(local[2]) // 16) * 16
        elif rest.startswith("."):
            raise PtxError(f"line {at}: {rest}")
        else:
            kernel.instructions.append(_instruction(kernel, rest, at))
    return replace(kernel, local_bytes=local_bytes)


def _statements(body: str) -> list[str]:
    """Split at semicolons. Braces of inline assembly and calls stand for nothing here: names are unique."""
    return re.sub(r"(?m)^[ \t]*[{}][ \t]*$", "", body).split(";")


def _declare(kernel: Kernel, type_: str, name: str, count: str | None) -> None:
    names = [f"{name}{n}" for n in range(int(count))] if count else [name]
    kernel.registers.update({one: Register(one, type_) for one in names})


def _instruction(kernel: Kernel, text: str, line: int) -> Instruction:
    guard, negated = None, False
    if guarded := _GUARDED.match(text):
        guard, negated, text = kernel.registers[guarded[2]], bool(guarded[1]), guarded[3]
    opcode, _, rest = text.partition("\t") if "\t" in text else text.partition(" ")
    operands = re.split(r",\s*(?![^{\[]*[}\]])", rest.strip()) if rest.strip() else []
    try:
        parsed = tuple(_operand(kernel, one.strip()) for one in operands)
    except (KeyError, ValueError) as error:
        raise PtxError(f"line {line}: {text}: {error}") from None
    return Instruction(opcode.strip(), parsed, line, guard, negated)


def _operand(kernel: Kernel, text: str) -> Operand:
    if text.startswith("{"):
        return Vector(tuple(_operand(kernel, one.strip()) for one in text.strip("{}").split(",")))  # type: ignore[misc]
    if "|" in text:
        return Vector(tuple(_operand(kernel, one) for one in text.split("|")))  # type: ignore[misc]
    if text.startswith("["):
        base, _, offset = text.strip("[]").partition("+")
        return Address(_operand(kernel, base), int(offset or 0))  # type: ignore[arg-type]
    if text.startswith("%"):
        return kernel.registers[text] if text in kernel.registers else Symbol(text)
    if number := re.fullmatch(r"0([fd])([0-9A-Fa-f]+)", text):
        return Immediate(int(number[2], 16), "f32" if number[1] == "f" else "f64")
    if re.fullmatch(r"-?(0x[0-9A-Fa-f]+|\d+)U?", text):
        return Immediate(int(text.rstrip("U"), 0), "int")
    return Symbol(text)


def float_of(immediate: Immediate) -> float:
    """The number of an immediate that is written by its bits."""
    form = {"f32": "<f", "f64": "<d"}[immediate.type]
    return struct.unpack(form, immediate.bits.to_bytes(struct.calcsize(form), "little"))[0]
