"""Train with a block-sparse mask that is chosen anew in every step, and compare with dense attention.

    python examples/block_topk.py
    python examples/block_topk.py --passages 32 --top-k 6 --device cuda

As MoBA and NSA do it: each block of queries is scored against each block of keys by their mean rows, keeps the best
few before it and itself, and attends to these, forward and backward. The task needs the right block far back, see
recall_task.py: as many blocks right before each one learn nothing. Prints a table and writes a picture.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

try:
    import matplotlib
    import numpy as np
    from devices import Array, array_module, device_of, to_host, wait
    from recall_task import HEADS, KV_HEADS, VALUES, Choose, RecallModel, Task
    from tqdm import tqdm

    import flashcupy
    from flashcupy import BlockMask
except ModuleNotFoundError as error:
    raise SystemExit(
        f"This example needs the package {error.name}: `make demo` installs it, as does: pip install 'flashcupy[demo]'"
    ) from None

TIMED_FROM = 2  # steps; first calls on a GPU also compile
LAST_STEPS = 5  # of which the reported loss is the mean
JUDGED = 4  # fresh sequences


class TopBlocks:
    """The best-scored blocks of each block row: the selection that a step makes.

    All steps write to one mask of fixed capacity, so that none allocates lists; on a GPU nothing of it leaves the GPU.
    """

    def __init__(self, task: Task, batch: int, top_k: int, xp: ModuleType) -> None:
        n = task.blocks
        self.top_k, self.block = top_k, task.block
        self.shape = (task.length, task.length)
        self.before, self.own = xp.tri(n, dtype=np.bool_), xp.eye(n, dtype=np.bool_)
        self.mask = BlockMask.empty(
            self.shape,
            block_size=self.block,
            batch=batch,
            heads=KV_HEADS,
            capacity=batch * KV_HEADS * n * top_k,
            device=device_of(xp),
        )

    def __call__(self, q: Array, k: Array) -> BlockMask:
        scores = flashcupy.pooled_scores(q, k, block_size=self.block)
        # Heads that share keys agree on their blocks: a list per key head is read once for all of its query heads.
        scores = scores.reshape(len(scores), KV_HEADS, HEADS // KV_HEADS, *scores.shape[2:]).mean(axis=2)
        return BlockMask.from_topk(
            scores,
            self.top_k,
            self.shape,
            block_size=self.block,
            allowed=self.before,
            include=self.own,
            out=self.mask,
        )


def last_blocks(task: Task, batch: int, top_k: int, xp: ModuleType) -> Choose:
    """As many blocks, but always the last ones: what a sliding window would see."""
    n = task.blocks
    seen = np.tri(n, dtype=np.bool_) & ~np.tri(n, k=-top_k, dtype=np.bool_)
    mask = BlockMask.from_blocks(seen, (task.length, task.length), block_size=task.block)
    return lambda q, k: mask


def all_blocks(task: Task, batch: int, top_k: int, xp: ModuleType) -> Choose:
    return lambda q, k: None


Make = Callable[[Task, int, int, ModuleType], Choose]
CHOICES: dict[str, Make] = {
    "dense": all_blocks,
    "top-k": TopBlocks,
    "last k": last_blocks,
}


@dataclass
class Result:
    """What a training run came to; seconds are those of a step."""

    losses: list[float] = field(default_factory=list)
    accuracy: float = 0.0
    mask: BlockMask | None = None
    kept: float = 1.0
    found: float = 1.0
    attention_seconds: float = 0.0
    choosing_seconds: float = 0.0


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    xp = array_module(arguments.device)
    task = Task(arguments.passages, arguments.block)
    print(
        f"{task.length:,} tokens in blocks of {task.block}, {HEADS} heads ({KV_HEADS} for keys and values), "
        f"{arguments.steps} steps on {arguments.device}; k is {arguments.top_k} of {task.blocks} blocks"
    )
    results = {name: train(make, task, arguments, xp, name) for name, make in CHOICES.items()}
    print(table(results, task))
    print(f"\npicture: {save_picture(results, arguments.output)}")
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train with blocks chosen by their scores in every step.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu", help="NumPy or CuPy")
    add("--steps", type=int, default=50, help="updates of the weights")
    add(
        "--passages", type=int, default=16, help="passages of a sequence, at most 64; there are as many question blocks"
    )
    add("--block", type=int, default=64, choices=(16, 32, 64, 128), help="tokens of a passage and of a block")
    add("--top-k", type=int, default=4, help="blocks that each block of queries keeps")
    add("--batch", type=int, default=1, help="sequences of a step")
    add("--seed", type=int, default=0, help="of weights and sequences")
    add("--output", type=Path, default=Path("demo-output"), help="folder of the picture")
    add("--quick", action="store_true", help="8 passages of 32 tokens, 3 blocks, 24 steps of two sequences")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.passages, arguments.block, arguments.top_k, arguments.steps, arguments.batch = 8, 32, 3, 24, 2
    for name in ("steps", "top_k", "batch"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if not 1 <= arguments.passages <= 64:
        parser.error("--passages must lie between 1 and 64")
    if arguments.seed < 0:
        parser.error("--seed must not be negative")
    if arguments.output.exists() and not arguments.output.is_dir():
        parser.error(f"--output must name a folder, and {arguments.output} is a file")
    return arguments


def train(make: Make, task: Task, arguments: argparse.Namespace, xp: ModuleType, name: str) -> Result:
    """Train a model from the same weights on the same sequences as every other choice."""
    rng = np.random.default_rng(arguments.seed)
    model, choose = RecallModel(xp, np.float32, rng), make(task, arguments.batch, arguments.top_k, xp)
    result, steps = Result(), arguments.steps
    model.attention_time.wait = model.choosing_time.wait = partial(wait, xp)
    for step in tqdm(range(steps), desc=name, unit=" steps", leave=False, disable=None):
        if step == min(TIMED_FROM, steps - 1):
            model.attention_time.seconds = model.choosing_time.seconds = 0.0
        tokens, values, _ = task.draw(arguments.batch, rng)
        loss, _ = model.train_step(xp.asarray(tokens), xp.asarray(values), choose, step, steps)
        result.losses.append(float(loss))
    timed = max(1, steps - TIMED_FROM)
    result.attention_seconds = model.attention_time.seconds / timed
    result.choosing_seconds = model.choosing_time.seconds / timed
    judge(result, model, make(task, 1, arguments.top_k, xp), task, rng)
    return result


def judge(result: Result, model: RecallModel, choose: Choose, task: Task, rng: np.random.Generator) -> None:
    """Fill in what fresh sequences say about the trained model, and about the blocks that it visits."""
    xp, n = model.xp, task.blocks
    right, kept, found = [], [], []
    for _ in range(JUDGED):
        host_tokens, values, asked = task.draw(1, rng)
        tokens = xp.asarray(host_tokens)
        right.append(float(model.loss_and_gradients(tokens, xp.asarray(values), choose)[1]))
        q, k = model.queries_and_keys(tokens)
        result.mask = choose(q, k)
        if result.mask is None:
            continue
        seen = visited(result.mask, n)[:, :, n // 2 :]
        mass = to_host(flashcupy.block_mass(q, k, block_size=task.block, causal=True))[:, :, n // 2 :]
        kept.append((mass * seen.repeat(HEADS // seen.shape[1], axis=1)).sum(axis=-1).mean())
        found.append(np.take_along_axis(seen, asked[:, None, :, None], axis=-1).mean())
    result.accuracy = float(np.mean(right))
    if kept:
        result.kept, result.found = float(np.mean(kept)), float(np.mean(found))


def visited(mask: BlockMask, n: int) -> Array:
    """Return the FULL blocks as bool (B, H, n, n), which is all that these masks have."""
    mask = mask.to_device("cpu")
    batch, heads, *_ = mask.shape
    grid = np.zeros((batch * heads * n, n), np.bool_)
    listed = mask.full_indptr[-1]
    grid[np.repeat(np.arange(len(grid)), np.diff(mask.full_indptr)), mask.full_indices[:listed]] = True
    return grid.reshape(batch, heads, n, n)


def table(results: dict[str, Result], task: Task) -> str:
    """Lay out one line per choice."""
    return "\n".join([*_lines(results, task), "", *ABOUT])


ABOUT = (
    f"loss, accuracy: in nats, and on fresh sequences; by chance {np.log(VALUES):.3f} and {1 / VALUES:.3f}",
    "found: question blocks that visit the passage they ask about",
    "mass kept: share of what question blocks would pay by dense attention (block_mass) that their blocks hold",
    "ms a step: attention forward and backward, choosing blocks",
)


def _lines(results: dict[str, Result], task: Task) -> Iterator[str]:
    yield (
        f"\n{'blocks':8}{'density':>9}{'loss':>8}{'accuracy':>10}{'found':>8}{'mass kept':>11}"
        f"{'attention ms':>14}{'choosing ms':>13}"
    )
    causal = (task.blocks + 1) / (2 * task.blocks)
    for name, result in results.items():
        density = causal if result.mask is None else result.mask.density
        yield (
            f"{name:8}{density:9.3f}{final_loss(result):8.3f}{result.accuracy:10.3f}{result.found:8.2f}"
            f"{result.kept:11.2f}{result.attention_seconds * 1e3:14.1f}{result.choosing_seconds * 1e3:13.1f}"
        )


def final_loss(result: Result) -> float:
    return float(np.mean(result.losses[-LAST_STEPS:]))


def save_picture(results: dict[str, Result], folder: Path) -> Path:
    matplotlib.use("Agg")  # draws into a file, needs no display
    from matplotlib import pyplot

    figure, (curves, picture) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for name, result in results.items():
        curves.plot(result.losses, label=f"{name}: {final_loss(result):.2f}")
    curves.axhline(np.log(VALUES), color="gray", linestyle="--", linewidth=1, label="chance")
    curves.set(xlabel="step", ylabel="loss (nats a question)", title="Recall from far back", ylim=(0, None))
    curves.spines[["top", "right"]].set_visible(False)
    curves.legend(frameon=False)
    mask: Any = results["top-k"].mask
    mask.plot(picture)
    picture.set_title(f"what the last sequence chose, head 0\n{picture.get_title()}", fontsize=10)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "block_topk.png"
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
    return file


if __name__ == "__main__":
    raise SystemExit(main())
