"""A traced network with, for every value, what else crosses the edge after it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from torch import fx, nn

from featx.axes import Layout, follow_axes
from featx.counting import first_few
from featx.errors import InputError
from featx.keys import has_classifier
from featx.spelling import did_you_mean
from featx.tracing import TRACE_ERRORS, facts, is_assertion, is_in_place, operator_name, trace

ALIASES = ("input", "penultimate", "logits")
SEE_CUTS = "`featx cuts BACKBONE` lists the cuts"
# Operators that leave values as they are and only move or drop some of them.
_DROPOUTS = {"dropout", "identity", "dropout1d", "dropout2d", "alphadropout", "featurealphadropout"}
_MOVES = {"flatten", "reshape", "view", "squeeze", "unsqueeze", "permute", "transpose"}
_MOVES |= {"contiguous", "getitem", "swapaxes"} | _DROPOUTS
_GLOBAL_POOLS = {"adaptiveavgpool2d", "adaptive_avg_pool2d", "avgpool2d", "avg_pool2d", "mean"}
_GLOBAL_POOLS |= {"adaptivemaxpool2d", "adaptive_max_pool2d", "amax"}
# What may follow a classifier: SqueezeNet's ReLU, pool and flatten; a softmax.
_AFTER_CLASSIFIER = _MOVES | _GLOBAL_POOLS
_AFTER_CLASSIFIER |= {"relu", "softmax", "log_softmax", "logsoftmax", "sigmoid"}


class UntraceableError(InputError):
    """A network whose Python code takes decisions that a graph cannot hold."""


class CutGraph:
    """Where a network can be cut.

    Attributes
    ----------
    candidates
        Nodes with a tensor computed from the image that the output needs, in order.
    crossing
        Of each candidate, the other values that cross the edge after it.
    layouts
        Of each candidate.
    needed
        Nodes that the output needs, what is written in place on the way counted in.
    """

    def __init__(
        self,
        network: nn.Module,
        input_shape: tuple[int, ...] | None = None,
        *,
        shapes_required: bool = True,
        count: bool = False,
        modes_as_they_are: bool = False,
    ) -> None:
        if input_shape is not None:
            # At batch size 1 the batch axis could not be told from others of length one.
            input_shape = (max(input_shape[0], 2), *input_shape[1:])
        try:
            self.module = trace(
                network,
                input_shape,
                shapes_required=shapes_required,
                count=count,
                modes_as_they_are=modes_as_they_are,
            )
        except InputError:
            raise
        except TRACE_ERRORS as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UntraceableError(
                f"{type(network).__name__} cannot be traced into a graph ({first})"
            ) from error
        self._has_classifier = has_classifier(network)
        self.nodes = list(self.module.graph.nodes)
        self.position = {node: i for i, node in enumerate(self.nodes)}
        self.output = self.nodes[-1]
        self._writes = {n for n in self.nodes if is_in_place(n, self.module)}
        self.needed = _ancestors([self.output, *self._writes])
        has_shapes = any(facts(n).shape is not None for n in self.nodes if n.op != "get_attr")
        self.candidates = [
            n
            for n in self.nodes
            if n in self.needed
            and n.op != "output"
            and facts(n).carries
            and (facts(n).shape is not None or not has_shapes)
        ]
        self.crossing = self._crossing()

    @cached_property
    def layouts(self) -> dict[fx.Node, Layout]:
        """The layout of every tensor."""
        return follow_axes(self.module)

    @cached_property
    def modules(self) -> dict[str, fx.Node]:
        """The last value of every module that is no name of a value itself, by its path."""
        paths = {facts(node).path: node for node in self.candidates}
        last = {
            path[:dot]: node
            for path, node in paths.items()
            for dot, letter in enumerate(path)
            if letter == "."
        }
        return {path: node for path, node in last.items() if path not in paths}

    def legal(self, cut: str) -> fx.Node:
        """The node a cut's name means.

        Raises
        ------
        InputError
            There is none of that name, or other values cross there.
        """
        node = self._named(cut)
        if not self.crossing[node]:
            return node
        others = [facts(other).path for other in self.crossing[node]]
        shown = first_few(others, 4)
        i = self.candidates.index(node)
        before = next((n for n in self.candidates[i::-1] if not self.crossing[n]), None)
        after = next((n for n in self.candidates[i:] if not self.crossing[n]), None)
        near = [facts(n).path for n in (before, after) if n is not None]
        raise InputError(
            f"the network cannot be cut at {cut!r}: {shown} also cross{'' if others[1:] else 'es'} "
            f"there; the nearest places where it can are {' and '.join(near)} ({SEE_CUTS})"
        )

    def alias(self, name: str) -> fx.Node | None:
        """The node that one of `ALIASES` means in this network; None where it has no such."""
        if name == "input":
            return self.candidates[0]
        if name == "logits":
            result = self.output.args[0]
            return result if isinstance(result, fx.Node) and result in self.crossing else None
        return self._penultimate()

    def has_positions(self, node: fx.Node) -> bool:
        """Whether a map has more than one position."""
        shape = facts(node).shape or ()
        return any(shape[i] > 1 for i in self.layouts[node].spatial)

    def entering_map(self, penultimate: fx.Node) -> fx.Node | None:
        """The map (or tokens) from which only a global pool or a selection makes a vector."""
        node = penultimate
        while True:
            sources = [n for n in node.all_input_nodes if facts(n).carries]
            if len(sources) != 1:
                return None
            source = sources[0]
            name = operator_name(node, self.module)
            selects_token = (
                name == "getitem"
                and self.layouts[source].name == "tokens"
                and self.layouts[node].name == "vector"
            )
            if selects_token or (name in _GLOBAL_POOLS and not self.has_positions(node)):
                return source if self.layouts[source].is_map else None
            if name not in _MOVES:
                return None
            node = source

    def front(self, node: fx.Node) -> fx.GraphModule:
        """The graph from the input to `node`."""
        end = self.position[node]
        # In-place writes and size checks before the cut have no users, but they happen.
        effects = [
            n
            for n in self.nodes[: end + 1]
            if (n in self._writes and n in self.needed) or is_assertion(n)
        ]
        keep = _ancestors([node, *effects]) | {n for n in self.nodes if n.op == "placeholder"}
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        for n in self.nodes[: end + 1]:
            if n in keep:
                copies[n] = graph.node_copy(n, copies.__getitem__)
        graph.output(copies[node])
        return fx.GraphModule(self.module, graph, "Front")

    def tail(self, node: fx.Node) -> fx.GraphModule:
        """The graph from `node` to the output; it never writes into its argument."""
        start = self.position[node]
        writes = [n for n in self._writes if self.position[n] > start]
        checks = [
            n
            for n in self.nodes[start + 1 :]
            if is_assertion(n) and not self._reaches_back(n, node)
        ]
        keep = _ancestors([self.output, *writes, *checks], stop=node)
        graph = fx.Graph()
        argument = graph.placeholder("features")
        copies = {node: graph.call_method("clone", (argument,)) if writes else argument}
        for n in self.nodes:
            if n in keep and n is not node:
                copies[n] = graph.node_copy(n, copies.__getitem__)
        return fx.GraphModule(self.module, graph, "Tail")

    def _reaches_back(self, check: fx.Node, node: fx.Node) -> bool:
        """Whether a size check needs something from before the cut that only the image gives."""
        start = self.position[node]
        return any(
            facts(n).depends and self.position[n] <= start and n is not node
            for n in _ancestors([check], stop=node)
        )

    def _crossing(self) -> dict[fx.Node, tuple[fx.Node, ...]]:
        last_use = {
            n: max(
                (self.position[user] for user in n.users if user in self.needed),
                default=-1,
            )
            for n in self.nodes
        }
        candidates = set(self.candidates)
        crossing = {}
        alive: list[fx.Node] = []
        for i, node in enumerate(self.nodes):
            alive = [n for n in alive if last_use[n] > i]
            if node in candidates:
                crossing[node] = tuple(alive)
            if node in self.needed and facts(node).depends and last_use[node] > i:
                alive.append(node)
        return crossing

    def _named(self, cut: str) -> fx.Node:
        if cut in ALIASES:
            node = self.alias(cut)
            if node is None:
                raise InputError(
                    f"this network has no {cut!r}: it does not end in one Linear or Conv2d layer; "
                    f"--cut logits takes what it gives, or name another cut ({SEE_CUTS})"
                    if cut == "penultimate"
                    else f"this network has no {cut!r}: it gives more than one tensor; name "
                    f"another cut ({SEE_CUTS})"
                )
            return node
        by_path = {facts(n).path: n for n in self.candidates}
        known = by_path | self.modules
        if cut in known:
            return known[cut]
        raise InputError(f"unknown cut {cut!r}{did_you_mean(cut, {*known, *ALIASES})} {SEE_CUTS}")

    def _penultimate(self) -> fx.Node | None:
        """What enters the last Linear or Conv2d, if only an activation or pool follows it.

        Of a network that has no classifier: what it gives.
        """
        if not self._has_classifier:
            return self.alias("logits")
        layers = [
            n
            for n in self.candidates
            if n.op == "call_module"
            and isinstance(self.module.get_submodule(str(n.target)), (nn.Linear, nn.Conv2d))
        ]
        if not layers or not self._ends_in(layers[-1]):
            return None
        node = layers[-1].all_input_nodes[0]
        while operator_name(node, self.module) in _DROPOUTS and node.all_input_nodes:
            node = node.all_input_nodes[0]
        return node

    def _ends_in(self, classifier: fx.Node) -> bool:
        node = classifier
        while True:
            users = [user for user in node.users if user in self.needed]
            if users == [self.output]:
                return True
            if len(users) != 1 or operator_name(users[0], self.module) not in _AFTER_CLASSIFIER:
                return False
            node = users[0]


def _ancestors(nodes: Iterable[fx.Node], stop: fx.Node | None = None) -> set[fx.Node]:
    """The nodes and all they are computed from; not beyond `stop`, which is counted itself."""
    found: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            if node is not stop:
                waiting.extend(node.all_input_nodes)
    return found
