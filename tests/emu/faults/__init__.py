"""Seeded faults: each is one edit of a kernel that a probe must notice. Later kernels add a file of theirs."""

from __future__ import annotations

from emu.faults.block_scores import BLOCK_SCORES
from emu.faults.fault import Fault
from emu.faults.kernels import KERNELS
from emu.faults.masks import MASKS
from emu.faults.mma import MMA
from emu.faults.mma_backward import MMA_BACKWARD
from emu.faults.mma_backward_parts import MMA_BACKWARD_PARTS
from emu.faults.mma_terms import MMA_TERMS
from emu.faults.schedule import SCHEDULE
from emu.faults.score import SCORE
from emu.faults.tile import TILE

__all__ = ["FAULTS", "Fault"]

FAULTS = (
    *TILE,
    *SCORE,
    *SCHEDULE,
    *KERNELS,
    *MASKS,
    *BLOCK_SCORES,
    *MMA,
    *MMA_BACKWARD,
    *MMA_BACKWARD_PARTS,
    *MMA_TERMS,
)
