"""A network as a graph: torchvision's node names, the shape of every value, what depends on what.

The graph is that of evaluation mode, unless another is asked for: what a layer's code decides by
its mode (`functional.dropout(x, training=self.training)`) is fixed when it is traced. What is
found out about a node is kept in `node.meta`, under the keys of `NodeFacts`.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.feature_extraction import NodePathTracer

from featx.errors import InputError

# What tracing a network with data-dependent Python control flow raises.
TRACE_ERRORS = (
    fx.proxy.TraceError,
    TypeError,
    ValueError,
    RuntimeError,
    AttributeError,
    LookupError,
    AssertionError,
)
_SIZE_ATTRIBUTES = {"shape", "ndim", "dtype", "device"}
_SIZE_METHODS = {"size", "dim", "ndimension", "numel", "stride"}


@dataclass(frozen=True)
class NodeFacts:
    """What is known of one node.

    Attributes
    ----------
    path
        Name as in `torchvision.models.feature_extraction`: ``features.transition1.pool``.
    shape
        Of a tensor, with the batch axis; None for anything else.
    depends
        Whether it would change with the input or the input's size.
    carries
        Whether it holds values computed from the input's values, not only from its size.
    multiply_adds
        Of the convolutions and matrix products in it, for one image; 0 where they are not counted.
    """

    path: str
    shape: tuple[int, ...] | None
    depends: bool
    carries: bool
    multiply_adds: int


class _Tracer(NodePathTracer):
    """torchvision's tracer with torchvision's defaults: its operators stay whole."""

    def __init__(self) -> None:
        leaves = [
            member
            for _, member in inspect.getmembers(torchvision.ops, inspect.isclass)
            if issubclass(member, nn.Module)
        ]
        # timm subclasses Linear and Conv2d; whole, they can be found as a network's classifier.
        leaves += [nn.Linear, nn.Conv2d]
        super().__init__(leaf_modules=leaves, autowrap_modules=(math, torchvision.ops))
        self._last_index: dict[str, int] = {}

    def _get_node_qualname(self, module_qualname: str, node: fx.Node) -> str:
        """torchvision's names, by a table in the place of its search through all names so far."""
        name = module_qualname
        if node.op != "call_module":
            name = f"{name}.{node}" if name else str(node)
        stem, index = _split_index(name)
        if index is not None:
            name = stem
        if name in self._last_index:
            name = f"{name}_{self._last_index[name] + 1}"
        self._last_index[name] = 0
        stem, index = _split_index(name)
        if index is not None:
            self._last_index[stem] = index
        return name


def trace(
    network: nn.Module,
    input_shape: tuple[int, ...] | None = None,
    *,
    shapes_required: bool = True,
    count: bool = False,
    modes_as_they_are: bool = False,
) -> fx.GraphModule:
    """The graph of a network in evaluation mode; it shares the network's modules and parameters.

    Parameters
    ----------
    network
        Not changed: modes are restored, and what tracing leaves behind is removed.
    input_shape
        (n, 3, h, w); where None, n = 2 and the input size the network was built for, else 224.
    shapes_required
        False: a network that does not take such an input is traced all the same, without shapes.
    count
        Count multiply-adds.
    modes_as_they_are
        Trace each layer in the mode it is in, training or evaluation.

    Returns
    -------
    GraphModule
        Every node's `meta["facts"]` is a `NodeFacts`.

    Raises
    ------
    InputError
        The network does not take an input of this shape.
    Exception
        One of `TRACE_ERRORS`: the network cannot be traced.
    """
    modes = {module: module.training for module in network.modules()}
    attributes = set(vars(network))
    tracer = _Tracer()
    try:
        if not modes_as_they_are:
            for module in modes:
                module.training = False
        graph = tracer.trace(network)
        traced = fx.GraphModule(network, graph)
        traced.training = False
        for module in modes:
            module.training = False  # shapes are found without moving any statistics
        try:
            recorded = _recorded(traced, input_shape or (2, 3, *_input_size(network)), count)
        except InputError:
            if shapes_required:
                raise
            recorded = _Recorded(1, {}, {})
    finally:
        for module, mode in modes.items():
            module.training = mode
        # fx stores tensors made on the way as `_tensor_constant0` on the network it traces.
        for attribute in set(vars(network)) - attributes:
            delattr(network, attribute)
    _record_facts(graph, dict(tracer.node_to_qualname), recorded)
    return traced


def facts(node: fx.Node) -> NodeFacts:
    """What `trace` found out about a node."""
    found: NodeFacts = node.meta["facts"]
    return found


def _split_index(name: str) -> tuple[str, int | None]:
    """``("relu", 2)`` of ``"relu_2"``; the name itself and None where it ends in no number."""
    stem, _, digits = name.rpartition("_")
    return (stem, int(digits)) if stem and digits.isdecimal() else (name, None)


def operator_name(node: fx.Node, module: nn.Module) -> str:
    """What a node does, in lower case: ``adaptiveavgpool2d`` (a layer), ``flatten``, ``add``."""
    if node.op == "call_module":
        return type(module.get_submodule(str(node.target))).__name__.lower()
    return str(getattr(node.target, "__name__", node.target))


