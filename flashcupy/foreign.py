"""What other libraries' arrays must be, on the host and on a device alike."""

from __future__ import annotations

import sys
from typing import Any


def require_plain_tensor(x: Any, name: str) -> None:
    """Refuse torch tensors that record gradients, and those that are not strided memory.

    Raises
    ------
    TypeError
    """
    if x.requires_grad:
        raise TypeError(
            f"{name} is a torch tensor that requires grad, which flashcupy does not record: pass {name}.detach(), and "
            "call attention_fwd and attention_bwd from a torch.autograd.Function"
        )
    if x.layout != sys.modules["torch"].strided:
        raise TypeError(f"{name} is a torch tensor of layout {x.layout}, expected torch.strided")
