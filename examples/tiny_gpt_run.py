"""What training the small GPT needs besides the model: the text, the batches, and checkpoints."""

from __future__ import annotations

import hashlib
import json
import math
import os
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from adamw import AdamW, clip, learning_rate
from devices import to_host
from tiny_gpt import Array, Config, TinyGPT

VALIDATION_SHARE = 0.1
VALIDATION_SEQUENCES = 32
GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Text:
    """A text, of which the last tenth is held back for validation."""

    source: str
    characters: str

    @property
    def train_size(self) -> int:
        return len(self.characters) - int(VALIDATION_SHARE * len(self.characters))

    @cached_property
    def vocabulary(self) -> str:
        return "".join(sorted(set(self.characters)))

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.characters.encode()).hexdigest()

    @cached_property
    def entropy(self) -> float:
        """Loss in nats of a model that knows how frequent each character is, and nothing else."""
        _, counts = np.unique(self.encode(self.characters), return_counts=True)
        frequencies = counts / counts.sum()
        return float(-(frequencies * np.log(frequencies)).sum())

    def encode(self, characters: str) -> list[int]:
        ids = {character: i for i, character in enumerate(self.vocabulary)}
        if unknown := sorted(set(characters) - set(ids)):
            raise SystemExit(f"the prompt has {unknown[0]!r} in it, which does not occur in {self.source}")
        return [ids[character] for character in characters]

    def decode(self, ids: list[int]) -> str:
        return "".join(self.vocabulary[i] for i in ids)


