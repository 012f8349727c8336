"""Which tiles the sm80 family takes: by what it multiplies, head dims, dropout, blocks of a list, and shared memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

from flashcupy.cuda.config import Schedule, features, tile_table
from flashcupy.cuda.config_sm80 import BUCKETS, Kind, MmaConfig, MmaTiles, OperandTiles
from flashcupy.cuda.config_sm80_bwd import GradientConfig
from flashcupy.errors import UnsupportedError
from flashcupy.spec import AttentionSpec

# Devices with less shared memory a block than any of compute capability 8.0 or newer has are not in the tables.
LEAST_SHARED = 99 << 10
# Compute capabilities whose tensor cores multiply TF32 well over three times as fast as FMA multiplies float32: A100,
# H100 and their kin by NVIDIA's data sheets. On GeForce the two are about as fast; of newer ones it is not known.
FAST_TF32 = frozenset({(8, 0), (9, 0)})
_RESERVED = 1 << 10  # shared memory that a resident block takes besides its own
_REGISTERS = 64 << 10  # of a multiprocessor
_LEAST_REGISTERS = 136  # of a thread, in kernels of heads so wide that tables ask for one stage
# Forwards that would spill with a second stage, by 54 and 212 bytes on A100.
SPILL_AHEAD = frozenset[tuple[str, int, str]]({("split_tf32", 192, "list"), ("split_tf32", 256, "band")})


class Choice(NamedTuple):
    """Rows of a block, keys of a tile, warps, stages, and blocks that shall be resident on a multiprocessor."""

    owner: int
    walk: int
    warps: int
    stages: int
    blocks: int


class Tried(NamedTuple):
    """A choice for one kernel, "fwd" or one of the backward's; the others take theirs from the tables."""

    kernel: str
    choice: Choice


def tried(kernel: str) -> Choice | None:
    """What `config.use_tiles` has chosen for a kernel."""
    chosen = tile_table()
    if isinstance(chosen, Tried):
        return chosen.choice if chosen.kernel == kernel else None
    return chosen if isinstance(chosen, Choice) else None


# By the larger of the two buckets; the first whose blocks fit into shared memory is taken, with a second stage where
# that is free (`first_that_fits`). Two resident blocks hide each other's waiting. The last of each row fits
# LEAST_SHARED.
_Table = dict[int, tuple[Choice, ...]]

_SIXTEEN_BITS: _Table = {
    32: (Choice(128, 128, 4, 2, 2),),
    64: (Choice(128, 128, 4, 2, 2), Choice(128, 64, 4, 2, 2)),
    96: (Choice(128, 64, 4, 2, 2), Choice(128, 64, 4, 1, 2), Choice(128, 32, 4, 1, 2)),
    128: (Choice(128, 64, 4, 2, 2), Choice(128, 64, 4, 1, 2), Choice(128, 32, 4, 1, 2)),
    192: (Choice(128, 64, 8, 1, 1),),
    256: (Choice(64, 64, 4, 1, 2), Choice(128, 64, 8, 1, 1), Choice(64, 64, 4, 1, 1)),
}

# Drawing bits takes registers.
_SIXTEEN_BITS_DROPOUT: _Table = _SIXTEEN_BITS | {
    64: (Choice(128, 32, 4, 2, 2),),
    128: (Choice(64, 64, 4, 2, 2), Choice(64, 64, 4, 1, 2)),
    192: (Choice(64, 64, 4, 1, 2), Choice(64, 64, 4, 1, 1)),
}

_TF32: _Table = {
    32: (Choice(128, 64, 4, 2, 2),),
    64: (Choice(128, 64, 4, 2, 2), Choice(128, 64, 4, 1, 2), Choice(64, 64, 4, 1, 2)),
    96: (Choice(128, 64, 4, 1, 2), Choice(64, 64, 4, 1, 2), Choice(64, 32, 4, 1, 2)),
    128: (Choice(64, 64, 4, 1, 2), Choice(64, 32, 4, 1, 2), Choice(64, 64, 4, 1, 1)),
    192: (Choice(64, 32, 4, 1, 2), Choice(64, 32, 4, 1, 1)),
    256: (Choice(64, 32, 4, 1, 1), Choice(64, 16, 4, 1, 1)),
}

