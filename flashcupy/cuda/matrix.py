"""Everything that the table of configurations can ask for: what is compiled ahead, and what `flashcupy check` runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Literal

from flashcupy.cuda import config
from flashcupy.cuda.compile import KernelConfig
from flashcupy.cuda.config import FEATURES, GenericConfig, Tiles
from flashcupy.cuda.first_use import Case

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
        yield config.real_tiles(acc, columns, config.most_owner(kernel, columns, None)), "band"
        owners = (config.most_owner(kernel, columns, block) for block in _BLOCKS)
        for tiles in dict.fromkeys(config.real_tiles(acc, columns, owner) for owner in owners):
            yield tiles, "list"


def _elementwise() -> list[KernelConfig]:
    fixed: list[KernelConfig] = [config.FILL, config.UPLOAD, config.SUM_BATCH, config.SUM_SINKS]
    return fixed + [make(acc) for make in (config.rows_config, config.combine_config) for acc in _ACCUMULATORS]


def check_cases() -> Iterator[Any]:
    """Problems that together use every feature in every dtype, forward and backward."""
    for dtype, backward in itertools.product(("float32", "float16", "bfloat16", "float64"), (False, True)):
        for head_dim, v_dim in ((64, 64), (128, 128), (40, 72)):
            yield Case(dtype, head_dim, v_dim, backward=backward)
        for feature in FEATURES:
            yield Case(dtype, 64, 64, (feature,), backward=backward)
        for block in (*_BLOCKS, 128):
            yield Case(dtype, 64, 64, block_size=(block, block), backward=backward)
        yield Case(dtype, 64, 64, tuple(FEATURES), (64, 64), backward)
