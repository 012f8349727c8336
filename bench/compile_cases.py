"""Compile what ``flashcupy check`` runs beyond the kernels of ``flashcupy compile``, on every core.

``python -m bench.compile_cases --jobs 16``; the check itself compiles one kernel after another.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from bench.gpu.measure import reason
from flashcupy.cuda import matrix
from flashcupy.cuda.device import Device, runtime
from flashcupy.cuda.first_use import Case


def compile_cases(cases: Sequence[Any], device: Device, jobs: int) -> int:
    """Launch each case of a call once, whatever comes out; 1 where one cannot be.

    A configuration is known only where a call asks for it. Cases of other kernels are of those compiled ahead.
    """
    calls = [case for case in cases if isinstance(case, Case)]
    with ThreadPoolExecutor(jobs) as pool:
        reasons = list(pool.map(partial(_failure, device=device), calls))
    for case, why in zip(calls, reasons, strict=True):
        if why is not None:
            print(f"{case.name}: {why}")
    failed = len(reasons) - reasons.count(None)
    print(f"{len(calls)} cases, {failed} failed")
    return int(failed > 0)


def _failure(case: Case, device: Device) -> str | None:
    try:
        case.compute(device)
    except Exception as error:
        return reason(error)
    return None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.compile_cases", description="Compile what check runs.")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="threads (default: all cores)")
    arguments = parser.parse_args(argv)
    os.environ["FLASHCUPY_CHECK"] = "off"  # nothing is kept of what comes out, and checks wait for each other
    os.environ.setdefault("FLASHCUPY_FALLBACK", "error")  # who fails is named
    device = runtime().device(0)
    status = compile_cases(matrix.check_cases(device.properties.compute_capability), device, arguments.jobs)
    device.synchronize()
    return status


if __name__ == "__main__":
    raise SystemExit(main())
