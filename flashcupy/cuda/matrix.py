"""Everything that the tables of configurations can ask for: what is compiled ahead, and what `flashcupy check` runs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Literal, get_args

from flashcupy.cuda import config, config_generic, table_sm80, table_sm80_bwd
from flashcupy.cuda.compile import KernelConfig
from flashcupy.cuda.config import FEATURES
from flashcupy.cuda.config_generic import GenericConfig, Tiles
from flashcupy.cuda.config_scores import ScoresConfig, means_config, tiles_of
from flashcupy.cuda.config_sm80 import BUCKETS, Kind, MmaConfig
from flashcupy.cuda.config_sm80_bwd import GradientConfig, Kernel, QuerySumsConfig
from flashcupy.cuda.first_use import Case
from flashcupy.cuda.first_use_lists import Kind as ListKind
from flashcupy.cuda.first_use_lists import ListCase
from flashcupy.cuda.first_use_plain import Elementwise, PlainCase
from flashcupy.cuda.first_use_poison import PoisonCase, Side
from flashcupy.cuda.first_use_scores import ScoresCase
from flashcupy.cuda.table_sm80 import Need

_KERNELS: tuple[Literal["fwd", "dq", "dkv", "dbias"], ...] = ("fwd", "dq", "dkv", "dbias")
_ACCUMULATORS: tuple[Literal["float", "double"], ...] = ("float", "double")
_COLUMNS = (64, 128)
_BLOCKS = (16, 32, 64)

_FEATURES: dict[str, tuple[str, ...]] = {"plain": (), "all": tuple(FEATURES)}

# head_dim, columns of v, rows of a list's block, features: every bucket with either schedule; the head dims of most
# models also with blocks of other sizes; dropout alone where it has tiles of its own; and v with a dim of its own.
_Shape = tuple[int, int, int | None, tuple[str, ...]]
_SM80: tuple[_Shape, ...] = (
    *((dim, dim, block, ()) for dim in BUCKETS for block in (None, 64)),
    *((dim, dim, block, ()) for dim in (64, 128) for block in (16, 32, 128)),
    *((dim, dim, None, ("dropout",)) for dim in (64, 128, 192)),
    *((192, 128, None, ()), (64, 256, None, ()), (256, 64, None, ())),
)
# The same of a backward.
_SM80_BACKWARD: tuple[_Shape, ...] = (
    *((dim, dim, None, ()) for dim in BUCKETS),
    *((dim, dim, 64, ()) for dim in (64, 128)),
)
# Where heads share lists, and with them tiles: head_dim, rows of a block, heads. Warps have 16 rows here, 32 there.
_TOGETHER, _TOGETHER_BACKWARD = (128, 16, 8), (64, 32, 4)
_SM80_DTYPES: dict[Kind, tuple[str, str]] = {
    "f16": ("float16", "highest"),
    "bf16": ("bfloat16", "highest"),
    "tf32": ("float32", "tf32"),
    "split_tf32": ("float32", "highest"),
}
# head_dim and columns of v that generic kernels serve on every GPU in float32, of each size of theirs.
_BEYOND_SM80 = ((8, 64), (8, 128), (BUCKETS[-1] + 8, 128))

# The most shared memory a block may opt in to, in KiB: CUDA C++ Programming Guide, "Compute Capabilities".
_SHARED = {70: 96, 72: 96, 75: 64, 80: 163, 86: 99, 87: 163, 88: 99, 89: 99, 90: 227, 100: 227, 101: 227, 103: 227}
_SHARED |= {110: 227, 120: 99, 121: 99}


def compile_configs(which: Literal["plain", "all"], arch: str) -> list[KernelConfig]:
    """Every tile and schedule without score features ("plain"), or with all of them at once ("all"), for one `arch`."""
    features = _FEATURES[which]
    generic = [
        GenericConfig(kernel, tiles, schedule, features)
        for kernel in _KERNELS
        if kernel != "dbias" or "bias" in features
        for tiles, schedule in _generic_tiles(kernel)
    ]
    tensor_cores = _sm80(which, arch)
    around = _around_gradients() if tensor_cores and which == "plain" else ()
    return [*tensor_cores, *around, *generic, *_scores(which), *(_elementwise() if which == "plain" else ())]


def _sm80(which: str, arch: str) -> list[MmaConfig | GradientConfig]:
    number = int(re.sub(r"\D", "", arch))
    if number < 80:
        return []
    shared = _SHARED.get(number, 99) << 10
    configs = [
        table_sm80.configure(Need(kind, head_dim, v_dim, (*_FEATURES[which], *own), block, shared))
        for kind in _sm80_kinds(divmod(number, 10))
        for head_dim, v_dim, block, own in _sm80_shapes(kind)
        if which == "plain" or not own  # "all" has dropout everywhere
    ]
    together = _sm80_together(_sm80_kinds(divmod(number, 10)), shared) if which == "plain" else ()
    return list(dict.fromkeys((*configs, *_sm80_gradients(which, arch, shared), *together)))


def _sm80_together(kinds: list[Kind], shared: int) -> Iterator[MmaConfig | GradientConfig]:
    for kind in kinds:
        dim, block, heads = _TOGETHER
        if kind != "tf32":  # split_tf32 has the same tiles, and more in registers
            yield table_sm80.configure(Need(kind, dim, dim, (), block, shared, heads))
        if kind in table_sm80_bwd.ADDS_QUERIES:
            dim, block, heads = _TOGETHER_BACKWARD
            yield table_sm80_bwd.configure_gradient("dq", Need(kind, dim, dim, (), block, shared, heads))


def _sm80_gradients(which: str, arch: str, shared: int) -> Iterator[GradientConfig]:
    features = _FEATURES[which]
    number = int(re.sub(r"\D", "", arch))
    for kind in _sm80_kinds(divmod(number, 10)):
        kernels: tuple[Kernel, ...] = ("dkvq", "dkv", "dq", "dbias")
        for kernel, (head_dim, v_dim, block, _) in itertools.product(kernels, _sm80_backward_shapes(kind)):
            served = {"dkvq": kind in table_sm80_bwd.ADDS_QUERIES, "dbias": "bias" in features}
            if served.get(kernel, True):
                need = Need(kind, head_dim, v_dim, features, block, shared)
                yield table_sm80_bwd.configure_gradient(kernel, need)


def _sm80_backward_shapes(kind: Kind) -> list[_Shape]:
    widest = table_sm80_bwd.WIDEST_SPLIT if kind == "split_tf32" else table_sm80_bwd.WIDEST
    return [shape for shape in _SM80_BACKWARD if max(shape[:2]) <= widest]


def _sm80_kinds(compute_capability: tuple[int, int]) -> list[Kind]:
    return [kind for kind in _SM80_DTYPES if kind != "split_tf32" or compute_capability in table_sm80.FAST_TF32]


def _sm80_shapes(kind: Kind) -> list[_Shape]:
    dropout_differs = kind in ("f16", "bf16")
    return [shape for shape in _SM80 if dropout_differs or not shape[-1]]


def _generic_tiles(kernel: str) -> Iterator[tuple[Tiles, config.Schedule]]:
    tiles_of, rows_of = config_generic.real_tiles, config_generic.owner_rows
    for acc, columns in itertools.product(_ACCUMULATORS, _COLUMNS if kernel != "dbias" else (0,)):
        yield tiles_of(acc, columns, rows_of(acc, kernel, columns, None)), "band"
        owners = (rows_of(acc, kernel, columns, block) for block in _BLOCKS)
        for tiles in dict.fromkeys(tiles_of(acc, columns, owner) for owner in owners):
            yield tiles, "list"


def _scores(which: Literal["plain", "all"]) -> Iterator[KernelConfig]:
    """What scores blocks; nothing there is dropped."""
    features = tuple(name for name in _FEATURES[which] if name != "dropout")
    for acc in _ACCUMULATORS:
        yield ScoresConfig("block_mass", tiles_of(acc), features)
        if which == "plain":
            yield ScoresConfig("pooled_scores", tiles_of(acc))
            yield means_config(acc)


def _elementwise() -> list[KernelConfig]:
    fixed: list[KernelConfig] = [config.FILL, config.UPLOAD, config.SUM_BATCH, config.SUM_SINKS]
    fixed += _of_masks()
    return fixed + [make(acc) for make in (config.rows_config, config.combine_config) for acc in _ACCUMULATORS]


def _of_masks() -> Iterator[KernelConfig]:
    """What builds masks on a device, and marks what they have no room for."""
    yield from (config.WORDS_OF_BLOCKS, config.WORDS_OF_IDS, config.WORDS_OF_DENSE)
    yield from (config.topk_config("u32"), config.topk_config("u64"))
    yield from (config.TRANSPOSE_WORDS, config.COUNT_BLOCKS, config.SCAN_ROWS, config.WRITE_LISTS)
    yield from (config.PACK_BITS, config.TRANSPOSE_BITS, config.POISON_BIAS)
    yield from (config.poison_config("QueryRows"), config.poison_config("KeyRows"))


def _around_gradients() -> Iterator[KernelConfig]:
    """What comes before and behind the sm80 family's gradients."""
    yield from (config.row_terms_config(precise) for precise in (False, True))
    yield config.poison_config("QueryHeads")
    for kind, dim in itertools.product(sorted(table_sm80_bwd.ADDS_QUERIES), BUCKETS):
        yield QuerySumsConfig(kind, dim)


