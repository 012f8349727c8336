"""Train a small character-level GPT on a text, with flashcupy's attention forward and backward, and let it write.

    python examples/train_tiny_gpt.py
    python examples/train_tiny_gpt.py --file book.txt --steps 3000 --layers 4 --device cuda
    python examples/train_tiny_gpt.py --resume     # goes on where an interrupted run stopped

Writes a checkpoint and a picture of the loss. The text, unless --file names one, is Python's own documentation.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

try:
    import matplotlib
    import numpy as np
    from devices import array_module, wait
    from tiny_gpt import Stopwatch, sample
    from tiny_gpt_run import Run, Settings, Text, default_text, read_text
    from tqdm import tqdm
except ModuleNotFoundError as error:
    raise SystemExit(
        f"This example needs the package {error.name}: `make train` installs it, as does: pip install 'flashcupy[demo]'"
    ) from None

Namespace = argparse.Namespace
EVALUATIONS = 10  # fewer where they would be less than ten steps apart


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser()
    arguments = parser.parse_args(argv)
    check_arguments(parser, arguments)
    xp = array_module(arguments.device)
    text = read_text(arguments.file) if arguments.file else default_text()
    checkpoint = arguments.output / "tiny_gpt.npz"
    run = Run(settings_of(arguments, text), text, xp)
    if arguments.resume:
        run.load(checkpoint)
    prompt = arguments.prompt or text.characters[text.train_size :][:24]
    prompt_ids = text.encode(prompt)
    print_setup(run, arguments.device)

    share = attention_share(run)  # before training, since first passes on a GPU also compile
    arguments.output.mkdir(parents=True, exist_ok=True)
    speed = train(run, checkpoint)
    picture = save_loss_curve(run, arguments.output / "tiny_gpt_loss.png")

    rng = np.random.default_rng(arguments.seed)
    ids = sample(run.model, prompt_ids, arguments.characters, arguments.temperature, arguments.top_k, rng)
    print(f"\n--- {prompt!r} continued by the model\n{prompt}{text.decode(ids)}\n---\n")
    print_summary(run, speed, share, [checkpoint, picture])
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train a small character-level GPT with flashcupy's attention.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--file", type=Path, help="a text file in UTF-8; without it, Python's own documentation")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="NumPy or CuPy")
    add("--output", type=Path, default=Path("demo-output"), help="folder of the checkpoint and the picture")
    add("--resume", action="store_true", help="go on from the checkpoint in that folder, with the same settings")
    add("--steps", type=int, default=600, help="updates of the weights")
    add("--batch", type=int, default=4, help="sequences of a step")
    add("--length", type=int, default=128, help="characters of a sequence")
    add("--layers", type=int, default=2, help="blocks of attention and MLP")
    add("--d-model", type=int, default=128, help="channels")
    add("--heads", type=int, default=4, help="attention heads")
    add("--kv-heads", type=int, default=2, help="heads of keys and values; fewer is grouped-query attention")
    add("--learning-rate", type=float, default=3e-3, help="its peak, after the warmup")
    add("--seed", type=int, default=0, help="of weights, batches and the generated text")
    add("--prompt", help="what the generated text continues; without it, the text held back for validation")
    add("--characters", type=int, default=400, help="length of the generated text")
    add("--temperature", type=float, default=0.8, help="0 always takes the likeliest character")
    add("--top-k", type=int, default=20, help="how many of the likeliest characters to draw from")
    return parser


def check_arguments(parser: argparse.ArgumentParser, arguments: Namespace) -> None:
    for name in ("steps", "batch", "length", "layers", "d_model", "heads", "kv_heads", "top_k"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    for name in ("seed", "characters"):
        if getattr(arguments, name) < 0:
            parser.error(f"--{name} must not be negative")
    if not 0 < arguments.learning_rate < math.inf:
        parser.error("--learning-rate must be positive and finite")
    if not 0 <= arguments.temperature < math.inf:
        parser.error("--temperature must be finite and not negative")
    if arguments.d_model % arguments.heads or arguments.heads % arguments.kv_heads:
        parser.error("--d-model must be a multiple of --heads, and --heads a multiple of --kv-heads")
    if arguments.output.exists() and not arguments.output.is_dir():
        parser.error(f"--output must name a folder, and {arguments.output} is a file")


def settings_of(arguments: Namespace, text: Text) -> Settings:
    names = ("steps", "batch", "length", "layers", "d_model", "heads", "kv_heads", "learning_rate", "seed")
    return Settings(text=text.digest, **{name: getattr(arguments, name) for name in names})


def print_setup(run: Run, device: str) -> None:
    text, config = run.text, run.model.config
    print(f"text: {text.source}, {len(text.characters):,} characters, {len(text.vocabulary)} different ones")
    print(
        f"model: {run.model.parameters.vector.size:,} parameters, {config.layers} layers, {config.heads} heads of "
        f"{config.head_dim} ({config.kv_heads} for keys and values), on {device}"
    )


def attention_share(run: Run, passes: int = 3) -> float:
    """Return which part of forward and backward is attention's, from passes that wait for the device around each."""
    attention, whole = run.model.attention_time, Stopwatch()
    attention.wait = whole.wait = partial(wait, run.xp)
    ids, targets = run.windows(np.zeros(run.settings.batch, int))
    run.model.loss_and_gradients(ids, targets)
    attention.seconds = 0.0
    with whole:
        for _ in range(passes):
            run.model.loss_and_gradients(ids, targets)
    attention.wait = Stopwatch.no_wait
    return attention.seconds / whole.seconds


