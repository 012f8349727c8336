"""Memory that kernels may still read when the call that queued them has returned, and that others may reuse then.

CuPy's view of another library's memory tells its owner that it is free again when the view dies, and waits for nothing.
CuPy's own memory goes to later work of the stream that it was allocated on: it needs keeping where the library itself
takes it to another stream.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, Protocol


class Event(Protocol):
    """A mark in a stream; `done` once the stream has passed it, and asking does not wait."""

    @property
    def done(self) -> bool: ...


class Borrowed:
    """What is kept alive until an event, in the order in which the events were recorded; safe between threads."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Event, list[Any]]] = deque()
        self._of_graphs: list[Any] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._waiting)

    def keep(self, memory: list[Any], event: Event) -> None:
        self._waiting.append((event, memory))

    def keep_for_good(self, memory: list[Any]) -> None:
        """Keep what a graph reads with each replay: it does not tell when it dies."""
        self._of_graphs += memory

    def drop_done(self) -> None:
        """Let go of what lies before the first event that is not done; not while a graph is captured."""
        done = []
        with self._lock:
            while self._waiting and self._waiting[0][0].done:
                done.append(self._waiting.popleft())
        done.clear()  # not inside the lock: owners are told, and run code of their own
