"""From metadata to a validated AttentionSpec: every check that needs no array.

The result is remembered: a program calls attention with few different shapes, strides, dtypes and options, many times
each, and on a GPU the checks would take longer than the launch.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from flashcupy import arrays, options
from flashcupy.arrays import Array
from flashcupy.spec import AttentionSpec, OperandSpec

_REMEMBERED = 1024


class Meta(NamedTuple):
    """What is checked of an operand, and part of the key that its spec is remembered by."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype


class Packing(NamedTuple):
    """What cu_seqlens and max_seqlen tell."""

    sequences: int
    q_len: int
    kv_len: int


class Lists(NamedTuple):
    """Geometry of a block mask."""

    shape: tuple[int, int, int, int]
    block_size: tuple[int, int]


def meta(array: Array | None) -> tuple[Any, ...] | None:
    """The fields of a `Meta`, as a plain tuple, which is quicker to make."""
    return None if array is None else (array.shape, array.strides, array.dtype)


def spec(*described: Any) -> AttentionSpec:
    """`_spec`, remembered.

    Raises
    ------
    TypeError, ValueError
        For what does not fit together; the message names the argument.
    """
    try:
        return _remembered(*described)
    except TypeError:
        pass  # an option that has no hash, or one that is wrong: the checks below tell
    return _spec(*described)


def _spec(
    device: str,
    packing: Packing | None,
    q: tuple[Any, ...],
    k: tuple[Any, ...],
    v: tuple[Any, ...] | None,
    mask: tuple[Any, ...] | None,
    bias: tuple[Any, ...] | None,
    alibi_slopes: tuple[Any, ...] | None,
    sinks: tuple[Any, ...] | None,
    lists: Lists | None,
    window: tuple[int | None, int | None],
    causal: Any,
    scale: Any,
    softcap: Any,
    dropout: Any,
    precision: Any,
) -> AttentionSpec:
    """Make a spec; operands are as `meta` gives them, the window is checked, other options are as the caller wrote.

    Calls that need no values have no v.
    """
    given = {"q": q, "k": k, "v": v, "mask": mask, "bias": bias, "alibi_slopes": alibi_slopes, "sinks": sinks}
    operands = {name: Meta(*fields) for name, fields in given.items() if fields is not None}
    _check_dtypes(operands)
    shapes = {name: with_head(operands[name].shape, name) for name in "qkv" if name in operands}
    batch = _broadcast_batch(shapes) if packing is None else (packing.sequences,)
    q_heads, kv_heads = _check_matrices(shapes)
    q_len, kv_len = (shapes["q"][-2], shapes["k"][-2]) if packing is None else packing[1:]
    for name in ("mask", "bias"):
        _require_broadcast(operands, name, (*batch, q_heads, q_len, kv_len))
    _require_broadcast(operands, "alibi_slopes", (*batch, q_heads))
    _check_sinks(operands, q_heads)
    if lists is not None:
        _check_lists(lists, math.prod(batch), (q_heads, kv_heads), (q_len, kv_len))
    return AttentionSpec(
        batch=batch,
        q_heads=q_heads,
        kv_heads=kv_heads,
        q_len=q_len,
        kv_len=kv_len,
        head_dim=shapes["q"][-1],
        v_dim=shapes["v"][-1] if "v" in shapes else 0,
        dtype=operands["q"].dtype.name,
        device=device,
        varlen=packing is not None,
        headless=all(len(operands[name].shape) == 2 for name in shapes),
        scale=options.check_scale(scale, shapes["q"][-1]),
        causal=options.check_causal(causal),
        window=window,
        softcap=options.check_softcap(softcap),
        dropout=options.check_dropout(dropout),
        precision=options.check_precision(precision),
        block_size=None if lists is None else lists.block_size,
        mask_heads=None if lists is None else lists.shape[1],
        operands=tuple((name, OperandSpec.of(*operand)) for name, operand in operands.items()),
    )


# typed: True equals 1 and 1.0, and what is right for one option is an error for another.
_remembered = functools.lru_cache(_REMEMBERED, typed=True)(_spec)


