"""``python -m bench``: measure, print, and keep the results."""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path

from threadpoolctl import threadpool_limits
from tqdm import tqdm

from bench import (
    bench_block_sparse,
    bench_bwd,
    bench_capi,
    bench_fwd,
    bench_host,
    bench_memory,
    bench_sparse_memory,
    report,
)
from bench.environment import REPOSITORY, ForeignLoad, environment, machine_slug
from bench.harness import measure
from bench.peers import set_torch_threads
from flashcupy import num_threads

GROUPS = {
    "fwd": bench_fwd,
    "bwd": bench_bwd,
    "memory": bench_memory,
    "block_sparse": bench_block_sparse,
    "sparse_memory": bench_sparse_memory,
    "host": bench_host,
    "capi": bench_capi,
}

QUIET = 0.1  # cores that other processes may use before figures are worthless


def main() -> None:
    arguments = parse_arguments()
    set_torch_threads(arguments.threads)
    facts = environment(arguments.threads)
    load = ForeignLoad()
    with threadpool_limits(arguments.threads):  # flashcupy follows BLAS's setting
        cases = [case for name in arguments.only for case in GROUPS[name].cases(arguments.quick)]
        rows = [measure(case, arguments.budget) for case in tqdm(cases, unit=" rows", leave=False)]
    foreign = facts["cores_busy_with_other_processes"] = load.cores()
    print(report.table(rows))
    if foreign is not None and foreign > QUIET:
        print(f"\nOther processes kept {foreign} cores busy: do not quote these figures.")
    date = datetime.date.today().isoformat()
    for file in report.write(rows, facts, arguments.output / f"cpu-{machine_slug()}-{date}"):
        print(f"written: {file}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure flashcupy on this CPU.")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), help="groups of rows (default: all)")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--threads", type=int, default=num_threads(), help="threads of every candidate")
    parser.add_argument("--budget", type=float, default=10.0, help="seconds a row may take beyond three rounds")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "bench" / "results", help="folder of the results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
