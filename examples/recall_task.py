"""A task that attention can only do by finding the right block far back, and the smallest model that learns it.

A sequence is `passages` passages of `block` tokens, then as many blocks of questions. Each token of a passage bears the
passage's topic, a key and a value; the tokens of a question block all bear the topic of one passage, and a key each:
what was the value? Keys are the same in all passages, so that it takes both, topic and key. Sizes in the comments:
batch B, tokens S, channels C, heads H, head_dim D.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
from adamw import AdamW, clip, learning_rate
from devices import Array
from tiny_gpt import Linear, Parameters, Stopwatch

import flashcupy
from flashcupy import BlockMask

# q (B, H, S, D) and k (B, Hkv, S, D) -> the blocks to visit, None for all
Choose = Callable[[Array, Array], BlockMask | None]

CHANNELS, TOPICS, VALUES = 64, 64, 16
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 32
PEAK_LEARNING_RATE, GRADIENT_NORM = 1e-2, 1.0


@dataclass(frozen=True)
class Task:
    """Draws sequences; tokens come embedded, by random vectors that do not change.

    Attributes
    ----------
    passages, block : int
        Passages of a sequence, and tokens of one.
    """

    passages: int
    block: int
    topic: np.ndarray = field(init=False, repr=False)
    key: np.ndarray = field(init=False, repr=False)
    value: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        for name, count in (("topic", TOPICS), ("key", self.block), ("value", VALUES + 1)):
            object.__setattr__(self, name, rng.standard_normal((count, CHANNELS), dtype=np.float32))

    @property
    def blocks(self) -> int:
        return 2 * self.passages

    @property
    def length(self) -> int:
        return self.blocks * self.block

    def draw(self, batch: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return tokens (B, S, C), the values asked for (B, S / 2), and which passage each block asks (B, passages)."""
        shape = (batch, self.passages, self.block)
        topics = rng.permuted(np.broadcast_to(np.arange(TOPICS), (batch, TOPICS)), axis=1)[:, : self.passages]
        keys = rng.permuted(np.broadcast_to(np.arange(self.block), shape), axis=2)
        values = rng.integers(0, VALUES, shape)
        asked = rng.permuted(np.broadcast_to(np.arange(self.passages), shape[:2]), axis=1)
        places = rng.permuted(np.broadcast_to(np.arange(self.block), shape), axis=2)

        def of_asked(table: np.ndarray) -> np.ndarray:
            return np.take_along_axis(np.take_along_axis(table, asked[..., None], axis=1), places, axis=2)

        told = self.topic[topics][:, :, None] + self.key[keys] + self.value[values]
        topics_asked = np.take_along_axis(topics, asked, axis=1)
        # The last row of the table of values stands for the question.
        questions = self.topic[topics_asked][:, :, None] + self.key[of_asked(keys)] + self.value[VALUES]
        tokens = np.concatenate([told, questions], axis=1).reshape(batch, self.length, CHANNELS)
        return tokens, of_asked(values).reshape(batch, -1), asked


class RecallModel:
    """One layer of causal attention from embedded tokens to the value asked for, forward and backward by hand.

    Query heads start as copies of the key heads they read. Random queries and keys would match nothing at first, so
    that neither dense nor chosen blocks had a gradient to learn from for the first hundreds of steps.
    """

    def __init__(self, xp: ModuleType, dtype: Any, rng: np.random.Generator) -> None:
        self.xp = xp
        project, read = (CHANNELS, (HEADS + 2 * KV_HEADS) * HEAD_DIM), (HEADS * HEAD_DIM, VALUES)
        shapes = {"project.weight": project, "project.bias": project[1:], "read.weight": read, "read.bias": read[1:]}
        self.parameters = Parameters(shapes, xp, dtype)
        for name in ("project.weight", "read.weight"):
            value = self.parameters.values[name]
            value[...] = xp.asarray(rng.normal(0, 0.1, value.shape), value.dtype)
        q, k, _ = split_heads(self.parameters.values["project.weight"][None])
        q[...] = k.repeat(HEADS // KV_HEADS, axis=1)
        self.project, self.read = (Linear(self.parameters, name) for name in ("project", "read"))
        self.optimizer = AdamW(self.parameters.vector, self.parameters.matrix_size, xp, weight_decay=0.0)
        self.attention_time, self.choosing_time = Stopwatch(), Stopwatch()

    def loss_and_gradients(self, tokens: Array, values: Array, choose: Choose) -> tuple[Array, Array]:
        """Return the mean loss of the questions and the share answered right; leave gradients in the parameters."""
        self.parameters.gradient_vector.fill(0)
        qkv, project_rows = self.project.forward(tokens)
        q, k, v = split_heads(qkv)
        with self.choosing_time:
            mask = choose(q, k)
        with self.attention_time:
            out, residuals = flashcupy.attention_fwd(q, k, v, causal=True, block_mask=mask)
        batch, _, length, _ = out.shape
        attended = out.swapaxes(1, 2).reshape(batch, length, -1)
        logits, read_rows = self.read.forward(attended[:, length // 2 :])
        loss, right, dlogits = self._judge(logits, values)
        dattended = self.xp.zeros_like(attended)
        dattended[:, length // 2 :] = self.read.backward(dlogits, read_rows)
        dqkv = self.xp.empty_like(qkv)
        with self.attention_time:
            dout = dattended.reshape(batch, length, HEADS, -1).swapaxes(1, 2)
            flashcupy.attention_bwd(dout, residuals, out=flashcupy.AttentionGrads(*split_heads(dqkv)))
        self.project.backward(dqkv, project_rows)
        return loss, right

    def train_step(self, tokens: Array, values: Array, choose: Choose, step: int, steps: int) -> tuple[Array, Array]:
        """Update the weights; return what `loss_and_gradients` does."""
        loss, right = self.loss_and_gradients(tokens, values, choose)
        clip(self.parameters.gradient_vector, GRADIENT_NORM, self.xp)
        self.optimizer.update(self.parameters.gradient_vector, learning_rate(step, steps, PEAK_LEARNING_RATE))
        return loss, right

    def queries_and_keys(self, tokens: Array) -> tuple[Array, Array]:
        q, k, _ = split_heads(self.project.forward(tokens)[0])
        return q, k

    def _judge(self, logits: Array, values: Array) -> tuple[Array, Array, Array]:
        """Return mean cross-entropy, share of right answers, and the gradient of the logits (B, S / 2, VALUES)."""
        logits = logits - logits.max(axis=-1, keepdims=True)
        likely = self.xp.exp(logits)
        total = likely.sum(axis=-1, keepdims=True)
        is_value = values[..., None] == self.xp.arange(VALUES)
        loss = (self.xp.log(total)[..., 0] - (logits * is_value).sum(axis=-1)).mean()
        return loss, (logits.argmax(axis=-1) == values).mean(), (likely / total - is_value) / values.size


def split_heads(qkv: Array) -> tuple[Array, Array, Array]:
    """Return the views (B, H, S, D), (B, Hkv, S, D), (B, Hkv, S, D) of (B, S, (H + 2 Hkv) D)."""
    by_head = qkv.reshape(*qkv.shape[:2], HEADS + 2 * KV_HEADS, -1).swapaxes(1, 2)
    return by_head[:, :HEADS], by_head[:, HEADS : HEADS + KV_HEADS], by_head[:, HEADS + KV_HEADS :]