def with_head(shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    if len(shape) < 2:
        raise ValueError(f"{name} has shape {shape}, expected at least 2 dims: (..., heads, length, dim)")
    return shape if len(shape) > 2 else (1, *shape)


def _check_dtypes(operands: dict[str, Meta]) -> None:
    query = operands["q"]
    arrays.require_float(query, "q")
    for name in ("k", "v"):
        if name in operands and operands[name].dtype.name != query.dtype.name:
            raise TypeError(f"{name} has dtype {operands[name].dtype}, expected {query.dtype} as q has")
    if "mask" in operands and operands["mask"].dtype != np.bool_:
        raise TypeError(
            f"mask has dtype {operands['mask'].dtype}, expected bool with True = attend; additive values go to bias="
        )
    if "bias" in operands and operands["bias"].dtype == np.bool_:
        raise TypeError("bias has dtype bool, expected floating values that are added; visibility goes to mask=")
    for name in ("bias", "alibi_slopes", "sinks"):
        if name in operands:
            arrays.require_float(operands[name], name)


def _broadcast_batch(shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    batches = {name: shape[:-3] for name, shape in shapes.items()}
    try:
        return np.broadcast_shapes(*batches.values())
    except ValueError:
        got = ", ".join(f"{name} {batch}" for name, batch in batches.items())
        raise ValueError(f"{', '.join(batches)} have batch dims {got}, expected dims that broadcast together") from None


def _check_matrices(shapes: dict[str, tuple[int, ...]]) -> tuple[int, int]:
    """Check head counts, lengths and dims that must agree; return (Hq, Hkv)."""
    (q_heads, _, head_dim), (kv_heads, kv_len, k_dim) = shapes["q"][-3:], shapes["k"][-3:]
    v_heads, v_len, _ = shapes.get("v", shapes["k"])[-3:]
    if head_dim < 1:
        raise ValueError("q has head_dim 0, expected at least 1")
    if k_dim != head_dim:
        raise ValueError(f"k has head_dim {k_dim}, expected {head_dim} as q has")
    if v_heads != kv_heads:
        raise ValueError(f"v has {v_heads} heads, expected {kv_heads} as k has")
    if v_len != kv_len:
        raise ValueError(f"v has {v_len} rows, expected {kv_len} as k has")
    if (q_heads % kv_heads if kv_heads else q_heads) != 0:
        raise ValueError(f"q has {q_heads} heads and k has {kv_heads}, expected a multiple of the heads of k")
    return q_heads, kv_heads


def _require_broadcast(operands: dict[str, Meta], name: str, target: tuple[int, ...]) -> None:
    if name in operands and not broadcasts(operands[name].shape, target):
        raise ValueError(f"{name} has shape {operands[name].shape}, expected one that broadcasts to {target}")


@functools.lru_cache(_REMEMBERED)
def broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, target) == target
    except ValueError:
        return False


def _check_sinks(operands: dict[str, Meta], q_heads: int) -> None:
    if "sinks" in operands and operands["sinks"].shape != (q_heads,):
        got = operands["sinks"].shape
        raise ValueError(f"sinks has shape {got}, expected ({q_heads},): one logit for each query head")


def _check_lists(lists: Lists, batch: int, heads: tuple[int, int], lengths: tuple[int, int]) -> None:
    mask_batch, mask_heads, *mask_lengths = lists.shape
    q_heads, kv_heads = heads
    if tuple(mask_lengths) != lengths:
        raise ValueError(f"block_mask covers {tuple(mask_lengths)} (Sq, Sk), expected {lengths}")
    if mask_batch not in (1, batch):
        raise ValueError(f"block_mask has batch {mask_batch}, expected 1 or {batch}")
    if mask_heads not in (1, kv_heads, q_heads):
        wanted = " or ".join(map(str, dict.fromkeys((1, kv_heads, q_heads))))
        raise ValueError(f"block_mask has {mask_heads} heads, expected {wanted}")
