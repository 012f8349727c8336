"""What the calls return besides arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from flashcupy.spec import AttentionSpec


class AttentionGrads(NamedTuple):
    """Gradients of attention; an entry is None where it was not asked for in ``wrt``.

    Each has the shape and dtype of the input it belongs to, and q's array library.

    Attributes
    ----------
    dq : array (..., Hq, Sq, D)
    dk : array (..., Hkv, Sk, D)
    dv : array (..., Hkv, Sk, Dv)
    dbias : array, shape of ``bias``
    dsinks : array (Hq,)
    """

    dq: Any = None
    dk: Any = None
    dv: Any = None
    dbias: Any = None
    dsinks: Any = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a call would be served; `str()` gives it as text.

    Attributes
    ----------
    backend : str
    config : str
        Name of the kernel configuration.
    reason : str
        Why this backend and configuration, and not a faster one.
    threads : int
        Of the processor; on a GPU of one block.
    tasks : int
        Independent pieces of work that the threads share; on a GPU blocks.
    workspace_bytes : int
        Peak temporary memory of a forward, results not counted.
    backward_workspace_bytes : int
    compiled : bool
        Whether a forward now would run without compiling first.
    spec : AttentionSpec
    """

    backend: str
    config: str
    reason: str
    threads: int
    tasks: int
    workspace_bytes: int
    backward_workspace_bytes: int
    compiled: bool
    spec: AttentionSpec

    def __str__(self) -> str:
        lines = [
            f"backend            {self.backend}: {self.reason}",
            f"config             {self.config}",
            f"threads, tasks     {self.threads}, {self.tasks}",
            f"workspace          {self.workspace_bytes / 2**20:.1f} MiB forward",
            f"                   {self.backward_workspace_bytes / 2**20:.1f} MiB backward",
            f"compiled           {'yes' if self.compiled else 'no'}",
        ]
        return "\n".join(lines)
