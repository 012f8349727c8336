"""A small character-level GPT, forward and backward by hand, on NumPy or CuPy arrays; attention is flashcupy's.

Every layer has ``forward(x) -> (y, cache)`` and ``backward(dy, cache) -> dx``; backward also adds to the gradients of
the layer's parameters. Sizes in the comments: batch B, tokens S, channels C, heads H, head_dim D, vocabulary V.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import numpy as np

import flashcupy

Array = Any  # of NumPy or CuPy: their types have no common stub
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Config:
    """Sizes of the model; `kv_heads` less than `heads` is grouped-query attention."""

    vocabulary: int
    length: int
    layers: int
    d_model: int
    heads: int
    kv_heads: int

    @property
    def head_dim(self) -> int:
        return self.d_model // self.heads


class Parameters:
    """Named parameters and their gradients, views into one vector each.

    The optimiser, clipping and checkpoints then are a few operations on one array, however many layers there are.
    Matrices come first, so that the ones that weight decay applies to are ``vector[:matrix_size]``.
    """

    def __init__(self, shapes: dict[str, Shape], xp: ModuleType, dtype: Any) -> None:
        self.xp = xp
        shapes = dict(sorted(shapes.items(), key=lambda item: len(item[1]) < 2))
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        self.matrix_size = sum(size for name, size in sizes.items() if len(shapes[name]) >= 2)
        self.vector = xp.zeros(sum(sizes.values()), dtype)
        self.gradient_vector = xp.zeros_like(self.vector)
        self.values = _views(self.vector, shapes)
        self.gradients = _views(self.gradient_vector, shapes)


def _views(vector: Array, shapes: dict[str, Shape]) -> dict[str, Array]:
    views, start = {}, 0
    for name, shape in shapes.items():
        views[name] = vector[start : start + math.prod(shape)].reshape(shape)
        start += math.prod(shape)
    return views


class Stopwatch:
    """Adds up the time spent inside ``with``.

    Calls on a GPU return before the work is done: where `wait` is a function that waits for it, their time counts too.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.wait: Callable[[], object] = self.no_wait

    @staticmethod
    def no_wait() -> None:
        """Calls on a processor are done when they return."""

    def __enter__(self) -> None:
        self.wait()
        self.start = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self.wait()
        self.seconds += time.perf_counter() - self.start


class Layer(Protocol):
    """What the model is made of."""

    def forward(self, x: Array) -> tuple[Array, Any]: ...
    def backward(self, dy: Array, cache: Any) -> Array: ...


class Linear:
    """``x @ weight + bias``, (..., C_in) -> (..., C_out)."""

    def __init__(self, parameters: Parameters, name: str) -> None:
        self.weight, self.bias = (parameters.values[f"{name}.{part}"] for part in ("weight", "bias"))
        self.dweight, self.dbias = (parameters.gradients[f"{name}.{part}"] for part in ("weight", "bias"))

    def forward(self, x: Array) -> tuple[Array, Array]:
        rows = _rows(x)  # one matrix product for the batch, not one per sequence
        y = rows @ self.weight
        y += self.bias
        return y.reshape(*x.shape[:-1], -1), rows

    def backward(self, dy: Array, rows: Array) -> Array:
        drows = _rows(dy)
        self.dweight += rows.T @ drows
        self.dbias += drows.sum(axis=0)
        return (drows @ self.weight.T).reshape(*dy.shape[:-1], -1)


class LayerNorm:
    """Mean 0 and variance 1 over the channels, then ``* weight + bias``."""

    def __init__(self, parameters: Parameters, name: str) -> None:
        self.weight, self.bias = (parameters.values[f"{name}.{part}"] for part in ("weight", "bias"))
        self.dweight, self.dbias = (parameters.gradients[f"{name}.{part}"] for part in ("weight", "bias"))

    def forward(self, x: Array) -> tuple[Array, tuple[Array, Array]]:
        centred = x - x.mean(axis=-1, keepdims=True)
        inverse_std = ((centred * centred).mean(axis=-1, keepdims=True) + 1e-5) ** -0.5
        normed = centred * inverse_std
        return normed * self.weight + self.bias, (normed, inverse_std)

    def backward(self, dy: Array, cache: tuple[Array, Array]) -> Array:
        normed, inverse_std = cache
        self.dweight += _rows(dy * normed).sum(axis=0)
        self.dbias += _rows(dy).sum(axis=0)
        dnormed = dy * self.weight
        # What of dnormed would move the mean or the variance is taken out: both are fixed.
        dx = dnormed - dnormed.mean(axis=-1, keepdims=True)
        dx -= normed * (dnormed * normed).mean(axis=-1, keepdims=True)
        return dx * inverse_std


