"""A small set of calls for compute-sanitizer: every kind of kernel on sizes that do not fit its tiles.

``compute-sanitizer --tool memcheck python -m bench.sanitize_case``
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from bench.gpu import operands as make_operands
from bench.gpu.candidates import ours
from bench.gpu.device import Gpu
from bench.gpu.measure import LARGEST_ERROR, largest_error
from bench.gpu.options import OPTIONS
from bench.gpu.pattern import Pattern
from bench.gpu.problem import Problem
from bench.gpu.reference import expected

DTYPES = ("bfloat16", "float16", "float32", "float64")
BASE = Problem("forward", "float16", 2, 4, 131, 197, 64, 2)


def problems() -> Iterator[Problem]:
    """Yield every dtype, some head dims, every option, block masks of both kinds, packed sequences."""
    for dtype in DTYPES:
        yield replace(BASE, dtype=dtype, causal=True)
    for head_dim in (40, 128, 256, 320):
        yield replace(BASE, head_dim=head_dim)
    for option in OPTIONS:
        yield replace(BASE, options=(option,))
    square = replace(BASE, q_length=197)
    for pattern in (Pattern("random", 0.4, 64), Pattern("random", 0.4, 16), Pattern("window", 0.3, 32)):
        yield replace(square, pattern=pattern)
    yield replace(square, batch=1, sequences=(64, 1, 132), causal=True)


def run(gpu: Gpu) -> int:
    """Run every problem forward and backward; 1 where a result is wrong."""
    wrong = 0
    for problem in problems():
        for direction in ("forward", "backward"):
            wrong += not _right(replace(problem, direction=direction), gpu)
    return int(wrong > 0)


def _right(problem: Problem, gpu: Gpu) -> bool:
    # All but our own kernels happens on the host: the tool is slow, and finds fault with other libraries' kernels too.
    operands = make_operands.make(problem, np)
    prepared = ours.prepare(problem, make_operands.moved(operands, gpu.xp), gpu)
    result = {name: to_host(array) for name, array in prepared.head(prepared.call()).items()}
    wanted = expected(problem, operands)
    error = 0.0 if wanted is None else largest_error(np, result, wanted)
    right = error <= LARGEST_ERROR[problem.dtype]
    print(f"{'ok   ' if right else 'WRONG'} {error:.1e}  {problem.direction} {problem.name}", flush=True)
    return right


def to_host(array: Any) -> Any:
    """Copy an array of CuPy; bfloat16 crosses as integers."""
    if not hasattr(array, "get"):
        return array
    return array.view(f"u{array.itemsize}").get().view(array.dtype)


def main() -> int:
    from bench.gpu.device import CupyGpu

    gpu: Any = CupyGpu()
    # One allocation of the driver for each array: in a pool's larger chunk a write past the end would stay unseen.
    gpu.xp.cuda.set_allocator(None)
    return run(gpu)


if __name__ == "__main__":
    raise SystemExit(main())
