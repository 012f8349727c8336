"""flashcupy's tensor-core kernels with tiles other than those of their tables: what the tables are chosen from."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np

from bench.gpu.candidates import ours
from bench.gpu.candidates.base import Candidate, Prepared, UnavailableError
from bench.gpu.device import Gpu
from bench.gpu.operands import Operands
from bench.gpu.problem import Problem
from bench.harness import OURS
from flashcupy.cuda import config
from flashcupy.cuda.compile import unit_of
from flashcupy.cuda.config_sm80 import Kind, MmaConfig, OperandTiles
from flashcupy.cuda.config_sm80_bwd import GradientConfig
from flashcupy.cuda.device import runtime
from flashcupy.cuda.table_sm80 import Choice, Need, Tried, configure
from flashcupy.cuda.table_sm80_bwd import configure_gradient
from flashcupy.errors import UnsupportedError

Tuned = Literal["fwd", "dkvq", "dkv", "dq"]

OWNERS, WALKS, WARPS, STAGES, BLOCKS = (64, 128, 256), (32, 64, 128), (4, 8), (1, 2), (1, 2, 3)
REGISTERS = 64 << 10  # of a multiprocessor
MOST_REGISTERS = 255  # of a thread
BESIDE_SUMS = 40  # registers for operands and addresses, at least

_KINDS: dict[str, Kind] = {"float16": "f16", "bfloat16": "bf16"}


def candidates(problem: Problem, kernel: Tuned = "fwd") -> list[Candidate]:
    """Return the table's choice under flashcupy's own name, and every choice of one kernel."""
    every = tuple(choices(problem, kernel))
    table = Candidate(OURS, partial(ours.prepare, deterministic=deterministic(kernel)))
    return [table, *(Candidate(name_of(one), partial(prepare, kernel, one, every)) for one in every)]


def name_of(choice: Choice) -> str:
    """Return how a configuration's name has it."""
    return "o{}k{}_w{}s{}b{}".format(*choice)


def deterministic(kernel: Tuned) -> bool:
    """Whether a backward has to be to run the kernel."""
    return kernel in ("dkv", "dq")


def choices(problem: Problem, kernel: Tuned = "fwd") -> list[Choice]:
    """Return the tiles of a problem whose sums fit into registers, with as many resident blocks as those allow."""
    found: dict[str, Choice] = {}
    for choice in itertools.starmap(Choice, itertools.product(OWNERS, WALKS, WARPS, STAGES, BLOCKS)):
        try:
            tiles, sums = _tiles_and_sums(problem, kernel, choice)
        except ValueError:  # the class says why
            continue
        most = _registers(tiles.threads, choice.blocks)
        more = _registers(tiles.threads, choice.blocks + 1)
        if sums + BESIDE_SUMS <= most and most != more:
            found.setdefault(f"{tiles}b{choice.blocks}", choice)  # a table may make another's tile of it
    return list(found.values())


def _tiles_and_sums(problem: Problem, kernel: Tuned, choice: Choice) -> tuple[OperandTiles, int]:
    made = _config(problem, kernel, choice, 1 << 30)
    if isinstance(made, MmaConfig):
        return made.tiles, made.tiles.accumulators
    return made.tiles, made.tiles.accumulators(made.kernel)


def _config(problem: Problem, kernel: Tuned, choice: Choice, shared_memory: int) -> MmaConfig | GradientConfig:
    need = Need(kind_of(problem), problem.head_dim, problem.head_dim, (), None, shared_memory)
    with config.use_tiles(Tried(kernel, choice)):
        return configure(need) if kernel == "fwd" else configure_gradient(kernel, need)


def kind_of(problem: Problem) -> Kind:
    """Return what tensor cores multiply."""
    return _KINDS.get(problem.dtype, "tf32" if problem.precision == "tf32" else "split_tf32")


def _registers(threads: int, blocks: int) -> int:
    return min(MOST_REGISTERS, REGISTERS // (threads * blocks) // 8 * 8)


def prepare(
    kernel: Tuned, choice: Choice, every: tuple[Choice, ...], problem: Problem, operands: Operands, gpu: Gpu
) -> Prepared:
    """Prepare flashcupy's call with one choice. The check at a kernel's first use holds it to the library's bound."""
    if isinstance(operands.q, np.ndarray):
        raise UnavailableError("is for arrays on a GPU")
    compile_ahead(int(gpu.name.removeprefix("cuda:")), problem, kernel, every)
    tried = Tried(kernel, choice)
    with chosen(tried):
        made = ours.prepare(problem, operands, gpu, deterministic=deterministic(kernel))
    return replace(made, around=partial(chosen, tried))


@contextmanager
def chosen(tried: Tried) -> Iterator[None]:
    """Serve the calls inside by the tensor-core family, one kernel with these tiles, or not at all."""
    before = os.environ.get("FLASHCUPY_FAMILY")
    os.environ["FLASHCUPY_FAMILY"] = "sm80"
    try:
        with config.use_tiles(tried):
            yield
    finally:
        if before is None:
            del os.environ["FLASHCUPY_FAMILY"]
        else:
            os.environ["FLASHCUPY_FAMILY"] = before


@functools.cache
def compile_ahead(ordinal: int, problem: Problem, kernel: Tuned, every: tuple[Choice, ...]) -> None:
    """Compile all choices, on every core; what fails does so again where it is asked for."""
    device = runtime().device(ordinal)
    properties = device.properties
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for choice in every:
            with suppress(UnsupportedError, ValueError):
                made = _config(problem, kernel, choice, properties.shared_memory)
                unit = unit_of(made, properties.arch, properties.compiler)
                if unit.find() is None:
                    pool.submit(unit.make, device.compile)
