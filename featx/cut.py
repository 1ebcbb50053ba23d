"""Graph surgery: where a network can be cut, and the parts before and after a cut.

A cut is one edge of the traced graph; it is legal when nothing else that depends on the input
crosses it. Names are torchvision's (`torchvision.models.feature_extraction`), a module's path
means its last value, and three names work in every network: ``input``, ``penultimate`` (what
enters the last Linear or Conv2d, dropout left out; what a network without a classifier gives) and
``logits``.
"""

from __future__ import annotations

import copy
import fnmatch
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from featx.axes import Layout
from featx.cut_costs import costs
from featx.cut_graph import ALIASES, SEE_CUTS, CutGraph, UntraceableError
from featx.errors import InputError
from featx.identity import FrontIdentity
from featx.pooling import POOLS, Pool
from featx.tracing import facts


@dataclass(frozen=True)
class Cut:
    """One place where a network could be cut.

    Attributes
    ----------
    name
        As `split_at` and `build_front` take it.
    shape
        Of the value there, without the batch axis.
    layout
        ``nchw``, ``nhwc``, ``tokens`` (n, t, d), ``nct``, ``vector`` (n, d), or ``other``.
    is_legal
        Whether nothing else crosses this edge.
    crossing
        Names of the other values that do.
    aliases
        Those of `ALIASES` that mean this cut.
    size_bytes
        Of the value for one image: in float32; of ``input`` as uint8 pixels.
    parameters_before, parameters_after
        Values in the parameters of either part; those that both use count in both.
    saved
        Share of the network's multiply-adds (of convolutions and matrix products) before the
        cut, 0 to 1: run once for an image, instead of in every epoch.
    modules
        Paths of the modules whose last value this is, outermost first: they name the cut too.
    """

    name: str
    shape: tuple[int, ...]
    layout: str
    is_legal: bool
    crossing: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    size_bytes: int = 0
    parameters_before: int = 0
    parameters_after: int = 0
    saved: float = 0.0
    modules: tuple[str, ...] = ()

    def matches(self, pattern: str) -> bool:
        """Whether one of its names fits a pattern with ``*``, ``?`` and ``[...]``."""
        names = (self.name, *self.aliases, *self.modules)
        return any(fnmatch.fnmatchcase(name, pattern) for name in names)


def list_cuts(
    model: nn.Module, input_shape: tuple[int, int, int, int] = (1, 3, 224, 224)
) -> tuple[Cut, ...]:
    """Every value of a network that is computed from the image, in order of computation.

    The first is ``input``, the pixels as a cache of them holds them, then what they are normalised
    to.

    Parameters
    ----------
    model
        Not changed. Its graph is that of evaluation mode.
    input_shape
        (n, 3, h, w); no forward pass on data is made where every operator has a meta kernel.

    Raises
    ------
    InputError
        The network cannot be traced, or does not take such an input.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    >>> [(cut.name, cut.shape) for cut in list_cuts(net, (1, 3, 8, 8))][2:4]
    [('0', (4, 6, 6)), ('1', (4, 6, 6))]
    >>> cut = list_cuts(net, (1, 3, 8, 8))[4]
    >>> cut.aliases, cut.parameters_before, cut.parameters_after, round(cut.saved, 3)
    (('penultimate',), 112, 290, 0.931)
    """
    graph = CutGraph(model, input_shape, count=True)
    named: dict[fx.Node, list[str]] = {}
    for alias in ALIASES:
        node = graph.alias(alias)
        if node is not None and alias != "input":
            named.setdefault(node, []).append(alias)
    modules: dict[fx.Node, list[str]] = {}
    for path, node in graph.modules.items():
        modules.setdefault(node, []).append(path)
    behind = costs(graph.module, graph.needed)
    cuts = [
        Cut(
            name=facts(node).path,
            shape=(shape := (facts(node).shape or ())[1:]),
            layout=graph.layouts[node].name,
            is_legal=not graph.crossing[node],
            crossing=tuple(facts(other).path for other in graph.crossing[node]),
            aliases=tuple(named.get(node, ())),
            size_bytes=4 * math.prod(shape),
            modules=tuple(modules.get(node, ())),
            **vars(behind[graph.position[node]]),
        )
        for node in graph.candidates
    ]
    _, c, h, w = input_shape
    pixels = replace(cuts[0], name="input", shape=(h, w, c), layout="nhwc", size_bytes=h * w * c)
    return pixels, *cuts


