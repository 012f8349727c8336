"""Loops of a control-flow graph, whose nodes are numbers from 0 on, the entry."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

After = Callable[[int], Sequence[int]]


@dataclass(frozen=True)
class Loop:
    """A natural loop: `inside` are its nodes, `own` those that no inner loop has as well."""

    head: int
    inside: frozenset[int]
    own: frozenset[int]
    depth: int


def natural_loops(after: After) -> list[Loop]:
    """Find the loops in order of their heads; `after` tells what may follow a node."""
    before: dict[int, list[int]] = {}
    order = reverse_postorder(after)
    for index in order:
        for following in after(index):
            before.setdefault(following, []).append(index)
    dominators = _immediate_dominators(order, before)
    bodies: dict[int, set[int]] = {}
    for index in order:
        for head in after(index):
            if _dominates(dominators, head, index):
                bodies.setdefault(head, {head}).update(_body(head, index, before))
    return [_loop(head, bodies) for head in sorted(bodies)]


def reverse_postorder(after: After, start: int = 0) -> list[int]:
    order, seen, stack = [], {start}, [(start, iter(after(start)))]
    while stack:
        index, following = stack[-1]
        for successor in following:
            if successor not in seen:
                seen.add(successor)
                stack.append((successor, iter(after(successor))))
                break
        else:
            order.append(index)
            stack.pop()
    return order[::-1]


def _immediate_dominators(order: list[int], before: dict[int, list[int]]) -> dict[int, int]:
    """Cooper, Harvey and Kennedy's iteration."""
    place = {index: number for number, index in enumerate(order)}
    found = {order[0]: order[0]}

    def meet(a: int, b: int) -> int:
        while a != b:
            while place[a] > place[b]:
                a = found[a]
            while place[b] > place[a]:
                b = found[b]
        return a

    changed = True
    while changed:
        changed = False
        for index in order[1:]:
            new = functools.reduce(meet, (one for one in before[index] if one in found))
            if found.get(index) != new:
                found[index] = new
                changed = True
    return found


def _dominates(dominators: dict[int, int], a: int, b: int) -> bool:
    while b != a and dominators[b] != b:
        b = dominators[b]
    return a == b


def _body(head: int, tail: int, before: dict[int, list[int]]) -> set[int]:
    found, todo = {head}, [tail]
    while todo:
        index = todo.pop()
        if index not in found:
            found.add(index)
            todo += before[index]
    return found


def _loop(head: int, bodies: dict[int, set[int]]) -> Loop:
    inside = bodies[head]
    inner = [body for other, body in bodies.items() if other != head and other in inside]
    depth = sum(head in body for body in bodies.values())
    return Loop(head, frozenset(inside), frozenset(inside.difference(*inner)), depth)
