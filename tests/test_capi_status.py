"""How an error is told: its status, its text, and whose it is."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace

import pytest
from capi_kit import Failed, library

from flashcupy import errors
from flashcupy.capi import status


def test_errors_belong_to_their_thread():
    lib = library()
    with pytest.raises(Failed, match="threads is -1"):
        lib.ok(lib.lib.flashcupy_set_num_threads(-1))
    elsewhere = []
    thread = threading.Thread(target=lambda: elsewhere.append(lib.last_error()))
    thread.start()
    thread.join()
    assert elsewhere == [""]
    assert "threads is -1" in lib.last_error()
    lib.ok(lib.lib.flashcupy_set_num_threads(0))
    assert lib.last_error() == ""


def test_a_long_message_is_cut_between_characters(monkeypatch):
    lib = library()
    monkeypatch.setattr(status, "message", lambda error: "\N{GREEK SMALL LETTER ALPHA}" * 4000)
    assert lib.lib.flashcupy_set_num_threads(-1) == lib.lib.FLASHCUPY_INVALID_ARGUMENT
    message = lib.last_error()
    assert set(message) == {"\N{GREEK SMALL LETTER ALPHA}"}
    assert len(message) == 4095 // 2


class _CudaError(RuntimeError):
    def __init__(self, status):
        super().__init__("cudaErrorSomething")
        self.status = status


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("x"), status.INVALID_ARGUMENT),
        (TypeError("x"), status.INVALID_ARGUMENT),
        (errors.UnsupportedError("x"), status.UNSUPPORTED),
        (MemoryError(), status.OUT_OF_MEMORY),
        (ImportError("x"), status.PYTHON),
        (errors.KernelCompileError("fwd", (), "log"), status.COMPILE),
        (errors.FirstUseError("fwd", "H200", "wrong"), status.COMPILE),
        (errors.NotWarmedUpError("x"), status.NOT_WARMED_UP),
        (_CudaError(700), status.CUDA),
        (_CudaError(2), status.OUT_OF_MEMORY),
        (ZeroDivisionError("x"), status.INTERNAL),
        (SystemExit(0), status.INTERNAL),
        (KeyboardInterrupt(), status.INTERNAL),
    ],
)
def test_every_exception_has_a_status(monkeypatch, error, expected):
    cuda = SimpleNamespace(CUDARuntimeError=_CudaError, CUDADriverError=_CudaError)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=cuda, driver=cuda)))
    interrupted = []
    monkeypatch.setattr(status._thread, "interrupt_main", lambda: interrupted.append(1))
    assert status.of(error) == expected
    assert status.message(error)
    assert (type(error).__name__ in status.message(error)) == (expected == status.INTERNAL or not str(error))
    # The host's Python is to see it, once the call has returned.
    assert bool(interrupted) == isinstance(error, KeyboardInterrupt)


def test_an_error_in_telling_an_error_is_a_status_too(monkeypatch):
    """As with a CuPy that lacks what is looked for in it."""
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace())
    lib = library()
    monkeypatch.setattr(status, "message", lambda error: 1 / 0)
    assert lib.lib.flashcupy_set_num_threads(-1) == lib.lib.FLASHCUPY_INTERNAL
    assert lib.last_error() == "ValueError, and ZeroDivisionError in telling it"
