"""What a kernel became: instructions of its machine code by kind, over the whole kernel and loop by loop.

``python tests/sass.py PATTERN --arch sm_90a`` compiles the configurations whose name matches and prints the counts;
with ``--tiles`` a line for each, of the shortest way round a tile.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import re
import site
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from control_flow import Loop, natural_loops, reverse_postorder

from bench import budget, budget_bwd, environment

# Where the wheel puts the program.
PROGRAM = "nvidia/cu13/bin/nvdisasm"
WHEEL = "nvidia-cuda-nvdisasm"

# Kinds that are counted, as the beginning of an opcode; the first that fits counts. The rest is "other".
KINDS = {
    "HMMA.16816.F32.BF16": r"HMMA\.16816\.F32\.BF16",
    "HMMA.16816.F32": r"HMMA\.16816\.F32",
    "HMMA.1688.F32.TF32": r"HMMA\.1688\.F32\.TF32",
    "HMMA": r"HMMA",
    "LDSM": r"LDSM",
    "LDGSTS": r"LDGSTS",
    "LDS": r"LDS\b",
    "STS": r"STS\b",
    "LDG": r"LDG\b",
    "STG": r"STG\b",
    "RED": r"RED|ATOM",
    "LDL": r"LDL\b",
    "STL": r"STL\b",
    "MUFU.EX2": r"MUFU\.EX2",
    "MUFU": r"MUFU",
    "FFMA": r"FFMA",
    "FMUL": r"FMUL",
    "FADD": r"FADD",
    "FMNMX": r"FMNMX",
    "FSEL": r"FSEL",
    "FSETP": r"FSETP",
    "F2FP": r"F2FP",
    "I2F": r"I2F",
    "IMAD": r"IMAD(?!\.MOV|\.U32)",
    "IADD": r"U?IADD|VIADD",
    "ISETP": r"U?ISETP",
    "LOP3": r"U?LOP3|PLOP3",
    "PRMT": r"U?PRMT",
    "SEL": r"U?SEL",
    "SHF": r"U?SHF\b",
    "LEA": r"U?LEA",
    "MOV": r"U?MOV|IMAD\.MOV|IMAD\.U32|CS2R",
    "S2R": r"S2U?R\b|R2UR",
    "SHFL": r"SHFL",
    "VOTE": r"VOTE",
    "BAR": r"BAR\b",
    "LDGDEPBAR": r"LDGDEPBAR|DEPBAR",
    "BRA": r"U?BRA|BSSY|BSYNC|CALL|RET|EXIT|WARPSYNC",
    "NOP": r"NOP",
}
_KINDS = {kind: re.compile(pattern) for kind, pattern in KINDS.items()}

# Of double precision, of which a GeForce has one lane for 64 others. Conversions are not counted: what loads elements
# of any dtype has a branch for float64.
_DOUBLE = re.compile(r"D(ADD|MUL|FMA|SETP|MNMX)\b|MUFU\.\w*64H")

_LABEL = re.compile(r"^([.$\w]+):$")
_INSTRUCTION = re.compile(r"^/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z]\S*)(.*?)\s*;")
_TARGET = re.compile(r"`\(([^)]+)\)")


@dataclass(frozen=True)
class Instruction:
    """`guarded` where a predicate may switch it off; `target` is the index it may go to, inside the function."""

    opcode: str
    guarded: bool = False
    target: int | None = None

    @property
    def kind(self) -> str:
        return next((kind for kind, pattern in _KINDS.items() if pattern.match(self.opcode)), "other")


class Listing:
    """The instructions of one kernel, its subroutines after it."""

    def __init__(self, instructions: Sequence[Instruction]) -> None:
        self.instructions = list(instructions)

    def counts(self, indices: Sequence[int] | frozenset[int] | None = None) -> Counter[str]:
        """Instructions by kind; of all of them, or of those at `indices`."""
        chosen = self.instructions if indices is None else [self.instructions[index] for index in indices]
        return Counter(instruction.kind for instruction in chosen)

    @property
    def local_memory(self) -> int:
        """Accesses to local memory: spills, or an array whose index was not known."""
        counts = self.counts()
        return counts["LDL"] + counts["STL"]

    def after(self, index: int) -> list[int]:
        """Indices of what may come next. A call comes back; one to a place in the function is a far branch."""
        instruction = self.instructions[index]
        stem = instruction.opcode.partition(".")[0]
        goes_on = instruction.guarded or stem not in ("BRA", "EXIT", "RET", "BRX", "JMP")
        following = [index + 1] if goes_on and index + 1 < len(self.instructions) else []
        # BSSY names where its BSYNC goes on, which is the instruction behind that.
        branches = instruction.target is not None and stem != "BSSY"
        return [*following, *([instruction.target] if branches else [])]

    @functools.cached_property
    def loops(self) -> list[Loop]:
        """Natural loops in order of their heads; those with a common head are one."""
        return natural_loops(self.after)

    def way_round(self, loop: Loop, products: int, copies: int) -> list[int] | None:
        """Return the shortest way round a loop with so many products of tensor cores and copies: that of a common tile.

        Inner loops are passed once. None where no way has these numbers.
        """
        order = [index for index in reverse_postorder(self.after, loop.head) if index in loop.inside]
        place = {index: number for number, index in enumerate(order)}
        # From each instruction on, by products and copies made: how many instructions to the end, and the next one.
        ways: dict[int, dict[tuple[int, int], tuple[int, int | None]]] = {}
        for index in reversed(order):
            own = self._made(index)
            found = ways[index] = {own: (1, None)} if loop.head in self.after(index) else {}
            for following in (one for one in self.after(index) if place.get(one, -1) > place[index]):
                for made, (length, _) in ways[following].items():
                    total = (made[0] + own[0], made[1] + own[1])
                    if total not in found or found[total][0] > length + 1:
                        found[total] = (length + 1, following)
        left, index = (products, copies), loop.head
        path: list[int] = []
        while left in ways[index]:
            path.append(index)
            following, own = ways[index][left][1], self._made(index)
            if following is None:
                return path
            left, index = (left[0] - own[0], left[1] - own[1]), following
        return None

    def _made(self, index: int) -> tuple[int, int]:
        kind = self.instructions[index].kind
        return int(kind.startswith("HMMA")), int(kind == "LDGSTS")


@functools.cache
def disassembler() -> Path:
    """Find nvdisasm in its wheel.

    Raises
    ------
    ImportError
        Naming the wheel that is missing.
    """
    for folder in [*site.getsitepackages(), *sys.path]:
        program = Path(folder) / PROGRAM
        if program.exists():
            return program
    raise ImportError(f"nvdisasm was not found: pip install {WHEEL}")


def disassemble(cubin: bytes) -> dict[str, Listing]:
    """Take a cubin apart, by kernel."""
    descriptor, name = tempfile.mkstemp(suffix=".cubin")
    try:
        os.write(descriptor, cubin)
        os.close(descriptor)
        command = [str(disassembler()), "--print-code", name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    finally:
        os.unlink(name)
    return parse(text)


def parse(text: str) -> dict[str, Listing]:
    """Read what nvdisasm prints."""
    parts = re.split(r"^\s*\.section\s+\.text\.([\w$]+),.*$", text, flags=re.MULTILINE)
    return {name: _listing(body) for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def _listing(text: str) -> Listing:
    labels: dict[str, int] = {}
    found: list[tuple[str, bool, str | None]] = []
    for line in map(str.strip, text.splitlines()):
        if match := _LABEL.match(line):
            labels[match[1]] = len(found)
        elif match := _INSTRUCTION.match(line):
            target = _TARGET.search(match[4])
            # What is never executed fills time that the hardware needs in between.
            opcode = "NOP" if match[2] == "!PT" else match[3]
            # A second predicate stands behind the opcode: "@!P0 BRA P1, `(.L_x_17)".
            guarded = match[2] is not None or re.match(r"\s+!?U?P\d", match[4]) is not None
            found.append((opcode, guarded or ".DIV" in opcode, target and target[1]))
    return Listing([Instruction(opcode, guarded, _inside(labels, target)) for opcode, guarded, target in found])


def _inside(labels: dict[str, int], target: str | None) -> int | None:
    """Subroutines have names of their own, and come back."""
    return labels[target] if target is not None and target.startswith(".L_") else None


def table(name: str, arch: str, listing: Listing, expected: Mapping[str, int]) -> str:
    """Lay out the counts: the whole kernel, each loop that has instructions of its own worth naming, and `expected`."""
    columns = {"kernel": listing.counts()}
    products = _products(expected)
    for number, loop in enumerate(listing.loops):
        if counts := _telling(listing, loop):
            columns[f"{'>' * loop.depth}{number}"] = counts
            if products and (tile := tile_counts(listing, loop, products, expected["LDGSTS"], expected.get("LDSM"))):
                columns["tile"] = tile
    if expected:
        columns["budget"] = Counter(expected)
    kinds = [kind for kind in (*KINDS, "other") if any(counts[kind] for counts in columns.values())]
    lines = [f"{name} {arch}, {len(listing.instructions)} instructions"]
    width = max(len(kind) for kind in kinds)
    lines.append(" " * width + "".join(f" {column:>8}" for column in columns))
    lines += [f"{kind:{width}}" + "".join(f" {counts[kind] or '':>8}" for counts in columns.values()) for kind in kinds]
    lines.append(f"{'all':{width}}" + "".join(f" {sum(counts.values()):>8}" for counts in columns.values()))
    return "\n".join(lines)


def tile_counts(
    listing: Listing, loop: Loop, products: int, copies: int, loads: int | None = None
) -> Counter[str] | None:
    """Return the instructions of a tile, the shortest way; inner loops are passed as often as its products ask for.

    Of several inner loops `loads`, a tile's ldmatrix, tells how often each is passed; as often as each other where it
    does not, as with the products of q and k and of dout and v.
    """
    inner = [one for one in listing.loops if one.inside < loop.inside and _products(listing.counts(one.inside))]
    bodies = [listing.counts(one.inside) for one in inner]
    path = listing.way_round(loop, _products(listing.counts(loop.own)) + sum(map(_products, bodies)), copies)
    if path is None or any(one.inside & other.inside for one, other in itertools.combinations(inner, 2)):
        return None
    every = itertools.product(range(1, _MOST_TRIPS + 1), repeat=len(inner))
    for trips in sorted(every, key=lambda trips: max(trips, default=1) - min(trips, default=1)):
        counts = listing.counts(path)
        for count, body in zip(trips, bodies, strict=True):
            for kind in body:
                counts[kind] += (count - 1) * body[kind]
        if _products(counts) == products and (len(inner) < 2 or counts["LDSM"] == loads):
            return counts
    return None


def _products(counts: Mapping[str, int]) -> int:
    return sum(count for kind, count in counts.items() if kind.startswith("HMMA"))


_MOST_TRIPS = 16
# What a tile's surplus over the budget is of: kinds that the budget has none or few of.
SURPLUS = {
    "addresses": ("IMAD", "IADD", "LEA", "SHF", "LOP3"),
    "moves": ("MOV", "PRMT", "S2R"),
    "decisions": ("ISETP", "SEL", "BRA", "VOTE"),
    "waiting": ("BAR", "LDGDEPBAR", "NOP"),
}


def tile_line(name: str, arch: str, listing: Listing, expected: Mapping[str, int]) -> str:
    """Sum up a tile: its instructions, the budget's, and in what the former are more."""
    products, inward = _products(expected), sorted(listing.loops, key=lambda loop: len(loop.inside))
    found = (tile_counts(listing, loop, products, expected["LDGSTS"], expected["LDSM"]) for loop in inward)
    # Of loops that pass such a tile the innermost: what walks over heads may do so with its first.
    counts = next((counts for counts in found if counts is not None), None)
    if counts is None:
        return f"{name:58} {arch:6} no way round a tile has the budget's products and copies"
    total, budgeted = sum(counts.values()), sum(expected.values())
    rest = {kind: counts[kind] - expected.get(kind, 0) for kind in {*counts, *expected}}
    parts = {part: sum(rest.pop(kind, 0) for kind in kinds) for part, kinds in SURPLUS.items()}
    surplus = "".join(f" {part:>9}" for part in (*parts.values(), sum(rest.values())))
    return f"{name:58} {arch:6} {total:6} {budgeted:6} {100 * (total / budgeted - 1):+5.0f} %{surplus}"


