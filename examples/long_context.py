"""Attention over a long sequence in little memory: causal, and block-sparse.

    python examples/long_context.py
    python examples/long_context.py --length 65536 --heads 2

Prints time and peak memory of each call, compares sampled rows with a float64 softmax (exit status 1 if they differ by
more than float32 rounding explains), and saves a picture of the block mask.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    import matplotlib
    import numpy as np
    import numpy.typing as npt

    import flashcupy
    from flashcupy import BlockMask
except ModuleNotFoundError as error:
    raise SystemExit(
        f"This example needs the package {error.name}: `make demo` installs it, as does: pip install 'flashcupy[demo]'"
    ) from None

Array = npt.NDArray[Any]
HEAD_DIM = 64
BLOCK = 64


def main() -> int:
    arguments = parse_arguments()
    length, heads = arguments.length, arguments.heads
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((heads, length, HEAD_DIM), dtype=np.float32) for _ in range(3))
    print(f"{heads} heads, {length:,} tokens, head dim {HEAD_DIM}, float32")
    print(f"naive attention would hold {in_mib(heads * length * length * 4)} of scores\n")

    mask = measured("build the block mask", lambda: local_global_random(length))
    print(f"  visits {mask.density:.1%} of the blocks")
    picture = save_picture(mask, arguments.output)
    causal_out = measured("causal attention", lambda: flashcupy.attention(q, k, v, causal=True))
    sparse_out = measured("block-sparse attention", lambda: flashcupy.attention(q, k, v, block_mask=mask))

    rows = np.sort(rng.choice(length, 32, replace=False))
    causal_rows = np.arange(length) <= rows[:, None]
    sparse_rows = np.stack([mask.rows(i, i + 1).to_dense()[0, 0, 0] for i in rows.tolist()])
    agrees = [
        rows_agree("causal", causal_out[:, rows], softmax_rows(q[:, rows], k, v, causal_rows)),
        rows_agree("block-sparse", sparse_out[:, rows], softmax_rows(q[:, rows], k, v, sparse_rows)),
    ]
    print(f"\npicture of the block mask: {picture}")
    return 0 if all(agrees) else 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Causal and block-sparse attention over a long sequence.")
    parser.add_argument("--length", type=int, default=32768, help="tokens, at least 4096 (default: 32768)")
    parser.add_argument("--heads", type=int, default=4, help="attention heads (default: 4)")
    parser.add_argument("--quick", action="store_true", help="8192 tokens")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder of the picture")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.length = 8192
    if arguments.length < 4096 or arguments.heads < 1:
        parser.error("--length must be at least 4096 and --heads at least 1")
    return arguments


def local_global_random(length: int) -> BlockMask:
    """Each token sees its neighbourhood, the first 64 tokens and four random blocks; those first 64 see everything."""
    shape = (length, length)
    local = BlockMask.sliding_window(shape, 512, 512, block_size=BLOCK)
    global_ = BlockMask.global_tokens(shape, 64, block_size=BLOCK)
    return local | global_ | BlockMask.random(shape, 4, rng=0, block_size=BLOCK)


def measured(what: str, call: Callable[[], Any]) -> Any:
    """Run `call`, print how long it took and the most memory that NumPy held for it."""
    print(f"{what} ... ", end="", flush=True)
    tracemalloc.start()
    start = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"{seconds:.2f} s, peak memory {in_mib(peak)}")
    return result


def in_mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def save_picture(mask: BlockMask, folder: Path) -> Path:
    matplotlib.use("Agg")  # draws into a file, needs no display
    folder.mkdir(parents=True, exist_ok=True)
    axes = mask.plot()
    picture = folder / "block_mask.png"
    axes.figure.savefig(picture, dpi=150, bbox_inches="tight")
    return picture


def softmax_rows(q: Array, k: Array, v: Array, visible: Array) -> Array:
    """Naive attention in float64 of a few query rows (H, n, D), of which row i sees ``visible[i]`` (n, S)."""
    scores = q.astype(np.float64) @ k.swapaxes(-1, -2).astype(np.float64) / np.sqrt(HEAD_DIM)
    scores = np.where(visible, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True) @ v.astype(np.float64)


def rows_agree(what: str, actual: Array, exact: Array) -> bool:
    difference = np.abs(actual - exact).max()
    # A sum of thousands of float32 products is off by some ulp of its largest value.
    limit = 64 * np.finfo(np.float32).eps * np.abs(exact).max()
    verdict = "as float32 rounding explains" if difference <= limit else "MORE than float32 rounding explains"
    print(f"{what}: {actual.shape[1]} sampled rows differ by {difference:.1e} from a float64 softmax, {verdict}")
    return bool(difference <= limit)


if __name__ == "__main__":
    raise SystemExit(main())
