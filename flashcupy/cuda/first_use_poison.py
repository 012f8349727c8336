"""The small calls that kernels are checked on which mark results of rows that a mask had no room for.

Those get NaN, all others what they get anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

import flashcupy
from flashcupy.block_mask import BlockMask
from flashcupy.cuda import families
from flashcupy.cuda.config import PlainConfig
from flashcupy.cuda.device import Device
from flashcupy.results import AttentionGrads

Side = Literal["QueryRows", "QueryHeads", "KeyRows", "bias"]

_ROWS, _SIZE = 4, 16  # blocks either way


@dataclass(frozen=True, slots=True)
class PoisonCase:
    """A mask without room for all of its blocks: results that it would make wrong are NaN."""

    side: Side

    @property
    def name(self) -> str:
        return f"poison-{self.side}"

    def run(self, device: Device) -> str | None:
        """Compute it on the device; None if the result is right, or what is wrong."""
        return self.begin(device)()

    def begin(self, device: Device) -> Callable[[], str | None]:
        """Do all that comes before the launches to check: the same with room enough."""
        complete, incomplete = self._calls(device)
        family = "sm80" if self.side == "QueryHeads" else "generic"
        with families.only(family):
            expected = {name: device.to_host(x) for name, x in complete().items()}

        def finish() -> str | None:
            with families.only(family):
                results = incomplete()
            for name, own in results.items():
                got = device.to_host(own)
                missing = np.broadcast_to(self._missing(name, got.shape), got.shape)
                if not np.isnan(got[missing]).all():
                    return f"{self.name}: {name} has numbers where blocks are missing"
                rest = got[~missing]
                # Sums of several blocks come in any order: what is looked for is NaN.
                right = np.isfinite(rest) if self._in_any_order(name) else rest == expected[name][~missing]
                if not right.all():
                    return f"{self.name}: {name} differs where no block is missing"
            return None

        return finish

    def compute(self, device: Device) -> dict[str, Any]:
        """Launch it all, and look at nothing."""
        complete, incomplete = self._calls(device)
        with families.only("sm80" if self.side == "QueryHeads" else "generic"):
            complete()
            return incomplete()

    def _in_any_order(self, name: str) -> bool:
        return name == "dq" and self.side == "QueryHeads"

    def _calls(self, device: Device) -> tuple[Callable[[], dict[str, Any]], Callable[[], dict[str, Any]]]:
        rng = np.random.default_rng(0)
        length = _ROWS * _SIZE
        dtype = np.float16 if self.side == "QueryHeads" else np.float32
        shapes = ((4, length, 16), (2, length, 16), (2, length, 16), (4, length, 16))
        q, k, v, dout = (device.from_host(rng.standard_normal(shape).astype(dtype)) for shape in shapes)
        wrt = {"QueryRows": (), "QueryHeads": ("q", "k", "v"), "KeyRows": ("k", "v"), "bias": ("bias",)}[self.side]
        bias = rng.standard_normal((length, length)).astype(np.float32)
        options = {"bias": device.from_host(bias)} if self.side == "bias" else {}
        partial = self.side == "KeyRows"  # of which a key that misses one does not know
        visible = np.ones((2, length, length), np.bool_)
        visible[:, ::_SIZE, ::_SIZE] = not partial
        dense = device.from_host(visible)

        def call(mask: BlockMask) -> dict[str, Any]:
            _, residuals = flashcupy.attention_fwd(q, k, v, block_mask=mask, **options)
            grads = flashcupy.attention_bwd(dout, residuals, wrt=wrt) if wrt else AttentionGrads()
            return {"lse": residuals.lse, **{name: x for name, x in grads._asdict().items() if x is not None}}

        def incomplete() -> dict[str, Any]:
            # Room for the first list, and for two rows and a half of the second.
            room = _ROWS * _ROWS + 10
            capacity, partial_capacity = (0, room) if partial else (room, 0)
            mask = BlockMask.empty(
                (length, length),
                capacity=capacity,
                partial_capacity=partial_capacity,
                block_size=_SIZE,
                heads=2,
                device=device.name,
            )
            return call(BlockMask.from_dense(dense, block_size=_SIZE, out=mask))

        return lambda: call(BlockMask.from_dense(dense, block_size=_SIZE)), incomplete

    def _missing(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Where blocks are missing: from the third row of the second list on, and in all keys that those rows see."""
        missing = np.zeros(shape, np.bool_)
        if name == "dbias":
            missing[...] = True
        elif name in ("dk", "dv"):
            missing[1] = True
        else:
            missing[2:, slice(None) if self._in_any_order(name) else slice(2 * _SIZE, None)] = True
        return missing


def poison_case(config: Any) -> PoisonCase | None:
    """The case of a kernel that marks results; None for all others."""
    if isinstance(config, PlainConfig) and config.function == "poison_rows":
        return PoisonCase(config.arguments[0])  # type: ignore[arg-type]
    if isinstance(config, PlainConfig) and config.function == "poison_bias":
        return PoisonCase("bias")
    return None