def split_at(model: nn.Module, cut: str) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Split a network in two: ``tail(front(x))`` has the bits of ``model(x)`` in evaluation mode.

    Both parts share the model's layers and parameters, and are graphs of its evaluation mode. The
    tail never writes into its argument, so features can be used again.

    Parameters
    ----------
    cut
        A name `list_cuts` gives, a module's path (its last value), or one of `ALIASES`.

    Raises
    ------
    InputError
        Unknown or illegal cut; or the network cannot be traced.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True), nn.Linear(3, 2)).eval()
    >>> front, tail = split_at(net, "0")
    >>> x = torch.ones(2, 4)
    >>> torch.equal(tail(front(x)), net(x))
    True
    """
    graph = CutGraph(model, None, shapes_required=False)
    node = graph.legal(cut)
    return graph.front(node), graph.tail(node)


class Front(nn.Module):
    """The frozen part of a network before a cut, and the pooling after it.

    Always in evaluation mode, whatever `train` is called with: BatchNorm statistics would move
    otherwise, gradients or not.

    Attributes
    ----------
    cut
        Name of the value that is taken, resolved: ``flatten`` where ``penultimate`` was asked.
    pool
        One of ``avg max gem none cls cls+avg``: what ``auto`` came to.
    layout
        Of what `forward` returns: ``vector`` (n, d), or where nothing is pooled the cut's own,
        ``nchw``, ``nhwc``, ``tokens``, ``nct`` or ``other``.
    notes
        Sentences for the user: what ``auto`` was taken to mean.
    """

    def __init__(
        self, body: nn.Module, pooling: Pool, *, cut: str, layout: str, notes: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.body = body
        self.pooling = pooling
        self.cut = cut
        self.pool = pooling.kind
        self.layout = layout
        self.notes = notes
        self.eval()

    @property
    def identity(self) -> FrontIdentity:
        """Cut, pool, layout and notes, without the network."""
        return FrontIdentity(self.cut, self.pool, self.layout, self.notes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised images, float (n, 3, h, w) -> features (n, d) or the map (n, ...)."""
        features: torch.Tensor = self.pooling(self.body(images))
        return features

    def train(self, mode: bool = True) -> Front:
        """Stay in evaluation mode."""
        super().train(False)
        return self


def build_front(
    network: nn.Module,
    *,
    cut: str = "penultimate",
    pool: str = "auto",
    input_shape: tuple[int, int, int, int] | None = None,
) -> Front:
    """The part of a network before a cut, with pooling, frozen.

    Parameters
    ----------
    network
        Not changed, and its layers are shared; copied first if any of it is in training mode.
    cut
        A name `list_cuts` gives, a module's path (its last value), or one of `ALIASES`.
    pool
        ``auto``: the network's own at ``penultimate``, nothing at ``input`` and on vectors, avg on
        a map or tokens. ``avg``, ``max``, ``gem`` (Radenovic et al. 2018) pool the positions (class
        tokens left out); ``none`` keeps the map; ``cls`` and ``cls+avg`` take the class token. At
        ``penultimate`` they replace the network's own global pool: densenet121 with ``none``
        gives its last map (n, 1024, 7, 7).
    input_shape
        (n, 3, h, w) of a network that cannot take 224 x 224 and does not say what it takes.

    Raises
    ------
    InputError
        Unknown or illegal cut or pool; a pool that has nothing to pool at this cut.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    ...                     nn.Linear(4, 2)).eval()
    >>> build_front(net)(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 4])
    >>> build_front(net, pool="none")(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 4, 6, 6])
    """
    if pool not in POOLS:
        raise InputError(f"unknown pool {pool!r}; known are {', '.join(POOLS)}")
    if any(module.training for module in network.modules()):
        network = copy.deepcopy(network).eval()
    try:
        graph = CutGraph(network, input_shape)
    except UntraceableError as error:
        return _pre_logits_front(network, cut, pool, error)
    node = graph.legal(cut)
    if cut == "penultimate" and pool != "auto" and not graph.layouts[node].is_map:
        node = _entering_map(graph, node, pool)
    layout = graph.layouts[node]
    kind, notes = _resolve_pool(graph, node, layout, cut, pool)
    pooling = Pool(kind, spatial=layout.spatial, prefix_tokens=layout.prefix_tokens)
    return Front(
        graph.front(node),
        pooling,
        cut=facts(node).path,
        layout=layout.name if kind == "none" else "vector",
        notes=notes,
    )


