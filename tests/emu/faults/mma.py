"""Faults of the tensor-core forward."""

from __future__ import annotations

from emu.faults.fault import Fault
from emu.faults.mma_kernel import MMA_KERNEL
from emu.faults.mma_shared import MMA_SHARED
from emu.faults.mma_sums import MMA_SUMS
from emu.faults.mma_tile import MMA_TILE

MMA: tuple[Fault, ...] = (*MMA_KERNEL, *MMA_TILE, *MMA_SUMS, *MMA_SHARED)
