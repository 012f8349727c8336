"""Plans: what a call launches, from integers alone; and what a device sees of a call."""

from __future__ import annotations

import itertools
import json
import weakref

import numpy as np
import pytest
from emu.arrays import EmuArray, EmuRuntime
from first_use_kit import Watched

import flashcupy as fc
from flashcupy.cuda import device as device_module
from flashcupy.cuda.calls import Call
from flashcupy.cuda.families import GENERIC
from flashcupy.cuda.operands import ENTRIES, HEADS, MATRIX, ROWS, Batch, Layout
from flashcupy.cuda.plan import plan_bytes
from flashcupy.errors import NotWarmedUpError, UnsupportedError


class Recorder(Watched):
    """Counts what a call does to the device; compiles and launches nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.allocated: list[int] = []
        self.copies = 0

    def empty(self, shape, dtype):
        self.allocated.append(int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize)
        return super().empty(shape, dtype)

    def from_host(self, array):
        self.copies += 1
        return super().from_host(array)

    def to_host(self, array):
        raise AssertionError("a call must not wait for the device")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("FLASHCUPY_CACHE_DIR", str(tmp_path))


@pytest.fixture
def recorder(monkeypatch):
    device = Recorder()
    monkeypatch.setattr(device_module, "_installed", [EmuRuntime(device)])
    monkeypatch.setenv("FLASHCUPY_CHECK", "off")
    return device


def array(device, *shape, dtype=np.float32):
    """A device array that takes no memory to speak of."""
    return EmuArray(np.broadcast_to(np.zeros((), dtype), shape), device)


def problem(q, k, v, **options):
    return fc.build.dense_problem(q, k, v, fc.options.Options(**options))


# ---- batch dims ------------------------------------------------------------------------------------------------------


def layout(shape, dims=MATRIX, order="C"):
    host = np.zeros(shape, np.float32, order=order)
    return Layout.of(host, dims, 0)


@pytest.mark.parametrize(
    ("batch", "layouts", "extents"),
    [
        ((), [layout((2, 5, 3))], (1, 1, 1, 1)),
        ((4, 3), [layout((4, 3, 2, 5, 3)), layout((4, 3, 2, 5), ROWS)], (1, 1, 1, 12)),
        ((4, 3), [layout((4, 3, 2, 5, 3)), layout((3, 2, 5, 3))], (1, 1, 4, 3)),
        ((4, 3), [layout((4, 3, 2, 5, 3)), layout((4, 1, 2, 5, 3))], (1, 1, 4, 3)),
        ((4, 1, 3), [layout((4, 1, 3, 2, 5, 3)), layout((4, 1, 3), ENTRIES)], (1, 1, 1, 12)),
        ((4, 3), [layout((4, 3, 2, 5, 3), order="F"), layout((2,), HEADS)], (1, 1, 4, 3)),
        ((2, 0), [layout((2, 0, 2, 5, 3))], (1, 1, 1, 0)),
    ],
)
def test_batch_dims_are_merged_where_all_arrays_step_evenly(batch, layouts, extents):
    merged = Batch(batch, layouts)
    assert merged.extents == extents
    for one in layouts:
        for index in np.ndindex(batch):
            own = dict(zip(range(len(batch)), one.batch_steps(len(batch)), strict=True))
            flat = np.ravel_multi_index(index, batch) if batch else 0
            parts = np.unravel_index(flat, extents)
            expected = sum(i * own[dim] for dim, i in enumerate(index))
            assert sum(i * s for i, s in zip(parts, merged.steps(one), strict=True)) == expected


def test_more_batch_dims_than_kernels_have_are_refused():
    shape = (2, 3, 2, 3, 2)
    whole, holes = layout((*shape, 1, 4, 4)), layout((2, 1, 2, 1, 2, 1, 4, 4))
    with pytest.raises(UnsupportedError, match=r"need 5 separate strides.*loop over a batch dim"):
        Batch(shape, [whole, holes])


# ---- plans -----------------------------------------------------------------------------------------------------------


def forward_plan(problem):
    call = Call(problem)
    out = array(call.device, *problem.spec.out_shape(problem.spec.v_dim))
    call.add("out", out)
    call.add("lse", array(call.device, *problem.spec.lse_shape))
    return GENERIC.forward(call.builder(), tails=call.tails)


def test_a_plan_is_integers(recorder):
    x = array(recorder, 2, 3, 100, 64)
    plan = forward_plan(problem(x, x, x, causal=True, dropout=0.5, seed=1))
    (launch,) = plan_bytes(plan)["launches"]
    assert json.loads(json.dumps(launch))["grid"] == 2 * 3 * 2
    assert {slot for _, slot in launch["slots"]} == {"q", "k", "v", "out", "lse", "seed_words", "seed", "offset"}


def test_rows_beyond_what_coordinates_hold_are_refused(recorder):
    x, long = array(recorder, 1, 5, 4), array(recorder, 1, 2**28, 4)
    with pytest.raises(UnsupportedError, match="k has 268435456 rows"):
        fc.attention(x, long, long)


def test_grids_beyond_the_hardware_are_refused(recorder):
    x = array(recorder, 1, 16, 4)
    with pytest.raises(UnsupportedError, match="would need 2147483648 blocks"):
        forward_plan(problem(array(recorder, 2**30, 2, 16, 4), x, x))
    with pytest.raises(UnsupportedError, match="batch size is 2147483648"):
        forward_plan(problem(array(recorder, 2**31, 1, 16, 4), x, x))


@pytest.mark.parametrize("length", [4096, 65536])
@pytest.mark.parametrize(
    ("dtype", "of_a_row"),
    [
        ("float64", 8),  # delta
        ("float32", 4 * 4),  # what a row brings
        ("float16", 3 * 4 + 64 * 4),  # the same, in fewer numbers, and sums of dq
    ],
)
def test_temporary_memory_is_linear(recorder, dtype, of_a_row, length):
    x = array(recorder, 2, length, 64, dtype=np.dtype(dtype))
    told = fc.explain(x, x, x, causal=True)
    assert told.backend == "cuda"
    assert told.workspace_bytes == 0
    assert told.backward_workspace_bytes == 2 * length * of_a_row


def test_explain_tells_the_truth_about_memory(recorder):
    x = EmuArray(np.zeros((3, 2, 40, 8), np.float32), recorder)
    k, options = EmuArray(np.zeros((2, 40, 8), np.float32), recorder), {"kv_lengths": [3, 40, 17]}
    told = fc.explain(x, k, k, **options)
    fc.attention(x, k, k, **options)
    assert recorder.allocated[2:] == [told.workspace_bytes]
    out, residuals = fc.attention_fwd(x, k, k, **options)
    recorder.allocated.clear()
    fc.attention_bwd(out, residuals)
    assert recorder.allocated[3:] == [told.backward_workspace_bytes]


def test_a_call_launches_what_it_needs_and_nothing_waits(recorder):
    x = EmuArray(np.zeros((2, 40, 8), np.float32), recorder)
    bias, sinks = EmuArray(np.zeros((40, 40), np.float32), recorder), np.zeros(2, np.float32)
    out, residuals = fc.attention_fwd(x, x, x, bias=bias, sinks=sinks)
    kinds = [name.partition("_")[0] for name in recorder.entries]
    assert kinds == ["upload", "fwd"]
    for wrt, expected in (
        (("v",), ["upload", "bwd", "dkv"]),
        (("q",), ["upload", "bwd", "dq"]),
        (("q", "k", "bias", "sinks"), ["upload", "bwd", "dq", "dkv", "dbias", "sum"]),
    ):
        recorder.entries.clear()
        fc.attention_bwd(out, residuals, wrt=wrt)
        assert [name.partition("_")[0] for name in recorder.entries] == expected
    recorder.entries.clear()
    fc.attention_bwd(out, residuals, wrt=())
    assert not recorder.entries
    assert recorder.copies == 0


def test_lists_of_a_mask_are_copied_once_and_again_after_a_rewrite(recorder):
    x = EmuArray(np.zeros((1, 64, 8), np.float32), recorder)
    mask = fc.BlockMask.empty((64, 64), block_size=16, capacity=16)
    blocks = np.eye(4, dtype=np.bool_)
    fc.BlockMask.from_blocks(blocks, (64, 64), block_size=16, out=mask)
    for expected in (7, 7):
        out, residuals = fc.attention_fwd(x, x, x, block_mask=mask)
        assert recorder.copies == expected
    fc.attention_bwd(out, residuals)
    assert recorder.copies == 14
    fc.BlockMask.from_blocks(~blocks, (64, 64), block_size=16, out=mask)
    fc.attention(x, x, x, block_mask=mask)
    assert recorder.copies == 21


# ---- graph capture ---------------------------------------------------------------------------------------------------


def test_under_capture_only_what_is_warmed_up_runs(recorder):
    x = EmuArray(np.zeros((1, 33, 24), np.float16), recorder)
    mask = fc.BlockMask.causal((33, 33), block_size=16)
    options = {"softcap": 2.0, "kv_lengths": 30, "block_mask": mask}
    recorder.capturing = True
    with pytest.raises(NotWarmedUpError, match="warmup"):
        fc.attention(x, x, x, **options)
    recorder.capturing = False
    fc.warmup(x, x, x, backward=True, **options)
    assert not recorder.entries
    recorder.capturing = True
    out, residuals = fc.attention_fwd(x, x, x, **options)
    fc.attention_bwd(out, residuals)
    assert [name.partition("_")[0] for name in recorder.entries] == ["upload", "fwd", "upload", "bwd", "dkvq", "bwd"]
    recorder.entries.clear()
    fc.attention_bwd(out, residuals, deterministic=True)
    assert [name.partition("_")[0] for name in recorder.entries] == ["upload", "bwd", "dkv", "dq"]


def test_memory_of_a_captured_call_is_kept(recorder):
    """Results, row sums, temporary memory and lists: a replay writes or reads them whatever the caller has dropped."""
    x = EmuArray(np.zeros((1, 33, 24), np.float16), recorder)
    mask = fc.BlockMask.causal((33, 33), block_size=16)
    fc.warmup(x, x, x, backward=True, kv_lengths=30, block_mask=mask)
    made = []
    empty = recorder.empty
    recorder.empty = lambda shape, dtype: (made.append(weakref.ref(array := empty(shape, dtype))), array)[1]
    for capturing in (False, True):
        recorder.capturing = capturing
        made.clear()
        out, residuals = fc.attention_fwd(x, x, x, kv_lengths=30, block_mask=mask)
        grads = fc.attention_bwd(out, residuals)
        theirs = {id(array) for array in (out, residuals.lse, *grads[:3])}
        ours = [array for array in made if id(array()) not in theirs]
        assert all(array() is not None for array in ours) == capturing
        del residuals
        assert all(array() is not None for array in ours) == capturing
    assert len(ours) >= 3  # statistics, and a workspace each way


def test_explain_knows_what_is_compiled(recorder):
    x = EmuArray(np.zeros((1, 33, 24), np.float16), recorder)
    assert not fc.explain(x, x, x).compiled
    fc.warmup(x, x, x)
    assert fc.explain(x, x, x).compiled


def test_two_devices_do_not_share_plans(monkeypatch):
    devices = Recorder(), Recorder()
    monkeypatch.setattr(device_module, "_installed", [EmuRuntime(*devices)])
    monkeypatch.setenv("FLASHCUPY_CHECK", "off")
    for device in devices:
        x = EmuArray(np.zeros((1, 33, 24), np.float16), device)
        fc.attention(x, x, x)
    assert [len(device.entries) for device in devices] == [1, 1]


def test_many_sequences_travel_in_several_uploads(recorder):
    x = EmuArray(np.zeros((1, 2000, 8), np.float32), recorder)
    cu = np.arange(2001)
    fc.attention_varlen(x, x, x, cu, cu)
    kinds = [name.partition("_")[0] for name in recorder.entries]
    assert [kind for kind, _ in itertools.groupby(kinds)] == ["upload", "fwd"]
    assert kinds.count("upload") == -(-2 * 2004 // 960)  # int32, in pieces of 16 bytes