_SPLIT_TF32: _Table = {
    32: (Choice(64, 64, 4, 2, 2),),
    64: (Choice(64, 32, 4, 2, 2),),
    96: (Choice(64, 32, 4, 2, 2), Choice(64, 32, 4, 1, 2)),
    128: (Choice(64, 32, 4, 2, 2), Choice(64, 32, 4, 1, 2), Choice(64, 32, 4, 1, 1)),
    192: (Choice(64, 32, 4, 1, 2), Choice(64, 32, 4, 1, 1)),
    256: (Choice(64, 32, 4, 1, 2), Choice(64, 32, 4, 1, 1), Choice(64, 16, 4, 1, 1)),
}

# Keys of a tile at most, where a list, a bias or a mask has to be read for them: addresses take registers.
MOST_LOOKED_AT, MOST_LISTED = 64, 32
# Heads of a tile at most: as many as have 16 of its 128 rows each.
MOST_HEADS = 8
_MOST_COLUMNS: dict[Kind, int] = {"f16": 256, "bf16": 256, "tf32": 256, "split_tf32": 128}


class Need(NamedTuple):
    """What the choice depends on.

    ``block`` is the rows of a list's block, ``together`` how many heads walk the same ones: `spec.listed_together`.
    """

    kind: Kind
    head_dim: int
    v_dim: int
    features: tuple[str, ...]
    block: int | None
    shared_memory: int
    together: int = 1

    @property
    def schedule(self) -> Schedule:
        return "band" if self.block is None else "list"


def sm80_config(spec: AttentionSpec, shared_memory: int) -> MmaConfig:
    """Choose the configuration of a forward."""
    block = None if spec.block_size is None else spec.block_size[0]
    own = features(spec)
    return configure(Need(kind_of(spec), spec.head_dim, spec.v_dim, own, block, shared_memory, spec.listed_together))


def configure(need: Need) -> MmaConfig:
    """Choose the configuration that meets a need.

    Raises
    ------
    UnsupportedError
        If shared memory holds none of the tiles.
    """

    def made(choice: Choice) -> MmaConfig:
        tiles = _tiles(need, choice)
        return MmaConfig("fwd", tiles, resident(choice, tiles), need.schedule, need.features)

    if found := first_that_fits("fwd", need, _candidates(need), made):
        return found
    raise UnsupportedError(
        f"no tiles for head_dim {need.head_dim} and v's {need.v_dim} columns fit into {need.shared_memory} bytes of "
        "shared memory"
    )


def fits(need: Need, choice: Choice, shared: int) -> bool:
    """Whether as many blocks as a choice asks for fit into a multiprocessor, each with `shared` bytes."""
    return choice.blocks * (shared + _RESERVED) <= need.shared_memory + _RESERVED


_Made = TypeVar("_Made", MmaConfig, GradientConfig)


def first_that_fits(
    kernel: str, need: Need, choices: Iterable[Choice], made: Callable[[Choice], _Made]
) -> _Made | None:
    """Make the first choice that fits; with two stages where one is asked for, if they cost no resident block.

    Copies of the next tile are under way during all of this one then, and not during half of it.
    """
    for choice in choices:
        one = made(choice)
        if not fits(need, choice, one.shared_bytes):
            continue
        if choice.stages == 2 or tile_table() == "small" or tried(kernel) is not None or not _looks_ahead(need):
            return one
        two = made(choice._replace(stages=2))
        return two if _residents(need, two) >= _residents(need, one) else one
    return None


