"""BatchNorm folded into the convolution before it: the same function with fewer operations.

In evaluation mode BatchNorm multiplies each channel by one number and adds another. Where nothing
but a convolution comes before it, the convolution's weights and bias can do both (PyTorch's
`fuse_conv_bn_eval`). That is exact but for rounding, in the seventh digit. Where something lies in
between, as DenseNet's ReLU before its convolutions, nothing can be folded.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Final

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

_CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def folded(network: nn.Module) -> nn.Module:
    """A network without the BatchNorms that a convolution before them can take in.

    Parameters
    ----------
    network : in evaluation mode; not changed. What is folded are traced graphs among its children;
        without one it is returned as it is.

    Returns
    -------
    nn.Module
        Shares every layer that nothing was folded into.
    """
    graphs = {
        name: child for name, child in network.named_children() if isinstance(child, fx.GraphModule)
    }
    if not graphs:
        return network
    made = copy.copy(network)
    made._modules = {**network._modules, **{name: _folded(g) for name, g in graphs.items()}}
    return made


def _folded(module: fx.GraphModule) -> fx.GraphModule:
    made = fx.GraphModule(module, copy.deepcopy(module.graph))  # its own tree, the same layers
    calls = Counter(node.target for node in made.graph.nodes if node.op == "call_module")
    for target in calls:
        layer = made.get_submodule(target)
        if isinstance(layer, nn.Sequential):  # torchvision's Conv2dNormActivation, kept whole
            _put(made, target, _folded_chain(layer))
    for node in list(made.graph.nodes):
        before = _only_source(node, calls)
        if before is None:
            continue
        layers = made.get_submodule(str(before.target)), made.get_submodule(str(node.target))
        if _fit_together(*layers):
            _put(made, str(before.target), fuse_conv_bn_eval(*layers))  # type: ignore[arg-type, type-var]
            node.replace_all_uses_with(before)
            made.graph.erase_node(node)
    made.recompile()
    return made.eval()


def _put(module: nn.Module, target: str, layer: nn.Module) -> None:
    parent, _, name = target.rpartition(".")
    setattr(module.get_submodule(parent), name, layer)


def _folded_chain(chain: nn.Sequential) -> nn.Sequential:
    """The same layers one after another, less the BatchNorms that come behind convolutions."""
    layers: dict[str, nn.Module] = {}
    last = ""
    for name, layer in chain.named_children():
        before = layers.get(last)
        if before is not None and _fit_together(before, layer):
            layers[last] = fuse_conv_bn_eval(before, layer)  # type: ignore[arg-type, type-var]
        else:
            layers[name], last = layer, name
    made = copy.copy(chain)
    made._modules = layers
    return made


def _only_source(node: fx.Node, calls: Counter[str]) -> fx.Node | None:
    """The layer whose value goes to this layer and nowhere else, if both are called but once."""
    source = node.args[0] if node.op == "call_module" and node.args else None
    if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
        return None
    return source if calls[str(source.target)] == calls[str(node.target)] == 1 else None


def _fit_together(before: nn.Module, layer: nn.Module) -> bool:
    """Whether these are a convolution and a BatchNorm with statistics of its own."""
    return (
        type(before) in _CONVOLUTIONS
        and isinstance(layer, _NORMS)
        and type(layer) in _NORMS
        and layer.running_mean is not None
        and not layer.training
    )
