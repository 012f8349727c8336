"""Kernel configurations: everything that is compiled in, and the tables that choose it. One config, one kernel.

A config knows its translation unit, and its name tells it from every other. Choosing one affects speed, registers and
shared memory, never results beyond rounding. Here are those without tiles and what all share; a family's own are in
`config_generic` and `config_sm80`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from flashcupy.spec import AttentionSpec

# Score features that are compiled in, in the order of the score formula; the value is the C++ hook.
FEATURES = {"softcap": "Softcap", "bias": "Bias", "alibi": "Alibi", "mask": "Mask", "dropout": "Dropout"}

Schedule = Literal["band", "list"]


@dataclass(frozen=True, slots=True)
class PlainConfig:
    """A kernel without tiles: ``function<arguments, threads>(params)`` of ``<function>.cu``."""

    function: str
    params: str
    arguments: tuple[str, ...] = ()
    threads: int = 128
    shared_bytes: int = 0
    shared: str = ""  # the C++ type of what lies there
    blocks: int | None = None  # at least so many on a multiprocessor, where ptxas left to itself spills for more

    @property
    def name(self) -> str:
        return "_".join((self.function, *self.arguments, f"t{self.threads}"))

    def translation_unit(self) -> str:
        arguments = ", ".join((*self.arguments, str(self.threads)))
        same = f'static_assert(sizeof({self.shared}) == {self.shared_bytes}, "the host\'s shared_bytes");\n'
        bounds = self.threads if self.blocks is None else f"{self.threads}, {self.blocks}"
        return (
            f"#include <{self.function}.cu>\n"
            f"{same if self.shared else ''}"
            f'extern "C" __global__ void __launch_bounds__({bounds}) {self.name}('
            f"const __grid_constant__ {self.params} params) {{\n"
            f"    {self.function}<{arguments}>(params);\n"
            "}\n"
        )


ROWS_PER_BLOCK = 32
FILL = PlainConfig("fill", "FillParams")
UPLOAD = PlainConfig("upload", "UploadParams")
SUM_BATCH = PlainConfig("sum_batch", "SumBatchParams")
SUM_SINKS = PlainConfig("sum_sinks", "SumSinksParams", threads=256, shared_bytes=256 * 8)


# Of building block lists. A scan holds 8 bytes a warp, and 4 a warp for each class of lengths and one more.
WORDS_OF_BLOCKS = PlainConfig("words_of_blocks", "BlocksParams")
WORDS_OF_IDS = PlainConfig("words_of_ids", "IdsParams")
WORDS_OF_DENSE = PlainConfig("words_of_dense", "DenseParams", threads=1024, shared_bytes=32, shared="DenseShared")
TRANSPOSE_WORDS = PlainConfig("transpose_words", "ListParams")
COUNT_BLOCKS = PlainConfig("count_blocks", "ListParams")
SCAN_ROWS = PlainConfig("scan_rows", "ListParams", (), 512, 4 * 128 * 17, "ScanShared<16>")
WRITE_LISTS = PlainConfig("write_lists", "ListParams")
PACK_BITS = PlainConfig("pack_bits", "DenseParams")
TRANSPOSE_BITS = PlainConfig("transpose_bits", "ListParams")
POISON_BIAS = PlainConfig("poison_bias", "AttentionParams")


def topk_config(key: Literal["u32", "u64"]) -> PlainConfig:
    return PlainConfig("words_of_topk", "TopkParams", (key,))


def poison_config(side: Literal["QueryRows", "QueryHeads", "KeyRows"]) -> PlainConfig:
    return PlainConfig("poison_rows", "AttentionParams", (side,))


def rows_config(acc: str) -> PlainConfig:
    return PlainConfig("bwd_rows", "AttentionParams", (acc, str(ROWS_PER_BLOCK)), blocks=8)


def row_terms_config(precise: bool) -> PlainConfig:
    return PlainConfig("bwd_rows_sm80", "AttentionParams", ("true" if precise else "false", str(ROWS_PER_BLOCK)))


def combine_config(acc: str) -> PlainConfig:
    return PlainConfig("combine", "CombineParams", (acc,))


def accumulator(spec: AttentionSpec) -> Literal["float", "double"]:
    return "double" if spec.dtype == "float64" else "float"


def features(spec: AttentionSpec) -> tuple[str, ...]:
    """The score features that a call compiles in."""
    operands = dict(spec.operands)
    used = {
        "softcap": spec.softcap is not None,
        "bias": "bias" in operands,
        "alibi": "alibi_slopes" in operands,
        "mask": "mask" in operands,
        "dropout": spec.dropout > 0,
    }
    return tuple(name for name in FEATURES if used[name])


def hooks(features: tuple[str, ...]) -> str:
    """The C++ type that runs the hooks of score features."""
    names = [FEATURES[name] for name in features]
    if "softcap" not in features:
        names.insert(0, "Scale")
    return f"Hooks<{', '.join(f'{name}<Tiles>' for name in names)}>"


_table: list[Hashable] = ["real"]


@contextmanager
def use_tiles(which: Hashable) -> Iterator[None]:
    """Choose tiles for the calls inside: process-wide, for tests and for tuning.

    Parameters
    ----------
    which : {"real", "small"}, table_sm80.Choice or table_sm80.Tried
        The families' tables, those of the tests, one choice that the sm80 family takes for every kernel, or for one.
    """
    if isinstance(which, str) and which not in ("real", "small"):
        raise ValueError(f"which is {which!r}, expected 'real', 'small', a Choice or a Tried")
    before = _table[:]
    _table[:] = [which]
    try:
        yield
    finally:
        _table[:] = before


def tile_table() -> Hashable:
    """Return what `use_tiles` has chosen, "real" outside of it: part of the keys of caches."""
    return _table[0]
