"""The contract once more, row by row, and the cases that the oracle has to get right."""

from __future__ import annotations

import math

import numpy as np

from flashcupy.philox import keep_mask, keep_scale, keep_threshold

INF, NAN = np.inf, np.nan


class DenseMask:
    """Stands in for BlockMask: the oracle only asks for this."""

    def __init__(self, dense):
        self.dense = dense

    def to_dense(self):
        return self.dense


def rowwise(xp, q, k, v, bias=None, sinks=None, dropout=0.0, seed=None, **options):
    batch = np.broadcast_shapes(q.shape[:-3], k.shape[:-3], v.shape[:-3])
    (hq, sq, d), (hkv, sk), n = q.shape[-3:], k.shape[-3:-1], math.prod(batch)
    q, k, v = (xp.broadcast_to(x, (*batch, *x.shape[-3:])).reshape(n, *x.shape[-3:]) for x in (q, k, v))
    if bias is not None:
        bias = xp.broadcast_to(bias, (*batch, hq, sq, sk)).reshape(n, hq, sq, sk)
    keep = 1.0
    outs, lses = [], []
    for b, h, i in np.ndindex(n, hq, sq):
        sink = [] if sinks is None else [sinks[h : h + 1]]
        keys, off = seen_keys(options, bias, (batch, b, h, i), (hq, sq, sk))
        if not keys:
            outs.append(xp.zeros(v.shape[-1], dtype=v.dtype))
            lses.append(xp.asarray([-INF if sinks is None else sinks[h].item()], dtype=v.dtype))
            continue
        group = h * hkv // hq
        s = (k[b, group][keys] * q[b, h, i]).sum(-1) * (d**-0.5 if options.get("scale") is None else options["scale"])
        if options.get("softcap") is not None:
            s = options["softcap"] * xp.tanh(s / options["softcap"])
        if bias is not None:
            s = s + bias[b, h, i][keys]
        if options.get("alibi_slopes") is not None:
            slope = float(np.broadcast_to(options["alibi_slopes"], (*batch, hq)).reshape(n, hq)[b, h])
            s = s - xp.asarray([slope * abs(i + off - j) for j in keys], dtype=v.dtype)
        joined = xp.concatenate([s, *sink])
        lse = xp.log(xp.exp(joined - joined.max()).sum()) + joined.max()
        if dropout:
            words = seed if isinstance(seed, tuple) else (seed, 0)
            threshold = keep_threshold(dropout)
            row = keep_mask(threshold, *words, b, h, (i, i + 1), np.array(keys))[0]
            keep = xp.asarray(row * keep_scale(threshold))
        outs.append(((keep * xp.exp(s - lse))[:, None] * v[b, group][keys]).sum(0))
        lses.append(lse.reshape(1))
    return (
        xp.stack(outs).reshape(*batch, hq, sq, v.shape[-1]),
        xp.concatenate(lses).reshape(*batch, hq, sq),
    )


