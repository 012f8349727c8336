"""AdamW on one vector that holds all parameters, with warmup, cosine decay and clipping; NumPy or CuPy arrays."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

Array = Any


class AdamW:
    """Adam with decoupled weight decay: Loshchilov and Hutter, 2019.

    Parameters
    ----------
    parameters : array (n,)
        Updated in place.
    decayed : int
        Weight decay applies to the first so many.
    xp : module
        numpy or cupy.
    """

    def __init__(
        self,
        parameters: Array,
        decayed: int,
        xp: ModuleType,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ) -> None:
        self.parameters, self.decayed, self.xp = parameters, parameters[:decayed], xp
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.first_moment, self.second_moment = xp.zeros_like(parameters), xp.zeros_like(parameters)
        self.steps = 0

    def update(self, gradient: Array, learning_rate: float) -> None:
        self.steps += 1
        beta1, beta2 = self.betas
        self.first_moment += (1 - beta1) * (gradient - self.first_moment)
        self.second_moment += (1 - beta2) * (gradient * gradient - self.second_moment)
        # Both start from 0 and are too small at first, by these factors.
        first_share, second_share = 1 - beta1**self.steps, 1 - beta2**self.steps
        self.decayed *= 1 - learning_rate * self.weight_decay
        scale = self.xp.sqrt(self.second_moment / second_share) + self.eps
        self.parameters -= (learning_rate / first_share) * self.first_moment / scale


def clip(gradient: Array, limit: float, xp: ModuleType) -> None:
    """Scale `gradient` in place so that its norm is at most `limit`; the norm stays on the device."""
    gradient *= xp.minimum(1, limit / (xp.linalg.norm(gradient) + 1e-6))


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Return a linear warmup over a tenth of the steps, at most 100, then half a cosine down to a tenth of `peak`."""
    warmup = max(1, min(100, steps // 10))
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.55 + 0.45 * math.cos(math.pi * progress))