def _resolve_pool(
    graph: CutGraph, node: fx.Node, layout: Layout, cut: str, pool: str
) -> tuple[str, tuple[str, ...]]:
    """What a pool means at a cut, and what to tell the user; refuses what it cannot mean."""
    path = facts(node).path
    if pool == "auto":
        if not layout.is_map or node is graph.alias("input"):
            return "none", ()
        if cut == "penultimate":
            return "avg", ()
        what = "tokens (the class token left out)" if layout.prefix_tokens else "positions"
        return "avg", (
            f"pool auto at {path} ({layout.name}): the mean over its {what}; "
            "--pool none keeps them all",
        )
    if pool == "none":
        return "none", ()
    if not layout.is_map:
        raise InputError(
            f"pool {pool!r} needs positions to pool, but {path} is "
            f"{'a vector' if layout.name == 'vector' else 'of an unknown layout'}"
            f"{_earlier_map(graph, node)}"
        )
    if pool.startswith("cls") and not layout.prefix_tokens:
        raise InputError(
            f"pool {pool!r} needs a class token, but {path} ({layout.name}) has none; "
            "use avg, max, gem or none"
        )
    return pool, ()


def _entering_map(graph: CutGraph, penultimate: fx.Node, pool: str) -> fx.Node:
    """The map that enters the network's own global pool, which `pool` replaces."""
    node = graph.entering_map(penultimate)
    if node is None or graph.crossing[node]:
        raise InputError(
            f"pool {pool!r} cannot replace this network's own pooling: what enters its last layer "
            f"({facts(penultimate).path}) is made by further layers"
            f"{_earlier_map(graph, penultimate)}"
        )
    return node


def _earlier_map(graph: CutGraph, node: fx.Node) -> str:
    before = graph.candidates[1 : graph.candidates.index(node)]
    maps = [
        n
        for n in before
        if graph.layouts[n].is_map and not graph.crossing[n] and graph.has_positions(n)
    ]
    if not maps:
        return f"; {SEE_CUTS}"
    return f"; name a map to cut at, such as --cut {facts(maps[-1]).path} ({SEE_CUTS})"


class _PreLogits(nn.Module):
    """A timm model without its classifier, by timm's own interface."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.network.forward_head(
            self.network.forward_features(images), pre_logits=True
        )
        return features


def _pre_logits_front(network: nn.Module, cut: str, pool: str, error: UntraceableError) -> Front:
    if not (hasattr(network, "forward_features") and hasattr(network, "forward_head")):
        raise error
    if cut != "penultimate" or pool not in ("auto", "none"):  # none: as a cache records it
        raise InputError(
            f"{error}; of such a timm model only --cut penultimate --pool auto can be had, "
            f"got --cut {cut} --pool {pool}"
        ) from error
    return Front(
        _PreLogits(network), Pool("none", spatial=()), cut="penultimate", layout="vector", notes=()
    )