def is_assertion(node: fx.Node) -> bool:
    """Whether a node only checks sizes (`torch._assert`)."""
    return node.op == "call_function" and getattr(node.target, "__name__", "") == "_assert"


def is_in_place(node: fx.Node, module: nn.Module) -> bool:
    """Whether a node may write into its argument; a layer that holds such a layer counts too."""
    if node.op == "call_module":
        target = module.get_submodule(str(node.target))
        return any(getattr(child, "inplace", False) is True for child in target.modules())
    if node.op not in {"call_function", "call_method"}:
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return (
        # `x += y` is no case: fx traces it as `x + y`.
        (name.endswith("_") and not name.endswith("__"))
        or node.kwargs.get("inplace") is True
        or "out" in node.kwargs
        or any(argument is True for argument in node.args)  # functional.relu(x, True)
    )


def _input_size(network: nn.Module) -> tuple[int, int]:
    """Height and width the network was built for, where it says so, else 224."""
    config = getattr(network, "pretrained_cfg", None)  # timm
    if isinstance(config, dict) and "input_size" in config:
        return config["input_size"][1], config["input_size"][2]
    size = getattr(network, "image_size", 224)  # torchvision's VisionTransformer
    return (size, size) if isinstance(size, int) else (224, 224)


@dataclass(frozen=True)
class _Recorded:
    """What running a graph once on `n` images tells of its nodes."""

    n: int
    shapes: dict[fx.Node, tuple[int, ...]]
    flops: dict[fx.Node, int]


class _Recorder(fx.Interpreter):
    """Runs the graph and keeps the shape and the work of every tensor, by node."""

    def __init__(self, module: fx.GraphModule, device: str) -> None:
        super().__init__(module)
        self.device = device
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self.flops: dict[fx.Node, int] = {}
        self._counter: FlopCounterMode | None = None

    def run_node(self, n: fx.Node) -> Any:
        before = self._total()
        value = super().run_node(n)
        self.flops[n] = self._total() - before
        if n.op == "get_attr" and isinstance(value, torch.Tensor):
            value = value.to(self.device)  # constants are no parameters: they stayed behind
        if isinstance(value, torch.Tensor):
            self.shapes[n] = tuple(value.shape)
        return value

    def run_counted(self, x: torch.Tensor) -> Any:
        """`run`, and count every operator's work."""
        with FlopCounterMode(display=False) as self._counter:
            return self.run(x)

    def _total(self) -> int:
        return self._counter.get_total_flops() if self._counter else 0


class _Recording(nn.Module):
    """Lets `torch.func.functional_call` put meta tensors in the place of all parameters."""

    def __init__(self, module: fx.GraphModule, device: str, count: bool) -> None:
        super().__init__()
        self.module = module
        self.recorder = _Recorder(module, device)
        self.count = count

    def forward(self, x: torch.Tensor) -> Any:
        return self.recorder.run_counted(x) if self.count else self.recorder.run(x)

    def recorded(self, n: int) -> _Recorded:
        """Of a run on `n` images."""
        return _Recorded(n, self.recorder.shapes, self.recorder.flops)


def _recorded(module: fx.GraphModule, input_shape: tuple[int, ...], count: bool) -> _Recorded:
    """Shapes and work of the graph; computed without data where every operator allows it."""
    recording = _Recording(module, "meta", count)
    named = [*recording.named_parameters(), *recording.named_buffers()]
    state = {name: torch.empty_like(tensor, device="meta") for name, tensor in named}
    with torch.no_grad():
        try:
            torch.func.functional_call(recording, state, (torch.empty(input_shape, device="meta"),))
            return recording.recorded(input_shape[0])
        except (RuntimeError, NotImplementedError, TypeError, ValueError, AssertionError):
            pass  # an operator without a meta kernel, or a true misfit: real zeros tell which
        device = next((str(tensor.device) for _, tensor in named), "cpu")
        recording = _Recording(module, device, count)
        try:
            recording(torch.zeros(input_shape, device=device))
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"the network does not take an input of shape {tuple(input_shape)}: {first}; "
                "give input_shape=(n, c, h, w) as it was built for (on the command line --crop, "
                "and as many numbers in --mean and --std as channels)"
            ) from error
    return recording.recorded(input_shape[0])


def _record_facts(graph: fx.Graph, paths: dict[fx.Node, str], recorded: _Recorded) -> None:
    first = next((node for node in graph.nodes if node.op == "placeholder"), None)
    for node in graph.nodes:
        depends = node is first or any(facts(n).depends for n in node.all_input_nodes)
        carries = node is first or any(facts(n).carries for n in node.all_input_nodes)
        reads_size = (
            node.op == "call_function"
            and node.target is getattr
            and node.args[1] in _SIZE_ATTRIBUTES
        ) or (node.op == "call_method" and node.target in _SIZE_METHODS)
        # torch counts a multiplication and an addition as two; what depends on no image runs once
        work = recorded.flops.get(node, 0) // (2 * (recorded.n if depends else 1))
        node.meta["facts"] = NodeFacts(
            path=paths.get(node, node.name),
            shape=recorded.shapes.get(node),
            depends=depends,
            carries=carries and not reads_size,
            multiply_adds=work,
        )