def train(run: Run, checkpoint: Path) -> float | None:
    """Train to the last step; return the characters trained on a second, None if there was nothing left to do."""
    steps, start, stopwatch = run.settings.steps, run.step, Stopwatch()
    every = max(10, steps // EVALUATIONS)
    saved = start if start else None
    try:
        with tqdm(total=steps, initial=start, unit=" steps", leave=False, disable=None) as progress:
            if start == 0:
                tqdm.write(f"step {0:5}   validation {run.validate():.3f}")
            while run.step < steps:
                with stopwatch:
                    loss = run.train_until(min(steps, run.step + every - run.step % every), progress.update)
                tqdm.write(f"step {run.step:5}   validation {run.validate():.3f}   training {loss:.3f}")
                run.save(checkpoint)
                saved = run.step
    except KeyboardInterrupt:
        kept = "before the first checkpoint" if saved is None else f"--resume goes on from step {saved}"
        raise SystemExit(f"stopped at step {run.step}, {kept}") from None
    characters = (run.step - start) * run.settings.batch * run.settings.length
    return characters / stopwatch.seconds if characters else None


def save_loss_curve(run: Run, picture: Path) -> Path:
    matplotlib.use("Agg")  # draws into a file, needs no display
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(range(len(run.losses)), run.losses, color="tab:blue", alpha=0.35, linewidth=0.8, label="training batch")
    steps, losses = zip(*run.validations, strict=True)
    axes.plot(steps, losses, "o-", color="tab:orange", markersize=4, label="validation", clip_on=False)
    axes.axhline(run.text.entropy, color="gray", linestyle="--", linewidth=1, label="entropy of single characters")
    axes.set(xlabel="step", ylabel="loss (nats a character)", title="A small GPT on flashcupy's attention")
    axes.set_xlim(0, run.settings.steps)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(picture, dpi=150)
    pyplot.close(figure)
    return picture


def print_summary(run: Run, speed: float | None, share: float, files: Sequence[Any]) -> None:
    (_, first), (_, last) = run.validations[0], run.validations[-1]
    print(f"validation loss: {first:.3f} before, {last:.3f} after; single characters: {run.text.entropy:.3f}")
    print("speed: nothing was left to train" if speed is None else f"speed: {speed:,.0f} characters a second")
    print(f"attention: {share:.0%} of the time of forward and backward")
    print(f"written: {', '.join(map(str, files))}")


if __name__ == "__main__":
    raise SystemExit(main())
