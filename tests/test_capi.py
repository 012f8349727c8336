"""The C interface gives what the Python calls give; test_capi_device.py has device pointers."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
from capi_kit import HEADER, Failed, installed, library

import flashcupy as fc
from flashcupy._version import __version__
from flashcupy.capi import status
from flashcupy.capi.build import ABI

RNG = np.random.default_rng(5)
HEADS, KV_HEADS, SQ, SK, D = 4, 2, 21, 37, 16


def _inputs(dtype="float32", batch=(2,)):
    if dtype == "bfloat16":
        import ml_dtypes

        dtype = ml_dtypes.bfloat16
    shapes = ((*batch, HEADS, SQ, D), (*batch, KV_HEADS, SK, D), (*batch, KV_HEADS, SK, 2 * D))
    return [RNG.standard_normal(shape).astype(dtype) for shape in shapes]


def _expected(q, k, v, dout, wrt, deterministic=True, **options):
    """What Python gives where, as in C, only lse is kept."""
    out, lse = fc.attention(q, k, v, return_lse=True, **options)
    residuals = fc.AttentionResiduals.from_arrays(q, k, v, out, lse, **options)
    return out, lse, fc.attention_bwd(dout, residuals, wrt=wrt, deterministic=deterministic)


OPTIONS = {
    "plain": {},
    "causal": {"causal": True},
    "top-left": {"causal": "top-left"},
    "window": {"window": (9, 3)},
    "left window": {"window": (9, None)},
    "scale, softcap": {"scale": 0.3, "softcap": 2.0},
    "negative scale": {"scale": -0.3},
    "mask": {"mask": RNG.random((1, HEADS, SQ, SK)) < 0.7},
    "bias": {"bias": RNG.standard_normal((HEADS, 1, SK)).astype(np.float32)},
    "alibi": {"alibi_slopes": np.array([0.5, 0.25, 0.125, 0.1], np.float32)},
    "sinks": {"sinks": np.array([0.5, -1, 0, 2], np.float32)},
    "dropout": {"dropout": 0.25, "seed": 123456789},
    "lengths": {"q_lengths": [7, 21], "kv_lengths": [37, 0]},
    "precision": {"precision": "tf32"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_reach_the_computation(name):
    options = OPTIONS[name]
    q, k, v = _inputs()
    dout = RNG.standard_normal((2, HEADS, SQ, 2 * D)).astype(np.float32)
    wrt = ("q", "k", "v", *(extra for extra in ("bias", "sinks") if extra in options))
    words = dict(options)
    if "seed" in words:
        words["seed"] = (words["seed"], 0)
    out, lse, grads = _expected(q, k, v, dout, wrt, **words)

    got, logs = np.full_like(out, np.nan), np.full_like(lse, np.nan)
    library().forward(q, k, v, got, logs, **options)
    np.testing.assert_array_equal(got, out)
    np.testing.assert_array_equal(logs, lse)
    results = [None if x is None else np.full_like(x, np.nan) for x in grads]
    library().backward((q, k, v, got, logs), dout, results, deterministic=True, **options)
    for result, expected in zip(results, grads, strict=True):
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes_strides_and_offsets(dtype):
    q, k, v = _inputs(dtype)
    out, lse = fc.attention(q, k, v, return_lse=True)
    lib = library()
    kept_as_bshd = np.ascontiguousarray(q.swapaxes(1, 2)).swapaxes(1, 2)
    backwards = k[:, :, ::-1].copy()[:, :, ::-1]
    memory = np.concatenate([np.zeros(3, v.dtype), v.ravel()])
    base = lib.ffi.cast("void *", memory.ctypes.data)
    behind = lib.tensor(v, data=base, byte_offset=3 * v.itemsize, strides=lib.ffi.NULL)
    got, logs = np.empty_like(out), np.empty_like(lse)
    lib.forward(kept_as_bshd, backwards, behind, got, logs)
    assert got.tobytes() == out.tobytes()
    np.testing.assert_array_equal(logs, lse)


def test_dlse_broadcast_inputs_and_matrices():
    q, k, v = (RNG.standard_normal(shape) for shape in ((5, 4), (7, 4), (7, 3)))
    out, lse = np.empty((5, 3)), np.empty(5)
    library().forward(q, k, v, out, lse)
    np.testing.assert_array_equal(out, fc.attention(q, k, v))
    residuals = fc.AttentionResiduals.from_arrays(q, k, v, out, lse)
    expected = fc.attention_bwd(out, residuals, wrt=("k",), dlse=lse).dk
    dk = np.empty_like(k)
    library().backward((q, k, v, out, lse), out, (None, dk, None, None, None), dlse=lse)
    np.testing.assert_array_equal(dk, expected)


def test_without_lse_and_without_elements():
    q, k, v = _inputs()
    out = np.empty((2, HEADS, SQ, 2 * D), np.float32)
    library().forward(q, k, v, out)
    np.testing.assert_array_equal(out, fc.attention(q, k, v))
    library().forward(q, k[..., :0, :], v[..., :0, :], out)
    assert not out.any()
    library().forward(q[..., :0, :], k, v, out[..., :0, :])


def test_packed_sequences():
    q, k, v = (RNG.standard_normal((heads, 20, 8)) for heads in (4, 2, 2))
    starts, used = np.array([0, 3, 3, 18], np.int32), np.array([2, 0, 9])
    out, lse = fc.attention_varlen(q, k, v, starts, starts, causal=True, kv_lengths=used, return_lse=True)
    got, logs = np.empty_like(out), np.empty_like(lse)
    options = {"cu_seqlens_q": starts, "cu_seqlens_k": starts, "max_seqlen_k": 16, "causal": True, "kv_lengths": used}
    library().forward(q, k, v, got, logs, **options)
    np.testing.assert_array_equal(got, out)
    np.testing.assert_array_equal(logs, lse)
    expected = fc.attention_varlen_bwd(
        out,
        fc.AttentionResiduals.from_arrays(
            q, k, v, out, lse, cu_seqlens_q=starts, cu_seqlens_k=starts, max_seqlen_k=16, causal=True, kv_lengths=used
        ),
    )
    grads = [np.empty_like(x) for x in (q, k, v)]
    library().backward((q, k, v, out, lse), out, (*grads, None, None), **options)
    for result, wanted in zip(grads, expected[:3], strict=True):
        np.testing.assert_array_equal(result, wanted)


def test_sizes_support_and_warmup_need_no_data():
    lib = library()
    q, k, v = _inputs()
    empty = {"data": lib.ffi.NULL}
    tensors = [lib.tensor(x, **empty) for x in (q, k, v)]
    out, lse = lib.tensor(np.empty((2, HEADS, SQ, 2 * D), np.float32), **empty), lib.ffi.NULL
    sinks = np.zeros(HEADS, np.float32)
    options = lib.options(causal=True, bias=np.zeros((SQ, SK), np.float32))
    options.sinks = lib.tensor(sinks, **empty)
    options.bias.data = lib.ffi.NULL
    size = lib.ffi.new("uint64_t *", 99)
    lib.ok(lib.lib.flashcupy_forward_workspace_size(*tensors, out, lse, options, size))
    assert size[0] == 0
    reason = lib.ffi.new("char **")
    lib.ok(lib.lib.flashcupy_supported(*tensors, options, reason))
    assert b"numpy" in lib.ffi.string(reason[0])
    assert lib.last_error() == ""
    lib.ok(lib.lib.flashcupy_warmup(*tensors, options, 1))
    with pytest.raises(Failed, match=r"q\.data is NULL"):
        lib.forward(*tensors, out)


def test_what_is_not_supported_says_so():
    lib = library()
    q, k, _ = _inputs()
    reason = lib.ffi.new("char **")
    status = lib.lib.flashcupy_supported(lib.tensor(q), lib.tensor(k), lib.tensor(q), lib.ffi.NULL, reason)
    assert status == lib.lib.FLASHCUPY_INVALID_ARGUMENT
    assert lib.ffi.string(reason[0]).decode() == lib.last_error()
    assert "v" in lib.last_error()


def test_versions():
    lib = library()
    assert lib.ffi.string(lib.lib.flashcupy_version()).decode() == __version__
    assert f'#define FLASHCUPY_VERSION "{__version__}"' in HEADER.read_text()
    assert lib.lib.flashcupy_abi_version() == ABI
    assert f"#define FLASHCUPY_ABI_VERSION {ABI}\n" in HEADER.read_text()
    assert f"FLASHCUPY_{ABI} {{" in (HEADER.parent / "src" / "flashcupy.map").read_text()


DLPACK = """
typedef enum { kDLCPU = 1 } DLDeviceType;
typedef struct { DLDeviceType device_type; int32_t device_id; } DLDevice;
typedef struct { uint8_t code; uint8_t bits; uint16_t lanes; } DLDataType;
typedef struct {
    void *data; DLDevice device; int32_t ndim; DLDataType dtype; int64_t *shape; int64_t *strides; uint64_t byte_offset;
} DLTensor;
"""


def test_a_tensor_has_the_layout_of_dlpacks():
    ffi = library().ffi
    other = type(ffi)()
    other.cdef(DLPACK)
    for own, theirs in (("tensor", "DLTensor"), ("device", "DLDevice"), ("dtype", "DLDataType")):
        assert ffi.sizeof(f"flashcupy_{own}") == other.sizeof(theirs)
        fields = {name: (field.offset, ffi.sizeof(field.type)) for name, field in ffi.typeof(f"flashcupy_{own}").fields}
        their_fields = {name: (field.offset, other.sizeof(field.type)) for name, field in other.typeof(theirs).fields}
        assert fields == their_fields


def test_names_of_statuses():
    lib = library()
    declared = [name for name in dir(lib.lib) if name.startswith("FLASHCUPY_") and f"{name} =" in HEADER.read_text()]
    statuses = {"OK", "INVALID_ARGUMENT", "UNSUPPORTED", "OUT_OF_MEMORY", "COMPILE", "CUDA", "PYTHON"}
    statuses |= {"NOT_WARMED_UP", "FORKED", "INTERNAL"}
    assert {f"FLASHCUPY_{name}" for name in statuses} <= set(declared)
    for name in statuses:
        number = getattr(lib.lib, f"FLASHCUPY_{name}")
        if name != "FORKED":  # which never gets as far as Python
            assert getattr(status, name) == number
        assert lib.ffi.string(lib.lib.flashcupy_status_string(number)).decode() == f"FLASHCUPY_{name}"
    for number in (-1, 10, 1000):
        assert lib.ffi.string(lib.lib.flashcupy_status_string(number)) == b"unknown status"


def test_the_library_needs_no_python_and_exports_the_header_only():
    path = str(installed().library)
    dynamic = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True).stdout
    assert "python" not in dynamic
    assert "[libflashcupy.so.1]" in dynamic
    symbols = subprocess.run(["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True).stdout
    exported = {line.split()[-1].split("@")[0] for line in symbols.splitlines() if " T " in line}
    assert exported == {name for name in dir(library().lib) if name.startswith("flashcupy_")}
