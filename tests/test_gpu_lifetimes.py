"""Memory that the caller lets go of while the GPU still needs it: nothing may be lost, on any stream.

Work on a GPU takes microseconds here, and such mistakes may go unseen. Where CUDA is the stand-in (hostcuda/README.md),
streams run as late as they may, and they do not.
"""

from __future__ import annotations

import gc
import sys
import threading

import gradients
import numpy as np
import pytest
from gpu_kit import require_right

import flashcupy as fc

pytestmark = pytest.mark.gpu

SHAPES = ((2, 4, 50, 32), (2, 2, 70, 32), (2, 2, 70, 32))


def _host(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES]


def _call_and_drop(cp, stream):
    """Several calls in a row, each on memory that the one before has let go of; return what came out, and of what."""
    done = []
    with stream:
        for seed in range(4):
            arrays = _host(seed)
            q, k, v = map(cp.asarray, arrays)
            out, residuals = fc.attention_fwd(q, k, v, causal=True)
            dout = cp.asarray(arrays[0])
            done.append((arrays, out, fc.attention_bwd(dout, residuals)))
            del q, k, v, residuals, dout
    return done


def _require_all_right(stream, done):
    with stream:
        for arrays, out, grads in done:
            require_right(out.get(), *arrays, causal=True)
            _require_right_gradients(grads, arrays, causal=True)


def _require_right_gradients(grads, arrays, **options):
    """Those where dout is q."""
    on_host = [None if x is None else x.get() for x in grads]
    gradients.require_right(on_host, *arrays, arrays[0], **options)


@pytest.mark.parametrize("kind", ["of its own", "null"])
def test_operands_may_be_dropped_at_once(cp, kind):
    stream = cp.cuda.Stream.null if kind == "null" else cp.cuda.Stream(non_blocking=True)
    _require_all_right(stream, _call_and_drop(cp, stream))


def test_stream_ordered_memory(cp):
    if not cp.cuda.runtime.deviceGetAttribute(cp.cuda.runtime.cudaDevAttrMemoryPoolsSupported, 0):
        pytest.skip("this device has no memory pools of its driver")
    stream = cp.cuda.Stream(non_blocking=True)
    with cp.cuda.using_allocator(cp.cuda.MemoryAsyncPool().malloc):
        done = _call_and_drop(cp, stream)
        cp.cuda.Stream.null.synchronize()  # what of it was freed there would be gone before the calls run
        _require_all_right(stream, done)
        stream.synchronize()


def test_threads_with_streams_of_their_own(cp):
    done = {}

    def work(n):
        stream = cp.cuda.Stream(non_blocking=True)
        done[n] = stream, _call_and_drop(cp, stream)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(3):
        _require_all_right(*done[n])


class _Lent:
    """An array of another library, which writes into its memory as soon as nobody holds it."""

    def __init__(self, cp, array):
        self._runtime, self._size = cp.cuda.runtime, array.nbytes
        self._pointer = self._runtime.malloc(self._size)
        self._write(array)
        self._runtime.deviceSynchronize()  # a copy of pageable memory may return before it is done
        self.__cuda_array_interface__ = {
            "data": (self._pointer, False),
            "shape": array.shape,
            "typestr": array.dtype.str,
            "version": 3,
        }

    def _write(self, array):
        self._runtime.memcpy(self._pointer, array.ctypes.data, self._size, 1)

    def __del__(self):
        if sys.is_finalizing():  # one that a graph reads is kept for good
            return
        self._write(np.full(self._size, 0x7E, np.uint8))
        self._runtime.free(self._pointer)


def test_memory_of_others_is_held_until_the_gpu_is_done(cp):
    arrays = _host()
    with cp.cuda.Stream(non_blocking=True):
        out = fc.attention(*(_Lent(cp, x) for x in arrays), causal=True)
        gc.collect()
        require_right(out.get(), *arrays, causal=True)


def test_a_graph_keeps_what_is_not_the_callers(cp):
    """Operands of another library, a mask's lists, and memory between its kernels."""
    arrays = _host()
    mask = fc.BlockMask.sliding_window((50, 70), 24, 0, block_size=16)
    visible = mask.to_dense()
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        own, lent = [cp.asarray(x) for x in arrays], [_Lent(cp, x) for x in arrays]
        fc.attention(*lent, block_mask=mask)  # which loads the kernels, and copies the lists
        fc.attention_bwd(own[0], fc.attention_fwd(*own)[1])
        stream.begin_capture()
        out = fc.attention(*lent, block_mask=mask)
        _, residuals = fc.attention_fwd(*own)  # of residuals the operands and the mask are part
        grads = fc.attention_bwd(own[0], residuals)
        graph = stream.end_capture()
        del lent, mask
        gc.collect()
        others = [cp.asarray(np.full(1 << shift, 255, np.uint8)) for shift in range(6, 15) for _ in range(8)]
        for _ in range(2):
            out.fill(0)
            graph.launch(stream)
            require_right(out.get(), *arrays, mask=visible)
        _require_right_gradients(grads, arrays)
        assert all(bool((other == 255).all()) for other in others)


def test_a_mask_may_be_dropped_at_once_on_any_stream(cp):
    """Its lists came to the device on the first stream, and their memory goes back to that."""
    arrays = _host()
    streams = [cp.cuda.Stream(non_blocking=True) for _ in range(2)]
    mask = fc.BlockMask.sliding_window((50, 70), 24, 0, block_size=16)
    visible = mask.to_dense()
    with streams[0]:
        on_first = [cp.asarray(x) for x in arrays]
        first = fc.attention(*on_first, block_mask=mask)
        streams[0].synchronize()
    with streams[1]:
        second = fc.attention(*on_first, block_mask=mask)
    del mask
    gc.collect()
    with streams[0]:
        others = [cp.asarray(np.full(1 << shift, 255, np.uint8)) for shift in range(6, 14) for _ in range(8)]
        streams[0].synchronize()
    with streams[1]:
        require_right(second.get(), *arrays, mask=visible)
    require_right(first.get(), *arrays, mask=visible)
    assert len(others) == 64
