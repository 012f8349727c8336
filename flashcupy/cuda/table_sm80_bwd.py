"""Which tiles the sm80 family's backward takes: by kernel, what it multiplies, head dims, blocks, shared memory."""

from __future__ import annotations

from typing import NamedTuple

from flashcupy.cuda.config import features, tile_table
from flashcupy.cuda.config_sm80 import BUCKETS, Kind
from flashcupy.cuda.config_sm80_bwd import GradientConfig, GradientTiles, Kernel
from flashcupy.cuda.table_sm80 import (
    MOST_LISTED,
    MOST_LOOKED_AT,
    Choice,
    Need,
    bucket,
    first_that_fits,
    kind_of,
    owners,
    resident,
    tried,
)
from flashcupy.errors import UnsupportedError
from flashcupy.spec import AttentionSpec

# Values have to lie in shared memory whole: dP needs all of their columns.
WIDEST = BUCKETS[-1]
# Columns of float32 operands at full accuracy: beyond, each 64 columns of a result compute P again, by three products
# for one, which by count is no faster than plain FMA.
WIDEST_SPLIT = 128
# What adds dq to sums of all blocks. At full accuracy sums of many tiles have to keep what rounding loses, which
# additions to memory cannot; TF32's dS is not in a form that goes through shared memory.
ADDS_QUERIES = frozenset[Kind]({"f16", "bf16"})

_Table = dict[int, tuple[Choice, ...]]

# By the larger of the two buckets; the first whose blocks fit into shared memory is taken, with a second stage where
# that is free (`first_that_fits`). The last of each row fits LEAST_SHARED. A block has 16 keys a warp where results are
# wide, 32 where registers allow.
_KEYS_SIXTEEN_BITS: _Table = {
    32: (Choice(128, 64, 4, 2, 2), Choice(128, 32, 4, 2, 2)),
    64: (Choice(128, 32, 4, 2, 2), Choice(128, 32, 4, 2, 1)),
    96: (Choice(128, 64, 8, 2, 1), Choice(128, 32, 8, 1, 1)),
    128: (Choice(128, 64, 8, 2, 1), Choice(128, 32, 8, 1, 1)),
    192: (Choice(128, 64, 8, 1, 1), Choice(64, 32, 4, 1, 1)),
    256: (Choice(128, 64, 8, 1, 1), Choice(128, 32, 8, 1, 1), Choice(64, 64, 4, 1, 1), Choice(32, 16, 2, 1, 1)),
}

# Without dq the compiler keeps more in flight, and spills.
_KEYS_ALONE_SIXTEEN_BITS: _Table = _KEYS_SIXTEEN_BITS | {32: (Choice(128, 32, 4, 2, 2),)}

_QUERIES_SIXTEEN_BITS: _Table = {
    32: (Choice(128, 64, 4, 2, 2),),
    64: (Choice(128, 64, 4, 2, 2), Choice(128, 64, 4, 2, 1)),
    96: (Choice(128, 32, 4, 2, 2), Choice(128, 32, 4, 2, 1)),
    128: (Choice(128, 32, 4, 2, 2), Choice(128, 32, 4, 2, 1)),
    192: (Choice(64, 64, 4, 1, 2), Choice(64, 64, 4, 1, 1)),
    256: (Choice(64, 64, 4, 1, 1), Choice(32, 32, 2, 1, 1)),
}

# Sums of a tile of scores are results of their own.
_BIAS_SIXTEEN_BITS: _Table = {
    32: (Choice(64, 64, 4, 1, 2),),
    64: (Choice(64, 64, 4, 1, 2),),
    96: (Choice(64, 64, 4, 1, 2), Choice(64, 64, 4, 1, 1)),
    128: (Choice(64, 64, 4, 1, 2), Choice(64, 64, 4, 1, 1)),
    192: (Choice(64, 64, 4, 1, 2), Choice(64, 64, 4, 1, 1)),
    256: (Choice(64, 64, 4, 1, 1), Choice(32, 32, 2, 1, 1)),
}

_SIXTEEN_BITS: dict[Kernel, _Table] = {
    "dkvq": _KEYS_SIXTEEN_BITS,
    "dkv": _KEYS_ALONE_SIXTEEN_BITS,
    "dq": _QUERIES_SIXTEEN_BITS,
    "dbias": _BIAS_SIXTEEN_BITS,
}

_WORDS: _Table = {
    32: (Choice(128, 32, 8, 2, 1),),
    64: (Choice(64, 32, 4, 2, 2), Choice(64, 32, 4, 2, 1)),
    96: (Choice(64, 32, 4, 2, 2), Choice(64, 32, 4, 2, 1)),
    128: (Choice(64, 32, 4, 2, 1), Choice(64, 16, 4, 1, 1)),
    192: (Choice(64, 32, 4, 1, 1), Choice(32, 16, 2, 1, 1)),
    256: (Choice(64, 32, 4, 1, 1), Choice(64, 16, 4, 1, 1), Choice(32, 16, 2, 1, 1)),
}


