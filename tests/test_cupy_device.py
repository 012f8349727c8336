"""CuPy's side of the device protocols: what runs without a GPU for real, the rest on stand-ins for CuPy's GPU calls."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cupy_kit import CudaError
from oracles import oracle

from flashcupy import arrays
from flashcupy.cuda import cupy_device
from flashcupy.cuda.device import Device, Runtime
from flashcupy.cuda.driver import driver_version
from flashcupy.errors import UnsupportedError


class TestMissing:
    def test_cupy(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "cupy", None)
        cupy_device._cupy.cache_clear()
        with pytest.raises(ImportError, match=r"need CuPy.*flashcupy\[cuda13\].*flashcupy\[cuda12\]"):
            cupy_device.CupyRuntime()

    def test_a_new_enough_cupy(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(__version__="14.1.1"))
        cupy_device._cupy.cache_clear()
        with pytest.raises(ImportError, match=r"CuPy 14\.1\.1 is installed, expected 14\.2 or newer"):
            cupy_device.CupyRuntime()

    @pytest.mark.parametrize(("cuda", "package"), [(12090, "nvidia-cuda-nvrtc-cu12"), (13000, "nvidia-cuda-nvrtc")])
    def test_nvrtc(self, fake, cuda, package):
        def missing():
            raise RuntimeError('Failure finding "libnvrtc.so.12"')

        fake.nvrtc.getVersion = missing
        fake.runtime.runtimeGetVersion = lambda: cuda
        with pytest.raises(ImportError, match=f"NVRTC.*pip install {package}$"):
            _ = cupy_device.CupyDevice(0).properties

    @pytest.mark.parametrize(
        ("driver", "who"), [(0, "no CUDA driver is installed"), (11080, r"the driver is for CUDA 11\.8")]
    )
    def test_driver(self, fake, driver, who):
        def insufficient(ordinal=None):
            raise CudaError(35, "cudaErrorInsufficientDriver")

        fake.runtime.driverGetVersion = lambda: driver
        fake.runtime.getDeviceProperties = fake.runtime.getDeviceCount = insufficient
        runtime = cupy_device.CupyRuntime()
        assert runtime.count() == 0
        with pytest.raises(RuntimeError, match=rf"cuda:0 cannot be used: {who}, CuPy is for CUDA 12\.9 \(cudaError"):
            _ = runtime.device(0).properties


class TestProperties:
    def test_are_asked_for_once(self, fake):
        device = cupy_device.CupyDevice(1)
        properties = device.properties
        assert device.properties is properties
        assert fake.calls == [("properties", 1)]
        assert (properties.name, properties.compute_capability, properties.arch) == ("Fake GPU", (9, 0), "sm_90a")
        assert (properties.multiprocessors, properties.shared_memory) == (132, 227 << 10)
        assert (properties.compiler, properties.driver.partition(",")[0]) == ("NVRTC 12.9", "CUDA 12.8")

    def test_a_gpu_that_is_too_old(self, fake):
        fake.properties.update(major=6, minor=1)
        with pytest.raises(UnsupportedError, match=r"compute capability 6\.1, expected 7\.0"):
            _ = cupy_device.CupyDevice(0).properties

    @pytest.mark.parametrize(
        "text",
        [
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023\nGCC version: 12",
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.129.03  Release Build  (dvs@x)\n",
        ],
    )
    def test_the_drivers_release(self, monkeypatch, text):
        monkeypatch.setattr(Path, "read_text", lambda path: text)
        assert driver_version(12020) == "CUDA 12.2, 535.129.03"

    def test_the_drivers_release_is_unknown(self, monkeypatch):
        monkeypatch.setattr(Path, "read_text", lambda path: "NVRM version: something else")
        assert driver_version(13000) == "CUDA 13.0"

    def test_one_device_object_per_ordinal(self, fake):
        runtime = cupy_device.CupyRuntime()
        assert runtime.device(1) is runtime.device(1)
        assert [runtime.device(n).name for n in range(runtime.count())] == ["cuda:0", "cuda:1"]


class TestLoadAndLaunch:
    def load(self, fake, error=None, shared_bytes=1024):
        kernel = SimpleNamespace()

        def raw_module(path):
            fake.calls.append(("load", path))

            def get_function(entry):
                fake.calls.append(("entry", entry))
                if error is not None:
                    raise error
                return kernel

            return SimpleNamespace(get_function=get_function)

        fake.module.RawModule = raw_module
        return cupy_device.CupyDevice(1).load(Path("/cache/x.bin"), "fwd", shared_bytes)

    def test_loads_on_its_own_device(self, fake):
        assert not vars(self.load(fake))
        assert fake.calls == [("enter", 1), ("load", "/cache/x.bin"), ("entry", "fwd"), ("exit", 1)]

    @pytest.mark.parametrize(("size", "opts_in"), [(48 << 10, False), ((48 << 10) + 1, True)])
    def test_opts_in_to_more_than_48_kb(self, fake, size, opts_in):
        expected = {"max_dynamic_shared_size_bytes": size} if opts_in else {}
        assert vars(self.load(fake, shared_bytes=size)) == expected

    @pytest.mark.parametrize("status", [200, 209, 218, 222, 223, 301, 500])
    def test_a_bad_file_is_an_oserror(self, fake, status):
        with pytest.raises(OSError, match=r"/cache/x\.bin cannot be loaded on cuda:1: CUDA error"):
            self.load(fake, CudaError(status))

    def test_a_path_that_cupy_cannot_encode_is_an_oserror_that_can_be_printed(self, fake):
        with pytest.raises(UnicodeEncodeError) as refused:
            "/cache/\udce9".encode()
        with pytest.raises(OSError, match=r"no file at '/cache/x\.bin'.*FLASHCUPY_CACHE_DIR"):
            self.load(fake, refused.value)

    @pytest.mark.parametrize("status", [2, 700])
    def test_a_bad_state_is_not(self, fake, status):
        with pytest.raises(CudaError):
            self.load(fake, CudaError(status))

    @pytest.mark.parametrize("kind", [bytes, bytearray])
    def test_parameters_go_by_value(self, fake, kind):
        launches = []

        def kernel(grid, block, args, shared_mem):
            launches.append((grid, block, shared_mem, [x.tobytes() for x in args], [x.size for x in args]))

        params = kind(range(40))
        cupy_device.CupyDevice(0).launch(kernel, 7, 128, 4096, params)
        assert launches == [((7,), (128,), 4096, [bytes(params)], [1])]

    def test_an_empty_grid_is_refused(self, fake):
        with pytest.raises(ValueError, match="grid is 0"):
            cupy_device.CupyDevice(0).launch(lambda *_: pytest.fail("launched"), 0, 128, 0, b"12345678")

    def test_capture_is_asked_of_the_devices_current_stream(self, fake):
        asked = []

        def current(ordinal):
            asked.append(ordinal)
            return SimpleNamespace(is_capturing=lambda: True)

        fake.module.cuda.get_current_stream = current
        assert cupy_device.CupyDevice(1).is_capturing()
        assert asked == [1]

    @pytest.mark.parametrize(("current", "asked"), [(0, "ptds"), (2, "current"), (0x1230, "current")])
    def test_capture_is_asked_of_the_stream_that_launches_go_to(self, fake, monkeypatch, current, asked):
        """With per-thread default streams CuPy launches on that of the thread where its null stream is current."""
        monkeypatch.setattr(cupy_device, "_per_thread_default", lambda: True)
        stream = SimpleNamespace(ptr=current, is_capturing=lambda: asked == "current")
        fake.module.cuda.get_current_stream = lambda ordinal: stream
        fake.module.cuda.Stream = SimpleNamespace(ptds=SimpleNamespace(is_capturing=lambda: asked == "ptds"))
        assert cupy_device.CupyDevice(0).is_capturing()


class TestArrays:
    """Metadata of real CuPy arrays, over host memory."""

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int64", "bool", "uint8"])
    def test_empty(self, host_cupy, dtype):
        dtype = arrays.bfloat16() if dtype == "bfloat16" else np.dtype(dtype)
        array = cupy_device.CupyDevice(0).empty((2, 3, 4), dtype)
        assert (array.shape, array.dtype, array.flags.c_contiguous) == ((2, 3, 4), dtype, True)
        runtime = cupy_device.CupyRuntime()
        assert runtime.read(array, "q") == (array, "cupy")
        assert runtime.read(array, "q")[0] is array
        assert runtime.pointer(array[1:]) == array.data.ptr + array.strides[0]
        assert runtime.device_of(array).name == "cuda:0"
        assert runtime.write_back(array, "cupy") is array

    @pytest.mark.parametrize("shape", [(2, 6, 4, 8), (2, 6, 4, 5), (1, 6, 4, 8), (0, 6, 4, 8)])
    @pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 2, 1, 3), (3, 2, 1, 0), (1, 3, 0, 2)])
    def test_empty_like_keeps_the_memory_order_as_numpy_does(self, host_cupy, shape, axes):
        model = np.empty((2, 6, 4, 8), np.float32).transpose(axes)
        device_model = host_cupy.empty((2, 6, 4, 8), np.float32).transpose(axes)
        shape = tuple(shape[axis] for axis in axes)
        expected = np.empty_like(model, np.float16, order="K", shape=shape)
        got = cupy_device.CupyRuntime().empty_like(device_model, shape, np.dtype(np.float16))
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
        if expected.size:
            assert got.strides == expected.strides

    @pytest.mark.parametrize("shape", [(), (5,), (2, 6, 4)])
    def test_empty_like_is_row_major_where_the_dims_differ(self, host_cupy, shape):
        model = host_cupy.empty((3, 4), np.float32).T
        got = cupy_device.CupyRuntime().empty_like(model, shape, np.dtype(np.float64))
        assert got.shape == shape
        assert got.flags.c_contiguous

    def test_a_bfloat16_view(self, host_cupy):
        """What a torch tensor goes through on its way in."""
        bits = host_cupy.empty((2, 6, 4), np.int16).transpose(1, 0, 2)
        view = bits.view(arrays.bfloat16())
        assert (view.shape, view.strides, view.dtype) == (bits.shape, bits.strides, arrays.bfloat16())
        assert view.data.ptr == bits.data.ptr


class Interface:
    """An array of a library that has CUDA's array interface only."""

    def __init__(self, pointer):
        self.__cuda_array_interface__ = {"data": (pointer, False), "shape": (0,), "typestr": "<f4", "version": 3}


