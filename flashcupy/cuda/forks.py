"""CUDA does not survive a fork: in a child of a process that has used it each call fails, for no reason it tells.

Known is what this library has used of it, not what CuPy or another one has without it.
"""

from __future__ import annotations

import os

_used = _inherited = False


def note_use() -> None:
    """Remember that the driver is initialised in this process."""
    global _used
    _used = True


def require_own_cuda() -> None:
    """Raise RuntimeError in a process that was forked from one that had used CUDA."""
    if _inherited:
        raise RuntimeError(
            "this process was forked from one that had used CUDA, which cannot be used here then: start it by "
            "multiprocessing's 'spawn' or 'forkserver', or leave the GPU to children alone"
        )


def _after_fork() -> None:
    global _inherited
    _inherited = _used


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
