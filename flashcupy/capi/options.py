"""The options struct of the C interface as keyword arguments."""

from __future__ import annotations

from typing import Any

from flashcupy.capi.masks import MaskTable
from flashcupy.capi.tensors import TensorReader

_CAUSAL = {0: False, 1: "bottom-right", 2: "top-left"}
_PRECISION = {0: "highest", 1: "tf32"}
DETERMINISTIC = 128
# Values that count with their flag only.
_FLAGGED = {
    "scale": 1,
    "softcap": 2,
    "window_left": 4,
    "window_right": 8,
    "seed": 16,
    "max_seqlen_q": 32,
    "max_seqlen_k": 64,
}
_KNOWN = sum(_FLAGGED.values()) | DETERMINISTIC
_LARGE = ("mask", "bias")
_VECTORS = ("alibi_slopes", "sinks")
_NUMBERS = ("q_lengths", "kv_lengths", "cu_seqlens_q", "cu_seqlens_k")


def keywords(options: Any, reader: TensorReader, masks: MaskTable) -> dict[str, Any]:
    """What `flashcupy.attention` gets, and the cu_seqlens and max_seqlens of packed rows.

    Raises
    ------
    ValueError
        For flags and enumerations that there are not, values without their flag, and a dropout without a seed.
    """
    flags = options.flags
    if flags & ~_KNOWN:
        raise ValueError(f"options.flags has unknown bits {flags & ~_KNOWN:#x}: the header is of a newer version")
    values = {name: _flagged(options, name) for name in _FLAGGED}
    result = {
        "causal": _enumerated(options, "causal", _CAUSAL),
        "precision": _enumerated(options, "precision", _PRECISION),
        "dropout": options.dropout,
        "window": _window(values.pop("window_left"), values.pop("window_right")),
        "seed": _seed(options, values.pop("seed"), reader),
        "block_mask": masks.of_call(options.block_mask) if options.block_mask else None,
        **values,
    }
    for names, read in ((_LARGE, reader.optional), (_VECTORS, reader.vector), (_NUMBERS, reader.numbers)):
        for name in names:
            result[name] = read(getattr(options, name), name)
    if result["dropout"] and result["seed"] is None:
        raise ValueError("dropout is not 0, expected a seed: FLASHCUPY_HAS_SEED or seed_words")
    return result


def _flagged(options: Any, name: str) -> Any:
    value = getattr(options, name)
    if options.flags & _FLAGGED[name]:
        return value
    if value != 0:
        raise ValueError(f"{name} is {value}, but flags lack FLASHCUPY_HAS_{name.upper()}")
    return None


def _enumerated(options: Any, name: str, meanings: dict[int, Any]) -> Any:
    value = getattr(options, name)
    if value not in meanings:
        raise ValueError(f"{name} is {value}, expected one of {', '.join(map(str, meanings))}")
    return meanings[value]


def _window(left: int | None, right: int | None) -> tuple[int | None, int | None] | None:
    for name, value in (("window_left", left), ("window_right", right)):
        if value is not None and value < 0:
            raise ValueError(f"{name} is {value}, expected >= 0; without FLASHCUPY_HAS_{name.upper()} it is unbounded")
    return None if left is None and right is None else (left, right)


def _seed(options: Any, seed: int | None, reader: TensorReader) -> Any:
    words = reader.numbers(options.seed_words, "seed_words")
    if seed is None:
        if options.seed_offset:
            raise ValueError(f"seed_offset is {options.seed_offset}, but flags lack FLASHCUPY_HAS_SEED")
        return words
    if words is not None:
        raise ValueError("seed_words is not NULL, but flags have FLASHCUPY_HAS_SEED, expected one of them")
    return seed, options.seed_offset
