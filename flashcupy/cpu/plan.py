"""How a problem is cut into tasks: units of work that share packed keys and values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from flashcupy.arrays import accumulator
from flashcupy.cpu import schedule
from flashcupy.cpu.schedule import BandSchedule, ListSchedule, Schedule
from flashcupy.cpu.threads import num_threads
from flashcupy.results import Explanation
from flashcupy.spec import AttentionProblem, Sequence

# Tasks per thread: enough that an uneven last round (causal, ragged batches) costs little.
_TASKS_PER_THREAD = 4
# The backward sums what its tasks deliver, so its tasks must not depend on the number of threads.
_BACKWARD_TASKS = 16


@dataclass(frozen=True, slots=True)
class Task:
    """Row blocks of the query heads of one key/value head."""

    sequence: Sequence
    kv_head: int
    items: tuple[tuple[int, tuple[int, int]], ...]  # (query head, (first row, end row))


class TaskPlan:
    """Tasks of one call, and the schedules they read; a list schedule is made once however many heads share it."""

    def __init__(self, problem: AttentionProblem) -> None:
        self._problem = problem
        self._schedules: dict[tuple[int, int, int], Schedule] = {}

    def schedule(self, sequence: Sequence, head: int) -> Schedule:
        mask = self._problem.block_mask
        batch = row = 0
        if mask is not None:
            batch = sequence.batch if mask.shape[0] > 1 else 0
            row = head // (self._problem.spec.q_heads // mask.shape[1])
        key = (batch, row, sequence.q_len)
        if key not in self._schedules:
            self._schedules[key] = (
                BandSchedule(sequence.q_len) if mask is None else ListSchedule(mask, batch, row, sequence.q_len)
            )
        return self._schedules[key]

    def forward(self) -> list[Task]:
        return self._split(_TASKS_PER_THREAD * num_threads(), keep_heads_apart=False)

    def backward(self) -> list[Task]:
        return self._split(_BACKWARD_TASKS, keep_heads_apart=True)

    def _split(self, wanted: int, *, keep_heads_apart: bool) -> list[Task]:
        units = list(self._units(keep_heads_apart))
        parts = -(-wanted // max(1, len(units)))
        tasks = []
        for sequence, kv_head, heads in units:
            items = [(head, rows) for head in heads for rows in self.schedule(sequence, head).row_blocks]
            # Every parts-th item: rows of a causal problem grow longer downwards.
            tasks += [Task(sequence, kv_head, tuple(items[part::parts])) for part in range(min(parts, len(items)))]
        return tasks

    def _units(self, keep_heads_apart: bool) -> Iterator[tuple[Sequence, int, range]]:
        spec = self._problem.spec
        step = 1 if keep_heads_apart else max(1, spec.group)
        for batch in range(spec.batch_size):
            sequence = self._problem.sequence(batch)
            for head in range(0, spec.q_heads, step):
                yield sequence, head // spec.group, range(head, head + step)


def explain(problem: AttentionProblem) -> Explanation:
    spec = problem.spec
    item = accumulator(spec.dtype).itemsize
    tasks = TaskPlan(problem).forward()
    busy = min(num_threads(), max(1, len(tasks)))
    packed = spec.kv_len * (spec.head_dim + spec.v_dim + 2)
    rows = schedule.BLOCK_ROWS * (spec.head_dim + 2 * spec.v_dim + 4)
    sums = spec.kv_len * (spec.head_dim + spec.v_dim) + spec.q_len * spec.head_dim
    key_columns = schedule.TILE_AREA // schedule.BLOCK_ROWS
    buffers = 3 if spec.softcap else 2
    return Explanation(
        backend="numpy",
        config=f"cpu_{spec.dtype}_d{spec.head_dim}_v{spec.v_dim}_q{schedule.BLOCK_ROWS}_kv{key_columns}",
        reason="the operands are in host memory",
        threads=num_threads(),
        tasks=len(tasks),
        workspace_bytes=busy * item * (packed + rows + schedule.TILE_AREA),
        backward_workspace_bytes=busy * item * (packed + sums + 2 * rows + buffers * schedule.TILE_AREA),
        compiled=True,
        spec=spec,
    )