def _residents(need: Need, config: MmaConfig | GradientConfig) -> int:
    """Blocks on a multiprocessor, as shared memory and registers have room for them."""
    by_registers = max(config.blocks, _REGISTERS // (_LEAST_REGISTERS * config.threads))
    return min((need.shared_memory + _RESERVED) // (config.shared_bytes + _RESERVED), by_registers)


def _looks_ahead(need: Need) -> bool:
    """Whether registers have room for two stages: the tile after the next one is known, too."""
    return not need.features and (need.kind, bucket(need.head_dim), need.schedule) not in SPILL_AHEAD


class Owners(NamedTuple):
    """Owner rows of a tile in all, how many heads they are of, and the warps that share them."""

    rows: int
    heads: int
    warps: int


def owners(need: Need, choice: Choice) -> Owners:
    """As many rows as a choice says, or those of a list's block, which a tile lies in.

    Where heads walk the same blocks of the same keys, small blocks of several heads share a tile: a key is read from
    memory once for all rows of it.
    """
    rows = choice.owner if need.block is None else min(choice.owner, need.block)
    heads = max(n for n in range(1, MOST_HEADS + 1) if need.together % n == 0 and (n == 1 or n * rows <= choice.owner))
    warps = min(choice.warps, heads * rows // 16)
    if heads > 1 and (heads * rows % (16 * warps) or warps % heads):
        warps = heads * rows // 16  # more rows of a warp would be of two heads
    return Owners(heads * rows, heads, warps)


def resident(choice: Choice, tiles: OperandTiles) -> int:
    """Blocks as a choice has them, fewer where they have more warps: a thread keeps its registers."""
    return max(1, choice.blocks * choice.warps // max(choice.warps, tiles.warps))


def kind_of(spec: AttentionSpec) -> Kind:
    """What tensor cores multiply: float32 is split into two parts unless the call permits less accuracy."""
    if spec.dtype == "float32":
        return "tf32" if spec.precision == "tf32" else "split_tf32"
    kinds: dict[str, Kind] = {"float16": "f16", "bfloat16": "bf16"}
    return kinds[spec.dtype]


def bucket(dim: int) -> int:
    """The smallest bucket that holds so many elements."""
    return next(size for size in BUCKETS if size >= dim)


def _tiles(need: Need, choice: Choice) -> MmaTiles:
    own, walk = owners(need, choice), choice.walk
    if need.block is not None:
        walk = min(walk, MOST_LOOKED_AT if _chunk(need) <= 64 else MOST_LISTED)
    if {"bias", "mask"} & set(need.features):
        walk = min(walk, MOST_LOOKED_AT)
    dims = bucket(need.head_dim), _chunk(need)
    return MmaTiles(need.kind, own.rows, walk, *dims, own.warps, choice.stages, heads=own.heads)


def _chunk(need: Need) -> int:
    """Bucket of v's columns, cut into as few equal chunks as registers ask for."""
    if tile_table() == "small":
        return BUCKETS[0]
    chunks = max(1, -(-need.v_dim // _MOST_COLUMNS[need.kind]))
    return bucket(-(-need.v_dim // chunks))


def _candidates(need: Need) -> tuple[Choice, ...]:
    if (choice := tried("fwd")) is not None:
        return (choice,)
    return _small(need) if tile_table() == "small" else _real(need)


def _real(need: Need) -> tuple[Choice, ...]:
    tables = {"tf32": _TF32, "split_tf32": _SPLIT_TF32}
    sixteen_bits = _SIXTEEN_BITS_DROPOUT if "dropout" in need.features else _SIXTEEN_BITS
    return tables.get(need.kind, sixteen_bits)[max(bucket(need.head_dim), _chunk(need))]


def _small(need: Need) -> tuple[Choice, ...]:
    """For tests: tiles that problems of a few dozen rows walk many of, wide values in several chunks, both stages."""
    stages = 1 + BUCKETS.index(bucket(need.head_dim)) % 2
    return tuple(Choice(32, 32, 2, count, 1) for count in range(stages, 0, -1))
