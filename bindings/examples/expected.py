"""Write expected.h: what the programs of this folder must get, from the float64 oracle, `flashcupy.reference`.

    python bindings/examples/expected.py           # write the file
    python bindings/examples/expected.py --check   # fail if it is not what would be written

Inputs are made by `numbers`, which the programs have too, in their own language. Each case is named in all of them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from flashcupy import reference

TARGET = Path(__file__).with_name("expected.h")
HEADER = """\
/* What every program of this folder must get. Written by expected.py from flashcupy's float64 oracle. */
#ifndef FLASHCUPY_EXPECTED_H
#define FLASHCUPY_EXPECTED_H

"""
FOOTER = "#endif\n"
PER_LINE = 10
BLOCK = 16

Array = np.ndarray[Any, Any]


def numbers(shape: tuple[int, ...], seed: int) -> Array:
    """Values in [-1, 1) from a hash of index and seed: multiples of 2**-23, exact in float32."""
    x = np.arange(np.prod(shape), dtype=np.uint32) * np.uint32(0x9E3779B9) + np.uint32(seed)
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    x = (x ^ (x >> np.uint32(16))) >> np.uint32(8)
    return (x.astype(np.float64) / 2**23 - 1).reshape(shape)


def causal() -> tuple[Array, ...]:
    """Grouped-query heads, Dv != D, more keys than queries."""
    q, k, v, dout = (
        numbers(shape, seed) for seed, shape in enumerate([(4, 21, 24), (2, 33, 24), (2, 33, 16), (4, 21, 16)], 1)
    )
    return (
        *reference.attention(q, k, v, causal="bottom-right"),
        *reference.attention_bwd(dout, q, k, v, causal="bottom-right")[:3],
    )


def packed() -> tuple[Array, ...]:
    """Three sequences, one without queries; the last row of q and the last two of k and v belong to none."""
    q, k, v, dout = (
        numbers(shape, seed) for seed, shape in enumerate([(2, 20, 16), (1, 30, 16), (1, 30, 16), (2, 20, 16)], 11)
    )
    cu = ([0, 6, 6, 19], [0, 9, 14, 28])
    return (
        *reference.attention_varlen(q, k, v, *cu, causal="bottom-right"),
        *reference.attention_varlen_bwd(dout, q, k, v, *cu, causal="bottom-right")[:3],
    )


def masked(visible: Array) -> tuple[Array, ...]:
    """One mask for both heads."""
    q, k, v, dout = (
        numbers(shape, seed) for seed, shape in enumerate([(2, 24, 8), (1, 40, 8), (1, 40, 8), (2, 24, 8)], 21)
    )
    return *reference.attention(q, k, v, mask=visible), *reference.attention_bwd(dout, q, k, v, mask=visible)[:3]


def elements(blocks: list[list[int]]) -> Array:
    """Which of the 24 x 40 scores lie in visible blocks; the last row and column of blocks hang over."""
    return np.kron(np.array(blocks, dtype=bool), np.ones((BLOCK, BLOCK), dtype=bool))[:24, :40]


def partial() -> Array:
    """Blocks of which one, the first of the second row, is visible in its lower triangle only."""
    visible = elements([[0, 1, 0], [1, 0, 1]])
    visible[16:, :16] &= np.tri(8, 16, dtype=bool)
    return visible


def tables() -> Iterator[tuple[str, Array]]:
    """Every result by the name that the programs know it by."""
    cases = {
        "causal": causal(),
        "packed": packed(),
        "blocks": masked(elements([[1, 0, 1], [0, 1, 0]])),
        "updated": masked(elements([[0, 1, 0], [1, 1, 1]])),
        "partial": masked(partial()),
    }
    for case, results in cases.items():
        for name, array in zip(("out", "lse", "dq", "dk", "dv"), results, strict=True):
            yield f"{case}_{name}", array


def literal(value: float) -> str:
    """Seven digits, or minus infinity by the name that C has for it."""
    return "-INFINITY" if value == -np.inf else f"{value:.7g}"


def text() -> str:
    """The whole file."""
    parts = [HEADER]
    for name, array in tables():
        values = [literal(value) for value in array.ravel()]
        lines = [", ".join(values[i : i + PER_LINE]) for i in range(0, len(values), PER_LINE)]
        parts.append(f"static const double {name}_expected[{len(values)}] = {{\n" + ",\n".join(lines) + "};\n\n")
    return "".join([*parts, FOOTER])


def main() -> int:
    """Write or check, and return the exit status."""
    parser = argparse.ArgumentParser(description="Write expected.h from the oracle.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the file differs")
    wanted = text()
    if not parser.parse_args().check:
        TARGET.write_text(wanted)
        return 0
    if TARGET.read_text() == wanted:
        return 0
    print(f"{TARGET} is not what the oracle says: run python bindings/examples/expected.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
