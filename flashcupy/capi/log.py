"""What the library has to say goes to the host's callback; in a Python of the library's own, all that Python says."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from typing import Any

_LIBRARY = logging.getLogger("flashcupy")
_WARNING, _ERROR = 30, 40


def install(sink: Any, *, owns_python: bool) -> None:
    """Send messages to `sink`, a function of C: (level, UTF-8)."""
    handler = _SinkHandler(sink)
    _LIBRARY.addHandler(handler)
    if os.environ.get("FLASHCUPY_DEBUG") == "1":
        _LIBRARY.setLevel(logging.DEBUG)
    if owns_python:
        begun = getattr(sys.stderr, "getvalue", str)()  # what the start had to say, see bindings/src/python.c
        logging.getLogger().addHandler(handler)
        _LIBRARY.propagate = False
        sys.stdout, sys.stderr = _SinkStream(sink, logging.INFO), _SinkStream(sink, _ERROR)
        warnings.showwarning = _show_warning(sink)
        for line in begun.splitlines():
            _send(sink, _WARNING, line)


def _send(sink: Any, level: int, text: str) -> None:
    sink(level, text.rstrip("\n").replace("\0", "").encode(errors="replace") + b"\0")


class _SinkHandler(logging.Handler):
    def __init__(self, sink: Any) -> None:
        super().__init__()
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        _send(self._sink, record.levelno, self.format(record))


class _SinkStream(io.TextIOBase):
    """Passes whole lines on."""

    def __init__(self, sink: Any, level: int) -> None:
        self._sink, self._level, self._begun = sink, level, ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            _send(self._sink, self._level, line)
        return len(text)

    def writable(self) -> bool:
        return True


def _show_warning(sink: Any) -> Any:
    def show(message: Any, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
        _send(sink, _WARNING, f"{category.__name__}: {message}")

    return show
