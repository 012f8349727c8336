"""A seeded fault: one edit of a kernel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Fault:
    """Replace `before`, which occurs once in kernels_cu/`path`, by `after`.

    `probe` names the problem of `emu.probes` that notices, `kinds` how, any of them: the kind of an EmuError, or

    - "wrong": an error above the bound,
    - "nan": inf or NaN where there should be none, or none where there should be,
    - "bits": other bits where the same are promised, or a write outside the result.
    """

    path: str
    name: str
    before: str
    after: str
    probe: str
    kinds: str = "wrong"

    def __str__(self) -> str:
        return f"{Path(self.path).name}: {self.name}"

    def edited(self, text: str) -> str:
        """Return a file's text with the fault.

        Raises
        ------
        ValueError
            If the place is not there, or there are several.
        """
        if text.count(self.before) != 1:
            raise ValueError(f"fault {self}: found {text.count(self.before)} times, expected once: {self.before!r}")
        return text.replace(self.before, self.after)

    def apply(self, folder: Path) -> None:
        """Edit the kernels in `folder`; raises as `edited` does."""
        file = folder / self.path
        file.write_text(self.edited(file.read_text()))


def faults_in(path: str, *entries: tuple[str, ...]) -> tuple[Fault, ...]:
    """Faults of one file: (name, before, after, probe), and kinds where those are not "wrong"."""
    return tuple(Fault(path, *entry) for entry in entries)