TILES_HEAD = f"{'kernel':58} {'arch':6} {'tile':>6} {'budget':>6} {'more':>7}" + "".join(
    f" {part:>9}" for part in (*SURPLUS, "other")
)


def _telling(listing: Listing, loop: Loop) -> Counter[str] | None:
    """The counts of a loop's own instructions, if it computes; loops that copy one element at a time are many."""
    counts = listing.counts(loop.own)
    computes = any(kind.startswith("HMMA") for kind in counts) or counts["FFMA"] >= 32
    return counts if computes else None


def doubles_in_loops(listing: Listing) -> Counter[str]:
    """Arithmetic of double precision that is repeated for each tile, row or element.

    Loops around one that computes are over what a block does next: what they set up for it is not counted.
    """
    computing = [loop for loop in listing.loops if _telling(listing, loop)]
    found: Counter[str] = Counter()
    for loop in listing.loops:
        if not any(inner.inside < loop.inside for inner in computing):
            opcodes = (listing.instructions[index].opcode for index in loop.own)
            found.update(opcode for opcode in opcodes if _DOUBLE.match(opcode))
    return found


def expectation(config: Any, arch: str) -> Mapping[str, int]:
    """Return what the budget says of a tile of a configuration; nothing outside the tensor-core family."""
    if config.name.startswith("fwd_sm80_"):
        return budget.instructions(config.tiles, config.features)
    if not re.match(r"(dkvq?|dq)_sm80_", config.name) or config.features:
        return {}
    # Four numbers of a lane are one instruction from Hopper on.
    red = 1 if int(re.sub(r"\D", "", arch)) >= 90 else 4
    return budget_bwd.instructions(config.kernel, config.tiles, red_instructions=red)


