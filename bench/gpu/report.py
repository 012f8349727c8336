"""Write what was measured: JSON with the raw samples, a table in Markdown, a plot."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import report as plotting
from bench.gpu.measure import GpuRow
from bench.gpu.summary import summaries
from bench.harness import OURS

HEADER = ("candidate", "median ms", "min..max", "TFLOP/s", "% of matmul", "x ours", "peak MiB", "max error")


def write(rows: Sequence[GpuRow], facts: dict[str, Any], left_out: Sequence[str], folder: Path) -> None:
    """Write result.json, table.md and, where matplotlib is installed, plot.png."""
    folder.mkdir(parents=True, exist_ok=True)
    rates = facts.get("matmul_tflops", {})
    record = {"environment": facts, "rows": [asdict(row) for row in rows], "left_out": list(left_out)}
    replace(folder / "result.json", json.dumps(record, indent=1) + "\n")
    parts = [heading(facts), *summaries(rows, facts), table(rows, rates) + "\n" + remainder(rows, left_out)]
    replace(folder / "table.md", "\n\n".join(part for part in parts if part))
    timed = [row for row in rows if row.seconds]
    if timed:
        _plot(timed, folder / "plot.png", title(facts))


def replace(file: Path, text: str) -> None:
    """Write a file whole or not at all: the process may be ended at any time."""
    draft = file.with_suffix(".draft")
    draft.write_text(text)
    os.replace(draft, file)


def title(facts: dict[str, Any]) -> str:
    """Return GPU and commit."""
    return f"{facts['gpu'].get('name', 'no GPU')}, commit {facts['commit']}"


def heading(facts: dict[str, Any]) -> str:
    """Return title, date, versions and the measured matmul rates."""
    lines = [f"# {title(facts)}", "", f"{facts['date']}, driver {facts['gpu'].get('driver_version', 'unknown')}"]
    lines.append(", ".join(f"{name} {version}" for name, version in facts["versions"].items()))
    if rates := facts.get("matmul_tflops"):
        listed = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
        lines.append(f"Matmul rates measured in the same process, TFLOP/s: {listed}")
    return "\n\n".join([lines[0], "  \n".join(lines[2:])])


def table(rows: Sequence[GpuRow], rates: dict[str, float]) -> str:
    """Lay out a Markdown table for each row of a group, fastest candidate first."""
    parts = []
    for group in dict.fromkeys(row.group for row in rows):
        parts.append(f"## {group}")
        timed = [row for row in rows if row.group == group and row.seconds]
        parts += [
            f"**{row.name}**{_verdict(row)}{_results(row)}{_kernel(row)}{_state(row)}\n\n{_row_table(row, rates)}"
            for row in timed
        ]
    return "\n\n".join(parts)


def _verdict(row: GpuRow) -> str:
    """Say how ours stands to the best peer."""
    best = row.best_peer()
    if OURS not in row.seconds or best is None:
        return ""
    return f": {row.ratio(best):.2f} of the speed of the best peer, {best}"


def _results(row: GpuRow) -> str:
    """Say what the results alone take, beside which "peak MiB" is to be read."""
    return f"; results alone take {row.result_bytes / 2**20:.1f} MiB" if row.result_bytes else ""


def _kernel(row: GpuRow) -> str:
    return f"  \n{OURS} runs {row.kernels[OURS]}" if OURS in row.kernels else ""


def _state(row: GpuRow) -> str:
    """Say what the device was like."""
    units = {"sm_mhz": "MHz", "celsius": "degrees Celsius"}
    told = " and ".join(f"{value} {units[name]}" for name, value in row.state.items())
    return f"  \nafter it the device was at {told}" if told else ""


def _row_table(row: GpuRow, rates: dict[str, float]) -> str:
    rate = rates.get(rate_name(row.problem))
    lines = [HEADER, ("---", *["---:"] * (len(HEADER) - 1))]
    lines += [_cells(row, name, rate) for name in sorted(row.seconds, key=row.median)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: GpuRow, name: str, rate: float | None) -> tuple[str, ...]:
    milliseconds = [seconds * 1e3 for seconds in row.seconds[name]]
    return (
        name + (" (host clock)" if row.clocks.get(name) == "host" else ""),
        f"{row.median(name) * 1e3:.3f}",
        f"{min(milliseconds):.3f}..{max(milliseconds):.3f}",
        f"{row.tflops(name):.3g}",
        f"{100 * row.tflops(name) / rate:.0f}" if rate else "",
        f"{row.ratio(name):.2f}" if OURS in row.seconds else "",
        f"{row.peak_bytes[name] / 2**20:.1f}" if name in row.peak_bytes else "not known",
        f"{row.errors[name]:.1e}" if name in row.errors else "not compared",
    )


def rate_name(problem: dict[str, Any]) -> str:
    """Return which matmul rate a problem is held against."""
    return "tf32" if problem["dtype"] == "float32" and problem["precision"] == "tf32" else str(problem["dtype"])


def remainder(rows: Sequence[GpuRow], left_out: Sequence[str]) -> str:
    """List who was missing, with the reason and in how many rows, and what the time budget left out."""
    reasons: dict[str, dict[str, int]] = {}
    for row in rows:
        for name, reason in row.missing.items():
            of_name = reasons.setdefault(name, {})
            of_name[reason] = of_name.get(reason, 0) + 1
    lines = ["\n## Not measured\n"] if reasons or left_out else []
    for name, of_name in sorted(reasons.items()):
        listed = "; ".join(f"{reason} ({_rows(count, len(rows))})" for reason, count in of_name.items())
        lines.append(f"- {name}: {listed}")
    lines += [f"- left out for time: {name}" for name in left_out]
    return "\n".join(lines) + "\n" if lines else ""


def _rows(count: int, of: int) -> str:
    return "all rows" if count == of else f"{count} row{'s' if count > 1 else ''}"


def _plot(rows: Sequence[GpuRow], file: Path, heading: str) -> None:
    try:
        plotting.plot(rows, file, heading)
    except ImportError as error:
        print(f"no plot: {error}")
