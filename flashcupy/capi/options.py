"""The options struct of the C interface as keyword arguments."""

from __future__ import annotations

from typing import Any

from flashcupy.capi.masks import MaskTable
from flashcupy.capi.tensors import TensorReader

DETERMINISTIC = 128
_CAUSAL = {0: False, 1: "bottom-right", 2: "top-left"}
_PRECISION = {0: "highest", 1: "tf32"}
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
_NO_TENSORS = dict.fromkeys((*_LARGE, *_VECTORS, *_NUMBERS, "block_mask"))
_MOST_KEPT = 256


class OptionsReader:
    """Reads options structs; what their plain values mean is kept, because calls in a row have the same."""

    def __init__(self, ffi: Any, masks: MaskTable) -> None:
        self._ffi, self._masks = ffi, masks
        first = ffi.typeof("flashcupy_options").fields
        fields = {name: (field.offset, field.offset + ffi.sizeof(field.type)) for name, field in first}
        self._plain = slice(0, fields["mask"][0])
        self._pointers = slice(fields["mask"][0], fields["cu_seqlens_k"][1])
        self._longest = slice(fields["max_seqlen_q"][0], fields["max_seqlen_k"][1])
        self._kept: dict[bytes, dict[str, Any]] = {}

    def keywords(self, options: Any, reader: TensorReader) -> dict[str, Any]:
        """What `flashcupy.attention` gets, and the cu_seqlens and max_seqlens of packed rows.

        Raises
        ------
        ValueError
            For flags and enumerations that there are not, values without their flag, and a dropout without a seed.
        """
        content = self._ffi.buffer(options)
        key = content[self._plain] + content[self._longest]
        plain = self._kept.get(key)
        if plain is None:
            plain = _plain_values(options)
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            self._kept[key] = plain
        words = {**plain, **_NO_TENSORS}
        if any(content[self._pointers]):
            self._read_tensors(options, reader, words)
        if options.block_mask:
            words["block_mask"] = self._masks.of_call(options.block_mask)
        if words["dropout"] and words["seed"] is None:
            raise ValueError("dropout is not 0, expected a seed: FLASHCUPY_HAS_SEED or seed_words")
        return words

    def _read_tensors(self, options: Any, reader: TensorReader, words: dict[str, Any]) -> None:
        for names, read in ((_LARGE, reader.optional), (_VECTORS, reader.vector), (_NUMBERS, reader.numbers)):
            for name in names:
                tensor = getattr(options, name)
                if tensor:
                    words[name] = read(tensor, name)
        if options.seed_words:
            words["seed"] = _seed_words(words["seed"], reader.numbers(options.seed_words, "seed_words"))


def _plain_values(options: Any) -> dict[str, Any]:
    if options.flags & ~_KNOWN:
        unknown = options.flags & ~_KNOWN
        raise ValueError(f"options.flags has unknown bits {unknown:#x}: the header is of a newer version")
    values = {name: _flagged(options, name) for name in _FLAGGED}
    return {
        "causal": _enumerated(options, "causal", _CAUSAL),
        "precision": _enumerated(options, "precision", _PRECISION),
        "dropout": options.dropout,
        "window": _window(values.pop("window_left"), values.pop("window_right")),
        "seed": _seed(options, values.pop("seed")),
        **values,
    }


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


def _seed(options: Any, seed: int | None) -> tuple[int, int] | None:
    if seed is not None:
        return seed, options.seed_offset
    if options.seed_offset:
        raise ValueError(f"seed_offset is {options.seed_offset}, but flags lack FLASHCUPY_HAS_SEED")
    return None


def _seed_words(seed: tuple[int, int] | None, words: Any) -> Any:
    if seed is not None:
        raise ValueError("seed_words is not NULL, but flags have FLASHCUPY_HAS_SEED, expected one of them")
    return words
