"""Loops of a control-flow graph: where they begin, and what is inside."""

from __future__ import annotations

from collections.abc import Sequence


def natural_loops(successors: Sequence[Sequence[int]]) -> dict[int, set[int]]:
    """The loops of a graph whose node 0 is the entry: from each head to all of its nodes, the head too.

    A loop is what a branch back to a node closes that every way to the branch goes through (Aho, Lam, Sethi and Ullman,
    "Compilers", section 9.6). Nodes that cannot be reached are in none.

    Raises:
        ValueError: there is a loop with two ways in.
    """
    order = _reverse_postorder(successors)
    place = {node: number for number, node in enumerate(order)}
    before: dict[int, list[int]] = {node: [] for node in order}
    for node in order:
        for after in successors[node]:
            before[after].append(node)
    above = _immediate_dominators(order, place, before)
    loops: dict[int, set[int]] = {}
    for node in order:
        for head in successors[node]:
            if place[head] > place[node]:
                continue
            if not _dominates(head, node, above):
                raise ValueError("the machine code has a loop with two ways in")
            body = loops.setdefault(head, {head})
            new = [node]
            while new:
                if (inside := new.pop()) not in body:
                    body.add(inside)
                    new += before[inside]
    return loops


def _reverse_postorder(successors: Sequence[Sequence[int]]) -> list[int]:
    order: list[int] = []
    seen = {0}
    stack = [(0, iter(successors[0]))]
    while stack:
        node, rest = stack[-1]
        if (after := next(rest, None)) is None:
            order.append(node)
            stack.pop()
        elif after not in seen:
            seen.add(after)
            stack.append((after, iter(successors[after])))
    return order[::-1]


def _immediate_dominators(order: list[int], place: dict[int, int], before: dict[int, list[int]]) -> dict[int, int]:
    """Cooper, Harvey and Kennedy, "A simple, fast dominance algorithm", 2001."""
    above = {order[0]: order[0]}
    changed = True
    while changed:
        changed = False
        for node in order[1:]:
            common, *others = (each for each in before[node] if each in above)
            for other in others:
                while common != other:
                    if place[common] > place[other]:
                        common = above[common]
                    else:
                        other = above[other]
            if above.get(node) != common:
                above[node] = common
                changed = True
    return above


def _dominates(head: int, node: int, above: dict[int, int]) -> bool:
    while node != head and above[node] != node:
        node = above[node]
    return node == head
