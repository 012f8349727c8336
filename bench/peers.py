"""What flashcupy is measured against, each as good as its users would write it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.harness import Call

Array = npt.NDArray[np.float32]


def qkv(batch: int, heads: int, length: int, head_dim: int = 64) -> tuple[Array, Array, Array]:
    """Return random float32 q, k, v of shape (batch, heads, length, head_dim)."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((batch, heads, length, head_dim), dtype=np.float32) for _ in range(3))
    return q, k, v


def naive_forward(q: Array, k: Array, v: Array, causal: bool) -> tuple[Array, Array]:
    """Return (out, P) by NumPy as one writes the formula down."""
    scores = q @ k.swapaxes(-1, -2) * np.float32(q.shape[-1] ** -0.5)
    if causal:
        scores = np.where(np.tri(*scores.shape[-2:], dtype=np.bool_), scores, np.float32(-np.inf))
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    p = weights / weights.sum(axis=-1, keepdims=True)
    return p @ v, p


def naive_forward_backward(q: Array, k: Array, v: Array, dout: Array, causal: bool) -> tuple[Array, Array, Array]:
    """Return (dq, dk, dv) by NumPy as one writes the formulas down."""
    _, p = naive_forward(q, k, v, causal)
    dp = dout @ v.swapaxes(-1, -2)
    ds = p * (dp - (p * dp).sum(axis=-1, keepdims=True)) * np.float32(q.shape[-1] ** -0.5)
    return ds @ k, ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ dout


def frugal_forward(q: Array, k: Array, v: Array, causal: bool) -> tuple[Array, Array]:
    """Return (out, P) by NumPy that reuses its S x S scores in place, as someone who knows NumPy would write it."""
    p = q @ k.swapaxes(-1, -2)
    p *= np.float32(q.shape[-1] ** -0.5)
    if causal:
        rows, columns = np.ogrid[: p.shape[-2], : p.shape[-1]]
        np.copyto(p, -np.inf, where=columns > rows)
    p -= p.max(axis=-1, keepdims=True)
    np.exp(p, out=p)
    p /= p.sum(axis=-1, keepdims=True)
    return p @ v, p


def frugal_forward_backward(q: Array, k: Array, v: Array, dout: Array, causal: bool) -> tuple[Array, Array, Array]:
    """Return (dq, dk, dv) by NumPy that works in place."""
    out, p = frugal_forward(q, k, v, causal)
    dv = p.swapaxes(-1, -2) @ dout
    ds = dout @ v.swapaxes(-1, -2)
    ds -= (dout * out).sum(axis=-1, keepdims=True)
    ds *= p
    ds *= np.float32(q.shape[-1] ** -0.5)
    return ds @ k, ds.swapaxes(-1, -2) @ q, dv


def torch_forward(q: Array, k: Array, v: Array, causal: bool) -> dict[str, Call]:
    """Return torch's flash kernel on the same data as ``{"torch": call}``, or nothing where torch is not installed."""
    torch = _torch()
    if torch is None:
        return {}
    tensors = [torch.from_numpy(x) for x in (q, k, v)]

    def call() -> object:
        with torch.no_grad():
            return _flash(torch, tensors, causal)

    return {"torch": call}


def torch_forward_backward(q: Array, k: Array, v: Array, dout: Array, causal: bool) -> dict[str, Call]:
    """Return forward and backward of torch's flash kernel through autograd, as `torch_forward` does."""
    torch = _torch()
    if torch is None:
        return {}
    tensors = [torch.from_numpy(x).requires_grad_() for x in (q, k, v)]
    gradient = torch.from_numpy(dout)

    def call() -> object:
        return torch.autograd.grad(_flash(torch, tensors, causal), tensors, gradient)

    return {"torch": call}


def set_torch_threads(threads: int) -> None:
    """Hold torch, where it is installed, to as many threads as the others."""
    torch = _torch()
    if torch is not None:
        torch.set_num_threads(threads)


def _flash(torch: Any, tensors: Sequence[Any], causal: bool) -> Any:
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
        return torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=causal)


def _torch() -> Any:
    try:
        import torch
        import torch.nn.attention
    except ImportError:
        return None
    return torch
