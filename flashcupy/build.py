"""From what a caller handed over to a validated AttentionProblem: every check that the host can make is made here."""

from __future__ import annotations

from typing import Any

import numpy as np

from flashcupy import arrays, options
from flashcupy.options import Options
from flashcupy.spec import AttentionProblem, AttentionSpec, OperandSpec

_INDEX_DTYPES = (np.int32, np.int64)


def dense_problem(q: Any, k: Any, v: Any, opts: Options) -> AttentionProblem:
    """Validate a call on (..., H, S, D) arrays."""
    qkv, library = _read_qkv(q, k, v)
    shapes = [_with_head(x.shape, name) for name, x in zip("qkv", qkv, strict=True)]
    batch = _broadcast_batch(shapes)
    lengths = {
        name: _lengths(getattr(opts, name), name, batch, shape[-2])
        for name, shape in (("q_lengths", shapes[0]), ("kv_lengths", shapes[1]))
    }
    return _problem(qkv, shapes, library, opts, batch=batch, lengths=lengths)


def varlen_problem(
    q: Any, k: Any, v: Any, cu_seqlens: tuple[Any, Any], max_seqlens: tuple[Any, Any], opts: Options
) -> AttentionProblem:
    """Validate a call on packed (H, total, D) arrays with cumulative sequence lengths."""
    qkv, library = _read_qkv(q, k, v)
    shapes = [_with_head(x.shape, name) for name, x in zip("qkv", qkv, strict=True)]
    for name, shape in zip("qkv", shapes, strict=True):
        if len(shape) != 3:
            raise ValueError(f"{name} has shape {shape}, expected (heads, total rows, dim) where rows are packed")
    cu_q = _cu_seqlens(cu_seqlens[0], "cu_seqlens_q", shapes[0][-2])
    cu_k = _cu_seqlens(cu_seqlens[1], "cu_seqlens_k", shapes[1][-2])
    if cu_q.size != cu_k.size:
        raise ValueError(f"cu_seqlens_k has {cu_k.size} entries, expected {cu_q.size} as in cu_seqlens_q")
    longest = (
        _max_seqlen(max_seqlens[0], "max_seqlen_q", cu_q),
        _max_seqlen(max_seqlens[1], "max_seqlen_k", cu_k),
    )
    batch = (cu_q.size - 1,)
    lengths = {
        "q_lengths": _lengths(opts.q_lengths, "q_lengths", batch, np.diff(cu_q)),
        "kv_lengths": _lengths(opts.kv_lengths, "kv_lengths", batch, np.diff(cu_k)),
    }
    return _problem(qkv, shapes, library, opts, batch=batch, lengths=lengths, cu=(cu_q, cu_k), longest=longest)


def companion(x: Any, name: str, library: str) -> np.ndarray:
    """Read a large operand, which must come from the same library as q."""
    array, own = arrays.read(x, name)
    if own != library:
        raise TypeError(f"{name} is a {own} array and q a {library} one, expected one library: convert {name}")
    return array


