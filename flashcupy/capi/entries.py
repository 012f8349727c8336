"""The functions that the front of the C library calls: imported in its host, and bound to what cffi made."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from typing import Any

from flashcupy._version import __version__
from flashcupy.capi import log, status
from flashcupy.capi.calls import Calls
from flashcupy.capi.mask_calls import MaskCalls

MARK = 0x0FC0000  # FLASHCUPY_MARK
PREFIX = "flashcupy_py_"


def bind(ffi: Any) -> None:
    """Make the library's functions out of Python's; `ffi` is that of the extension module."""
    calls = Calls(ffi)
    masks = MaskCalls(ffi, calls.masks)

    def start(host: Any) -> None:
        version = ffi.string(host.version).decode()
        if version != __version__:
            raise ImportError(
                f"the library was built by flashcupy {version}, and this Python has {__version__}: run 'flashcupy capi "
                "build' anew"
            )
        log.install(host.log, owns_python=bool(host.owns_python))
        atexit.register(host.python_ends)

    functions: dict[str, Callable[..., str | None]] = {
        "start": start,
        "shutdown": calls.shutdown,
        "set_num_threads": calls.set_num_threads,
        "forward": calls.forward,
        "backward": calls.backward,
        "forward_workspace_size": calls.forward_workspace_size,
        "backward_workspace_size": calls.backward_workspace_size,
        "supported": calls.supported,
        "warmup": calls.warmup,
        "block_mask_from_blocks": masks.from_blocks,
        "block_mask_from_csr": masks.from_csr,
        "block_mask_update_from_blocks": masks.update_from_blocks,
        "block_mask_update_from_csr": masks.update_from_csr,
        "block_mask_check": masks.check,
        "block_mask_destroy": masks.destroy,
    }
    for name, function in functions.items():
        # What cffi returns where it cannot even call has no mark, and is no status to the front.
        ffi.def_extern(name=PREFIX + name, error=0)(_entry(ffi, function))


def _entry(ffi: Any, function: Callable[..., str | None]) -> Callable[..., int]:
    def entry(reply: Any, *arguments: Any) -> int:
        try:
            text, code = function(*arguments), status.OK
        except BaseException as error:
            text, code = status.told(error)
        if text:
            _reply(ffi, reply, text)
        return MARK | code

    return entry


def _reply(ffi: Any, reply: Any, text: str) -> None:
    """Write UTF-8 with a final 0, cut between characters."""
    room = reply.capacity - 1
    content = text.encode(errors="replace")[:room].decode(errors="ignore").encode() + b"\0"
    ffi.memmove(reply.text, content, len(content))
