"""Configurations of the kernels that score blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flashcupy.cuda import config_generic
from flashcupy.cuda.config import PlainConfig, accumulator, features, hooks, tile_table
from flashcupy.cuda.config_generic import Tiles
from flashcupy.spec import AttentionSpec

Scoring = Literal["block_mass", "pooled_scores"]

_TURING = 64 << 10  # bytes of shared memory of a multiprocessor, the fewest there are


@dataclass(frozen=True, slots=True)
class ScoresConfig:
    """``block_mass`` with hooks for score features, or ``pooled_scores``, which has none."""

    kernel: Scoring
    tiles: Tiles
    features: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return "_".join((self.kernel, str(self.tiles), *self.features))

    @property
    def threads(self) -> int:
        return self.tiles.threads

    @property
    def shared_bytes(self) -> int:
        return self.tiles.product_bytes

    @property
    def resident_blocks(self) -> str:
        """Blocks that a multiprocessor shall hold. Left to itself ptxas spills for a third."""
        return "2" if 2 * self.shared_bytes <= _TURING else "__CUDA_ARCH__ == 750 ? 1 : 2"

    def translation_unit(self) -> str:
        mass = self.kernel == "block_mass"
        params, arguments = (
            ("BlockMassParams", f"Tiles, {hooks(self.features)}") if mass else ("AttentionParams", "Tiles")
        )
        return (
            f"#include <{self.kernel}.cu>\n"
            f"using Tiles = {self.tiles.cpp};\n"
            f'static_assert(sizeof(ProductShared<Tiles>) == {self.shared_bytes}, "the host\'s shared_bytes");\n'
            f'extern "C" __global__ void __launch_bounds__({self.threads}, {self.resident_blocks}) {self.name}('
            f"const __grid_constant__ {params} params) {{\n"
            f"    {self.kernel}<{arguments}>(params);\n"
            "}\n"
        )


def means_config(acc: str) -> PlainConfig:
    return PlainConfig("block_means", "BlockMeansParams", (acc,))


def scores_config(spec: AttentionSpec, kernel: Scoring) -> ScoresConfig:
    """Choose the configuration for a call."""
    own = features(spec) if kernel == "block_mass" else ()
    return ScoresConfig(kernel, tiles_of(accumulator(spec)), own)


def tiles_of(acc: Literal["float", "double"]) -> Tiles:
    """The tiles of all calls: blocks of the result are cut from them, or made of them, at run time."""
    choose = config_generic.small_tiles if tile_table() == "small" else config_generic.real_tiles
    return choose(acc, 0, config_generic.owner_rows(acc, "fwd", 0, None))
