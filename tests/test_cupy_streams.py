"""A caller's memory, stream and context, as CuPy takes them over."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from cupy_kit import CudaError
from oracles import oracle

from flashcupy import arrays
from flashcupy.cuda import cupy_device
from flashcupy.cuda.streams import CudaStream


class TestCallersMemoryAndStreams:
    def test_a_stream_is_taken_over(self):
        """By the protocol that CuPy has in the place of ExternalStream."""
        cupy = oracle("cupy")
        assert cupy.cuda.Stream.from_external(CudaStream(0x1230)).ptr == 0x1230

    @pytest.mark.parametrize("stream", [0, 0x1230])
    def test_device_stream_and_context_are_the_threads_own_again(self, fake, stream):
        calls, current = fake.calls, [0xC0]

        @contextlib.contextmanager
        def entered(name):
            calls.append(f"enter {name}")
            yield
            calls.append(f"exit {name}")

        def from_external(external):
            assert external.__cuda_stream__() == (0, stream)
            return entered("stream")

        def set_context(context):
            calls.append(("context", context))
            current[0] = context

        fake.module.cuda.Stream = SimpleNamespace(from_external=from_external, null=entered("null"))
        fake.module.cuda.driver.ctxGetCurrent = lambda: current[0]
        fake.module.cuda.driver.ctxSetCurrent = set_context
        fake.runtime.setDevice = lambda ordinal: calls.append(("set", ordinal))
        which = "stream" if stream else "null"
        with cupy_device.CupyDevice(1).on_stream(stream):
            current[0] = 0xD0  # as selecting a device does
        inside = [("enter", 1), ("set", 1), f"enter {which}", f"exit {which}", ("exit", 1)]
        assert calls == [*inside, ("context", 0xC0)]
        assert current == [0xC0]

    def test_0_is_the_legacy_stream_where_cupys_default_is_another(self, fake, monkeypatch):
        taken = []
        monkeypatch.setattr(cupy_device, "_per_thread_default", lambda: True)
        take = lambda external: taken.append(external.__cuda_stream__()) or contextlib.nullcontext()  # noqa: E731
        fake.module.cuda.Stream = SimpleNamespace(from_external=take)
        fake.module.cuda.driver.ctxGetCurrent = lambda: 0
        fake.runtime.setDevice = lambda ordinal: None
        with cupy_device.CupyDevice(0).on_stream(0):
            assert taken == [(0, 1)]

    @pytest.mark.parametrize("variable", ["0", "1"])
    def test_cupy_tells_which_stream_is_the_default(self, variable):
        oracle("cupy")
        code = "from flashcupy.cuda import cupy_device; print(int(cupy_device._per_thread_default()))"
        environ = {**os.environ, "CUPY_CUDA_PER_THREAD_DEFAULT_STREAM": variable}
        output = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
        assert output.stdout.strip() == variable

    def test_a_thread_without_a_context_has_none_again(self, fake):
        current = [0]
        fake.runtime.setDevice = lambda ordinal: current.__setitem__(0, 0xD0)
        fake.module.cuda.Stream = SimpleNamespace(null=contextlib.nullcontext())
        fake.module.cuda.driver.ctxGetCurrent = lambda: current[0]
        fake.module.cuda.driver.ctxSetCurrent = lambda context: current.__setitem__(0, context)
        with cupy_device.CupyDevice(0).on_stream(0):
            assert current == [0xD0]
        assert current == [0]

    def test_before_the_driver_is_initialised_nothing_is_put_back(self, fake):
        def refuse(*_):
            raise CudaError(3)

        fake.module.cuda.Stream = SimpleNamespace(null=contextlib.nullcontext())
        fake.module.cuda.driver.ctxGetCurrent = fake.module.cuda.driver.ctxSetCurrent = refuse
        fake.runtime.setDevice = lambda ordinal: None
        with pytest.raises(KeyError), cupy_device.CupyDevice(0).on_stream(0):
            raise KeyError

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool"])
    @pytest.mark.parametrize(("shape", "strides"), [((3, 4), None), ((3, 4), (-16, 4)), ((0, 4), None), ((), None)])
    def test_memory_is_viewed_where_it_is(self, dtype, shape, strides):
        cupy = oracle("cupy")
        dtype = arrays.bfloat16() if dtype == "bfloat16" else np.dtype(dtype)
        array = cupy_device.CupyDevice(1).view(0x7000, shape, strides, dtype)
        assert isinstance(array, cupy.ndarray)
        assert (array.data.ptr, array.data.device_id, array.shape, array.dtype) == (0x7000, 1, shape, dtype)
        if strides is None:
            assert array.flags.c_contiguous
        else:
            assert array.strides == strides

    def test_the_pool_is_emptied_on_the_device(self, fake):
        pool = SimpleNamespace(free_all_blocks=lambda: fake.calls.append("freed"))
        fake.module.get_default_memory_pool = lambda: pool
        cupy_device.CupyDevice(1).free_cached()
        assert fake.calls == [("enter", 1), "freed", ("exit", 1)]

    def test_a_host_array_is_copied_over_one_of_the_device(self, fake):
        content, target = np.arange(3), SimpleNamespace(set=lambda x: fake.calls.append(x))
        cupy_device.CupyDevice(1).overwrite(target, content)
        assert fake.calls[1] is content
