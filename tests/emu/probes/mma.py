"""The probes of the tensor-core forward, by name."""

from __future__ import annotations

import numpy as np
from cases import Sizes

import flashcupy as fc
from emu.probes.agree import Probe
from emu.probes.mma_exact import (
    LAYOUTS,
    LN2,
    ONE_STAGE,
    ONE_WARP,
    SCALE,
    SIZES,
    TWO_HEADS_OF_TWO_WARPS,
    TWO_STAGES,
    TWO_TILES_A_WARP,
    aligned_rows,
    exact,
    halves,
    undetected,
)
from emu.probes.mma_numbers import (
    all_bits,
    any_nan,
    equal_values,
    far,
    frames,
    hidden,
    infinite_values,
    lists,
    long_rows,
    packed,
    rising,
    softcap,
    statistics,
    sums_round_to_nearest,
    tf32_operands,
    tf32_weights,
)
from emu.probes.schedules import block_mask

_RNG = np.random.default_rng(6)
_MASK = _RNG.random((4, 45, 77)) < 0.6
_MASK[:, 3] = _MASK[:, 17:21] = False  # rows that see nothing
_MASK[:, 5, :64] = False  # and one that does so until the last tile
_BIAS = (_RNG.integers(-2, 3, (45, 77)) * LN2).astype(np.float32)
_UNSEEN = np.arange(77) % 7 == 3
_HIDES = np.broadcast_to(~_UNSEEN, (45, 77))
_WIDE = Sizes(batch=(), q_heads=2, kv_heads=1, q_len=45, kv_len=77, head_dim=96, v_dim=200)
_WIDER = Sizes(batch=(), q_heads=2, kv_heads=1, q_len=45, kv_len=77, head_dim=192, v_dim=40)
_NARROW_QUERIES = Sizes(batch=(), q_heads=2, kv_heads=1, q_len=45, kv_len=77, head_dim=24, v_dim=64)
_ODD = Sizes(batch=(), q_heads=2, kv_heads=1, q_len=45, kv_len=77, head_dim=41, v_dim=71)
_FEW_KEYS = Sizes(batch=(), q_heads=2, kv_heads=1, q_len=90, kv_len=33, head_dim=40, v_dim=40)
_BLOCKS = block_mask(SIZES, (32, 16))
_BATCHES = Sizes(batch=(2,), q_heads=4, kv_heads=2, q_len=45, kv_len=77, head_dim=40, v_dim=40)
# What each head has of its own, but for lists.
_OF_HEADS = {
    "mask": _MASK,
    "sinks": np.array([9.0, -9.0, 3.0, 0.0], np.float32),
    "dropout": 0.3,
    "seed": 5,
}

MMA: dict[str, Probe] = {
    "mma": exact(),
    "mma bfloat16": exact("bfloat16"),
    "mma tf32": exact("tf32"),
    "mma float32": exact("float32"),
    "mma two stages": exact(tiles=TWO_STAGES),
    "mma two tiles a warp": exact(tiles=TWO_TILES_A_WARP, window=(20, 3)),
    "mma wide": exact(sizes=_WIDE),
    "mma wide rows, one warp": exact("float32", ONE_WARP, sizes=_WIDER),
    "mma wide values": exact(sizes=_NARROW_QUERIES),
    "mma chunks": exact(tiles="small", sizes=_WIDE),
    "mma chunks of any columns": exact(tiles="small", sizes=_ODD, layouts=(aligned_rows, np.copy)),
    "mma writes float32": exact(out="float32"),
    "mma layouts": exact(layouts=tuple(LAYOUTS.values())),
    "mma layouts of float32": exact("tf32", layouts=tuple(LAYOUTS.values())),
    "mma halves": exact(sizes=_ODD, layouts=(halves(4), halves(2))),
    "mma odd columns": exact(sizes=_ODD, layouts=(aligned_rows, np.copy)),
    "mma negative scale": exact(scale=-2 * LN2),
    "mma negative scale, tf32": exact("tf32", scale=-2 * LN2),
    "mma no scale": exact(scale=0.0, causal=True),
    "mma large scale": exact(scale=32 * SCALE),
    "mma causal": exact(causal=True),
    "mma window": exact(window=(20, 3)),
    "mma window beyond the keys": exact(causal="top-left", window=(20, None), sizes=_FEW_KEYS),
    "mma mask": exact(mask=_MASK),
    "mma mask of two stages": exact(tiles=TWO_STAGES, mask=_MASK),
    "mma bias": exact(bias=_BIAS),
    "mma alibi": exact(alibi_slopes=np.full(4, LN2)),
    "mma softcap": softcap,
    "mma dropout": exact(dropout=0.3, seed=5),
    "mma dropout of two tiles a warp": exact(tiles=TWO_TILES_A_WARP, dropout=0.3, seed=5),
    "mma sinks": exact(sinks=np.array([9.0, -9.0, 3.0, 0.0], np.float32)),
    "mma large sinks": exact(sinks=np.array([100, 99, -1, 98], np.float32)),
    "mma lengths": exact(
        sizes=Sizes((4,), 2, 1, 45, 77, 40, 40),
        q_lengths=np.array([0, 45, 33, 17]),
        kv_lengths=np.array([77, 0, 64, 16]),
    ),
    "mma lists": lists(_BLOCKS, ONE_STAGE),
    "mma lists of two stages": lists(_BLOCKS, TWO_STAGES, causal=True),
    "mma lists of wide blocks": lists(block_mask(SIZES, (64, 64)), ONE_STAGE),
    "mma heads together": exact(sizes=_BATCHES, block_mask=block_mask(SIZES, (16, 16)), **_OF_HEADS),
    "mma heads together, two warps each": exact(tiles=TWO_HEADS_OF_TWO_WARPS, block_mask=_BLOCKS, **_OF_HEADS),
    "mma hidden by mask": hidden("float16", np.nan, _UNSEEN, mask=_HIDES),
    "mma hidden by lists": hidden(
        "float16", np.nan, _UNSEEN, block_mask=fc.BlockMask.from_dense(_HIDES.copy(), block_size=32)
    ),
    "mma beyond the lengths": hidden("float16", np.nan, np.arange(77) >= 50, kv_lengths=50),
    "mma before the window": hidden("float16", np.nan, np.arange(77) < 12, window=(20, 0)),
    "mma large where hidden": hidden("float16", 3e4, _UNSEEN, mask=_HIDES),
    "mma hidden from float32": hidden("float32", np.nan, _UNSEEN, mask=_HIDES),
    "mma hidden from tf32": hidden("tf32", np.nan, _UNSEEN, mask=_HIDES),
    "mma seen by one row": exact(mask=np.eye(45, 77, dtype=np.bool_)),
    "mma rising": rising(np.float16),
    "mma far": far,
    "mma rising float32": rising(np.float32),
    "mma tf32 operands": tf32_operands(LAYOUTS["wide rows"]),
    "mma tf32 operands gathered": tf32_operands(LAYOUTS["spaced"]),
    "mma tf32 weights": tf32_weights,
    "mma any NaN": any_nan("tf32"),
    "mma any NaN, float32": any_nan("highest"),
    "mma all bits": all_bits,
    "mma sums": sums_round_to_nearest,
    "mma long rows": long_rows,
    "mma equal values": equal_values,
    "mma infinite values": infinite_values,
    "mma statistics": statistics,
    "mma packed": packed,
    "mma frames": frames,
    "mma without the detector": undetected(exact(), exact("float32")),
    "mma two stages without the detector": undetected(exact(tiles=TWO_STAGES)),
}
