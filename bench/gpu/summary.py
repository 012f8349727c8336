"""Tables over many rows: the matrix at a glance, what options cost against the model, the tiles that were best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench import budget
from bench.gpu.measure import GpuRow
from bench.gpu.pattern import Pattern
from bench.gpu.predicted import predicted_clocks
from bench.harness import OURS, OURS_DETERMINISTIC

FLASH = "torch flash"


def summaries(rows: Sequence[GpuRow], facts: dict[str, Any]) -> list[str]:
    """Return those that the rows have something for."""
    timed = [row for row in rows if OURS in row.seconds]

    def of(group: str) -> list[GpuRow]:
        return [row for row in timed if row.group == group]

    gpu = budget.gpu_of(facts["gpu"].get("compute_capability", ""))
    return [
        matrix(of("matrix"), "Forward"),
        matrix(of("backward"), "Backward"),
        gradients(of("backward"), "Backward", gpu),
        gradients(of("forward + backward"), "Forward and backward", gpu),
        sparse(of("block-sparse forward"), "Block-sparse forward"),
        sparse(of("block-sparse backward"), "Block-sparse backward"),
        options(of("options forward"), gpu),
        tiles([row for row in rows if row.group.startswith("tiles")]),
    ]


def matrix(rows: Sequence[GpuRow], what: str) -> str:
    """Lay out our TFLOP/s by length, and in brackets our speed over that of the best peer."""
    if not rows:
        return ""
    lengths = sorted({row.problem["q_length"] for row in rows})
    lines: dict[tuple[Any, ...], dict[int, str]] = {}
    for row in rows:
        problem = row.problem
        dtype = "tf32" if problem["precision"] == "tf32" else problem["dtype"]
        shared = f"H={problem['heads']}/{problem['kv_heads']}" if problem["heads"] != problem["kv_heads"] else ""
        key = (dtype, problem["head_dim"], " ".join(filter(None, ["causal" if problem["causal"] else "", shared])))
        lines.setdefault(key, {})[problem["q_length"]] = _cell(row)
    header = ("dtype", "D", "", *lengths)
    body = [(*key, *(cells.get(length, "") for length in lengths)) for key, cells in lines.items()]
    about = f"TFLOP/s of {OURS}; in brackets its speed over that of {FLASH}, or of the best peer without it"
    return f"## {what} at a glance\n\n{about}\n\n{_markdown(header, body)}"


def _cell(row: GpuRow) -> str:
    peer = FLASH if FLASH in row.seconds else row.best_peer()
    return f"{row.tflops(OURS):.3g}" + (f" ({row.ratio(peer):.2f})" if peer else "")


def gradients(rows: Sequence[GpuRow], what: str, gpu: budget.Gpu | None) -> str:
    """Lay out what determinism costs and the memory taken, beside what the model says and what results alone take."""
    if not rows:
        return ""
    header = (
        "call",
        "TFLOP/s",
        "the model's",
        "deterministic, time",
        "the model's",
        "peak, of the results alone",
        "kernel",
    )
    body = []
    for row in rows:
        own, slow = (row.kernels.get(name, "") for name in (OURS, OURS_DETERMINISTIC))
        ratio = f"{row.ratio(OURS_DETERMINISTIC):.2f}" if OURS_DETERMINISTIC in row.seconds else ""
        peak = row.peak_bytes.get(OURS, 0) / row.result_bytes if row.result_bytes else 0
        cells = (
            f"{row.tflops(OURS):.3g}",
            _predicted_rate(row, own, gpu),
            ratio,
            _predicted_ratio(row, slow, own, gpu),
        )
        body.append((row.name, *cells, f"{peak:.2f}" if peak else "", own))
    about = (
        "The model counts the kernels with products; of two figures the first is where products overlap the rest, the "
        "second where they take turns. Times of deterministic=True are over the default's."
    )
    return f"## {what}, beside the model\n\n{about}\n\n{_markdown(header, body)}"


def _predicted_rate(row: GpuRow, kernel: str, gpu: budget.Gpu | None) -> str:
    clocks = predicted_clocks(row.problem, kernel, gpu)
    if clocks is None or gpu is None:
        return "none"
    return ", ".join(f"{row.flops * gpu.multiprocessors * gpu.ghz * 1e-3 / one:.3g}" for one in clocks)


def _predicted_ratio(row: GpuRow, kernel: str, other: str, gpu: budget.Gpu | None) -> str:
    own, base = (predicted_clocks(row.problem, name, gpu) for name in (kernel, other))
    if own is None or base is None:
        return "none"
    return ", ".join(f"{one / two:.2f}" for one, two in zip(own, base, strict=True))


def sparse(rows: Sequence[GpuRow], what: str) -> str:
    """Lay out our time over that of the dense call by pattern and block size, and our speed over the best peer's."""
    dense = next((row for row in rows if row.problem["pattern"] is None), None)
    if dense is None or len(rows) < 2:
        return ""
    patterns = [(Pattern(**row.problem["pattern"]), row) for row in rows if row is not dense]
    blocks = sorted({pattern.block for pattern, _ in patterns})
    lines: dict[str, dict[int, str]] = {}
    for pattern, row in patterns:
        peer = row.best_peer()
        cell = f"{row.median(OURS) / dense.median(OURS):.3f} of {row.flops / dense.flops:.3f}"
        lines.setdefault(pattern.label, {})[pattern.block] = cell + (f" ({row.ratio(peer):.2f})" if peer else "")
    about = (
        "Time over that of the dense call, of the share of the scores in visited blocks, which it would be at the same "
        "rate; in brackets the speed over that of the best peer"
    )
    header = ("pattern", *(f"block {block}" for block in blocks))
    body = [(label, *(cells.get(block, "") for block in blocks)) for label, cells in lines.items()]
    return f"## {what} at a glance\n\n{about}\n\n{_markdown(header, body)}"


