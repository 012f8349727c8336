"""Everything that the table of configurations can ask for: what is compiled ahead, and what `flashcupy check` runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Literal, get_args

from flashcupy.cuda import config
from flashcupy.cuda.compile import KernelConfig
from flashcupy.cuda.config import FEATURES, GenericConfig, Tiles
from flashcupy.cuda.first_use import Case
from flashcupy.cuda.first_use_plain import Elementwise, PlainCase

_KERNELS: tuple[Literal["fwd", "dq", "dkv", "dbias"], ...] = ("fwd", "dq", "dkv", "dbias")
_ACCUMULATORS: tuple[Literal["float", "double"], ...] = ("float", "double")
_COLUMNS = (64, 128)
_BLOCKS = (16, 32, 64)


def compile_configs(which: Literal["plain", "all"] = "plain") -> list[KernelConfig]:
    """Every tile and schedule without score features ("plain"), or with all of them at once ("all")."""
    features = {"plain": (), "all": tuple(FEATURES)}[which]
    generic = [
        GenericConfig(kernel, tiles, schedule, features)
        for kernel in _KERNELS
        if kernel != "dbias" or "bias" in features
        for tiles, schedule in _tiles(kernel)
    ]
    return [*generic, *(_elementwise() if which == "plain" else ())]


def _tiles(kernel: str) -> Iterator[tuple[Tiles, config.Schedule]]:
    for acc, columns in itertools.product(_ACCUMULATORS, _COLUMNS if kernel != "dbias" else (0,)):
        yield config.real_tiles(acc, columns, config.owner_rows(acc, kernel, columns, None)), "band"
        owners = (config.owner_rows(acc, kernel, columns, block) for block in _BLOCKS)
        for tiles in dict.fromkeys(config.real_tiles(acc, columns, owner) for owner in owners):
            yield tiles, "list"


def _elementwise() -> list[KernelConfig]:
    fixed: list[KernelConfig] = [config.FILL, config.UPLOAD, config.SUM_BATCH, config.SUM_SINKS]
    return fixed + [make(acc) for make in (config.rows_config, config.combine_config) for acc in _ACCUMULATORS]


def check_cases() -> Iterator[Case | PlainCase]:
    """Problems that together use every kernel of the table, and every feature in every dtype, both ways."""
    for dtype, wanted in itertools.product(
        ("float32", "float16", "bfloat16", "float64"), ((), ("q", "k", "v", "sinks"))
    ):
        for head_dim, v_dim in ((64, 64), (128, 128), (40, 72)):
            yield Case(dtype, head_dim, v_dim, wanted=wanted)
        for feature in FEATURES:
            yield Case(dtype, 64, 64, (feature,), wanted=_with_bias(wanted, (feature,)))
        for block, head_dim in itertools.product((*_BLOCKS, 128), _COLUMNS):
            yield Case(dtype, head_dim, head_dim, block_size=(block, block), wanted=wanted)
        yield Case(dtype, 64, 64, tuple(FEATURES), (64, 64), _with_bias(wanted, tuple(FEATURES)))
    for function, acc in itertools.product(get_args(Elementwise), _ACCUMULATORS):
        yield PlainCase(function, acc)


def _with_bias(wanted: tuple[str, ...], features: tuple[str, ...]) -> tuple[str, ...]:
    return (*wanted, "bias") if wanted and "bias" in features else wanted
