"""A gallery of block-sparse attention patterns: recipes to copy, pictures of them, and what each one saves.

    python examples/block_patterns.py
    python examples/block_patterns.py --size 16384 --device cuda

Each recipe is a function that returns a BlockMask. The program attends with all of them, holds each to a float64
softmax over the dense mask on a small size (exit status 1 if one differs by more than float32 rounding explains),
prints a table and writes one picture.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

try:
    import matplotlib
    import numpy as np
    from devices import Array, array_module, to_host, wait

    import flashcupy
    from flashcupy import BlockMask
except ModuleNotFoundError as error:
    raise SystemExit(
        f"This example needs the package {error.name}: `make demo` installs it, as does: pip install 'flashcupy[demo]'"
    ) from None

Triple = tuple[int, int, int]

BLOCK = 64
HEADS, HEAD_DIM = 4, 64
CHECK_LENGTH, CHECK_BLOCK = 512, 16
ROUNDS = 2


# The recipes. Lengths and windows are in tokens; what only makes sense in whole blocks says so.


def causal_window(length: int, window: int, block: int = BLOCK) -> BlockMask:
    """Each token sees itself and the `window - 1` before it (Mistral 7B: Jiang et al., 2023)."""
    return BlockMask.sliding_window((length, length), window - 1, 0, block_size=block)


def longformer(length: int, window: int, n_global: int, block: int = BLOCK) -> BlockMask:
    """A window to both sides; the first `n_global` tokens see all and are seen by all (Beltagy et al., 2020)."""
    shape = (length, length)
    near = BlockMask.sliding_window(shape, window // 2, window // 2, block_size=block)
    return near | BlockMask.global_tokens(shape, n_global, block_size=block)


def bigbird(length: int, n_random: int, seed: int = 0, block: int = BLOCK) -> BlockMask:
    """Three blocks around the diagonal, two global ones, some at random (Zaheer et al., 2020)."""
    shape = (length, length)
    return BlockMask.bigbird(shape, window=3, n_global=2, n_random=n_random, rng=seed, block_size=block)


def dilated(length: int, reach: int, dilation: int, block: int = BLOCK) -> BlockMask:
    """`reach` blocks to either side, `dilation` blocks apart (Longformer's dilated window, in blocks).

    Dilated token by token it would visit every block of the window and save nothing. Whoever needs that orders tokens
    by their position modulo the dilation first: each residue then is a dense window of its own.
    """
    i, j = block_indices(length, block)
    seen = (abs(i - j) <= reach * dilation) & ((i - j) % dilation == 0)
    return BlockMask.from_blocks(seen, (length, length), block_size=block)


def strided(length: int, stride: int, block: int = BLOCK) -> BlockMask:
    """The last `stride` blocks, and before these every `stride`-th one (Sparse Transformer: Child et al., 2019)."""
    i, j = block_indices(length, block)
    seen = (i - j < stride) | ((i - j) % stride == 0)
    shape = (length, length)
    return BlockMask.from_blocks(seen, shape, block_size=block) & BlockMask.causal(shape, block_size=block)


def prefix_and_documents(prefix: int, documents: Sequence[int], block: int = BLOCK) -> BlockMask:
    """Documents packed behind a prefix that all of them see; each is causal, and the prefix sees itself."""
    ids = np.repeat(np.arange(1 + len(documents)), [prefix, *documents])
    shape = (len(ids), len(ids))
    own = BlockMask.document(ids, block_size=block) & BlockMask.causal(shape, block_size=block)
    # Every query asks for id 0, which keys of the prefix alone bear.
    return own | BlockMask.document(np.zeros_like(ids), ids, block_size=block)


def vertical_slash(
    length: int, verticals: Sequence[Sequence[int]], slashes: Sequence[Sequence[int]], block: int = BLOCK
) -> BlockMask:
    """Per head some block columns and some block diagonals, as distances back (MInference: Jiang et al., 2024)."""
    i, j = block_indices(length, block)
    heads = [np.isin(j, columns) | np.isin(i - j, back) for columns, back in zip(verticals, slashes, strict=True)]
    shape = (length, length)
    causal = BlockMask.causal(shape, heads=len(heads), block_size=block)
    return BlockMask.from_blocks(np.stack(heads), shape, block_size=block) & causal


def video_tiles(tiles: Triple, window: Triple, block: int = BLOCK) -> BlockMask:
    """Each tile of a video sees those in a window of `window` tiles in t, h, w (sliding tile attention: Zhang, 2025).

    A tile is a block: tokens have to come tile by tile, see `tile_order`. The window of a tile near the border is
    shifted inside, so that all see equally many and no block is PARTIAL.
    """
    seen: Array = np.True_
    for position, n, width in zip(np.unravel_index(np.arange(math.prod(tiles)), tiles), tiles, window, strict=True):
        centre = np.clip(position, width // 2, n - 1 - width // 2)
        seen = seen & (abs(centre[:, None] - position) <= width // 2)
    length = math.prod(tiles) * block
    return BlockMask.from_blocks(seen, (length, length), block_size=block)


def tile_order(tiles: Triple, tile: Triple) -> np.ndarray:
    """Return the raster index of each token of a video when they come tile by tile.

    ``x[..., order, :]`` brings tokens in that order, and ``np.argsort(order)`` in the same way brings them back.
    """
    (nt, nh, nw), (t, h, w) = tiles, tile
    raster = np.arange(math.prod(tiles) * math.prod(tile)).reshape(nt, t, nh, h, nw, w)
    return raster.transpose(0, 2, 4, 1, 3, 5).ravel()


def block_indices(length: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Return block rows (n, 1) and block columns (1, n): conditions on them broadcast to a bool grid of blocks."""
    n = -(-length // block)
    return np.arange(n)[:, None], np.arange(n)[None]


def gallery(length: int, block: int = BLOCK) -> dict[str, BlockMask]:
    """Return all of them, with sizes that follow the length."""
    n = length // block
    documents = np.diff(np.linspace(length // 16, length, 5).astype(int) // 10 * 10, append=length)
    rng = np.random.default_rng(0)
    verticals = [[0, *rng.choice(n, 2, replace=False).tolist()] for _ in range(HEADS)]
    slashes = [[0, 1, int(back)] for back in rng.choice(np.arange(2, n), HEADS, replace=False)]
    return {
        "causal window": causal_window(length, length // 8, block),
        "Longformer": longformer(length, length // 8, block // 2, block),
        "BigBird": bigbird(length, 3, block=block),
        "dilated window": dilated(length, 3, 3, block),
        "strided": strided(length, math.isqrt(n), block),
        "prefix + documents": prefix_and_documents(length - int(documents.sum()), documents.tolist(), block),
        "vertical-slash": vertical_slash(length, verticals, slashes, block),
        "video tiles": video_tiles(near_cube(n), (3, 3, 3), block),
    }


def near_cube(n: int) -> Triple:
    """Return three factors of n, as equal as they come."""
    divisors = [d for d in range(1, n + 1) if n % d == 0]
    triples = [(a, b, n // (a * b)) for a in divisors for b in divisors if n % (a * b) == 0]
    return min(triples, key=sum)


# The program around them.


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    xp = array_module(arguments.device)
    masks = gallery(arguments.size)
    errors = {name: error_against_dense(mask, xp) for name, mask in gallery(CHECK_LENGTH, CHECK_BLOCK).items()}
    print(
        f"{arguments.size:,} tokens, blocks of {BLOCK}, {HEADS} heads of {HEAD_DIM}, float32, on {arguments.device}\n"
    )
    print(table(masks, errors, speedups(masks, arguments.size, xp)))
    print(f"\npicture: {save_pictures(masks, arguments.output)}")
    wrong = [name for name, (error, limit) in errors.items() if not error <= limit]
    if wrong:
        print(f"MORE than float32 rounding explains: {', '.join(wrong)}")
    return 1 if wrong else 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Block-sparse patterns: pictures, and what each saves.")
    parser.add_argument("--size", type=int, default=4096, help=f"tokens, a multiple of {8 * BLOCK} (default: 4096)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="NumPy or CuPy")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder of the picture")
    arguments = parser.parse_args(argv)
    if arguments.size < 16 * BLOCK or arguments.size % (8 * BLOCK):
        parser.error(f"--size must be a multiple of {8 * BLOCK} and at least {16 * BLOCK}")
    if arguments.output.exists() and not arguments.output.is_dir():
        parser.error(f"--output must name a folder, and {arguments.output} is a file")
    return arguments


def operands(length: int, xp: ModuleType) -> list[Array]:
    """Return q, k, v (HEADS, length, HEAD_DIM)."""
    rng = np.random.default_rng(1)
    return [xp.asarray(rng.standard_normal((HEADS, length, HEAD_DIM), dtype=np.float32)) for _ in range(3)]


def error_against_dense(mask: BlockMask, xp: ModuleType) -> tuple[float, float]:
    """Return the largest difference from softmax over the dense mask, and what float32 rounding explains."""
    q, k, v = operands(CHECK_LENGTH, xp)
    out = to_host(flashcupy.attention(q, k, v, block_mask=mask))
    exact = dense_attention(to_host(q), to_host(k), to_host(v), mask.to_dense()[0])
    # A sum of hundreds of float32 products is off by some ulp of its largest value.
    return float(np.abs(out - exact).max()), float(64 * np.finfo(np.float32).eps * np.abs(exact).max())


def dense_attention(q: Array, k: Array, v: Array, visible: Array) -> Array:
    """Return the formula in float64, with every score."""
    scores = q.astype(np.float64) @ k.swapaxes(-1, -2).astype(np.float64) / math.sqrt(q.shape[-1])
    scores = np.where(visible, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True) @ v.astype(np.float64)


def speedups(masks: Mapping[str, BlockMask], length: int, xp: ModuleType) -> dict[str, float]:
    """Return the time of the dense call over that with each mask."""
    q, k, v = operands(length, xp)
    dense = seconds(partial(flashcupy.attention, q, k, v), xp)
    return {
        name: dense / seconds(partial(flashcupy.attention, q, k, v, block_mask=mask), xp)
        for name, mask in masks.items()
    }


def seconds(call: Callable[[], Any], xp: ModuleType) -> float:
    """Return the least time of a few calls, after one that compiles and copies the mask where that is needed."""
    call()
    times = []
    for _ in range(ROUNDS):
        wait(xp)
        start = time.perf_counter()
        call()
        wait(xp)
        times.append(time.perf_counter() - start)
    return min(times)


def table(
    masks: Mapping[str, BlockMask], errors: Mapping[str, tuple[float, float]], measured: Mapping[str, float]
) -> str:
    """Lay out one line per pattern."""
    lines = [
        f"{'pattern':19}{'density':>8}{'FULL':>7}{'PARTIAL':>9}{'longest row':>13}{'speed-up':>10}{'at most':>9}"
        f"{'max error':>11}"
    ]
    for name, mask in masks.items():
        stats = mask.stats()
        bound = math.prod(mask.shape) / stats["visited"]
        lines.append(
            f"{name:19}{stats['density']:8.3f}{stats['full']:7}{stats['partial']:9}{stats['longest_row']:13}"
            f"{measured[name]:9.1f}x{bound:8.1f}x{errors[name][0]:11.1e}"
        )
    about = (
        "speed-up: time of the dense call over this one's; at most: all scores over those in visited blocks",
        f"max error: against a float64 softmax over the dense mask, {CHECK_LENGTH} tokens in blocks of {CHECK_BLOCK}",
    )
    return "\n".join([*lines, "", *about])


def save_pictures(masks: Mapping[str, BlockMask], folder: Path) -> Path:
    matplotlib.use("Agg")  # draws into a file, needs no display
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 4, figsize=(14, 7.5), layout="constrained", sharex=True, sharey=True)
    for panel, (name, mask) in zip(panels.flat, masks.items(), strict=True):
        mask.plot(panel)
        of_heads = "" if mask.shape[1] == 1 else f", head 0 of {mask.shape[1]}"
        panel.set_title(f"{name}{of_heads}\n{panel.get_title()}", fontsize=10)
        panel.label_outer()
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "block_patterns.png"
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)
    return picture


if __name__ == "__main__":
    raise SystemExit(main())
