"""What a C program can get wrong returns a status, a message that names it, and writes nothing."""

from __future__ import annotations

import gc
import re
import weakref

import numpy as np
import pytest
from capi_kit import Failed, library

from flashcupy import BlockMask

SHAPE = (2, 5, 8)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(1)
    q, k, v, dout = (rng.standard_normal(SHAPE).astype(np.float32) for _ in range(4))
    made = {
        "q": q,
        "k": k,
        "v": v,
        "dout": dout,
        "out": np.full(SHAPE, 7, np.float32),
        "lse": np.full((2, 5), 7.0, "f4"),
    }
    return made | {name: np.full(SHAPE, 7, np.float32) for name in ("dq", "dk", "dv")}


def _forward(arrays, tensors=(), **options):
    five = {name: arrays[name] for name in ("q", "k", "v", "out", "lse")}
    library().forward(**{**five, **dict(tensors)}, **options)


def _refused(arrays, status, message, call):
    with pytest.raises(Failed, match=message) as failed:
        call()
    assert failed.value.status == status
    for name in ("out", "lse", "dq", "dk", "dv"):
        assert (arrays[name] == 7).all(), f"{name} was written"


TENSORS = {
    "NULL": ("k", None, "k is NULL"),
    "NULL data": ("v", {"data": 0}, "v.data is NULL"),
    "NULL shape": ("q", {"shape": 0}, "q.shape is NULL"),
    "negative ndim": ("q", {"ndim": -1}, "q.ndim is -1"),
    "ndim of a lost pointer": ("q", {"ndim": 1 << 20}, "q.ndim is 1048576"),
    "negative extent": ("q", {"shape": [2, -5, 8]}, "q has shape"),
    "out whose rows overlap": ("out", {"strides": [40, 7, 1]}, "its elements overlap"),
    "lse whose rows overlap": ("lse", {"strides": [3, 1]}, "its elements overlap"),
    "no elements, beyond memory": ("q", {"shape": [0, 1 << 62, 8]}, "q has shape.*2\\*\\*63"),
    "extents beyond memory": ("q", {"shape": [1 << 40, 1 << 40, 8], "strides": 0}, "2\\*\\*63"),
    "strides beyond memory": ("q", {"strides": [1 << 62, 8, 1]}, "2\\*\\*63"),
    "integers": ("q", {"dtype": (0, 32, 1)}, "q has dtype int32"),
    "another dtype": ("k", {"dtype": (2, 16, 1)}, "k"),
    "lanes": ("q", {"dtype": (2, 32, 4)}, "lanes 4"),
    "no such dtype": ("q", {"dtype": (9, 32, 1)}, "code 9"),
    "no such bits": ("q", {"dtype": (2, 24, 1)}, "bits 24"),
    "no such device type": ("q", {"device": (77, 0)}, "q has device_type 77"),
    "another device type": ("v", {"device": (14, 0)}, "v has device_type 14"),
    "a wrong head count": ("k", {"shape": [3, 5, 8]}, "k"),
    "a wrong head_dim": ("k", {"shape": [2, 5, 7]}, "k"),
    "out of a wrong shape": ("out", {"shape": [2, 4, 8]}, "out has shape"),
    "out NULL": ("out", None, "out is NULL"),
    "out of a wrong dtype": ("out", {"dtype": (0, 32, 1)}, "out has dtype"),
    "out that shares its elements": ("out", {"strides": [0, 8, 1]}, "out is a broadcast view"),
    "lse of a wrong shape": ("lse", {"shape": [5, 2]}, "lse has shape"),
    "lse of a wrong dtype": ("lse", {"dtype": (0, 32, 1)}, "lse has dtype"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors(arrays, case):
    name, changes, message = TENSORS[case]
    lib = library()
    tensor = lib.ffi.NULL
    if changes is not None:
        fields = {
            field: lib.ffi.new("int64_t[]", value) if isinstance(value, list) else value or lib.ffi.NULL
            for field, value in changes.items()
        }
        tensor = lib.tensor(arrays[name], **fields)
    _refused(arrays, "INVALID_ARGUMENT", message, lambda: _forward(arrays, {name: tensor}))


OPTIONS = {
    "unknown flag": ({"flags": 1 << 20}, "unknown bits 0x100000"),
    "unknown causal": ({"causal": 3}, "causal is 3"),
    "unknown precision": ({"precision": 2}, "precision is 2"),
    "window of -1": ({"window_left": -1}, "window_left is -1.*without FLASHCUPY_HAS_WINDOW_LEFT it is unbounded"),
    "negative softcap": ({"softcap": -1.0}, "softcap is -1"),
    "scale not finite": ({"scale": float("nan")}, "scale is nan"),
    "dropout of 1": ({"dropout": 1.0, "seed": 1}, "dropout is 1"),
    "dropout without a seed": ({"dropout": 0.5}, "seed"),
    "two seeds": ({"dropout": 0.5, "seed": 1, "seed_words": np.zeros(2, np.uint64)}, "seed_words is not NULL"),
    "a workspace": ({"workspace_size": 1024}, "workspace is NULL"),
    "mask of numbers": ({"mask": np.ones((5, 5), np.float32)}, "mask"),
    "bias of a wrong shape": ({"bias": np.ones((5, 4), np.float32)}, "bias"),
    "cu_seqlens on one side": ({"cu_seqlens_q": np.array([0, 5])}, "cu_seqlens"),
    "falling cu_seqlens": ({"cu_seqlens_q": np.array([0, 4, 3]), "cu_seqlens_k": np.array([0, 3, 5])}, "falls"),
    "cu_seqlens too long": ({"cu_seqlens_q": np.array([0, 6]), "cu_seqlens_k": np.array([0, 5])}, "ends at 6"),
    "max_seqlen without cu_seqlens": ({"max_seqlen_q": 5}, "max_seqlen_q"),
    "max_seqlen too small": (
        {"cu_seqlens_q": np.array([0, 5]), "cu_seqlens_k": np.array([0, 5]), "max_seqlen_k": 4},
        "max_seqlen_k is 4",
    ),
    "lengths too long": ({"kv_lengths": np.array(6)}, "kv_lengths"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options(arrays, case):
    options, message = OPTIONS[case]
    _refused(arrays, "INVALID_ARGUMENT", message, lambda: _forward(arrays, **options))
    five = [arrays[name] for name in ("q", "k", "v", "out", "lse")]
    grads = (arrays["dq"], arrays["dk"], arrays["dv"], None, None)
    _refused(arrays, "INVALID_ARGUMENT", message, lambda: library().backward(five, arrays["dout"], grads, **options))


@pytest.mark.parametrize("name", ["scale", "softcap", "window_left", "window_right", "seed", "max_seqlen_q"])
def test_a_value_without_its_flag_is_not_ignored(arrays, name):
    lib = library()
    options = lib.options()
    setattr(options, name, 3)
    tensors = [lib.tensor(arrays[x]) for x in ("q", "k", "v", "out", "lse")]

    def call():
        lib.ok(lib.lib.flashcupy_forward(*tensors, options, lib.ffi.NULL))

    _refused(arrays, "INVALID_ARGUMENT", f"{name} is 3.*FLASHCUPY_HAS_{name.upper()}", call)


def test_a_workspace_or_a_stream_on_the_host(arrays):
    lib = library()
    memory = lib.ffi.cast("void *", 1 << 20)
    _refused(arrays, "INVALID_ARGUMENT", "workspace", lambda: _forward(arrays, workspace=memory, workspace_size=256))
    _refused(arrays, "INVALID_ARGUMENT", "stream is 0x10, expected NULL", lambda: _forward(arrays, stream=0x10))


def test_overlaps(arrays):
    _refused(arrays, "INVALID_ARGUMENT", "out shares memory with q", lambda: _forward(arrays, {"out": arrays["q"]}))
    both = arrays["out"]
    _refused(
        arrays, "INVALID_ARGUMENT", "shares memory", lambda: _forward(arrays, {"lse": both.ravel()[:10].reshape(2, 5)})
    )
    five = [arrays[name] for name in ("q", "k", "v", "out", "lse")]
    grads = (arrays["dq"], arrays["dq"], None, None, None)
    _refused(
        arrays, "INVALID_ARGUMENT", "dk shares memory with dq", lambda: library().backward(five, arrays["dout"], grads)
    )
    grads = (arrays["lse"], None, None, None, None)
    _refused(arrays, "INVALID_ARGUMENT", "dq", lambda: library().backward(five, arrays["dout"], grads))


@pytest.mark.parametrize(
    ("size", "excess", "message"),
    [
        (0, 0, "struct_size is 0"),
        (4, 0, "struct_size is 4"),
        (1 << 20, 0, "struct_size is 1048576"),
        (None, 1, "is not 0"),
        (None, 0, None),
        (16, 0, None),
    ],
)
def test_sizes_of_structs(arrays, size, excess, message):
    """An older header's struct is shorter; a newer one's longer, and may ask for what this library does not know."""
    lib = library()
    known = lib.ffi.sizeof("flashcupy_options")
    memory = lib.ffi.new("char[]", known + 64)
    options = lib.ffi.cast("flashcupy_options *", memory)
    options.struct_size = known + 64 if size is None else size
    options.causal = 1
    options.scale = 5.0 if size == 16 else 0.0  # beyond the 16 bytes that an older header has
    memory[known + 63] = bytes([excess])
    tensors = [lib.tensor(arrays[x]) for x in ("q", "k", "v", "out", "lse")]

    def call():
        lib.ok(lib.lib.flashcupy_forward(*tensors, options, lib.ffi.NULL))

    if message:
        _refused(arrays, "INVALID_ARGUMENT", message, call)
        return
    call()
    expected = np.full_like(arrays["out"], np.nan)
    library().forward(arrays["q"], arrays["k"], arrays["v"], expected, causal=True)
    np.testing.assert_array_equal(arrays["out"], expected)


def test_missing_places_for_answers():
    lib = library()
    q = lib.tensor(np.zeros(SHAPE, np.float32))
    with pytest.raises(Failed, match="size is NULL"):
        lib.ok(lib.lib.flashcupy_forward_workspace_size(q, q, q, q, lib.ffi.NULL, lib.ffi.NULL, lib.ffi.NULL))
    options = lib.mask_options((64, 64))
    with pytest.raises(Failed, match="mask is NULL"):
        lib.ok(lib.lib.flashcupy_block_mask_from_blocks(options, q, lib.ffi.NULL, lib.ffi.NULL))
    lib.ok(lib.lib.flashcupy_supported(q, q, q, lib.ffi.NULL, lib.ffi.NULL))


EYE = np.eye(2, dtype=bool)
MASKS = {
    "wrong shape": (((128, 128), (64, 64)), {}, np.ones((2, 3), bool), "blocks"),
    "wrong dtype": (((128, 128), (64, 64)), {}, np.ones((2, 2), np.float32), "bool"),
    "block size": (((128, 128), (65, 64)), {}, EYE, "block_q is 65"),
    "negative length": (((-1, 128), (64, 64)), {}, EYE, "q_len is -1"),
    "negative capacity": (((128, 128), (64, 64)), {"capacity": -1}, EYE, "capacity is -1"),
    "other batch": (((128, 128), (64, 64)), {"batch": 2}, EYE, "batch is 2"),
    "flags": (((128, 128), (64, 64)), {"flags": 1}, EYE, "flags"),
    "device": (((128, 128), (64, 64)), {"device": (9, 0)}, EYE, "device_type is 9"),
    "NULL": (((128, 128), (64, 64)), {}, None, "blocks is NULL"),
}


@pytest.mark.parametrize("case", MASKS)
def test_masks_that_cannot_be_made(case):
    (shape, block), fields, blocks, message = MASKS[case]
    lib = library()
    handle = lib.ffi.new("flashcupy_block_mask **", lib.ffi.cast("flashcupy_block_mask *", 99))
    options = lib.mask_options(shape, block, **fields)
    status = lib.lib.flashcupy_block_mask_from_blocks(options, lib.tensor(blocks), lib.ffi.NULL, handle)
    assert status == lib.lib.FLASHCUPY_INVALID_ARGUMENT
    assert message in lib.last_error()
    assert handle[0] == lib.ffi.NULL


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        (([0, 2, 2], [1, 0]), "ascend"),
        (([0, 1, 2], [0, 2]), "must lie in"),
        (([0, 1], [0]), "indptr"),
        (([0, 1, 3], [0, 1]), "indptr"),
        (([0, 1, 2], [0, 1], [True, False]), "bits"),
    ],
)
def test_lists_that_are_not_in_order(lists, message):
    lib = library()
    arrays = [np.array(x) for x in lists] + [None] * (4 - len(lists))
    with pytest.raises(Failed, match=message):
        lib.mask_from_csr(lib.mask_options((128, 128)), *arrays)


def test_strides_that_do_not_count_are_not_looked_at(arrays):
    lib = library()
    q, k, v, out = (arrays[name][:, :1] for name in ("q", "k", "v", "out"))
    lib.forward(q, k, v, out)
    expected = out.copy()
    for stride in (1 << 62, -(1 << 62), 0):
        out[...] = 7
        strange = [lib.tensor(x, strides=lib.ffi.new("int64_t[]", [40, stride, 1])) for x in (q, k, v, out)]
        lib.forward(*strange)
        np.testing.assert_array_equal(out, expected)
    empty = np.empty((2, 0, 8), np.float32)
    nothing = lib.tensor(empty, strides=lib.ffi.new("int64_t[]", [1 << 62, 1 << 62, 1 << 62]))
    lib.forward(nothing, k, v, nothing)


@pytest.mark.parametrize("device_type", [0, 1, 3])
def test_a_mask_is_where_tensors_of_its_device_type_are(arrays, device_type):
    lib = library()
    handle = lib.mask_from_blocks(lib.mask_options((5, 5), device=(device_type, 7)), np.ones((1, 1), bool))
    _forward(arrays, block_mask=handle)
    lib.ok(lib.lib.flashcupy_block_mask_destroy(handle))


def _masks():
    # Not isinstance, which asks other libraries' objects for their class: one of torch's warns.
    return [x for x in gc.get_objects() if type(x) is BlockMask]


def test_a_destroyed_mask_is_gone(arrays):
    lib = library()
    before = {id(x) for x in _masks()}
    handle = lib.mask_from_blocks(lib.mask_options((5, 5)), np.ones((1, 1), bool))
    gc.collect()
    (made,) = [weakref.ref(x) for x in _masks() if id(x) not in before]
    _forward(arrays, block_mask=handle)
    assert made() is not None
    lib.ok(lib.lib.flashcupy_block_mask_destroy(handle))
    gc.collect()
    assert made() is None


def test_lists_are_checked_before_memory_is_taken():
    lib = library()
    three = [np.array([0, 1, 1]), np.array([0]), None, None]
    with pytest.raises(Failed, match="indptr") as failed:
        lib.mask_from_csr(lib.mask_options((128, 128), batch=1 << 40), *three)
    assert failed.value.status == "INVALID_ARGUMENT"
    handle = lib.mask_from_csr(lib.mask_options((128, 128), capacity=1 << 62, partial_capacity=1 << 62), *three)
    lib.ok(lib.lib.flashcupy_block_mask_destroy(handle))


def test_a_gradient_without_its_input(arrays):
    five = [arrays[name] for name in ("q", "k", "v", "out", "lse")]
    for at, name in ((3, "dbias"), (4, "dsinks")):
        grads = [None] * 5
        grads[at] = arrays["dq"]
        with pytest.raises(Failed, match=f"{name} is given, but options.{name[1:]} is NULL"):
            library().backward(five, arrays["dout"], grads)


def test_no_message_speaks_of_python(arrays):
    """Of arguments that C does not have, or by Python's names for them."""
    for options in (
        {"softcap": 0.0},
        {"mask": np.ones((5, 5), np.float32)},
        {"dropout": 0.5, "seed_words": np.zeros(3, np.uint64)},
        {"bias": np.ones((5, 5), bool)},
    ):
        with pytest.raises(Failed) as failed:
            _forward(arrays, **options)
        assert not re.search(r"None|wrt|BlockMask\.|\w=|\bseed is", failed.value.message), failed.value.message


def test_handles(arrays):
    lib = library()
    whole = np.ones((1, 1), bool)
    handle = lib.mask_from_blocks(lib.mask_options(SHAPE[1:2] * 2), whole)
    _forward(arrays, block_mask=handle)
    arrays["out"][...], arrays["lse"][...] = 7, 7
    other = lib.mask_from_blocks(lib.mask_options((6, 5)), whole)
    _refused(arrays, "INVALID_ARGUMENT", "block_mask", lambda: _forward(arrays, block_mask=other))
    lib.ok(lib.lib.flashcupy_block_mask_destroy(handle))
    lib.ok(lib.lib.flashcupy_block_mask_destroy(lib.ffi.NULL))
    for wrong in (handle, lib.ffi.cast("flashcupy_block_mask *", id(arrays))):
        _refused(arrays, "INVALID_ARGUMENT", "no mask, or one that was", lambda m=wrong: _forward(arrays, block_mask=m))
        for call in (
            lambda m=wrong: lib.lib.flashcupy_block_mask_destroy(m),
            lambda m=wrong: lib.lib.flashcupy_block_mask_check(m),
            lambda m=wrong: lib.lib.flashcupy_block_mask_update_from_blocks(m, lib.tensor(whole), lib.ffi.NULL),
        ):
            assert call() == lib.lib.FLASHCUPY_INVALID_ARGUMENT
            assert "block_mask" in lib.last_error()
    lib.ok(lib.lib.flashcupy_block_mask_destroy(other))


def test_an_update_beyond_the_capacity_leaves_the_mask_alone(arrays):
    lib = library()
    rng = np.random.default_rng(3)
    q, k, v = (rng.standard_normal((2, 128, 8)) for _ in range(3))
    before, after = np.empty_like(q), np.empty_like(q)
    handle = lib.mask_from_blocks(lib.mask_options((128, 128), capacity=2), EYE)
    lib.forward(q, k, v, before, block_mask=handle)
    full = lib.tensor(np.ones((2, 2), bool))
    with pytest.raises(Failed, match="capacity"):
        lib.ok(lib.lib.flashcupy_block_mask_update_from_blocks(handle, full, lib.ffi.NULL))
    lib.ok(lib.lib.flashcupy_block_mask_check(handle))
    lib.forward(q, k, v, after, block_mask=handle)
    np.testing.assert_array_equal(after, before)
    lib.ok(lib.lib.flashcupy_block_mask_destroy(handle))