def _problem(
    qkv: tuple[np.ndarray, np.ndarray, np.ndarray],
    shapes: list[tuple[int, ...]],
    library: str,
    opts: Options,
    *,
    batch: tuple[int, ...],
    lengths: dict[str, Any],
    cu: tuple[np.ndarray, np.ndarray] | None = None,
    longest: tuple[int, int] | None = None,
) -> AttentionProblem:
    q_heads, kv_heads = _check_matrices(shapes)
    q_len, kv_len = longest or (shapes[0][-2], shapes[1][-2])
    target = (*batch, q_heads, q_len, kv_len)
    operands: dict[str, Any] = {
        "mask": _mask(opts.mask, library, target),
        "bias": _bias(opts.bias, library, target),
        "alibi_slopes": _small(opts.alibi_slopes, "alibi_slopes", (*batch, q_heads)),
        "sinks": _sinks(opts.sinks, q_heads),
    }
    block_mask = _block_mask(opts.block_mask, batch, q_heads, kv_heads, (q_len, kv_len))
    named: dict[str, Any] = {"q": qkv[0], "k": qkv[1], "v": qkv[2], **operands}
    spec = AttentionSpec(
        batch=batch,
        q_heads=q_heads,
        kv_heads=kv_heads,
        q_len=q_len,
        kv_len=kv_len,
        head_dim=shapes[0][-1],
        v_dim=shapes[2][-1],
        dtype=qkv[0].dtype.name,
        device="cpu",
        varlen=cu is not None,
        headless=all(x.ndim == 2 for x in qkv),
        block_size=None if block_mask is None else block_mask.block_size,
        operands=tuple((name, OperandSpec.of(array)) for name, array in named.items() if array is not None),
        **options.checked_values(opts, shapes[0][-1]),
    )
    cu_q, cu_k = cu or (None, None)
    return AttentionProblem(
        spec=spec,
        library=library,
        **named,
        block_mask=block_mask,
        seed=options.check_seed(opts.seed, spec.dropout),
        **lengths,
        cu_seqlens_q=cu_q,
        cu_seqlens_k=cu_k,
    )


def _read_qkv(q: Any, k: Any, v: Any) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], str]:
    query, library = arrays.read_float(q, "q")
    key, value = companion(k, "k", library), companion(v, "v", library)
    for name, array in (("k", key), ("v", value)):
        if array.dtype.name != query.dtype.name:
            raise TypeError(f"{name} has dtype {array.dtype}, expected {query.dtype} as q has")
    return (query, key, value), library


def _with_head(shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    if len(shape) < 2:
        raise ValueError(f"{name} has shape {shape}, expected at least 2 dims: (..., heads, length, dim)")
    return shape if len(shape) > 2 else (1, *shape)


def _broadcast_batch(shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    batches = [shape[:-3] for shape in shapes]
    try:
        return np.broadcast_shapes(*batches)
    except ValueError:
        got = ", ".join(f"{name} {batch}" for name, batch in zip("qkv", batches, strict=True))
        raise ValueError(f"q, k, v have batch dims {got}, expected dims that broadcast together") from None


def _check_matrices(shapes: list[tuple[int, ...]]) -> tuple[int, int]:
    """Check head counts, lengths and dims that must agree; return (Hq, Hkv)."""
    (q_heads, _, head_dim), (kv_heads, kv_len, k_dim), (v_heads, v_len, _) = (shape[-3:] for shape in shapes)
    if head_dim < 1:
        raise ValueError("q has head_dim 0, expected at least 1")
    if k_dim != head_dim:
        raise ValueError(f"k has head_dim {k_dim}, expected {head_dim} as q has")
    if v_heads != kv_heads:
        raise ValueError(f"v has {v_heads} heads, expected {kv_heads} as k has")
    if v_len != kv_len:
        raise ValueError(f"v has {v_len} rows, expected {kv_len} as k has")
    if (q_heads % kv_heads if kv_heads else q_heads) != 0:
        raise ValueError(f"q has {q_heads} heads and k has {kv_heads}, expected a multiple of the heads of k")
    return q_heads, kv_heads


def _lengths(x: Any, name: str, batch: tuple[int, ...], longest: int | np.ndarray) -> np.ndarray | None:
    """Flat int64 used lengths, or None; `longest` bounds them, one for all or one each."""
    if x is None:
        return None
    array = _index_array(x, name)
    try:
        flat = np.broadcast_to(array, batch).astype(np.int64).reshape(-1)
    except ValueError:
        raise ValueError(f"{name} has shape {array.shape}, expected one that broadcasts to {batch}") from None
    if np.any(flat < 0) or np.any(flat > longest):
        limit = longest if isinstance(longest, int) else "the sequence's own length"
        raise ValueError(f"{name} runs from {flat.min()} to {flat.max()}, expected values from 0 to {limit}")
    return flat


def _index_array(x: Any, name: str) -> np.ndarray:
    array, _ = arrays.read(x, name)
    if isinstance(x, (list, tuple)) and array.size == 0:
        array = array.astype(np.int64)
    if array.dtype.newbyteorder("=") not in _INDEX_DTYPES:
        raise TypeError(f"{name} has dtype {array.dtype}, expected int32 or int64")
    return array


def _cu_seqlens(x: Any, name: str, total: int) -> np.ndarray:
    array = _index_array(x, name)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}, expected (sequences + 1,)")
    cu = array.astype(np.int64)
    if cu[0] != 0:
        raise ValueError(f"{name} starts at {cu[0]}, expected 0")
    if np.any(np.diff(cu) < 0):
        fall = int(np.argmax(np.diff(cu) < 0))
        raise ValueError(f"{name} falls from {cu[fall]} to {cu[fall + 1]}, expected lengths that only add up")
    if cu[-1] > total:
        raise ValueError(f"{name} ends at {cu[-1]}, expected at most the {total} packed rows")
    return cu


def _max_seqlen(x: Any, name: str, cu: np.ndarray) -> int:
    longest = int(np.diff(cu).max(initial=0))
    if x is None:
        return longest
    value = _index_array(x, name)
    if value.ndim != 0:
        raise TypeError(f"{name} has shape {value.shape}, expected an int")
    if value < longest:
        raise ValueError(f"{name} is {value}, expected at least {longest}, the longest sequence")
    return int(value)


def _mask(x: Any, library: str, target: tuple[int, ...]) -> np.ndarray | None:
    if x is None:
        return None
    array = companion(x, "mask", library)
    if array.dtype != np.bool_:
        raise TypeError(f"mask has dtype {array.dtype}, expected bool with True = attend; additive values go to bias=")
    return _require_broadcast(array, "mask", target)


def _bias(x: Any, library: str, target: tuple[int, ...]) -> np.ndarray | None:
    if x is None:
        return None
    array = companion(x, "bias", library)
    if array.dtype == np.bool_:
        raise TypeError("bias has dtype bool, expected floating values that are added; visibility goes to mask=")
    arrays.require_float(array, "bias")
    return _require_broadcast(array, "bias", target)


def _require_broadcast(array: np.ndarray, name: str, target: tuple[int, ...]) -> np.ndarray:
    try:
        fits = np.broadcast_shapes(array.shape, target) == target
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"{name} has shape {array.shape}, expected one that broadcasts to {target}")
    return array