def check_cases(
    compute_capability: tuple[int, int],
) -> list[Case | PlainCase | ScoresCase | ListCase | PoisonCase]:
    """Problems that together use every kernel of the tables, and every feature in every dtype, both ways."""
    sm80 = tuple(_sm80_cases(compute_capability)) if compute_capability >= (8, 0) else ()
    plain = (PlainCase(function, acc) for function, acc in itertools.product(get_args(Elementwise), _ACCUMULATORS))
    masks = [*(ListCase(kind) for kind in get_args(ListKind)), ListCase("topk", wide=True)]
    sides = [PoisonCase(side) for side in get_args(Side) if side != "QueryHeads" or sm80]
    return [*dict.fromkeys((*_cases(), *sm80)), *plain, *_scores_cases(), *masks, *sides]


def _cases() -> Iterator[Case]:
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


def _scores_cases() -> Iterator[ScoresCase]:
    every = tuple(name for name in FEATURES if name != "dropout")
    dtypes = ("float32", "float16", "bfloat16", "float64")
    for own, dtype in itertools.product(((), every), dtypes):
        yield ScoresCase("block_mass", dtype, features=own)
    yield from (ScoresCase("pooled_scores", dtype) for dtype in dtypes)


def _sm80_cases(compute_capability: tuple[int, int]) -> Iterator[Case]:
    """Where tensor cores serve: all that they are compiled for, and what is left to generic kernels then."""
    for kind in _sm80_kinds(compute_capability):
        dtype, precision = _SM80_DTYPES[kind]
        for head_dim, v_dim, block, own in _sm80_shapes(kind):
            yield Case(dtype, head_dim, v_dim, own, _square(block), precision=precision)
        for (head_dim, v_dim, block, _), deterministic in itertools.product(_sm80_backward_shapes(kind), (False, True)):
            every = ("q", "k", "v", "sinks")
            yield Case(dtype, head_dim, v_dim, (), _square(block), every, precision, deterministic)
    for feature in FEATURES:
        yield Case("float32", 64, 64, (feature,), precision="tf32")
        yield Case("float32", 64, 64, (feature,), None, _with_bias(("q", "k", "v"), (feature,)), "tf32", True)
    yield Case("float32", 64, 64, tuple(FEATURES), (64, 64), precision="tf32")
    for (head_dim, v_dim), block, wanted in itertools.product(_BEYOND_SM80, (None, *_BLOCKS), ((), ("q", "k", "v"))):
        yield Case("float32", head_dim, v_dim, block_size=_square(block), wanted=wanted)
    for kind in _sm80_kinds(compute_capability):
        yield from _cases_together(*_SM80_DTYPES[kind])


def _cases_together(dtype: str, precision: str) -> Iterator[Case]:
    dim, block, heads = _TOGETHER
    yield Case(dtype, dim, dim, (), (block, block), (), precision, together=heads)
    dim, block, heads = _TOGETHER_BACKWARD
    yield Case(dtype, dim, dim, (), (block, block), ("q", "sinks"), precision, True, heads)


def _square(block: int | None) -> tuple[int, int] | None:
    return None if block is None else (block, block)


def _with_bias(wanted: tuple[str, ...], features: tuple[str, ...]) -> tuple[str, ...]:
    return (*wanted, "bias") if wanted and "bias" in features else wanted
