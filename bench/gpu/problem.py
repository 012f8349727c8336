"""What one row of a table computes, and the floating-point operations that count for it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from bench.gpu.options import OPTIONS, dtype_of
from bench.gpu.pattern import Pattern

Direction = Literal["forward", "backward", "forward + backward"]

# The forward's two matmuls count as one; the backward has five.
COUNTED = {"forward": 1, "backward": 2.5, "forward + backward": 3.5}

TOKENS = 16384
WIDTH = 2048  # heads times head dim


@dataclass(frozen=True)
class Problem:
    """One attention call on operands of shape (batch, heads, length, head_dim).

    Attributes
    ----------
    direction
        "backward" is the backward call alone: its forward is not timed.
    options
        Names out of `bench.gpu.options.OPTIONS`.
    pattern
        The block mask of a block-sparse call.
    sequences
        Lengths of packed sequences, which make up q_length and kv_length together; batch is 1 then.
    """

    direction: Direction
    dtype: str
    batch: int
    heads: int
    q_length: int
    kv_length: int
    head_dim: int
    kv_heads: int
    causal: bool = False
    precision: str = "highest"
    options: tuple[str, ...] = ()
    pattern: Pattern | None = None
    sequences: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Return what tells this row from others, for people."""
        heads = f"H={self.heads}" if self.heads == self.kv_heads else f"H={self.heads}/{self.kv_heads}"
        length = f"S={self.q_length}" if self.q_length == self.kv_length else f"Sq={self.q_length} Sk={self.kv_length}"
        parts = [self.dtype, f"D={self.head_dim}", f"B={self.batch}", heads, length]
        parts += ["causal"] * self.causal + ["tf32"] * (self.precision == "tf32") + list(self.options)
        parts += [self.pattern.name] if self.pattern else []
        parts += [f"{len(self.sequences)} packed"] if self.sequences else []
        return " ".join(parts)

    @property
    def pairs(self) -> float:
        """Return the pairs of query and key that count, of one head: half of them where causal."""
        pairs = float(self.batch * self.q_length * self.kv_length)
        if self.sequences:
            pairs = float(sum(length * length for length in self.sequences))
        if self.pattern is not None:
            pairs *= self.pattern.visited_share(self.q_length, self.kv_length)
        for option in self.options:
            pairs *= OPTIONS[option].visible_share(self)
        return pairs / 2 if self.causal else pairs

    @property
    def flops(self) -> float:
        """Return 4 per pair and head dim (two matmuls of 2 each); the backward's five matmuls count 2.5 times that."""
        return 4 * self.heads * self.head_dim * self.pairs * COUNTED[self.direction]

    @property
    def result_bytes(self) -> int:
        """Return the bytes of the results alone, which no call can do without: out, or the three gradients, or all."""
        of_q = self.batch * self.heads * self.q_length * self.head_dim
        of_k = self.batch * self.kv_heads * self.kv_length * self.head_dim
        elements = {"forward": of_q, "backward": of_q + 2 * of_k, "forward + backward": 2 * of_q + 2 * of_k}
        return elements[self.direction] * dtype_of(self.dtype).itemsize

    @property
    def score_bytes(self) -> int:
        """Return the bytes of one score matrix over all heads in float32."""
        return 4 * self.batch * self.heads * self.q_length * self.kv_length

    def record(self) -> dict[str, Any]:
        """Return the fields for a result file."""
        return asdict(self)


def square(
    direction: Direction, dtype: str, head_dim: int, length: int, tokens: int = TOKENS, **fields: Any
) -> Problem:
    """Return self-attention of `tokens` tokens in sequences of `length`, heads as the model width has them."""
    heads = max(1, WIDTH // head_dim)
    problem = Problem(direction, dtype, max(1, tokens // length), heads, length, length, head_dim, heads)
    return replace(problem, **fields)
