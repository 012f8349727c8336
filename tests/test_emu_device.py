"""`EmuDevice` as a device: compiling, loading, limits, settings, threads of the host."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from emu import build
from emu.device import EmuDevice, EmuError, Settings, runtime
from emu.tiny import KERNELS, run, unit

from flashcupy.errors import KernelCompileError

ADD = "s.row[t] = t; block_sync(); p.out[b * 64 + t] = s.row[63 - t] + 1;"
ROW = "u32 row[64];"
SOURCE = unit(ADD, (("out", "u32*"),), 64, ROW)


@pytest.fixture(scope="module")
def binary():
    return EmuDevice().compile(SOURCE, "tiny", KERNELS)


@pytest.fixture
def load(binary, tmp_path):
    def loader(content=binary, entry="tiny", shared_bytes=300):
        path = tmp_path / "kernel"
        path.write_bytes(content)
        return EmuDevice().load(path, entry, shared_bytes)

    return loader


def test_limits(load):
    device = EmuDevice()
    out = device.empty((64,), np.uint32)
    params = out._host.ctypes.data.to_bytes(8, "little")
    device.launch(load(), 1, 64, 300, params)
    np.testing.assert_array_equal(out.get(), 64 - np.arange(64))
    for what, arguments in {
        "grid is 0": (0, 64, 300, params),
        "grid is 2147483648": (2**31, 64, 300, params),
        "block is 0": (1, 0, 300, params),
        "block is 65": (1, 65, 300, params),
        "shared_bytes is 301": (1, 64, 301, params),
        "the size of params is 9": (1, 64, 300, params + b"0"),
        "the size of params is 7": (1, 64, 300, params[:7]),
        "the kernel's shared memory is a struct of 256 bytes": (1, 64, 255, params),
    }.items():
        with pytest.raises(EmuError, match=f"^limits: {what}"):
            device.launch(load(), *arguments)
    with pytest.raises(EmuError, match=r"^limits: shared_bytes is 232449, expected 0 to 232448"):
        device.launch(load(shared_bytes=1 << 20), 1, 64, 227 * 1024 + 1, params)
    device.launch(load(shared_bytes=1 << 20), 1, 64, 227 * 1024, params)


def test_a_file_that_is_not_a_kernel_does_not_load(load, binary):
    for content in (b"", b"foreign" * 100, binary[:-1], binary[: len(binary) // 2], b"x" + binary[1:]):
        with pytest.raises(OSError, match=r"not a kernel of the emulator"):
            load(content)
    with pytest.raises(OSError, match=r"has no kernel other"):
        load(entry="other")


def test_an_error_of_the_compiler_is_told():
    with pytest.raises(KernelCompileError, match=r"no_such_name") as caught:
        EmuDevice().compile(SOURCE.replace("s.row[t]", "no_such_name"), "tiny", KERNELS)
    assert caught.value.config == "tiny"
    assert "-std=c++17" in caught.value.options


def test_what_belongs_behind_the_seam_is_unknown():
    for word in ("threadIdx.x", "__syncthreads()", "__shfl_xor_sync(1, 2, 3)"):
        with pytest.raises(KernelCompileError):
            EmuDevice().compile(SOURCE.replace("u32 t = ", f"{word}; u32 t = "), "tiny", KERNELS)


def _orders_seen(device, launches):
    """Return the order in which the threads of a warp, and the blocks, came to a counter."""
    seen = []
    for _ in range(launches):
        out = device.empty((3, 32), np.uint32)
        run(
            device,
            "p.out[b * 32 + t] = emu_atomic(p.count, emu::Atomic::add_i32, 1);",
            32,
            3,
            out=out,
            count=device.from_host(np.zeros(1, np.uint32)),
        )
        came = out.get()
        seen.append((tuple(np.argsort(came[0])), tuple(np.argsort(came[:, 0]))))
    return seen


def test_launches_take_turns_between_orders():
    seen = _orders_seen(EmuDevice(), 9)
    up, down = tuple(range(32)), tuple(range(31, -1, -1))
    lanes, blocks = [lane for lane, _ in seen], [block for _, block in seen]
    assert [lane for turn in (0, 3, 6) for lane in lanes[turn : turn + 2]] == [up, down] * 3
    assert not {up, down} & {lanes[2], lanes[5], lanes[8]}
    assert blocks[:6] == [(0, 1, 2)] * 3 + [(2, 1, 0)] * 3
    assert seen == _orders_seen(EmuDevice(), 9)
    assert seen != _orders_seen(EmuDevice(settings=Settings(seed=1)), 9)


def test_settings_hold_for_a_while():
    device = EmuDevice()
    with device.using(lane_order="reverse"):
        assert _orders_seen(device, 3)[2][0] == tuple(range(31, -1, -1))
    assert device.settings == Settings()


def test_threads_of_the_host_take_turns(load):
    kernel, failures = load(), []

    def work():
        device = EmuDevice()
        for _ in range(40):
            out = device.empty((4, 64), np.uint32)
            device.launch(kernel, 4, 64, 300, out._host.ctypes.data.to_bytes(8, "little"))
            if not np.array_equal(out.get(), np.broadcast_to(64 - np.arange(64), (4, 64))):
                failures.append(out.get())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_fresh_memory_is_aligned_and_is_not_a_number():
    device = EmuDevice()
    for shape in ((), (3,), (5, 7), (0, 4)):
        for dtype in (np.float32, np.float64, np.float16):
            array = device.empty(shape, np.dtype(dtype))
            assert (array.shape, array.dtype) == (shape, dtype)
            assert np.all(np.isnan(array.get()))
            assert array._host.ctypes.data % 256 == 0 or array.size == 0


def test_copies_are_copies():
    device = EmuDevice()
    host = np.arange(12.0).reshape(3, 4).T
    array = device.from_host(host)
    host[...] = 0
    back = device.to_host(array)
    np.testing.assert_array_equal(back, np.arange(12.0).reshape(3, 4).T)
    back[...] = 1
    assert array.get()[1, 1] == 5
    device.capturing = True
    assert device.is_capturing()
    with pytest.raises(EmuError, match=r"capturing"):
        device.from_host(host)


def test_time_starts_anew_before_it_runs_out():
    device = EmuDevice(settings=Settings(lane_order="forward", block_order="forward"))
    out = device.empty((128,), np.uint32)
    wrong = "s.row[t] = t; if (t == 0) s.row[5] = 1; p.out[b * 64 + t] = t;"
    for time in (0xBFFFFFFF, 0xFFFFFF00, None):
        if time is not None:
            run(device, ADD, 64, 2, ROW, out=out)
            runtime().emu_set_time(time)
        for _ in range(2):
            run(device, ADD, 64, 2, ROW, out=out)
            run(device, "p.out[b * 64 + t] = b;", 64, 2, out=out)
            with pytest.raises(EmuError, match=r"^race: .*block 0$"):
                run(device, wrong, 64, 2, ROW, out=out)


def test_the_strict_build_finds_undefined_behaviour(monkeypatch):
    device = EmuDevice()
    monkeypatch.setenv("FLASHCUPY_EMU_BUILD", "strict")
    out = device.empty((1,), np.uint32)
    # Bodies of their own: kernels of the usual build may be in the cache of `run`.
    run(device, "/* strict */ p.out[0] = 1u << p.n;", 1, out=out, n=31)
    with pytest.raises(EmuError, match=r"^undefined: shift_out_of_bounds at .*:1, by thread 0"):
        run(device, "/* strict */ p.out[0] = 1u << p.n;", 1, out=out, n=32)
    with pytest.raises(EmuError, match=r"^undefined: add_overflow"):
        run(device, "/* strict */ p.out[0] = (i32)p.n + 2;", 1, out=out, n=2**31 - 1)


def test_the_contracted_build_rounds_a_product_and_a_sum_once(monkeypatch):
    """As a GPU's compiler does: what needs the product rounded has to say so."""
    device, out = EmuDevice(), EmuDevice().empty((2,), np.float32)
    x = device.from_host(np.float32([1 + 2.0**-12] * 2))
    body = "p.out[0] = p.x[0] * p.x[0] - 1; p.out[1] = multiply_rounded(p.x[1], p.x[1]) - 1;"
    run(device, f"/* twice */ {body}", 1, x=x, out=out)
    np.testing.assert_array_equal(out.get(), [2.0**-11, 2.0**-11])
    monkeypatch.setenv("FLASHCUPY_EMU_BUILD", "contracted")
    run(device, f"/* once */ {body}", 1, x=x, out=out)
    np.testing.assert_array_equal(out.get(), [2.0**-11 + 2.0**-24, 2.0**-11])


@pytest.mark.parametrize("kind", ["quick", "inlined", "contracted", "debug", "strict"])
def test_other_builds(monkeypatch, load, kind):
    monkeypatch.setenv("FLASHCUPY_EMU_BUILD", kind)
    device = EmuDevice()
    out = device.empty((2, 64), np.uint32)
    kernel = load(device.compile(SOURCE, "tiny", KERNELS))
    device.launch(kernel, 2, 64, 300, out._host.ctypes.data.to_bytes(8, "little"))
    np.testing.assert_array_equal(out.get(), np.broadcast_to(64 - np.arange(64), (2, 64)))


def test_an_unknown_build_is_refused(monkeypatch):
    monkeypatch.setenv("FLASHCUPY_EMU_BUILD", "fast")
    with pytest.raises(ValueError, match=r"FLASHCUPY_EMU_BUILD is 'fast', expected one of"):
        build.build_flags()
