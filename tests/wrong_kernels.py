"""Kernels of any family whose scores are off: some of them by a twentieth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flashcupy.cuda.config import PlainConfig

_HOOK = """
struct Wrong : Hook {
    using Hook::Hook;
    template <class Fragment, class Bits, class Place>
    __device__ void scores(Fragment& fragment, Bits&, const Place&, typename Fragment::Acc&) {
        for (auto& row : fragment.at) row[0] *= 1.05f;
    }
};
extern"""


@dataclass(frozen=True, slots=True)
class Wrong:
    """What the configuration `right` is, with one hook more."""

    right: Any

    @property
    def name(self) -> str:
        return f"{self.right.name}_wrong"

    @property
    def threads(self) -> int:
        return self.right.threads

    @property
    def shared_bytes(self) -> int:
        return self.right.shared_bytes

    @property
    def tiles(self) -> Any:
        return self.right.tiles

    @property
    def features(self) -> tuple[str, ...]:
        return self.right.features

    def translation_unit(self) -> str:
        unit = self.right.translation_unit().replace("extern", _HOOK, 1)
        assert unit.count("Tiles>>>(params)") == 1
        unit = unit.replace("Tiles>>>(params)", "Tiles>, Wrong>>(params)")
        return unit.replace(f" {self.right.name}(", f" {self.name}(")


@dataclass(frozen=True, slots=True)
class WrongPlain(PlainConfig):
    """A kernel without tiles that calls its function never, or does something else behind it."""

    instead: str = ""
    behind: str = ""

    @classmethod
    def of(cls, right: PlainConfig, **wrong: str) -> WrongPlain:
        return cls(
            right.function, right.params, right.arguments, right.threads, right.shared_bytes, right.shared, **wrong
        )

    def translation_unit(self) -> str:
        unit = PlainConfig.translation_unit(self)
        call = unit.splitlines()[-2]
        return unit.replace(call, f"{self.instead or call} {self.behind}")