def options(rows: Sequence[GpuRow], gpu: budget.Gpu | None) -> str:
    """Lay out the time of each option over that of the plain call, beside what the model of bench/budget.py says."""
    plain = next((row for row in rows if not row.problem["options"] and "gqa" not in row.name), None)
    if plain is None or len(rows) < 2:
        return ""
    body = []
    for row in rows:
        measured = row.median(OURS) / plain.median(OURS)
        body.append((row.name, f"{measured:.2f}", _predicted(row, plain, gpu), row.kernels.get(OURS, "not told")))
    header = ("call", "time over the plain call's", "the model's", "kernel")
    about = (
        "The model counts instructions and bytes of the tensor-core kernels: first where products overlap the rest, "
        "then where they take turns."
    )
    return f"## What options cost\n\n{about}\n\n{_markdown(header, body)}"


def _predicted(row: GpuRow, plain: GpuRow, gpu: budget.Gpu | None) -> str:
    own, base = (predicted_clocks(one.problem, one.kernels.get(OURS, ""), gpu) for one in (row, plain))
    if own is None or base is None:
        return "none"
    return ", ".join(f"{own[way] / base[way]:.2f}" for way in (0, 1))


def tiles(rows: Sequence[GpuRow]) -> str:
    """Lay out the best tiles of each problem beside the table's choice."""
    if not rows:
        return ""
    body = []
    for row in rows:
        names = sorted((name for name in row.seconds if name != OURS), key=row.median)
        best = ", ".join(f"{name} {row.median(name) * 1e3:.3f}" for name in names[:3])
        gain = f"{1 / row.ratio(names[0]):.2f}" if names else ""
        body.append((row.name, row.kernels.get(OURS, ""), f"{row.median(OURS) * 1e3:.3f}", best, gain))
    header = ("problem", "the table's choice", "ms", "best, ms", "gain")
    return f"## Tiles\n\n{_markdown(header, body)}"


def _markdown(header: Sequence[object], body: Sequence[Sequence[object]]) -> str:
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (header, ["---"] * len(header), *body))
