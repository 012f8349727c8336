"""Write rows as a text table, as JSON with the raw samples, and as a plot."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.harness import Row

HEADER = ("case", "candidate", "median ms", "min..max ms", "x ours", "peak MiB")


def table(rows: Sequence[Row]) -> str:
    """Lay out one line per candidate, grouped."""
    lines = []
    for group in dict.fromkeys(row.group for row in rows):
        cells = [HEADER] + [line for row in rows if row.group == group for line in _cells(row)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines.append(f"\n{group}")
        lines += ["  ".join(_aligned(line, widths)) for line in cells]
    return "\n".join(lines)


def _cells(row: Row) -> list[tuple[str, ...]]:
    names = dict.fromkeys([*row.seconds, *row.peak_bytes])
    return [(row.name, name, *_timing(row, name), _peak(row, name)) for name in names]


def _timing(row: Row, name: str) -> tuple[str, str, str]:
    if name not in row.seconds:
        return "", "", ""
    low, high = min(row.seconds[name]), max(row.seconds[name])
    return f"{row.median(name) * 1e3:.2f}", f"{low * 1e3:.2f}..{high * 1e3:.2f}", f"{row.ratio(name):.2f}"


def _peak(row: Row, name: str) -> str:
    return f"{row.peak_bytes[name] / 2**20:.1f}" if name in row.peak_bytes else "not traced"


def _aligned(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    text, numbers = 2, zip(line[2:], widths[2:], strict=True)
    return [cell.ljust(width) for cell, width in zip(line[:text], widths[:text], strict=True)] + [
        cell.rjust(width) for cell, width in numbers
    ]


def write(rows: Sequence[Row], facts: dict[str, Any], stem: Path) -> list[Path]:
    """Write ``stem`` with the endings .json, .txt and .png, and return their paths."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    files = [stem.parent / f"{stem.name}.{ending}" for ending in ("json", "txt", "png")]
    files[0].write_text(json.dumps({"environment": facts, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    heading = "\n".join(f"{name}: {value}" for name, value in facts.items())
    files[1].write_text(f"{heading}\n{table(rows)}\n")
    plot(rows, files[2], f"{facts['cpu']}, {facts['threads']} threads, commit {facts['commit']}")
    return files


def plot(rows: Sequence[Row], file: Path, title: str) -> None:
    """Draw one panel per group: median and min..max of the time, or peak memory where nothing was timed."""
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys(row.group for row in rows))
    candidates = dict.fromkeys(name for row in rows for name in [*row.seconds, *row.peak_bytes])
    colors = {name: f"C{i}" for i, name in enumerate(candidates)}
    heights = [1 + sum(row.group == group for row in rows) for group in groups]
    figure = Figure(figsize=(8, len(groups) + 0.4 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for group, axes in zip(groups, panels, strict=True):
        _draw_group(axes, [row for row in rows if row.group == group], colors)
        axes.set_title(group)
    figure.suptitle(title)
    figure.savefig(file, dpi=100)


def _draw_group(axes: Any, rows: Sequence[Row], colors: dict[str, str]) -> None:
    timed = any(row.seconds for row in rows)
    for name, color in colors.items():
        points = [(i, samples) for i, row in enumerate(rows) if (samples := _samples(row, name, timed))]
        if not points:
            continue
        places, samples_of = zip(*points, strict=True)
        medians = [statistics.median(samples) for samples in samples_of]
        below = [median - min(samples) for median, samples in zip(medians, samples_of, strict=True)]
        above = [max(samples) - median for median, samples in zip(medians, samples_of, strict=True)]
        axes.errorbar(medians, places, xerr=(below, above), fmt="o", color=color, label=name)
    axes.set(xscale="log", xlabel="ms" if timed else "peak MiB", ylim=(len(rows) - 0.5, -0.5))
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.grid(alpha=0.3)
    axes.legend()


def _samples(row: Row, name: str, timed: bool) -> list[float]:
    if timed:
        return [seconds * 1e3 for seconds in row.seconds.get(name, ())]
    return [row.peak_bytes[name] / 2**20] if name in row.peak_bytes else []
