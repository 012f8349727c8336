"""Faults of the tensor-core forward, and of tiles of several heads."""

from __future__ import annotations

from emu.faults.fault import Fault
from emu.faults.mma_kernel import MMA_KERNEL
from emu.faults.mma_shared import MMA_SHARED
from emu.faults.mma_sums import MMA_SUMS
from emu.faults.mma_tile import MMA_TILE
from emu.faults.mma_together import MMA_TOGETHER

MMA: tuple[Fault, ...] = (*MMA_KERNEL, *MMA_TILE, *MMA_SUMS, *MMA_SHARED, *MMA_TOGETHER)
