"""Small problems that catch faults in kernels. Those of float64 have an absolute bound, which no luck can widen.

A probe takes a backend and raises AssertionError or EmuError where something is wrong. Tiles are the small ones unless
it asks for others.
"""

from __future__ import annotations

import numpy as np
from cases import Sizes

from emu.probes.agree import EVEN, Probe, bias_of, both, broadcast, forward, windows, within_naive
from emu.probes.masks import GENERIC_MASKS, MMA_MASKS
from emu.probes.memory import (
    any_address,
    far_apart,
    frames,
    hidden,
    many_elements,
    rows_that_see_nothing,
    rows_that_see_one_key,
)
from emu.probes.mma import MMA
from emu.probes.mma_backward import MMA_BACKWARD
from emu.probes.numbers import dropout_of_everything, from_lse, infinite_values, long_rows, merge, real_tiles
from emu.probes.schedules import full_lists, lists, packed, wild_lengths, wild_packing
from emu.probes.scores import SCORES

__all__ = ["PROBES", "Probe", "family"]

_WIDE_BLOCKS = Sizes(batch=(2,), q_heads=4, kv_heads=2, q_len=100, kv_len=130, head_dim=4, v_dim=4)
_TWO_BATCHES = Sizes(batch=(2,), q_heads=4, kv_heads=2, q_len=45, kv_len=77, head_dim=4, v_dim=4)

_LARGE_OFFSET = (0x123456789ABCDEF0, 0x0FEDCBA987654321)

GENERIC: dict[str, Probe] = GENERIC_MASKS | {
    "forward": forward(),
    "backward": both(),
    "real tiles": real_tiles("float64"),
    "wide values": both(sizes=Sizes(head_dim=4, v_dim=20)),
    "float16": within_naive("float16"),
    "float16 bias": within_naive("float16", "bias"),
    "bfloat16": within_naive("bfloat16"),
    "causal": both("causal"),
    "top left": both("top_left"),
    "window": both("window"),
    "edges": windows((1, 0), (0, 1), (14, None), (None, 14)),
    "bias edges": windows((1, 1), (14, None), bias=np.random.default_rng(3).standard_normal((64, 64))),
    "lengths": both("causal", "q_lengths", "kv_lengths", "sinks"),
    "lengths in full tiles": both(sizes=EVEN, q_lengths=33, kv_lengths=40, sinks=np.ones(2)),
    "softcap": both("softcap"),
    "alibi": both("alibi", "causal"),
    "alibi without a band": both("alibi"),
    "mask": both("mask"),
    "mask of heads": both(mask=np.random.default_rng(4).random((4, 45, 77)) < 0.6),
    "bias": both("bias"),
    "dropout": both("dropout", seed=_LARGE_OFFSET),
    "seed on the device": both("dropout", seed=np.array(_LARGE_OFFSET, np.uint64)),
    "dropout of everything": dropout_of_everything,
    "sinks of many rows": both("sinks", sizes=Sizes((), 2, 2, 300, 5, 4, 4), wrt=("sinks",)),
    "sinks": both(sinks=np.array([9.0, -9.0, 3.0, 0.0])),
    "rows that see nothing": rows_that_see_nothing,
    "rows that see one key": rows_that_see_one_key,
    "lists": lists((32, 64), sizes=_WIDE_BLOCKS, batch=2),
    "lists of small blocks": lists((16, 16), sizes=_TWO_BATCHES),
    "lists in a band": lists((16, 16), sizes=_TWO_BATCHES, window=(20, 3)),
    "full lists in a band": full_lists,
    "sinks of lists": lists((16, 16), "alibi", "sinks", sizes=_TWO_BATCHES, wrt=("sinks",)),
    "lists and bias": lists((16, 64), "bias", sizes=_WIDE_BLOCKS),
    "packed": packed(causal=True, sinks=np.linspace(-1, 2, 4)),
    "wild packing": wild_packing,
    "wild lengths": wild_lengths,
    "hidden by mask": hidden("mask", np.nan),
    "large where hidden by mask": hidden("mask", 1e30),
    "hidden by bias": hidden("bias", np.nan),
    "hidden by mask, softcap": hidden("mask", np.nan, softcap=2.0),
    "frames": frames,
    "any address": any_address,
    "broadcast": broadcast(),
    "dropout of broadcast": broadcast(dropout=0.3, seed=5),
    "bias of batch entries": bias_of(3, 1, 4, 20, 40),
    "bias of keys": bias_of(2, 1, 1, 40),
    "bias of rows": bias_of(4, 20, 1),
    "far apart": far_apart,
    "long rows": long_rows,
    "many elements": many_elements,
    "infinite values": infinite_values,
    "from lse": from_lse,
    "merge": merge,
    **SCORES,
}

PROBES = GENERIC | MMA | MMA_BACKWARD | MMA_MASKS


def family(probe: str) -> str:
    """The kernels that a probe is of: `EmuBackend` takes it."""
    return "generic" if probe in GENERIC else "sm80"
