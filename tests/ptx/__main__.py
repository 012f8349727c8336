"""``PYTHONPATH=tests python -m ptx sm90 --match 'bfloat16.*bwd'``: what a GPU checks on first use, each case of it."""

from __future__ import annotations

import argparse
import re
import sys
import time

from flashcupy.cuda import matrix
from ptx.backend import TARGETS, PtxBackend


def main() -> int:
    parser = argparse.ArgumentParser(prog="ptx", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--match", default="", help="only cases whose name matches this regular expression")
    parser.add_argument("--part", default="0/1", help="of n parts the k-th, as k/n")
    arguments = parser.parse_args()
    part, parts = map(int, arguments.part.split("/"))
    backend, wrong = PtxBackend(arguments.target), 0
    cases = matrix.check_cases(TARGETS[arguments.target].compute_capability)
    for case in [case for case in cases if re.search(arguments.match, case.name)][part::parts]:
        start = time.perf_counter()
        with backend.active():
            complaint = case.run(backend.device)
        wrong += complaint is not None
        print(f"{time.perf_counter() - start:7.1f} s  {case.name}: {complaint or 'right'}", flush=True)
    return wrong > 0


if __name__ == "__main__":
    sys.exit(main())
