"""The rows of each section, most telling first: a section that runs out of time leaves out the last ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from bench.gpu.candidates import masks as building
from bench.gpu.candidates import ours, table, tiles, torch_flex, torch_sdpa
from bench.gpu.candidates.base import Candidate
from bench.gpu.measure import Timer, device_timer
from bench.gpu.options import OPTIONS
from bench.gpu.pattern import Pattern
from bench.gpu.problem import TOKENS, Direction, Problem, square

# FlexAttention compiles tens of seconds for each shape: it takes part where it has no equal, and in these rows.
FLEX_ROWS = ((128, 8192), (64, 8192))
PACKED = (1024, 3072, 4096, 8192)
HEAD_DIMS = (128, 64, 256)
KINDS = (("bfloat16", "highest"), ("float32", "highest"), ("float16", "highest"), ("float32", "tf32"))
# A first look at everything comes before the last length of anything.
LENGTHS = ((8192, 2048), (16384,), (512, 4096, 1024))
QUERY_HEADS, KEY_HEADS = 32, (8, 1)
SPARSE_DENSITIES = (0.1, 0.02, 0.5, 0.05, 0.2, 1.0)
SPARSE_BLOCKS = (64, 128, 32, 16)
# Of 256 block rows one is whole and the others have two blocks: 766 in all, and three in each of even rows.
SKEWED_AND_EVEN = (Pattern("skewed", 1 / 256, 64), Pattern("random", 3 / 256, 64))
FIRST = 2  # rows of the dense backward, before those of whole steps and of shared key heads


@dataclass(frozen=True)
class Item:
    """One row to be measured; `share` is its part of the seconds that a row may take."""

    group: str
    problem: Problem
    candidates: Sequence[Candidate]
    timer: Timer = device_timer
    share: float = 1.0

    @property
    def name(self) -> str:
        """Return group and row."""
        return f"{self.group}: {self.problem.name}"


def dense(direction: Direction, quick: bool, everyone: Sequence[Candidate]) -> Iterator[Item]:
    """Yield 16k tokens, model width 2048: bfloat16 and D = 128 first, then head dims, then dtypes."""
    for problem in _quick(dense_problems(direction), quick):
        flex = problem.dtype == "bfloat16" and (problem.head_dim, problem.q_length) in FLEX_ROWS
        candidates = [candidate for candidate in everyone if flex or candidate.name != "torch flex"]
        yield Item(direction, problem, candidates)


def dense_problems(direction: Direction) -> Iterator[Problem]:
    """Yield the problems of the dense sections."""
    for causal in (True, False):
        yield square(direction, "bfloat16", 128, 8192, causal=causal)
    for dtype, head_dim in (("bfloat16", 64), ("bfloat16", 256), ("float16", 128)):
        yield square(direction, dtype, head_dim, 8192, causal=True)
    for precision in ("highest", "tf32"):
        yield square(direction, "float32", 128, 2048, tokens=4096, causal=True, precision=precision)
    yield square(direction, "float64", 128, 2048, tokens=4096, causal=True)
    for length in (2048, 16384, 512, 4096, 1024):
        yield square(direction, "bfloat16", 128, length, causal=True)
    yield square(direction, "bfloat16", 128, 8192, causal=True, kv_heads=2)
    for length in (2048, 16384, 512):
        yield square(direction, "bfloat16", 128, length)
    for head_dim in (64, 256):
        yield square(direction, "bfloat16", head_dim, 2048, causal=True)
    for dtype, head_dim in (("float16", 64), ("float32", 64), ("bfloat16", 96), ("bfloat16", 100)):
        yield square(direction, dtype, head_dim, 2048, tokens=4096, causal=True)


def forward(quick: bool) -> Iterator[Item]:
    """Yield the forward, dense."""
    yield from dense("forward", quick, table.everyone())


def matrix(quick: bool) -> Iterator[Item]:
    """Yield the forward in each dtype, head dim and length, causal or not; peers that have it in every such row."""
    candidates = [*ours.candidates(), *torch_sdpa.candidates("torch flash", "torch cuDNN", "torch efficient")]
    for problem in dict.fromkeys(_quick(matrix_problems(), quick)):
        yield Item("matrix", problem, candidates, share=0.25)


def matrix_problems(direction: Direction = "forward") -> Iterator[Problem]:
    """Yield the problems of the matrix."""
    for lengths, (dtype, precision) in itertools.product(LENGTHS, KINDS):
        for length, head_dim, causal in itertools.product(lengths, HEAD_DIMS, (True, False)):
            yield square(direction, dtype, head_dim, length, causal=causal, precision=precision)


def backward(quick: bool) -> Iterator[Item]:
    """Yield the backward alone, dense, and among its first rows whole steps and shared key heads; every peer."""
    everyone = [*ours.candidates(), *ours.deterministic(), *table.peers()]
    rows = list(dense("backward", quick, everyone))
    yield from rows[:FIRST]
    candidates = [candidate for candidate in everyone if candidate.name != "torch flex"]
    for problem in _quick(iter((*step_problems(), *grouped_problems())), quick):
        yield Item(problem.direction, problem, candidates)
    yield from rows[FIRST:]


def backward_matrix(quick: bool) -> Iterator[Item]:
    """Yield as `matrix` does the backward alone; first of all one row of each sort, which a short loan has time for."""
    candidates = [
        *(*ours.candidates(), *ours.deterministic()),
        *(*torch_sdpa.candidates("torch flash"), *torch_sdpa.deterministic()),
        *torch_sdpa.candidates("torch cuDNN", "torch efficient"),
    ]
    first = (
        *(square("backward", "bfloat16", head_dim, 8192, causal=True) for head_dim in HEAD_DIMS),
        *(*step_problems(), *grouped_problems()),
        *(square("backward", dtype, 128, 8192, causal=True, precision=precision) for dtype, precision in KINDS[1:]),
    )
    for problem in dict.fromkeys(_quick(iter((*first, *matrix_problems("backward"))), quick)):
        yield Item(problem.direction, problem, candidates, share=0.25)


def step_problems() -> Iterator[Problem]:
    """Yield forward and backward in one."""
    for head_dim in HEAD_DIMS:
        yield square("forward + backward", "bfloat16", head_dim, 8192, causal=True)


def grouped_problems() -> Iterator[Problem]:
    """Yield backwards of query heads that share key heads."""
    for kv_heads in KEY_HEADS:
        yield square("backward", "bfloat16", 128, 4096, heads=QUERY_HEADS, kv_heads=kv_heads, causal=True)


def peers(quick: bool) -> Iterator[Item]:
    """Yield the dense rows without flashcupy, forward and backward in turn."""
    both = [list(dense(direction, quick, table.peers())) for direction in ("forward", "backward")]
    for pair in zip(*both, strict=True):
        yield from pair


def sparse(quick: bool) -> Iterator[Item]:
    """Yield block-sparse calls, forward and backward, and first of all their dense equal to compare with."""
    candidates = [*ours.candidates(), *torch_flex.candidates()]
    for problem in _quick(sparse_problems(), quick):
        for direction in ("forward", "backward"):
            yield Item(f"block-sparse {direction}", replace(problem, direction=direction), candidates, share=0.5)


def sparse_problems() -> Iterator[Problem]:
    """Yield the dense problem, one of each sort, uneven rows beside as many blocks in even ones, then all densities."""
    base = square("forward", "bfloat16", 128, 16384)
    random = (Pattern("random", density, block) for density in SPARSE_DENSITIES for block in SPARSE_BLOCKS)
    first = (Pattern("random", 0.1, 64), Pattern("window", 1 / 16, 64), *SKEWED_AND_EVEN)
    yield base
    for pattern in dict.fromkeys((*first, *random)):
        yield replace(base, pattern=pattern)


def masks(quick: bool) -> Iterator[Item]:
    """Yield building a mask on the device, by head, at a tenth and a fiftieth of all blocks."""
    for problem in _quick(sparse_problems(), quick):
        if problem.pattern is not None and problem.pattern.label in ("random 0.1", "random 0.02"):
            yield Item("mask building", problem, building.candidates(), share=0.5)


def options(quick: bool) -> Iterator[Item]:
    """Yield one row per option beside the plain call, forward and backward."""
    base = square("forward", "bfloat16", 128, 4096)
    names = ("", "causal", *OPTIONS, "gqa", "packed")
    problems = (_with_option(base, name) for name in names)
    for problem in _quick(problems, quick):
        for direction in ("forward", "backward"):
            yield Item(f"options {direction}", replace(problem, direction=direction), table.everyone())


def _with_option(base: Problem, name: str) -> Problem:
    if name == "gqa":
        return replace(base, kv_heads=max(1, base.heads // 8))
    if name == "packed":
        return replace(base, batch=1, q_length=sum(PACKED), kv_length=sum(PACKED), sequences=PACKED)
    if name == "causal":
        return replace(base, causal=True)
    return replace(base, options=(name,) if name else ())


def small(quick: bool) -> Iterator[Item]:
    """Yield calls that the host or the memory bounds: the host's time, time until the result, replay of a graph."""
    from bench.gpu.small import TIMERS

    everyone = [candidate for candidate in table.everyone() if candidate.name not in ("torch flex", "JAX cuDNN")]
    tiny = Problem("forward", "float16", 1, 8, 128, 128, 64, 8)
    decode = Problem("forward", "bfloat16", 16, 32, 1, 8192, 128, 8)
    problems = [tiny, replace(tiny, direction="backward"), replace(decode, batch=1, kv_length=2048), decode]
    for problem in _quick(iter(problems), quick):
        for name, timer in TIMERS.items():
            yield Item(f"{name}, {problem.direction}", problem, everyone, timer)