def main() -> None:
    parser = argparse.ArgumentParser(description="Count the instructions of kernels; '>' is the depth of a loop.")
    parser.add_argument("pattern", help="kernels whose name matches this regular expression")
    parser.add_argument(
        "which", nargs="?", choices=("plain", "all"), default="plain", help="without options, or with all"
    )
    parser.add_argument("--arch", nargs="+", default=["sm_90a"])
    parser.add_argument("--nvrtc", type=int, default=12, help="major version (default: 12)")
    parser.add_argument(
        "--tiles", action="store_true", help="a line a kernel: a tile beside its budget, and the surplus"
    )
    arguments = parser.parse_args()
    import nvrtc

    from flashcupy.cuda.matrix import compile_configs

    library = nvrtc.load(arguments.nvrtc)
    if arguments.tiles:
        print(f"NVRTC {'.'.join(map(str, library.version()))}, commit {environment.commit()}", TILES_HEAD, sep="\n")
    for arch in arguments.arch:
        for config in compile_configs(arguments.which, arch):
            expected = expectation(config, arch)
            if not re.search(arguments.pattern, config.name) or (arguments.tiles and not expected):
                continue
            listing = disassemble(library.compile(config.translation_unit(), arch).cubin)[config.name]
            text = (tile_line if arguments.tiles else table)(config.name, arch, listing, expected)
            print(text, end="\n" if arguments.tiles else "\n\n", flush=True)


if __name__ == "__main__":
    main()