class Gelu:
    """GELU in its tanh approximation."""

    SLOPE = math.sqrt(2 / math.pi)
    CUBIC = 0.044715

    def __init__(self, xp: ModuleType) -> None:
        self.xp = xp

    def forward(self, x: Array) -> tuple[Array, tuple[Array, Array]]:
        tanh = x * x  # in place from here on: on large arrays new memory costs more than arithmetic
        tanh *= self.SLOPE * self.CUBIC
        tanh += self.SLOPE
        tanh *= x
        self.xp.tanh(tanh, out=tanh)
        y = tanh + 1
        y *= x
        y *= 0.5
        return y, (x, tanh)

    def backward(self, dy: Array, cache: tuple[Array, Array]) -> Array:
        x, tanh = cache
        dtanh = x * x
        dtanh *= 3 * self.SLOPE * self.CUBIC
        dtanh += self.SLOPE
        dtanh *= 1 - tanh * tanh
        dx = dtanh * x
        dx += 1 + tanh
        dx *= 0.5
        dx *= dy
        return dx


class CausalSelfAttention:
    """Attention between the heads of one projection, (B, S, (H + 2 Hkv) D) -> (B, S, H D).

    The heads are views, forward and backward: attention reads q, k and v where the projection left them, writes dq, dk
    and dv where its gradient wants them, and returns ``out`` in the memory order of q, so that no call copies.
    """

    def __init__(self, config: Config, xp: ModuleType, stopwatch: Stopwatch) -> None:
        self.config = config
        self.xp = xp
        self.stopwatch = stopwatch
        # ALiBi: what lies 32 to 1 tokens back counts half, so that heads see from the start what is where. Position
        # embeddings alone get there too, some thousands of steps later.
        self.slopes = (math.log(2) / 2.0 ** np.linspace(5, 0, config.heads)).astype(np.float32)

    def forward(self, qkv: Array) -> tuple[Array, flashcupy.AttentionResiduals]:
        q, k, v = self._split(qkv)
        with self.stopwatch:
            out, residuals = flashcupy.attention_fwd(q, k, v, causal=True, alibi_slopes=self.slopes)
        return out.swapaxes(1, 2).reshape(*qkv.shape[:2], -1), residuals

    def backward(self, dy: Array, residuals: flashcupy.AttentionResiduals) -> Array:
        batch, length, _ = dy.shape
        dout = dy.reshape(batch, length, self.config.heads, -1).swapaxes(1, 2)
        channels = (self.config.heads + 2 * self.config.kv_heads) * self.config.head_dim
        dqkv = self.xp.empty((batch, length, channels), dy.dtype)
        with self.stopwatch:
            flashcupy.attention_bwd(dout, residuals, out=flashcupy.AttentionGrads(*self._split(dqkv)))
        return dqkv

    def _split(self, qkv: Array) -> tuple[Array, Array, Array]:
        """Return the views (B, H, S, D), (B, Hkv, S, D), (B, Hkv, S, D) of memory that is (B, S, H + 2 Hkv, D)."""
        heads, kv_heads = self.config.heads, self.config.kv_heads
        by_head = qkv.reshape(*qkv.shape[:2], heads + 2 * kv_heads, -1).swapaxes(1, 2)
        return by_head[:, :heads], by_head[:, heads : heads + kv_heads], by_head[:, heads + kv_heads :]


class Residual:
    """``x + f(x)`` with f some layers one after the other."""

    def __init__(self, *layers: Layer) -> None:
        self.layers = layers

    def forward(self, x: Array) -> tuple[Array, list[Any]]:
        y, caches = x, []
        for layer in self.layers:
            y, cache = layer.forward(y)
            caches.append(cache)
        return x + y, caches

    def backward(self, dy: Array, caches: list[Any]) -> Array:
        dx = dy
        for layer, cache in zip(reversed(self.layers), reversed(caches), strict=True):
            dx = layer.backward(dx, cache)
        return dy + dx