def tune(quick: bool) -> Iterator[Item]:
    """Yield the problems that tiles are chosen for, their candidates being tiles."""
    for problem in _quick(tune_problems(), quick):
        yield Item("tiles", problem, tiles.candidates(problem))


def tune_backward(quick: bool) -> Iterator[Item]:
    """Yield the same for each kernel of the backward with products; the others keep their table's tiles."""
    for kernel, problem in tune_backward_problems():
        (one,) = _quick(iter((problem,)), quick)
        yield Item(f"tiles of {kernel}", one, tiles.candidates(one, kernel), share=0.5)


def tune_backward_problems() -> Iterator[tuple[tiles.Tuned, Problem]]:
    """Yield a long causal problem of each kind, head dim and kernel, first of the kernel that most calls take."""
    for head_dim in (*HEAD_DIMS, 192):
        yield "dkvq", square("backward", "bfloat16", head_dim, 4096, causal=True)
    kernels: tuple[tiles.Tuned, ...] = ("dkv", "dq")
    for kernel, head_dim in itertools.product(kernels, HEAD_DIMS):
        yield kernel, square("backward", "bfloat16", head_dim, 4096, causal=True)
    for kernel, precision in itertools.product(kernels, ("highest", "tf32")):
        yield kernel, square("backward", "float32", 128, 4096, tokens=TOKENS // 4, causal=True, precision=precision)


def tune_problems() -> Iterator[Problem]:
    """Yield a long problem of each kind and head dim, then one that leaves multiprocessors without work."""
    for dtype, precision in KINDS:
        for head_dim, causal in itertools.product(HEAD_DIMS, (True, False)):
            tokens = TOKENS if dtype != "float32" else TOKENS // 4
            yield square("forward", dtype, head_dim, 4096, tokens=tokens, causal=causal, precision=precision)
    for head_dim in HEAD_DIMS:
        yield square("forward", "bfloat16", head_dim, 1024, tokens=1024, causal=True)


def _quick(problems: Iterator[Problem], quick: bool) -> Iterator[Problem]:
    """Shrink the problems to a size at which a run only shows that it works."""
    for problem in problems:
        yield shrunk(problem) if quick else problem


def shrunk(problem: Problem) -> Problem:
    """Return a problem of one head group and 256 tokens at most, otherwise the same."""
    ratio = problem.heads // problem.kv_heads
    sequences = tuple(length // 64 for length in problem.sequences)
    q_length, kv_length = (sum(sequences) or min(256, length) for length in (problem.q_length, problem.kv_length))
    few = replace(problem, batch=min(2, problem.batch), heads=2 * ratio, kv_heads=2)
    return replace(few, q_length=q_length, kv_length=kv_length, sequences=sequences)


SECTIONS: dict[str, Callable[[bool], Iterator[Item]]] = {
    "fwd": forward,
    "matrix": matrix,
    "bwd": backward,
    "bwd-matrix": backward_matrix,
    "sparse": sparse,
    "masks": masks,
    "options": options,
    "small": small,
    "peers": peers,
    "tune": tune,
    "tune-bwd": tune_backward,
}