def adds_queries(spec: AttentionSpec) -> bool:
    """Whether dk's and dv's kernel can add to dq."""
    return spec.dtype != "float64" and kind_of(spec) in ADDS_QUERIES


def gradient_config(spec: AttentionSpec, kernel: Kernel, shared_memory: int) -> GradientConfig:
    """Choose the configuration of one kernel of a backward."""
    block = None if spec.block_size is None else spec.block_size[kernel in ("dkv", "dkvq")]
    together = spec.listed_together if kernel == "dq" else 1  # keys are nobody's but their head's
    need = Need(kind_of(spec), spec.head_dim, spec.v_dim, features(spec), block, shared_memory, together)
    return configure_gradient(kernel, need)


def configure_gradient(kernel: Kernel, need: Need) -> GradientConfig:
    """Choose the configuration of a kernel that meets a need.

    Raises
    ------
    UnsupportedError
        If shared memory holds none of the tiles.
    """

    def made(choice: Choice) -> GradientConfig:
        tiles = _tiles(kernel, need, choice)
        return GradientConfig(kernel, tiles, resident(choice, tiles), need.schedule, need.features)

    if found := first_that_fits(kernel, need, _candidates(kernel, need), made):
        return found
    raise UnsupportedError(
        f"no tiles for gradients of head_dim {need.head_dim} and v's {need.v_dim} columns fit into "
        f"{need.shared_memory} bytes of shared memory"
    )


class _Dims(NamedTuple):
    head_dim: int
    v_dim: int
    head_chunk: int
    v_chunk: int


def _dims(kernel: Kernel, need: Need) -> _Dims:
    """Buckets of the operands, and of the chunks of results: as few equal ones as registers ask for."""
    v_dim = max(1, need.v_dim)
    if kernel == "dbias":
        return _Dims(bucket(need.head_dim), bucket(v_dim), BUCKETS[0], BUCKETS[0])
    most = _most_columns(kernel, need)
    if kernel == "dq":
        count = -(-need.head_dim // most)
        head_chunk = bucket(-(-need.head_dim // count))
        return _Dims(bucket(max(need.head_dim, count * head_chunk)), bucket(v_dim), head_chunk, BUCKETS[0])
    count = max(-(-need.head_dim // most), -(-v_dim // most))
    head_chunk, v_chunk = (bucket(-(-dim // count)) for dim in (need.head_dim, v_dim))
    head_dim, v_dim = max(need.head_dim, count * head_chunk), max(v_dim, count * v_chunk)
    return _Dims(bucket(head_dim), bucket(v_dim), head_chunk, v_chunk)


def _most_columns(kernel: Kernel, need: Need) -> int:
    if tile_table() == "small":
        return BUCKETS[0]
    return 64 if need.kind == "split_tf32" and kernel != "dq" else 128


def _tiles(kernel: Kernel, need: Need, choice: Choice) -> GradientTiles:
    own, walk, stages = owners(need, choice), choice.walk, choice.stages
    dims = _dims(kernel, need)
    if need.block is not None:
        walk = min(walk, MOST_LOOKED_AT if max(dims.head_chunk, dims.v_chunk) <= 64 else MOST_LISTED)
        if need.kind == "split_tf32" and max(dims.head_dim, dims.v_dim) > 64:
            walk = 16  # more spill
    if kernel == "dbias":
        stages, walk = 1, min(walk, 64)
    if need.features and own.rows > 16 * own.warps:
        walk = min(walk, 32)  # two fragments a warp, and what the features keep of each score
    chunks = dims.head_chunk, dims.v_chunk
    return GradientTiles(
        need.kind, own.rows, walk, dims.head_dim, dims.v_dim, own.warps, stages, *chunks, heads=own.heads
    )


def _candidates(kernel: Kernel, need: Need) -> tuple[Choice, ...]:
    if (choice := tried(kernel)) is not None:
        return (choice,)
    if tile_table() == "small":
        return _small(need)
    dims = _dims(kernel, need)
    table = _WORDS if need.kind in ("tf32", "split_tf32") else _SIXTEEN_BITS[kernel]
    return table[max(dims.head_dim, dims.v_dim)]


def _small(need: Need) -> tuple[Choice, ...]:
    """For tests: tiles that problems of a few dozen rows walk many of, in several chunks, with both stages."""
    stages = 1 + BUCKETS.index(bucket(need.head_dim)) % 2
    return tuple(Choice(32, 32, 2, count, 1) for count in range(stages, 0, -1))
