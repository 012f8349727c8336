"""flashcupy's tensor-core forward with tiles other than those of its table: what the table is chosen from."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial

import numpy as np

from bench.gpu.candidates import ours
from bench.gpu.candidates.base import Candidate, Prepared, UnavailableError
from bench.gpu.device import Gpu
from bench.gpu.operands import Operands
from bench.gpu.problem import Problem
from flashcupy.cuda import config
from flashcupy.cuda.compile import unit_of
from flashcupy.cuda.config_sm80 import Kind, MmaConfig, MmaTiles
from flashcupy.cuda.device import DeviceProperties, runtime
from flashcupy.cuda.table_sm80 import Choice, Need, bucket, configure
from flashcupy.errors import UnsupportedError

OWNERS, WALKS, WARPS, STAGES, BLOCKS = (64, 128, 256), (32, 64, 128), (4, 8), (1, 2), (1, 2, 3)
REGISTERS = 64 << 10  # of a multiprocessor
MOST_REGISTERS = 255  # of a thread
BESIDE_SUMS = 40  # registers for operands and addresses, at least

_KINDS: dict[str, Kind] = {"float16": "f16", "bfloat16": "bf16"}


def candidates(problem: Problem) -> list[Candidate]:
    """Return the table's choice under flashcupy's own name, and every choice."""
    every = tuple(choices(problem))
    return [*ours.candidates(), *(Candidate(name_of(choice), partial(prepare, choice, every)) for choice in every)]


def name_of(choice: Choice) -> str:
    """Return how a configuration's name has it."""
    return "o{}k{}_w{}s{}b{}".format(*choice)


def choices(problem: Problem) -> list[Choice]:
    """Return the tiles of a problem whose sums fit into registers, with as many resident blocks as those allow."""
    found = []
    for owner, walk, warps, stages, blocks in itertools.product(OWNERS, WALKS, WARPS, STAGES, BLOCKS):
        try:
            tiles = _tiles(problem, owner, walk, warps, stages)
        except ValueError:  # the class says why
            continue
        most = _registers(tiles.threads, blocks)
        more = _registers(tiles.threads, blocks + 1)
        if tiles.accumulators + BESIDE_SUMS <= most and most != more:
            found.append(Choice(owner, walk, warps, stages, blocks))
    return found


def _tiles(problem: Problem, owner: int, walk: int, warps: int, stages: int) -> MmaTiles:
    kind, head_dim = kind_of(problem), bucket(problem.head_dim)
    return MmaTiles(kind, owner, walk, head_dim, min(head_dim, 128 if kind == "split_tf32" else 256), warps, stages)


def kind_of(problem: Problem) -> Kind:
    """Return what tensor cores multiply."""
    return _KINDS.get(problem.dtype, "tf32" if problem.precision == "tf32" else "split_tf32")


def _registers(threads: int, blocks: int) -> int:
    return min(MOST_REGISTERS, REGISTERS // (threads * blocks) // 8 * 8)


def prepare(choice: Choice, every: tuple[Choice, ...], problem: Problem, operands: Operands, gpu: Gpu) -> Prepared:
    """Prepare flashcupy's call with one choice. The check at a kernel's first use holds it to the library's bound."""
    if isinstance(operands.q, np.ndarray):
        raise UnavailableError("is for arrays on a GPU")
    compile_ahead(int(gpu.name.removeprefix("cuda:")), problem, every)
    with chosen(choice):
        return replace(ours.prepare(problem, operands, gpu), around=partial(chosen, choice))


@contextmanager
def chosen(choice: Choice) -> Iterator[None]:
    """Serve the calls inside by the tensor-core family with these tiles, or not at all."""
    before = os.environ.get("FLASHCUPY_FAMILY")
    os.environ["FLASHCUPY_FAMILY"] = "sm80"
    try:
        with config.use_tiles(choice):
            yield
    finally:
        if before is None:
            del os.environ["FLASHCUPY_FAMILY"]
        else:
            os.environ["FLASHCUPY_FAMILY"] = before


@functools.cache
def compile_ahead(ordinal: int, problem: Problem, every: tuple[Choice, ...]) -> None:
    """Compile all choices, on every core; what fails does so again where it is asked for."""
    device = runtime().device(ordinal)
    properties = device.properties
    units = [unit_of(one, properties.arch, properties.compiler) for one in _configs(problem, every, properties)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for unit in units:
            if unit.find() is None:
                pool.submit(unit.make, device.compile)


def _configs(problem: Problem, every: tuple[Choice, ...], properties: DeviceProperties) -> Iterator[MmaConfig]:
    need = Need(kind_of(problem), problem.head_dim, problem.head_dim, (), None, properties.shared_memory)
    for choice in every:
        with config.use_tiles(choice), suppress(UnsupportedError, ValueError):
            yield configure(need)
