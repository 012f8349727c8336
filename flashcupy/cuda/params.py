"""Kernel parameters as kernels_cu/ declares them, field by field; a test compares the layouts with the compiler's."""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_int32, c_int64, c_uint32, c_uint64

BATCH_DIMS = 4
FAR = 1 << 30
# Rows and columns of one sequence stay below: sums of a few of them must fit into the kernels' 32-bit coordinates.
LONGEST = 1 << 28
UPLOAD_WORDS = 960

DTYPES = {"float16": 0, "bfloat16": 1, "float32": 2, "float64": 3, "bool": 4, "int32": 5, "int64": 6}


class Operand(ctypes.Structure):
    """Where element (batch, head, row, column) of one array lies; strides in bytes."""

    _fields_ = (
        ("data", c_uint64),
        ("batch", c_int64 * BATCH_DIMS),
        ("head", c_int64),
        ("row", c_int64),
        ("column", c_int64),
        ("dtype", c_uint32),
        ("unaligned", c_uint32),
    )


class BlockLists(ctypes.Structure):
    """The lists of a block mask for one orientation."""

    _fields_ = (
        ("full_indptr", c_uint64),
        ("full_indices", c_uint64),
        ("partial_indptr", c_uint64),
        ("partial_indices", c_uint64),
        ("bits_id", c_uint64),
        ("bits", c_uint64),
        ("order", c_uint64),
        ("capacity", c_int64),
        ("partial_capacity", c_int64),
        ("patterns", c_int64),
        ("batch", c_int32),
        ("heads", c_int32),
        ("rows", c_int32),
        ("row_size", c_int32),
        ("column_size", c_int32),
        ("words", c_int32),
    )


_OPERANDS = (
    *("q", "k", "v", "mask", "bias", "slopes", "sinks", "q_lengths", "kv_lengths", "cu_seqlens_q", "cu_seqlens_k"),
    *("out", "lse", "stats", "dout", "dlse", "delta", "row_terms", "dq_parts", "dq", "dk", "dv", "dbias", "sink_rows"),
)
_COUNTS = (
    *("batch", "q_heads", "kv_heads", "q_len", "kv_len", "q_rows", "kv_rows"),
    *("head_dim", "v_dim", "chunks"),
)


class AttentionParams(ctypes.Structure):
    """What the attention kernels take."""

    _fields_ = (
        *((name, Operand) for name in _OPERANDS),
        ("lists", BlockLists),
        ("transposed_lists", BlockLists),
        ("seed_words", c_uint64),
        ("seed", c_uint64),
        ("offset", c_uint64),
        ("scale", c_double),
        ("softcap", c_double),
        ("batch_extent", c_int32 * BATCH_DIMS),
        *((name, c_int32) for name in _COUNTS),
        ("left", c_int32),
        ("right", c_int32),
        ("top_left", c_int32),
        ("keep_threshold", c_int32),
        ("bias_batch_extent", c_int32 * BATCH_DIMS),
        ("bias_heads", c_int32),
        ("bias_rows", c_int32),
        ("bias_columns", c_int32),
    )


class Extents(ctypes.Structure):
    """Dims of an elementwise kernel."""

    _fields_ = (("batch", c_int32 * BATCH_DIMS), ("heads", c_int32), ("rows", c_int32), ("columns", c_int32))


class FillParams(ctypes.Structure):
    """fill.cu."""

    _fields_ = (("target", Operand), ("values", Operand), ("value", c_double), ("extents", Extents))


class SumBatchParams(ctypes.Structure):
    """sum_batch.cu."""

    _fields_ = (("source", Operand), ("target", Operand), ("extents", Extents), ("summed", c_int32 * BATCH_DIMS))


class SumSinksParams(ctypes.Structure):
    """sum_sinks.cu."""

    _fields_ = (("attention", AttentionParams), ("dsinks", Operand))


class UploadParams(ctypes.Structure):
    """upload.cu."""

    _fields_ = (("target", c_uint64), ("words", c_int32), ("data", c_uint32 * UPLOAD_WORDS))


class CombineParams(ctypes.Structure):
    """combine.cu."""

    _fields_ = (
        ("outs", c_uint64),
        ("lses", c_uint64),
        ("out", Operand),
        ("lse", Operand),
        ("extents", Extents),
        ("parts", c_int32),
    )


class ListSide(ctypes.Structure):
    """Lists that are written, for one orientation."""

    _fields_ = (
        ("full_indptr", c_uint64),
        ("full_indices", c_uint64),
        ("partial_indptr", c_uint64),
        ("partial_indices", c_uint64),
        ("bits_id", c_uint64),
        ("bits", c_uint64),
        ("order", c_uint64),
        ("full_words", c_uint64),
        ("partial_words", c_uint64),
        ("counts", c_uint64),
        ("rows", c_int32),
        ("row_words", c_int32),
        ("row_size", c_int32),
        ("words", c_int32),
        ("last_first", c_int32),
        ("columns", c_int32),
    )


class ListParams(ctypes.Structure):
    """What the kernels that build lists take."""

    _fields_ = (
        ("own", ListSide),
        ("other", ListSide),
        ("no_bad_ids", c_uint64),
        ("capacity", c_int64),
        ("partial_capacity", c_int64),
        ("batch", c_int32),
        ("heads", c_int32),
    )


class BlocksParams(ctypes.Structure):
    """words_of_blocks.cu."""

    _fields_ = (("lists", ListParams), ("blocks", Operand))


class IdsParams(ctypes.Structure):
    """words_of_ids.cu."""

    _fields_ = (("lists", ListParams), ("ids", Operand), ("counts", Operand), ("bad_ids", c_uint64), ("slots", c_int32))


class TopkParams(ctypes.Structure):
    """words_of_topk.cu."""

    _fields_ = (
        ("lists", ListParams),
        ("scores", Operand),
        ("allowed", Operand),
        ("include", Operand),
        ("k", c_int32),
    )


class DenseParams(ctypes.Structure):
    """words_of_dense.cu and pack_bits.cu."""

    _fields_ = (
        ("lists", ListParams),
        ("mask", Operand),
        ("q_len", c_int32),
        ("kv_len", c_int32),
        ("column_size", c_int32),
    )


class BlockMassParams(ctypes.Structure):
    """block_mass.cu."""

    _fields_ = (("attention", AttentionParams), ("mass", Operand), ("block_q", c_int32), ("block_k", c_int32))


class BlockMeansParams(ctypes.Structure):
    """block_means.cu."""

    _fields_ = (
        ("source", Operand),
        ("target", Operand),
        ("extents", Extents),
        ("rows", c_int32),
        ("block", c_int32),
    )


STRUCTS: dict[type[ctypes.Structure], str] = {
    Operand: "params.cuh",
    BlockLists: "params.cuh",
    AttentionParams: "params.cuh",
    Extents: "elementwise.cuh",
    FillParams: "fill.cu",
    SumBatchParams: "sum_batch.cu",
    SumSinksParams: "sum_sinks.cu",
    UploadParams: "upload.cu",
    CombineParams: "combine.cu",
    ListSide: "lists/params.cuh",
    ListParams: "lists/params.cuh",
    BlocksParams: "words_of_blocks.cu",
    IdsParams: "words_of_ids.cu",
    TopkParams: "words_of_topk.cu",
    DenseParams: "lists/dense.cuh",
    BlockMassParams: "block_mass.cu",
    BlockMeansParams: "block_means.cu",
}
