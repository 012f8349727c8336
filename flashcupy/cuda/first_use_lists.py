"""The small masks that kernels which build lists are checked on. Lists are integers: they are right or wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from flashcupy.block_mask import BlockMask
from flashcupy.blocks.order import longest_first
from flashcupy.cuda.device import Device

if TYPE_CHECKING:
    from flashcupy.cuda.mask_plan import Source

Kind = Literal["blocks", "ids", "topk", "dense"]

_HEADS, _BLOCK = 3, (64, 128)
_GRID = (37, 70)  # blocks: more than a word has bits, either way
_SHAPE = (_GRID[0] * 16 - 5, _GRID[1] * 16 - 3)  # in blocks of 16


@dataclass(frozen=True, slots=True)
class ListCase:
    """A mask that is built on the device and on the host."""

    kind: Kind
    wide: bool = False  # scores that take 64 bits

    @classmethod
    def of(cls, source: Source) -> ListCase:
        """The case with the kernels of a source."""
        return cls(source.kind, source.wide)

    @property
    def name(self) -> str:
        return f"lists-{self.kind}" + ("-wide" if self.wide else "")

    def run(self, device: Device) -> str | None:
        """Build it on the device; None if its lists are right, or what is wrong."""
        return self.begin(device)()

    def begin(self, device: Device) -> Callable[[], str | None]:
        """Do all that comes before the launches to check: the host's lists, and the copies."""
        make, arrays, options = self._source()
        expected = make(*arrays, **options)
        own, on_device = self._brought(device, arrays, options)

        def finish() -> str | None:
            mask = make(*own, **on_device)
            try:
                mask.check()
            except ValueError as error:
                return f"{self.name}: {error}"
            if not mask.equals(expected):
                return f"{self.name}: other blocks than on the host"
            sides = ((mask.lists, expected.lists, True), (mask.transposed, expected.transposed, False))
            for got, wanted, last_first in sides:
                if not np.array_equal(got.read_order(), longest_first(wanted, last_first=last_first)):
                    return f"{self.name}: rows in another order than on the host"
            return None

        return finish

    def compute(self, device: Device) -> dict[str, Any]:
        """Launch it all, and look at nothing."""
        make, arrays, options = self._source()
        own, on_device = self._brought(device, arrays, options)
        return {"lists": make(*own, **on_device).full_indices}

    @staticmethod
    def _brought(device: Device, arrays: list[np.ndarray], options: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        flags = {name: device.from_host(x) for name, x in options.items() if isinstance(x, np.ndarray)}
        return [device.from_host(x) for x in arrays], options | flags

    def _source(self) -> tuple[Callable[..., BlockMask], list[np.ndarray], dict[str, Any]]:
        rng = np.random.default_rng(0)
        if self.kind == "dense":
            kinds = rng.integers(0, 3, (_HEADS, *_GRID)).repeat(16, 1).repeat(16, 2)[:, : _SHAPE[0], : _SHAPE[1]]
            dense = (kinds == 1) | ((kinds == 2) & (rng.random(kinds.shape) < 0.5))
            dense[:, : 2 * _BLOCK[0], : 3 * _BLOCK[1]] = True
            return BlockMask.from_dense, [dense], {"block_size": _BLOCK}
        options: dict[str, Any] = {"shape": _SHAPE, "block_size": 16}
        if self.kind == "blocks":
            return BlockMask.from_blocks, [rng.random((_HEADS, *_GRID)) < 0.3], options
        order = rng.random((_HEADS, *_GRID)).argsort(-1)
        if self.kind == "ids":
            counts = rng.integers(0, 10, order.shape[:-1]).astype(np.int32)
            ids = np.where(order[..., :9] < 60, order[..., :9], -1).astype(np.int32)
            return BlockMask.from_ids, [ids], {**options, "counts": counts}
        scores = (order // 2).astype(np.float64 if self.wide else np.float32)  # each twice: ties
        scores[:, 0, :66] = -np.inf
        flags = {"allowed": rng.random(_GRID) < 0.8, "include": rng.random((_HEADS, 1, _GRID[1])) < 0.05}
        return BlockMask.from_topk, [scores], {**options, **flags, "k": 7}