class TestForeignArrays:
    @pytest.fixture
    def runtime(self, fake):
        fake.module.from_dlpack = lambda x: ("dlpack", x)
        fake.module.asarray = lambda x: (fake.calls.append(("asarray", x)), x)[1]
        fake.runtime.pointerGetAttributes = lambda pointer: SimpleNamespace(device=1)
        return cupy_device.CupyRuntime()

    def test_a_tensor_that_requires_grad_is_refused_as_on_the_cpu(self, runtime):
        torch = oracle("torch")
        x = torch.ones(2, 3, 4, requires_grad=True)
        with pytest.raises(TypeError) as host:
            arrays.read(x, "q")
        with pytest.raises(TypeError) as device:
            runtime.read(x, "q")
        assert str(device.value) == str(host.value)
        with pytest.raises(TypeError, match=r"layout torch\.sparse_coo"):
            runtime.read(torch.ones(2, 3).to_sparse(), "q")

    def test_tensors_come_through_dlpack(self, runtime):
        torch = oracle("torch")
        x = torch.ones(2, 3)
        (how, viewed), library = runtime.read(x, "q")
        assert (how, library) == ("dlpack", "torch")
        assert viewed is x

    def test_bfloat16_tensors_come_as_bits(self, runtime, fake):
        torch = oracle("torch")
        x = torch.ones(3, 2, dtype=torch.bfloat16).T

        def from_dlpack(bits):
            assert (bits.dtype, bits.stride(), bits.data_ptr()) == (torch.int16, x.stride(), x.data_ptr())
            return bits.numpy()

        fake.module.from_dlpack = from_dlpack
        array, library = runtime.read(x, "q")
        assert (array.dtype, library) == (arrays.bfloat16(), "torch")

    def test_results_go_back_to_torch(self, runtime, fake):
        torch = oracle("torch")

        class OnDevice(np.ndarray):
            data = SimpleNamespace(device_id=1)

        for dtype, expected in ((np.dtype(np.float16), torch.float16), (arrays.bfloat16(), torch.bfloat16)):
            array = np.ones((3, 2), dtype).T.view(OnDevice)
            tensor = runtime.write_back(array, "torch")
            assert (tensor.dtype, tensor.shape, tensor.stride()) == (expected, (2, 3), (1, 2))
            assert tensor.data_ptr() == array.ctypes.data
        assert fake.calls == [("enter", 1), ("exit", 1)] * 2

    def test_jax_arrays_and_back(self, runtime, fake):
        jax = oracle("jax")
        x = jax.numpy.ones(3)
        (how, _), library = runtime.read(x, "q")
        assert (how, library) == ("dlpack", "jax")
        result = np.ones(3)
        device_array = SimpleNamespace(
            data=SimpleNamespace(device_id=1),
            __dlpack__=result.__dlpack__,
            __dlpack_device__=result.__dlpack_device__,
        )
        assert isinstance(runtime.write_back(device_array, "jax"), jax.Array)
        assert fake.calls == [("enter", 1), ("exit", 1)]

    def test_the_array_interface_is_read_on_the_memorys_own_device(self, runtime, fake):
        x = Interface(pointer=4096)
        assert runtime.read(x, "q") == (x, "cupy")
        assert fake.calls == [("enter", 1), ("asarray", x), ("exit", 1)]
        assert runtime.read(Interface(pointer=0), "q")[1] == "cupy"

    @pytest.mark.parametrize(
        "error", [BufferError("no"), RuntimeError("no"), ValueError("no"), NotImplementedError("no")]
    )
    def test_what_cupy_cannot_view_is_a_type_error(self, runtime, fake, error):
        def refuse(x):
            raise error

        fake.module.from_dlpack = refuse
        array = SimpleNamespace(__dlpack__=None, dtype="float8")
        with pytest.raises(TypeError, match="q is a types array of dtype float8 that CuPy cannot view: no"):
            runtime.read(array, "q")

    def test_torchs_refusal_of_a_stream_names_the_variable(self, runtime, fake):
        def refuse(x):
            raise BufferError("per-thread default stream is not supported.")

        fake.module.from_dlpack = refuse
        with pytest.raises(TypeError, match=r"q is .*not supported\. .*unset CUPY_CUDA_PER_THREAD_DEFAULT_STREAM"):
            runtime.read(SimpleNamespace(__dlpack__=None), "q")

    def test_a_cuda_error_is_not_the_arrays_fault(self, runtime, fake):
        def refuse(x):
            raise CudaError(700)

        fake.module.from_dlpack = refuse
        with pytest.raises(CudaError):
            runtime.read(SimpleNamespace(__dlpack__=None), "q")

    def test_a_driver_too_old_for_cupy_is_said_so(self, runtime, fake):
        def refuse(x):
            raise CudaError(35)

        fake.module.from_dlpack = refuse
        with pytest.raises(RuntimeError, match="q is on a GPU that CuPy cannot use"):
            runtime.read(SimpleNamespace(__dlpack__=None), "q")


@pytest.mark.parametrize("status", [700, 702, 710, 714, 715, 716, 717, 718, 719, 720])
def test_errors_that_a_kernel_causes(fake, status):
    device = cupy_device.CupyDevice(0)
    assert device.is_kernel_fault(CudaError(status))
    for other in (CudaError(2), CudaError(906), RuntimeError("no"), MemoryError()):
        assert not device.is_kernel_fault(other)


def test_waiting_is_for_the_own_device(fake):
    waited = []
    fake.module.cuda.Device = lambda ordinal: SimpleNamespace(synchronize=lambda: waited.append(ordinal))
    cupy_device.CupyDevice(1).synchronize()
    assert waited == [1]


def test_the_protocols_are_met():
    """mypy holds the signatures; this holds that nothing is missing."""
    for protocol, implementation in ((Device, cupy_device.CupyDevice(0)), (Runtime, cupy_device.CupyRuntime)):
        names = {name for name in vars(protocol) if not name.startswith("_")} - {"properties"}
        assert names
        assert [name for name in names if not callable(getattr(implementation, name))] == []
    device: Device = cupy_device.CupyDevice(0)
    assert device.name == "cuda:0"
