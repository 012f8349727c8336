"""How a problem is cut into tasks: units of work that share packed keys and values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from flashcupy.arrays import accumulator
from flashcupy.cpu import schedule
from flashcupy.cpu.heads import Block
from flashcupy.cpu.schedule import BandSchedule, ListSchedule, Schedule, stack_limit
from flashcupy.cpu.threads import num_threads
from flashcupy.results import Explanation
from flashcupy.spec import AttentionProblem, Sequence

# Tasks per thread: enough that an uneven last round (causal, ragged batches) costs little.
_TASKS_PER_THREAD = 4
# Heads are not stacked beyond this: many small tasks cost calls, too few leave threads idle.
_LEAST_TASKS = 4
# The backward sums what its tasks deliver, so its tasks must not depend on the number of threads.
_BACKWARD_TASKS = 16


@dataclass(frozen=True, slots=True)
class Task:
    """Stacks of query heads with some of their row blocks, all of one sequence and one stack of key/value heads."""

    sequence: Sequence
    kv_heads: slice
    stacks: tuple[slice, ...]
    part: int
    parts: int

    def blocks(self, schedule: Schedule) -> list[Block]:
        """Row blocks of this task: every parts-th, since rows of a causal problem grow longer downwards.

        Asked for by the task's own thread, because merging the rows of a list takes time.
        """
        return schedule.row_blocks[self.part :: self.parts]

    def key_rows(self, problem: AttentionProblem, array: np.ndarray) -> np.ndarray:
        """View of k, v or a sum of their shape: (key/value heads, used rows, dim)."""
        start = self.sequence.k_start
        return problem.heads(array, self.sequence.batch)[self.kv_heads, start : start + self.sequence.k_len]


class TaskPlan:
    """Tasks of one call, and the schedules they read; a list schedule is made once however many heads share it.

    `rows` is the height of row blocks where no list sets it.
    """

    def __init__(self, problem: AttentionProblem, rows: int | None = None) -> None:
        self._problem = problem
        self._rows = schedule.BLOCK_ROWS if rows is None else rows
        self._schedules: dict[tuple[int, int, int], Schedule] = {}

    def schedule(self, sequence: Sequence, head: int) -> Schedule:
        """Return the schedule of query head `head`, and of all that share its list."""
        mask = self._problem.block_mask
        batch = row = 0
        if mask is not None:
            batch = sequence.batch if mask.shape[0] > 1 else 0
            row = head // (self._problem.spec.q_heads // mask.shape[1])
        key = (batch, row, sequence.q_len)
        if key not in self._schedules:
            self._schedules[key] = (
                BandSchedule(sequence.q_len, self._rows)
                if mask is None
                else ListSchedule(mask, batch, row, sequence.q_len)
            )
        return self._schedules[key]

    def forward(self) -> list[Task]:
        """Cut for the threads there are: which task computes a row does not change its bits."""
        return self._split(_TASKS_PER_THREAD * num_threads(), keep_stacks_apart=False)

    def backward(self) -> list[Task]:
        """Cut the same way for any number of threads: sums over tasks depend on the cut."""
        return self._split(_BACKWARD_TASKS, keep_stacks_apart=True)

    def _split(self, wanted: int, *, keep_stacks_apart: bool) -> list[Task]:
        units = [
            (sequence, kv_heads, stacks)
            for sequence in map(self._problem.sequence, range(self._problem.spec.batch_size))
            if sequence.q_len and self._problem.spec.q_heads
            for kv_heads, stacks in self._units(sequence, keep_stacks_apart)
        ]
        parts = -(-wanted // max(1, len(units)))
        return [
            Task(sequence, kv_heads, tuple(stacks), part, own_parts)
            for sequence, kv_heads, stacks in units
            for own_parts in (min(parts, self.schedule(sequence, stacks[0].start).most_blocks),)
            for part in range(own_parts)
        ]

    def _units(self, sequence: Sequence, keep_stacks_apart: bool) -> Iterator[tuple[slice, list[slice]]]:
        """Key/value heads that are packed together, and the stacks of query heads that use them."""
        spec = self._problem.spec
        stack = self._stack_size(sequence)
        step = max(1, stack // spec.group)
        width = min(stack, spec.group)
        for kv_head in range(0, spec.kv_heads, step):
            kv_heads = slice(kv_head, min(kv_head + step, spec.kv_heads))
            first, end = kv_heads.start * spec.group, kv_heads.stop * spec.group
            stacks = (
                [slice(first, end)]
                if step > 1
                else [slice(head, min(head + width, end)) for head in range(first, end, max(1, width))]
            )
            if keep_stacks_apart:
                yield from ((kv_heads, [q_heads]) for q_heads in stacks)
            else:
                yield kv_heads, stacks

    def _stack_size(self, sequence: Sequence) -> int:
        """Query heads computed together: as many as a tile has room for, share one list, and leave enough tasks.

        A list with several row blocks stacks those instead.
        """
        spec, mask = self._problem.spec, self._problem.block_mask
        blocks = self.schedule(sequence, 0).row_blocks
        if mask is not None and len(blocks) > 1:
            return 1
        first, end = max(blocks, key=lambda rows: rows[1] - rows[0])
        shared = spec.q_heads if mask is None else spec.q_heads // mask.shape[1]
        enough = -(-spec.batch_size * spec.q_heads // _LEAST_TASKS)
        return min(stack_limit(end - first, sequence.k_len), shared, enough)


def forward_workspace(problem: AttentionProblem, out: np.ndarray, lse: np.ndarray) -> int:
    """None: temporary memory is the host's; see `flashcupy.backend.Backend`."""
    return 0