def default_text() -> Text:
    """Return the language reference that ``help()`` shows, without repeated paragraphs.

    It comes with every CPython (PSF licence), so that there is nothing to download: about 400 kB of English prose,
    grammar and code. Paragraphs that occur under several topics would be validated on after training on them.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise SystemExit("this Python comes without pydoc_data, the default text: name one with --file") from None
    paragraphs = "\n\n".join(topics[name] for name in sorted(topics)).split("\n\n")
    return Text("Python's documentation", "\n\n".join(dict.fromkeys(paragraphs)))


def read_text(file: Path) -> Text:
    try:
        return Text(file.name, file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SystemExit(f"{file} cannot be read as UTF-8 text: {error}") from None


@dataclass(frozen=True)
class Settings:
    """Everything that the trained weights depend on."""

    text: str
    steps: int
    batch: int
    length: int
    layers: int
    d_model: int
    heads: int
    kv_heads: int
    learning_rate: float
    seed: int


class Run:
    """A model in training: all that a checkpoint holds, so that a resumed run is the uninterrupted one.

    Attributes
    ----------
    step : int
        Updates done.
    losses : list of float
        Of the training batch, at each step.
    validations : list of (int, float)
        Step and loss.
    """

    def __init__(self, settings: Settings, text: Text, xp: ModuleType) -> None:
        _require_enough(text, settings.length)
        self.settings, self.text, self.xp = settings, text, xp
        config = Config(
            vocabulary=len(text.vocabulary),
            **{name: getattr(settings, name) for name in ("length", "layers", "d_model", "heads", "kv_heads")},
        )
        self.rng = np.random.default_rng(settings.seed)
        self.model = TinyGPT(config, xp, np.float32, self.rng)
        parameters = self.model.parameters
        self.optimizer = AdamW(parameters.vector, parameters.matrix_size, xp)
        self.ids = xp.asarray(text.encode(text.characters))
        self.losses: list[float] = []
        self.validations: list[tuple[int, float]] = []

    @property
    def step(self) -> int:
        return self.optimizer.steps

    def windows(self, starts: np.ndarray) -> tuple[Array, Array]:
        """Return ids and targets (B, S): sequences of the text, and the same ones a character later."""
        rows = self.ids[self.xp.asarray(starts)[:, None] + self.xp.arange(self.settings.length + 1)]
        return rows[:, :-1], rows[:, 1:]

    def train_until(self, step: int, done: Callable[[], object]) -> float:
        """Train up to `step`, calling `done` after each; return the mean loss."""
        losses = []
        while self.step < step:
            losses.append(self._train_step())
            done()
        # Looked at only now: to read a loss is to wait for the GPU.
        values = self.xp.stack(losses).tolist()
        self.losses += values
        return sum(values) / len(values)

    def _train_step(self) -> Array:
        settings, parameters = self.settings, self.model.parameters
        starts = self.rng.integers(0, self.text.train_size - settings.length, settings.batch)
        loss = self.model.loss_and_gradients(*self.windows(starts))
        clip(parameters.gradient_vector, GRADIENT_NORM, self.xp)
        self.optimizer.update(
            parameters.gradient_vector, learning_rate(self.step, settings.steps, settings.learning_rate)
        )
        return loss

    def validate(self) -> float:
        """Return the loss on sequences spread over the text held back, and keep it."""
        first, last = self.text.train_size, len(self.text.characters) - self.settings.length - 1
        count = max(1, min(VALIDATION_SEQUENCES, (last - first) // self.settings.length))
        starts = np.linspace(first, last, count).astype(int)
        total = 0.0
        for chunk in (starts[i : i + self.settings.batch] for i in range(0, count, self.settings.batch)):
            total += float(self.model.loss(*self.windows(chunk))) * len(chunk)
        self.validations.append((self.step, total / count))
        return total / count

    def save(self, file: Path) -> None:
        """Write a checkpoint; whoever interrupts that finds the one before."""
        temporary = file.with_suffix(".tmp")
        vectors: dict[str, Any] = {name: to_host(vector) for name, vector in self._vectors().items()}
        with temporary.open("wb") as stream:
            np.savez(stream, state=np.array(json.dumps(self._state())), **vectors)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)

    def load(self, file: Path) -> None:
        try:
            with np.load(file, allow_pickle=False) as arrays:
                state = json.loads(arrays["state"].item())
                vectors = {name: arrays[name] for name in self._vectors()}
        except FileNotFoundError:
            raise SystemExit(f"there is no checkpoint {file} to resume from") from None
        except (OSError, ValueError, KeyError, AttributeError, zipfile.BadZipFile) as error:
            raise SystemExit(f"{file} is not a checkpoint of this example: {error}") from None
        _require_same(Settings(**state["settings"]), self.settings, file)
        for name, vector in self._vectors().items():
            vector[...] = self.xp.asarray(vectors[name])
        self.optimizer.steps = state["step"]
        self.rng.bit_generator.state = state["rng"]
        self.losses = state["losses"]
        self.validations = [(step, loss) for step, loss in state["validations"]]

    def _vectors(self) -> dict[str, Array]:
        optimizer = self.optimizer
        return {
            "parameters": optimizer.parameters,
            "first_moment": optimizer.first_moment,
            "second_moment": optimizer.second_moment,
        }

    def _state(self) -> dict[str, Any]:
        return {
            "settings": asdict(self.settings),
            "vocabulary": self.text.vocabulary,
            "step": self.step,
            "rng": self.rng.bit_generator.state,
            "losses": self.losses,
            "validations": self.validations,
        }


def _require_enough(text: Text, length: int) -> None:
    validation = len(text.characters) - text.train_size
    if validation < length + 1:
        needed = math.ceil((length + 1) / VALIDATION_SHARE)
        raise SystemExit(
            f"{text.source} has {len(text.characters)} characters, and sequences of {length} need at least {needed}"
        )


def _require_same(saved: Settings, wanted: Settings, file: Path) -> None:
    for name, value in asdict(saved).items():
        if value != getattr(wanted, name):
            got = "another text" if name == "text" else f"--{name.replace('_', '-')} {value}"
            raise SystemExit(f"{file} is a checkpoint of {got}: resume with the settings it was made with")
