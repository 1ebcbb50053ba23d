"""What lies before and after each cut of a network: its parameters and its multiply-adds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

from torch import fx

from featx.tracing import facts


@dataclass(frozen=True)
class Cost:
    """A network in two parts.

    Attributes
    ----------
    parameters_before, parameters_after
        Values in the parameters that the part uses; shared ones count in both.
    saved
        Share of the multiply-adds before the cut, 0 to 1.
    """

    parameters_before: int
    parameters_after: int
    saved: float


def costs(module: fx.GraphModule, needed: Iterable[fx.Node]) -> list[Cost]:
    """The cost of a cut behind each node of a traced graph, in the order of its nodes.

    Parameters
    ----------
    module
        As `featx.tracing.trace` gives it, with multiply-adds counted.
    needed
        Nodes that the output needs; the others cost nothing.
    """
    nodes = list(module.graph.nodes)
    needed = set(needed)
    places = _places(nodes, needed)
    work, begins, ends = ([0] * len(nodes) for _ in range(3))
    for first, last, size in _parameters(module, nodes, needed, places):
        begins[first] += size
        ends[last] += size
    for node in needed:
        work[places[node][0]] += facts(node).multiply_adds
    total, size = sum(work), sum(ends)
    return [
        Cost(before, size - gone, done / total if total else 0.0)
        for before, gone, done in zip(*map(accumulate, (begins, ends, work)), strict=True)
    ]


def _places(nodes: list[fx.Node], needed: set[fx.Node]) -> dict[fx.Node, tuple[int, int]]:
    """First and last position at which a node is at work.

    What depends on no image, such as a parameter that is read, is at work where it is used: the
    part after a cut computes it itself, wherever it stands in the graph.
    """
    places: dict[fx.Node, tuple[int, int]] = {}
    for position, node in reversed(list(enumerate(nodes))):
        users = [places[user] for user in node.users if user in needed]
        if facts(node).depends or not users:
            places[node] = (position, position)
        else:
            places[node] = (min(first for first, _ in users), max(last for _, last in users))
    return places


def _parameters(
    module: fx.GraphModule,
    nodes: list[fx.Node],
    needed: set[fx.Node],
    places: dict[fx.Node, tuple[int, int]],
) -> list[tuple[int, int, int]]:
    """First and last position at which each parameter is used, and how many values it has."""
    named = dict(module.named_parameters())
    found: dict[int, tuple[int, int, int]] = {}
    for node in (n for n in nodes if n in needed):
        used = []
        if node.op == "call_module":
            used = list(module.get_submodule(str(node.target)).parameters())
        elif node.op == "get_attr" and node.target in named:
            used = [named[str(node.target)]]
        for parameter in used:
            first, last = places[node]
            if id(parameter) in found:
                first = min(first, found[id(parameter)][0])
                last = max(last, found[id(parameter)][1])
            found[id(parameter)] = (first, last, parameter.numel())
    return list(found.values())
