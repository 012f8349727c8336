"""A small set of calls for compute-sanitizer: every kind of kernel on sizes that do not fit its tiles.

``compute-sanitizer --tool memcheck python -m bench.sanitize_case``, after ``python -m bench.sanitize_case --jobs 16``
without a tool, which compiles the kernels.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from bench.gpu import operands as make_operands
from bench.gpu.candidates import ours
from bench.gpu.device import Gpu
from bench.gpu.measure import LARGEST_ERROR, largest_error, reason
from bench.gpu.operands import Operands
from bench.gpu.options import OPTIONS
from bench.gpu.pattern import Pattern
from bench.gpu.problem import Problem
from bench.gpu.reference import expected
from flashcupy import reference

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


def run(gpu: Gpu, jobs: int = 1) -> int:
    """Run every problem forward and backward, `jobs` at a time; 1 where a result is wrong or missing."""
    every = [
        problem
        for one in problems()
        for problem in (replace(one, direction="forward"), replace(one, direction="backward"))
    ]
    with ThreadPoolExecutor(jobs) as pool:
        return int(not all(list(pool.map(partial(_right, gpu=gpu), every))))


def _right(problem: Problem, gpu: Gpu) -> bool:
    """Print how a problem went, and return whether it went well; an exception does not keep the others from running."""
    try:
        error = _error(problem, gpu)
    except Exception as raised:
        print(f"FAILED {problem.direction} {problem.name}: {reason(raised)}", flush=True)
        return False
    right = error <= LARGEST_ERROR[problem.dtype]
    print(f"{'ok   ' if right else 'WRONG'} {error:.1e}  {problem.direction} {problem.name}", flush=True)
    return right


def _error(problem: Problem, gpu: Gpu) -> float:
    # All but our own kernels happens on the host: the tool is slow, and finds fault with other libraries' kernels too.
    operands = make_operands.make(problem, np)
    prepared = ours.prepare(problem, make_operands.moved(operands, gpu.xp), gpu)
    result = {name: to_host(array) for name, array in prepared.head(prepared.call()).items()}
    return largest_error(np, result, expected(problem, operands) or _of_the_oracle(problem, operands))


def _of_the_oracle(problem: Problem, operands: Operands) -> dict[str, Any]:
    """Return the same for dropout, whose bits no other implementation draws."""
    q, k, v, dout = operands.q, operands.k, operands.v, operands.dout
    options = {name: operands.arguments[name] for name in ("dropout", "seed")}
    if problem.direction == "forward":
        return {"out": reference.attention(q, k, v, **options)[0][-1, -1]}
    grads = reference.attention_bwd(dout, q, k, v, **options)
    return {name: grad[-1, -1] for name, grad in zip(("dq", "dk", "dv"), grads[:3], strict=True)}


def to_host(array: Any) -> Any:
    """Copy an array of CuPy; bfloat16 crosses as integers."""
    if not hasattr(array, "get"):
        return array
    return array.view(f"u{array.itemsize}").get().view(array.dtype)


def probe() -> int:
    """Launch an empty kernel: where that does not work under the tool, nothing will."""
    import cupy

    cupy.RawKernel('extern "C" __global__ void empty() {}', "empty")((1,), (32,), ())
    cupy.cuda.Device().synchronize()
    return 0


def set_environment() -> None:
    """Let a kernel that does not work be told, and nothing be kept of the run, unless the caller wants it otherwise.

    Results are compared here, so first-use checks would only take the tool's time. A run that is killed in one leaves
    the marker of a death, and two of them condemn the kernel.
    """
    os.environ.setdefault("FLASHCUPY_CHECK", "off")
    os.environ.setdefault("FLASHCUPY_FALLBACK", "error")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.sanitize_case", description="Calls for compute-sanitizer.")
    parser.add_argument(
        "--jobs", type=int, default=1, help="calls at a time, to compile on that many cores (default: 1)"
    )
    parser.add_argument("--probe", action="store_true", help="launch an empty kernel instead")
    arguments = parser.parse_args(argv)
    if arguments.probe:
        return probe()
    set_environment()
    from bench.gpu.device import CupyGpu

    gpu: Any = CupyGpu()
    # One allocation of the driver for each array: in a pool's larger chunk a write past the end would stay unseen.
    gpu.xp.cuda.set_allocator(None)
    return run(gpu, arguments.jobs)


if __name__ == "__main__":
    raise SystemExit(main())
