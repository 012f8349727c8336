"""From what a caller handed over to a validated AttentionProblem: every check that the host can make is made here.

`metadata` makes the spec. What remains is to read the operands, and to check the values of those on the host.
"""

from __future__ import annotations

from typing import Any

from flashcupy import arrays, metadata, options
from flashcupy.arrays import HOST, Array
from flashcupy.lengths import packed_rows, used_rows
from flashcupy.metadata import Lists, Packing, meta
from flashcupy.operands import companion, small
from flashcupy.options import Options
from flashcupy.spec import AttentionProblem, AttentionSpec


def dense_problem(q: Any, k: Any, v: Any, opts: Options) -> AttentionProblem:
    """Validate a call on (..., H, S, D) arrays."""
    operands, library, device = _read(q, k, v, opts)
    spec = _spec(operands, device, None, opts)
    return _problem(spec, library, operands, opts, **_dense_lengths(spec, opts))


def scores_problem(q: Any, k: Any, opts: Options) -> AttentionProblem:
    """Validate a call on (..., H, S, D) arrays that needs no values: v is one without columns."""
    query, library = arrays.read(q, "q")
    device = arrays.device_name(query)
    key = companion(k, "k", library, device)
    operands = {"q": query, "k": key, "v": None, **_beside(opts, library, device)}
    spec = _spec(operands, device, None, opts)
    operands["v"] = arrays.empty(key, (*key.shape[:-1], 0), arrays.native(key), library)
    return _problem(spec, library, operands, opts, **_dense_lengths(spec, opts))


def varlen_problem(
    q: Any, k: Any, v: Any, cu_seqlens: tuple[Any, Any], max_seqlens: tuple[Any, Any], opts: Options
) -> AttentionProblem:
    """Validate a call on packed (H, total, D) arrays with cumulative sequence lengths."""
    operands, library, device = _read(q, k, v, opts)
    for name in "qkv":
        shape = metadata.with_head(operands[name].shape, name)
        if len(shape) != 3:
            raise ValueError(f"{name} has shape {shape}, expected (heads, total rows, dim) where rows are packed")
    q_rows = packed_rows("q", cu_seqlens[0], max_seqlens[0], operands["q"].shape[-2], device)
    k_rows = packed_rows("k", cu_seqlens[1], max_seqlens[1], operands["k"].shape[-2], device)
    if k_rows.sequences != q_rows.sequences:
        entries = k_rows.sequences + 1, q_rows.sequences + 1
        raise ValueError(f"cu_seqlens_k has {entries[0]} entries, expected {entries[1]} as in cu_seqlens_q")
    spec = _spec(operands, device, Packing(q_rows.sequences, q_rows.longest, k_rows.longest), opts)
    return _problem(
        spec,
        library,
        operands,
        opts,
        q_lengths=used_rows(opts.q_lengths, "q_lengths", spec.batch, q_rows.limits, device),
        kv_lengths=used_rows(opts.kv_lengths, "kv_lengths", spec.batch, k_rows.limits, device),
        cu_seqlens_q=q_rows.starts,
        cu_seqlens_k=k_rows.starts,
    )


def problem(
    q: Any, k: Any, v: Any, cu_seqlens: tuple[Any, Any], max_seqlens: tuple[Any, Any], opts: Options
) -> AttentionProblem:
    """Validate a call on packed arrays where there are cumulative sequence lengths, and on dense ones where not."""
    if (cu_seqlens[0] is None) != (cu_seqlens[1] is None):
        raise ValueError("cu_seqlens_q and cu_seqlens_k go together, expected both or neither")
    if cu_seqlens[0] is not None:
        return varlen_problem(q, k, v, cu_seqlens, max_seqlens, opts)
    if max_seqlens != (None, None):
        raise ValueError("max_seqlen_q and max_seqlen_k belong to packed rows, expected cu_seqlens_q with them")
    return dense_problem(q, k, v, opts)


def _read(q: Any, k: Any, v: Any, opts: Options) -> tuple[dict[str, Any], str, str]:
    """Operands that have metadata in the spec, where results go back to, and the device."""
    query, library = arrays.read(q, "q")
    device = arrays.device_name(query)
    matrices = {"q": query, "k": companion(k, "k", library, device), "v": companion(v, "v", library, device)}
    return {**matrices, **_beside(opts, library, device)}, library, device


def _beside(opts: Options, library: str, device: str) -> dict[str, Any]:
    """The arrays among the options that have metadata in the spec."""
    mask, bias, slopes, sinks = opts.mask, opts.bias, opts.alibi_slopes, opts.sinks
    return {
        "mask": None if mask is None else companion(mask, "mask", library, device),
        "bias": None if bias is None else companion(bias, "bias", library, device),
        "alibi_slopes": None if slopes is None else small(slopes, "alibi_slopes", device),
        "sinks": None if sinks is None else small(sinks, "sinks", device),
    }


def _spec(operands: dict[str, Any], device: str, packing: Packing | None, opts: Options) -> AttentionSpec:
    return metadata.spec(
        device,
        packing,
        *map(meta, operands.values()),
        None if opts.block_mask is None else _lists(opts.block_mask, device),
        options.check_window(opts.window),
        opts.causal,
        opts.scale,
        opts.softcap,
        opts.dropout,
        opts.precision,
    )


def _lists(block_mask: Any, device: str) -> Lists:
    from flashcupy.block_mask import BlockMask

    if not isinstance(block_mask, BlockMask):
        got = type(block_mask).__name__
        raise TypeError(f"block_mask is a {got}, expected a flashcupy.BlockMask; a bool array goes to mask=")
    if block_mask.device not in (HOST, device):
        raise ValueError(f"block_mask is on {block_mask.device}, expected {device}, where q is, or the host")
    return Lists(block_mask.shape, block_mask.block_size)


def _dense_lengths(spec: AttentionSpec, opts: Options) -> dict[str, Array | None]:
    return {
        "q_lengths": used_rows(opts.q_lengths, "q_lengths", spec.batch, spec.q_len, spec.device),
        "kv_lengths": used_rows(opts.kv_lengths, "kv_lengths", spec.batch, spec.kv_len, spec.device),
    }


def _problem(
    spec: AttentionSpec,
    library: str,
    operands: dict[str, Any],
    opts: Options,
    *,
    q_lengths: Array | None,
    kv_lengths: Array | None,
    cu_seqlens_q: Array | None = None,
    cu_seqlens_k: Array | None = None,
) -> AttentionProblem:
    if spec.dropout:
        options.warn_of_dropout(spec.dropout)
    return AttentionProblem(
        spec=spec,
        library=library,
        **operands,
        block_mask=opts.block_mask,
        seed=options.check_seed(opts.seed, spec.dropout, spec.device),
        q_lengths=q_lengths,
        kv_lengths=kv_lengths,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
    )