class TinyGPT:
    """Token and position embeddings, pre-LayerNorm blocks, and the token embedding again as the head.

    Parameters
    ----------
    config : Config
    xp : module
        numpy or cupy: where everything is kept and computed.
    dtype : dtype
    rng : numpy.random.Generator
        Draws the initial weights, on the host: the same ones on every device.
    """

    def __init__(self, config: Config, xp: ModuleType, dtype: Any, rng: np.random.Generator) -> None:
        self.config = config
        self.xp = xp
        self.parameters = Parameters(_shapes(config), xp, dtype)
        self.attention_time = Stopwatch()
        self._initialize(rng)
        self.layers: list[Layer] = []
        for block in (f"block{i}" for i in range(config.layers)):
            self.layers += self._block(block)
        self.layers.append(LayerNorm(self.parameters, "norm"))

    def _initialize(self, rng: np.random.Generator) -> None:
        for name, value in self.parameters.values.items():
            if value.ndim < 2:
                value.fill("norm" in name and name.endswith("weight"))
                continue
            # What is added to the residual stream 2 * layers times must not add up to more than the embedding.
            adds_up = name.endswith(("attention_out.weight", "mlp_out.weight"))
            std = 0.02 / math.sqrt(2 * self.config.layers) if adds_up else 0.02
            value[...] = self.xp.asarray(rng.normal(0, std, value.shape), value.dtype)

    def _block(self, name: str) -> list[Layer]:
        parameters = self.parameters
        attention = Residual(
            LayerNorm(parameters, f"{name}.attention_norm"),
            Linear(parameters, f"{name}.attention_in"),
            CausalSelfAttention(self.config, self.xp, self.attention_time),
            Linear(parameters, f"{name}.attention_out"),
        )
        mlp = Residual(
            LayerNorm(parameters, f"{name}.mlp_norm"),
            Linear(parameters, f"{name}.mlp_in"),
            Gelu(self.xp),
            Linear(parameters, f"{name}.mlp_out"),
        )
        return [attention, mlp]

    def hidden(self, ids: Array) -> tuple[Array, list[Any]]:
        """Return what the head reads, (B, S, C), for token ids (B, S), and the caches of all layers."""
        values = self.parameters.values
        x, caches = values["token"][ids] + values["position"][: ids.shape[1]], []
        for layer in self.layers:
            x, cache = layer.forward(x)
            caches.append(cache)
        return x, caches

    def next_logits(self, ids: Array) -> Array:
        """Return the scores (V,) of the token that follows ids (S,)."""
        return self.hidden(ids[None])[0][0, -1] @ self.parameters.values["token"].T

    def loss(self, ids: Array, targets: Array) -> Array:
        """Return the mean cross-entropy of predicting targets (B, S) from ids (B, S), in nats, on the device."""
        return self._head(self.hidden(ids)[0], targets)[0]

    def loss_and_gradients(self, ids: Array, targets: Array) -> Array:
        """Return the loss, and leave its gradients in ``parameters.gradients``."""
        gradients = self.parameters.gradients
        self.parameters.gradient_vector.fill(0)
        x, caches = self.hidden(ids)
        loss, dlogits = self._head(x, targets)
        gradients["token"] += dlogits.T @ _rows(x)
        dx = (dlogits @ self.parameters.values["token"]).reshape(x.shape)
        for layer, cache in zip(reversed(self.layers), reversed(caches), strict=True):
            dx = layer.backward(dx, cache)
        gradients["position"][: ids.shape[1]] += dx.sum(axis=0)
        # A product with one-hot rows, since adding row by row on a GPU would sum in a different order each time.
        gradients["token"] += self._one_hot(ids).T @ _rows(dx)
        return loss

    def _head(self, x: Array, targets: Array) -> tuple[Array, Array]:
        """Return the loss and its gradient with respect to the logits, (B S, V)."""
        logits = _rows(x) @ self.parameters.values["token"].T
        logits -= logits.max(axis=-1, keepdims=True)
        probabilities = self.xp.exp(logits)
        total = probabilities.sum(axis=-1, keepdims=True)
        losses = self.xp.log(total) - self.xp.take_along_axis(logits, targets.reshape(-1, 1), axis=-1)
        probabilities /= total
        return losses.mean(), (probabilities - self._one_hot(targets)) / targets.size

    def _one_hot(self, ids: Array) -> Array:
        columns = self.xp.arange(self.config.vocabulary)
        return (ids.reshape(-1, 1) == columns).astype(self.parameters.vector.dtype)


def _shapes(config: Config) -> dict[str, Shape]:
    width, head_dim = config.d_model, config.head_dim
    shapes: dict[str, Shape] = {"token": (config.vocabulary, width), "position": (config.length, width)}

    def add(name: str, *weight: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = weight, weight[-1:]

    for block in (f"block{i}" for i in range(config.layers)):
        add(f"{block}.attention_norm", width)
        add(f"{block}.attention_in", width, (config.heads + 2 * config.kv_heads) * head_dim)
        add(f"{block}.attention_out", config.heads * head_dim, width)
        add(f"{block}.mlp_norm", width)
        add(f"{block}.mlp_in", width, 4 * width)
        add(f"{block}.mlp_out", 4 * width, width)
    add("norm", width)
    return shapes


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def sample(
    model: TinyGPT, ids: Sequence[int], count: int, temperature: float, top_k: int, rng: np.random.Generator
) -> list[int]:
    """Return `count` token ids that follow `ids`, drawn on the host: the same generator serves every device."""
    ids = list(ids)
    for _ in range(count):
        logits = model.next_logits(model.xp.asarray(ids[-model.config.length :])).tolist()
        ids.append(_draw(np.array(logits), temperature, top_k, rng))
    return ids[-count:] if count else []


def _draw(logits: np.ndarray, temperature: float, top_k: int, rng: np.random.Generator) -> int:
    best = np.argsort(-logits, kind="stable")[:top_k]
    if temperature == 0:
        return int(best[0])
    weights = np.exp((logits[best] - logits[best[0]]) / temperature)
    return int(rng.choice(best, p=weights / weights.sum()))