def seen_keys(options, bias, at, sizes):
    """Return the keys that row i of head h of batch b sees, and its offset."""
    (batch, b, h, i), (hq, sq, sk) = at, sizes
    n = math.prod(batch)
    q_length, kv_length = (
        size if options.get(name) is None else int(np.broadcast_to(options[name], batch).ravel()[b])
        for name, size in (("q_lengths", sq), ("kv_lengths", sk))
    )
    causal = options.get("causal", False)
    off = 0 if causal == "top-left" else kv_length - q_length
    left, right = options.get("window") or (None, None)
    mask = blocks = None
    if options.get("mask") is not None:
        mask = np.broadcast_to(options["mask"], (*batch, hq, sq, sk)).reshape(n, hq, sq, sk)[b, h, i]
    if options.get("block_mask") is not None:
        dense = options["block_mask"].to_dense()
        blocks = dense[b if len(dense) > 1 else 0, h * dense.shape[1] // hq, i]
    keys = []
    for j in range(sk):
        visible = i < q_length and j < kv_length
        visible = visible and (not causal or j <= i + off)
        visible = visible and (left is None or i + off - left <= j) and (right is None or j <= i + off + right)
        visible = visible and (mask is None or mask[j]) and (blocks is None or blocks[j])
        if visible and (bias is None or bias[b, h, i, j] > -INF):
            keys.append(j)
    return keys, off


# ---- cases -----------------------------------------------------------------------------------------------------------

GQA = (2, 4, 7, 5), (2, 2, 9, 5), (2, 2, 9, 3)
TALL = (2, 2, 9, 4), (2, 2, 6, 4), (2, 2, 6, 4)  # more queries than keys
BROADCAST = (3, 1, 2, 5, 4), (2, 2, 6, 4), (1, 1, 1, 2, 6, 3)


def chance(*shape, rate=0.6):
    return np.random.default_rng([1, *shape]).random(shape) < rate


def normal(*shape):
    return np.random.default_rng([2, *shape]).standard_normal(shape)


def slopes(*shape):
    return np.random.default_rng([3, *shape]).random(shape)


def holes(bias, rate=0.3):
    return np.where(np.random.default_rng([4, *bias.shape]).random(bias.shape) < rate, -INF, bias)


CASES = {
    "plain": (GQA, {}),
    "scale": (GQA, {"scale": -0.7}),
    "mqa": (((3, 6, 4), (1, 5, 4), (1, 5, 4)), {"causal": True}),
    "broadcast": (BROADCAST, {"kv_lengths": np.array([[4], [2], [6]])}),
    "broadcast bias": (BROADCAST, {"bias": normal(2, 1, 5, 1), "mask": chance(3, 1, 1, 5, 6)}),
    "causal": (GQA, {"causal": True}),
    "causal tall": (TALL, {"causal": "bottom-right", "sinks": normal(2)}),
    "top-left": (GQA, {"causal": "top-left"}),
    "top-left tall": (TALL, {"causal": "top-left", "alibi_slopes": np.array([0.5, 0.1]), "window": (3, 1)}),
    "window": (GQA, {"window": (2, 1)}),
    "window left": (TALL, {"window": (0, None)}),
    "window right": (TALL, {"window": (None, 1), "alibi_slopes": np.array([0.3, 2.0])}),
    "window causal": (GQA, {"window": (3, 2), "causal": True}),
    "mask": (GQA, {"mask": chance(7, 9)}),
    "mask heads": (GQA, {"mask": chance(2, 4, 1, 9)}),
    "mask rows": (TALL, {"mask": chance(2, 9, 1), "sinks": normal(2)}),
    "bias": (GQA, {"bias": holes(normal(4, 7, 9))}),
    "bias keys": (GQA, {"bias": holes(normal(2, 1, 1, 9))}),
    "bias scalar": (TALL, {"bias": normal(1), "causal": True}),
    "alibi": (GQA, {"alibi_slopes": np.array([0.5, 0.25, 0.1, 1.0])}),
    "alibi batch": (GQA, {"alibi_slopes": slopes(2, 4), "causal": True, "kv_lengths": np.array([9, 5])}),
    "softcap": (GQA, {"softcap": 0.8}),
    "softcap bias": (GQA, {"softcap": 1.3, "bias": normal(7, 9), "alibi_slopes": slopes(4), "causal": True}),
    "sinks": (GQA, {"sinks": normal(4), "softcap": 2.0, "scale": 0.5}),
    "no sink in one head": (GQA, {"sinks": np.array([0.5, -INF, 30.0, -30.0]), "mask": chance(7, 9, rate=0.2)}),
    "lengths": (GQA, {"q_lengths": np.array([7, 3], np.int32), "kv_lengths": np.array([0, 5], np.int32)}),
    "lengths causal": (GQA, {"q_lengths": [4, 7], "kv_lengths": [9, 2], "causal": True, "sinks": normal(4)}),
    "one length": (TALL, {"kv_lengths": 4, "causal": True, "window": (2, None), "alibi_slopes": np.ones(2)}),
    "q lengths": (TALL, {"q_lengths": np.array([5, 0]), "causal": True}),
    "blocks": (GQA, {"block_mask": DenseMask(chance(1, 1, 7, 9))}),
    "blocks shared by groups": (GQA, {"block_mask": DenseMask(chance(2, 2, 7, 9)), "causal": True}),
    "blocks per head": (GQA, {"block_mask": DenseMask(chance(1, 4, 7, 9)), "mask": chance(2, 1, 7, 9)}),
    "blocks in two batch dims": (BROADCAST, {"block_mask": DenseMask(chance(6, 1, 5, 6))}),
    "dropout": (GQA, {"dropout": 0.4, "seed": 77}),
    "dropout offset": (BROADCAST, {"dropout": 0.1, "seed": (2**40 + 1, 3), "causal": True, "softcap": 1.0}),
    "dropout of everything": (GQA, {"dropout": 0.999, "seed": 1}),
    "everything": (
        GQA,
        {
            "causal": True, "scale": 0.6, "window": (6, None), "mask": chance(2, 1, 7, 9, rate=0.8),
            "bias": holes(normal(1, 4, 7, 9), 0.1), "alibi_slopes": slopes(2, 4), "softcap": 1.5,
            "sinks": normal(4), "block_mask": DenseMask(chance(2, 2, 7, 9, rate=0.8)), "dropout": 0.3,
            "seed": (9, 2**33), "q_lengths": [6, 7], "kv_lengths": [9, 7],
        },
    ),
}  # fmt: skip


def operands(shapes, seed=0):
    rng = np.random.default_rng(seed)
    q, k, v = (rng.standard_normal(shape) for shape in shapes)
    batch = np.broadcast_shapes(*(shape[:-3] for shape in shapes))
    dout = rng.standard_normal((*batch, *q.shape[-3:-1], v.shape[-1]))
    return q, k, v, dout, rng.standard_normal(dout.shape[:-1])


# ---- packed sequences ------------------------------------------------------------------------------------------------

CU_Q, CU_K = np.array([1, 5, 5, 12, 14], np.int32), np.array([0, 6, 9, 9, 20])
PACKED = (4, 16, 5), (2, 21, 5), (2, 21, 3)  # tokens before, after and between, not all in a sequence
PACKED_CASES = {
    "plain": {},
    "causal": {"causal": True, "sinks": normal(4)},
    "top-left": {"causal": "top-left", "window": (2, None), "alibi_slopes": slopes(4, 4)},
    "dropout": {"dropout": 0.3, "seed": (4, 5), "scale": 0.3},
    "mask and bias": {"mask": chance(4, 1, 7, 11), "bias": holes(normal(4, 7, 11))},
    "bias of sequences": {"bias": normal(4, 1, 1, 11), "softcap": 1.0, "alibi_slopes": slopes(4)},
    "blocks": {"block_mask": DenseMask(chance(4, 2, 7, 11)), "causal": True},
    "used lengths": {
        "q_lengths": [3, 0, 7, 1],
        "kv_lengths": np.array([4, 3, 0, 9]),
        "causal": True,
        "sinks": normal(4),
    },
    "longer maxima": {"max_seqlen_q": 8, "max_seqlen_k": 13, "bias": normal(4, 8, 13), "causal": True},
}


def packed_operands():
    *arrays, dout, dlse = operands(PACKED)
    for x, tokens in ((arrays[0], [0, 14, 15]), (arrays[1], [20]), (arrays[2], [20]), (dout, [0, 14, 15])):
        x[:, tokens] = NAN
    dlse[:, [0, 14, 15]] = NAN
    return *arrays, dout, dlse
