"""``python -m bench.gpu SECTION``: measure, print, keep the results after every row."""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.gpu import limits, report
from bench.gpu.device import CupyGpu, Gpu
from bench.gpu.facts import facts
from bench.gpu.measure import GpuRow, measure
from bench.gpu.sections import SECTIONS, Item
from bench.harness import OURS

ROW_SECONDS = 8.0  # for timing one row; preparing and compiling come on top


def main(argv: list[str] | None = None) -> int:
    """Run one section; 1 where flashcupy was missing in a row."""
    start = time.monotonic()
    arguments = parse_arguments(argv)
    if arguments.section == "env":
        return write_environment(arguments.output)
    if arguments.section == "limits":
        return write_limits(CupyGpu(), arguments.output)
    items = [item for item in SECTIONS[arguments.section](arguments.quick) if arguments.match.search(item.name)]
    if arguments.list:
        print("\n".join(item.name for item in items))
        return 0
    # A row names the kernel that is preferred. Where it fails, the row says so: another's time would stand there.
    os.environ.setdefault("FLASHCUPY_FALLBACK", "error")
    gpu = CupyGpu()
    rows = run(items, gpu, arguments.output, start + arguments.budget)
    return int(any(OURS in row.missing for row in rows))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description="Measure one section on this GPU.")
    parser.add_argument("section", choices=("env", "limits", *SECTIONS))
    parser.add_argument("--output", type=Path, help="folder of the results")
    parser.add_argument(
        "--budget", type=float, default=420.0, help="seconds after which no row is begun (default: 420)"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument(
        "--match", type=re.compile, default=re.compile(""), help="only rows whose name holds this regular expression"
    )
    parser.add_argument("--list", action="store_true", help="print the rows, most telling first, and measure nothing")
    arguments = parser.parse_args(argv)
    if arguments.output is None and not arguments.list:
        parser.error("--output names no folder")
    if arguments.section not in SECTIONS and (arguments.list or arguments.match.pattern):
        parser.error(f"{arguments.section} has no rows")
    return arguments


def run(items: Iterable[Item], gpu: Gpu, folder: Path, deadline: float) -> list[GpuRow]:
    """Measure rows until the deadline (of `time.monotonic`); the files hold every finished row at any time."""
    environment = facts()
    rates: dict[str, float] = {}
    tried: set[str] = set()
    environment["matmul_tflops"] = rates
    rows: list[GpuRow] = []
    todo, start = list(items), time.monotonic()
    while todo and time.monotonic() < deadline:
        item = todo.pop(0)
        name = report.rate_name(item.problem.record())
        if name not in tried:
            tried.add(name)
            rates.update(limits.matmul_rates(gpu, {name}))
        print(f"{time.monotonic() - start:9.1f} s  {item.name}", flush=True)
        rows.append(measure(item.group, item.problem, item.candidates, gpu, item.share * ROW_SECONDS, item.timer))
        report.write(rows, environment, [item.name for item in todo], folder)
    print((folder / "table.md").read_text())
    return rows


def write_environment(folder: Path) -> int:
    """Write and print the facts."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(facts(), indent=1) + "\n"
    report.replace(folder / "result.json", text)
    print(text)
    return 0


def write_limits(gpu: Gpu, folder: Path) -> int:
    """Measure the device's limits, write and print them."""
    environment, found = facts(), limits.limits(gpu)
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"environment": environment, "limits": [asdict(limit) for limit in found]}
    report.replace(folder / "result.json", json.dumps(record, indent=1) + "\n")
    text = f"{report.heading(environment)}\n\n{limits.table(found)}\n"
    report.replace(folder / "table.md", text)
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
