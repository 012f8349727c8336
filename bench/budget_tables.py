"""``python -m bench.budget_tables`` prints the tables of kernels_cu/BUDGET.md for the table of tiles as it is.

With ``--write`` they take the place of those in the file.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bench import budget, budget_bwd
from bench.budget import GPUS, Gpu, Pipe, predict
from bench.budget_bwd import Kernel
from flashcupy.cuda.config_sm80 import BUCKETS, Kind, MmaConfig
from flashcupy.cuda.config_sm80_bwd import GradientConfig
from flashcupy.cuda.table_sm80 import Need, configure
from flashcupy.cuda.table_sm80_bwd import ADDS_QUERIES, WIDEST_SPLIT, configure_gradient

FILE = Path(__file__).parent.parent / "kernels_cu" / "BUDGET.md"
MARK = "<!-- python -m bench.budget_tables --write -->"

# Of a block, at most.
SHARED = {"sm_80": 163 << 10, "sm_89": 99 << 10, "sm_90a": 227 << 10}
FAST_TF32 = ("sm_80", "sm_90a")  # elsewhere plain FMA serves float32
KINDS: dict[Kind, str] = {"bf16": "f16, bf16", "tf32": "tf32", "split_tf32": "split tf32"}
PIPES: tuple[Pipe, ...] = ("tensor", "shared", "issue", "integer", "float", "mufu", "l2")
PIPES_BACKWARD: tuple[Pipe, ...] = (*PIPES, "red")


def tables() -> str:
    """Return all tables in Markdown."""
    parts = [_rates(), *(_tiles(gpu) for gpu in GPUS), _options(), _backward(), *(_gradients(gpu) for gpu in GPUS)]
    return "\n\n".join(parts)


def config_for(kind: Kind, head_dim: int, gpu: Gpu, features: tuple[str, ...] = ()) -> MmaConfig:
    """Return what the table chooses on a GPU for self-attention of any length."""
    return configure(Need(kind, head_dim, head_dim, features, None, SHARED[gpu.arch]))


def _rates() -> str:
    rows = [
        ("multiprocessors, clock in GHz", [f"{gpu.multiprocessors}, {gpu.ghz}" for gpu in GPUS]),
        ("multiply-adds of mma.sync, 16 bits", [f"{gpu.mma['16']:.0f}" for gpu in GPUS]),
        ("multiply-adds of mma.sync, tf32", [f"{gpu.mma['tf32']:.0f}" for gpu in GPUS]),
        ("FFMA, FADD, FMUL, lanes", [f"{gpu.float_lanes}" for gpu in GPUS]),
        ("integer, compare, min and max, select, convert, lanes", [f"{gpu.integer_lanes}" for gpu in GPUS]),
        ("MUFU (ex2, rcp), lanes", [f"{gpu.mufu_lanes}" for gpu in GPUS]),
        ("instructions issued, of a warp", [f"{gpu.issues}" for gpu in GPUS]),
        ("shared memory, bytes", [f"{gpu.shared_rate}" for gpu in GPUS]),
        ("L2, bytes", [f"{gpu.l2_bytes}" for gpu in GPUS]),
        ("additions to memory (red), bytes", [f"{gpu.red_bytes}" for gpu in GPUS]),
    ]
    header = ("per clock and multiprocessor", *(f"{gpu.name} ({gpu.arch})" for gpu in GPUS))
    return "### Rates\n\n" + _markdown(header, [(name, *cells) for name, cells in rows])


def _tiles(gpu: Gpu) -> str:
    header = ("kind", "D", "tiles", *PIPES, "bound by", "tensor cores work, %", "TFLOP/s")
    body = [_tile_row(KINDS[kind], config_for(kind, dim, gpu), gpu) for kind in _served(gpu) for dim in BUCKETS]
    return f"### Clocks of a tile on {gpu.name}\n\n" + _markdown(header, body)


def _served(gpu: Gpu) -> list[Kind]:
    return [kind for kind in KINDS if kind != "split_tf32" or gpu.arch in FAST_TF32]


def _tile_row(name: str, config: MmaConfig, gpu: Gpu) -> Sequence[str]:
    tiles, found = config.tiles, predict(config.tiles, gpu)
    chunk = "" if tiles.v_dim == tiles.head_dim else f", {tiles.v_dim} columns of v"
    chosen = f"{tiles.owner} x {tiles.walk}{chunk}, {tiles.warps} warps, stages {tiles.stages}, blocks {config.blocks}"
    least, most = found.shares
    # Of several chunks of v's columns each computes q k^T, which counts once.
    useful = 2 * tiles.v_dim / (tiles.head_dim + tiles.v_dim)
    flops = 2 * budget.multiply_adds(tiles) * useful * gpu.multiprocessors * gpu.ghz * 1e-3
    return (
        *(name, str(tiles.head_dim), chosen),
        *(f"{found.cycles[pipe]:.0f}" for pipe in PIPES),
        found.bound,
        f"{100 * least:.0f} to {100 * most:.0f}",
        f"{flops / found.in_turn:.0f} to {flops / found.best:.0f}",
    )


def _options() -> str:
    header = (
        "option",
        "instructions a score",
        "MUFU a score",
        "bytes a score",
        *(f"time on {gpu.name}" for gpu in GPUS),
    )
    rows = [_option_row(name) for name in budget.OF_SCORE]
    title = "### What an option adds, and the time of a tile over the plain one's: bf16, D = 128"
    return f"{title}\n\n{_markdown(header, rows)}"


def _option_row(name: str) -> Sequence[str]:
    own = budget.OF_SCORE[name]
    if name in budget.HIDES:
        own = {
            kind: own.get(kind, 0) + budget.OF_SCORE["edge"].get(kind, 0) for kind in {*own, *budget.OF_SCORE["edge"]}
        }
    return (
        "a tile with hidden scores" if name == "edge" else name,
        f"{sum(own.values()):.1f}",
        f"{sum(own.get(kind, 0) for kind in ('MUFU', 'MUFU.EX2', 'I2F')):.1f}",
        str(budget.OF_SCORE_BYTES.get(name, 0)),
        *(_times(name, gpu) for gpu in GPUS),
    )


def _times(name: str, gpu: Gpu) -> str:
    """Of the same tiles: the table may choose others for an option."""
    tiles = config_for("bf16", 128, gpu).tiles
    plain = predict(tiles, gpu)
    found = predict(tiles, gpu, masked=True) if name == "edge" else predict(tiles, gpu, (name,))
    return f"{found.best / plain.best:.2f} to {found.in_turn / plain.in_turn:.2f}"


# ---- the backward ----


def gradient_config_for(kernel: Kernel, kind: Kind, head_dim: int, gpu: Gpu) -> GradientConfig:
    """Return what the table chooses on a GPU for one kernel of a backward without options."""
    return configure_gradient(kernel, Need(kind, head_dim, head_dim, (), None, SHARED[gpu.arch]))


def kernels_of(kind: Kind, *, deterministic: bool) -> tuple[Kernel, ...]:
    """Return the kernels of all three gradients, but those before and behind that only read and write memory."""
    return ("dkvq",) if kind in ADDS_QUERIES and not deterministic else ("dkv", "dq")


def backward_clocks(kind: Kind, head_dim: int, gpu: Gpu, *, deterministic: bool) -> tuple[float, float]:
    """Return the clocks of a multiprocessor for one pair of query and key, at best and in turn."""
    best = in_turn = 0.0
    for kernel in kernels_of(kind, deterministic=deterministic):
        tiles = gradient_config_for(kernel, kind, head_dim, gpu).tiles
        found = budget_bwd.predict(kernel, tiles, gpu)
        each = budget_bwd.chunks(kernel, tiles) / (tiles.owner * tiles.walk)
        best, in_turn = best + each * found.best, in_turn + each * found.in_turn
    return best, in_turn


def _backward() -> str:
    header = ("kind", "D", *(f"{what} on {gpu.name}" for gpu in GPUS for what in ("TFLOP/s", "deterministic", "price")))
    body = [
        _backward_row(kind, dim) for kind in KINDS for dim in BUCKETS if kind != "split_tf32" or dim <= WIDEST_SPLIT
    ]
    about = (
        "TFLOP/s count five products. The price is the time of deterministic=True over the default's: first where "
        "products take turns with the rest, then where they overlap it."
    )
    return f"### A backward\n\n{about}\n\n{_markdown(header, body)}"


def _backward_row(kind: Kind, head_dim: int) -> Sequence[str]:
    cells = [cell for gpu in GPUS for cell in _backward_cells(kind, head_dim, gpu)]
    return (KINDS[kind], str(head_dim), *cells)


def _backward_cells(kind: Kind, head_dim: int, gpu: Gpu) -> Sequence[str]:
    if kind not in _served(gpu):
        return ("", "", "")
    clocks = [backward_clocks(kind, head_dim, gpu, deterministic=deterministic) for deterministic in (False, True)]
    rate = 10 * head_dim * gpu.multiprocessors * gpu.ghz * 1e-3  # times 1 / clocks of a pair
    rates = [f"{rate / in_turn:.0f} to {rate / best:.0f}" for best, in_turn in clocks]
    (best, in_turn), (slow_best, slow_in_turn) = clocks
    price = f"{slow_in_turn / in_turn:.2f}, {slow_best / best:.2f}" if kind in ADDS_QUERIES else "the same"
    return (rates[0], rates[1] if kind in ADDS_QUERIES else "the same", price)


def _gradients(gpu: Gpu) -> str:
    header = ("kind", "D", "kernel", "tiles", *PIPES_BACKWARD, "bound by", "tensor cores work, %")
    body = [
        _gradient_row(kernel, kind, dim, gpu)
        for kind in _served(gpu)
        for dim in BUCKETS
        if kind != "split_tf32" or dim <= WIDEST_SPLIT
        for kernel in dict.fromkeys((*kernels_of(kind, deterministic=False), *kernels_of(kind, deterministic=True)))
    ]
    return f"### Clocks of a tile of the backward on {gpu.name}\n\n" + _markdown(header, body)


def _gradient_row(kernel: Kernel, kind: Kind, head_dim: int, gpu: Gpu) -> Sequence[str]:
    config = gradient_config_for(kernel, kind, head_dim, gpu)
    tiles, found = config.tiles, budget_bwd.predict(kernel, config.tiles, gpu)
    count = budget_bwd.chunks(kernel, tiles)
    chunk = "" if count == 1 else f", {count} chunks of {tiles.head_chunk}"
    warps = "1 warp" if tiles.warps == 1 else f"{tiles.warps} warps"
    least, most = found.shares
    return (
        *(KINDS[kind], str(head_dim), kernel),
        f"{tiles.owner} x {tiles.walk}{chunk}, {warps}, stages {tiles.stages}, blocks {config.blocks}",
        *(f"{found.cycles[pipe]:.0f}" for pipe in PIPES_BACKWARD),
        found.bound,
        f"{100 * least:.0f} to {100 * most:.0f}",
    )


def _markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *body))


def written(text: str) -> str:
    """Return the file's text with the tables of now behind the mark."""
    return text.partition(MARK)[0] + f"{MARK}\n\n{tables()}\n"


def main() -> None:
    """Print the tables, or write them."""
    parser = argparse.ArgumentParser(prog="python -m bench.budget_tables", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"replace those of {FILE.name}")
    if parser.parse_args().write:
        FILE.write_text(written(FILE.read_text()))
    else:
        print(tables())


if __name__ == "__main__":
    main()