def backward_workspace(
    problem: AttentionProblem,
    out: np.ndarray,
    kept: object,
    dout: np.ndarray,
    dlse: np.ndarray | None,
    grads: dict[str, np.ndarray],
    deterministic: bool,
) -> int:
    """None: temporary memory is the host's; see `flashcupy.backend.Backend`."""
    return 0


def explain(problem: AttentionProblem) -> Explanation:
    """Tell how a forward would be cut, and what a forward and a backward would hold besides their results."""
    spec, plan = problem.spec, TaskPlan(problem)
    item = accumulator(spec.dtype).itemsize
    forward, backward = plan.forward(), plan.backward()
    return Explanation(
        backend="numpy",
        config=f"cpu_{spec.dtype}_d{spec.head_dim}_v{spec.v_dim}_q{schedule.BLOCK_ROWS}",
        reason="the operands are in host memory",
        threads=num_threads(),
        tasks=len(forward),
        workspace_bytes=item * _workspace(problem, forward, buffers=1, sums=False),
        backward_workspace_bytes=item * _workspace(problem, backward, buffers=3 if spec.softcap else 2, sums=True),
        compiled=True,
        spec=spec,
    )


def warmup(problem: AttentionProblem, backward: bool) -> None:
    """Do nothing: there is nothing to compile, in either direction."""


def _workspace(problem: AttentionProblem, tasks: list[Task], *, buffers: int, sums: bool) -> int:
    """Elements that the largest tasks hold, one a thread: packed keys and values, rows of a stack, score buffers."""
    spec, busy = problem.spec, min(num_threads(), len(tasks))
    kv_heads = max((task.kv_heads.stop - task.kv_heads.start for task in tasks), default=0)
    q_heads = max((stack.stop - stack.start for task in tasks for stack in task.stacks), default=0)
    keys = kv_heads * spec.kv_len * (spec.head_dim + spec.v_dim + 2)
    rows = q_heads * min(spec.q_len, schedule.BLOCK_ROWS) * (2 * spec.head_dim + 2 * spec.v_dim + 6)
    if sums:
        keys += kv_heads * spec.kv_len * (spec.head_dim + spec.v_dim)
        rows += q_heads * spec.q_len * spec.head_dim
    return busy * (keys + rows + buffers * schedule.STACK_AREA)