def _small(x: Any, name: str, target: tuple[int, ...]) -> np.ndarray | None:
    """A few numbers per head; they may come from the host or from another library than q."""
    if x is None:
        return None
    array, _ = arrays.read_float(x, name)
    return _require_broadcast(array, name, target)


def _sinks(x: Any, q_heads: int) -> np.ndarray | None:
    sinks = _small(x, "sinks", (q_heads,))
    if sinks is not None and sinks.shape != (q_heads,):
        raise ValueError(f"sinks has shape {sinks.shape}, expected ({q_heads},): one logit for each query head")
    return sinks


def _block_mask(x: Any, batch: tuple[int, ...], q_heads: int, kv_heads: int, lengths: tuple[int, int]) -> Any:
    if x is None:
        return None
    from flashcupy.block_mask import BlockMask

    if not isinstance(x, BlockMask):
        raise TypeError(
            f"block_mask is a {type(x).__name__}, expected a flashcupy.BlockMask; a bool array goes to mask="
        )
    size = int(np.prod(batch, dtype=np.int64))
    mask_batch, mask_heads, *mask_lengths = x.shape
    if tuple(mask_lengths) != lengths:
        raise ValueError(f"block_mask covers {tuple(mask_lengths)} (Sq, Sk), expected {lengths}")
    if mask_batch not in (1, size):
        raise ValueError(f"block_mask has batch {mask_batch}, expected 1 or {size}")
    if mask_heads not in (1, kv_heads, q_heads):
        wanted = " or ".join(map(str, dict.fromkeys((1, kv_heads, q_heads))))
        raise ValueError(f"block_mask has {mask_heads} heads, expected {wanted}")
    return x
