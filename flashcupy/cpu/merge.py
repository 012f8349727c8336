"""Merging attention over parts of the keys: a softmax over the parts' row sums."""

from __future__ import annotations

import numpy as np


def merge(parts: list[np.ndarray], logs: list[np.ndarray], target: np.ndarray, lse: np.ndarray) -> None:
    """Combine outputs (..., Sq, Dv) and lse (..., Sq), in the dtype of `lse`."""
    acc = lse.dtype
    with np.errstate(all="ignore"):
        highest = np.maximum.reduce(logs).astype(acc)
        shift = np.where(highest == -np.inf, 0, highest)
        weights = [np.exp(log.astype(acc) - shift)[..., None] for log in logs]
        total = np.add.reduce(weights)
        merged = np.zeros(parts[0].shape, acc)
        for part, weight in zip(parts, weights, strict=True):
            # A part that saw nothing has weight 0 and may hold anything.
            merged += np.where(weight == 0, 0, weight / total * part.astype(acc))
        target[...] = merged
        lse[...] = shift + np.log(total[..., 0])
