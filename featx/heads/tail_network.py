"""The rest of a network after a cut, ready to be trained: a fresh classifier, modes, rates."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from featx.cut_graph import CutGraph
from featx.errors import InputError
from featx.keys import classifier_path, with_classifier
from featx.own_network import code_sha256
from featx.tracing import facts

BatchNormMode = Literal["frozen", "learn"]


class Tail(nn.Module):
    """What follows a cut, with a classifier of k outputs in the place of the network's own.

    Two graphs share its layers and values: of training mode, in which code that asks for the mode
    drops what it drops (`functional.dropout`, stochastic depth), and of evaluation mode. The
    layers before the cut are no part of it. Its values are named as in the whole network.

    Parameters
    ----------
    network
        Not changed: it is copied.
    cut
        As of `featx.cut.split_at`.
    k
        Classes.
    batchnorm
        Whether training moves BatchNorm's running statistics (`learn`), or normalises by them as
        they are (`frozen`). Their scales and shifts are trained either way.
    seed
        Of the fresh classifier.
    device
        As PyTorch spells it; ``meta``: shapes only.

    Attributes
    ----------
    classifier : str
        Path of the layer that was replaced.

    Raises
    ------
    InputError
        Unknown or illegal cut; one behind the classifier; a network without one.
    """

    def __init__(
        self,
        network: nn.Module,
        cut: str,
        k: int,
        *,
        batchnorm: BatchNormMode = "frozen",
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        super().__init__()
        network = copy.deepcopy(with_classifier(network, k))
        network = network.to(device).requires_grad_(True).eval()
        self.classifier = classifier_path(network)
        _replace(network, self.classifier, k, seed)
        graph = CutGraph(network, None, shapes_required=False)
        graph.legal("penultimate")  # it ends in that layer, so that what it gives are k scores
        node = graph.legal(cut)
        self._evaluated = graph.tail(node)
        _set_modes(network.train(), batchnorm)
        graph = CutGraph(network, None, shapes_required=False, modes_as_they_are=True)
        self._trained = graph.tail(graph.legal(facts(node).path))
        self._batchnorm = batchnorm
        if f"{self.classifier}.weight" not in self.values():
            raise InputError(
                f"the cut {cut!r} is behind the network's last layer ({self.classifier}), so that "
                "nothing is left to train; cut earlier"
            )
        self.eval()

    def forward(self, features: Tensor) -> Tensor:
        """Features (b, *shape) float32 -> logits (b, k)."""
        logits: Tensor = (self._trained if self.training else self._evaluated)(features)
        return logits

    def train(self, mode: bool = True) -> Tail:
        """As of any module; BatchNorm that is frozen stays in evaluation mode."""
        super().train(mode)
        if mode:
            _set_modes(self, self._batchnorm)
        return self

    @torch.no_grad()
    def gives_scores_in_training(self, features: Tensor) -> bool:
        """Whether training mode, too, gives logits for features (1, *shape); its values stay.

        Networks with auxiliary classifiers give a tuple then, or fail on small images.
        """
        before = {name: value.clone() for name, value in self.values().items()}
        devices = [features.device] if features.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices):  # of what is dropped
                out = self.train()(features.repeat(2, *[1] * (features.ndim - 1)))
        except RuntimeError:
            return False
        finally:
            self.eval()
            self.set_values(before)
        return isinstance(out, Tensor) and out.ndim == 2

    @property
    def code_sha256(self) -> str:
        """Of the layers with their settings, and of the code; its values are no part of it."""
        return code_sha256(self._evaluated, constants=False)

    def values(self) -> dict[str, Tensor]:
        """All that it computes with, by the names in the whole network: weights and statistics."""
        return {name: value.detach() for name, value in self._named().items()}

    def _named(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = dict(self._evaluated.named_parameters())
        return found | dict(self._evaluated.named_buffers())

    @torch.no_grad()
    def set_values(self, values: Mapping[str, Tensor]) -> None:
        """Take values of the same names and shapes, in place."""
        for name, value in self.values().items():
            value.copy_(values[name])

    def fill(self, values: Mapping[str, Tensor]) -> None:
        """Take values in the place of those on the device ``meta``."""
        filled = {
            name: nn.Parameter(values[name]) if isinstance(value, nn.Parameter) else values[name]
            for name, value in self._named().items()
        }
        for graph in (self._evaluated, self._trained):
            for name, value in filled.items():
                path, _, leaf = name.rpartition(".")
                module = graph.get_submodule(path)
                if isinstance(value, nn.Parameter):
                    module._parameters[leaf] = value
                else:
                    module._buffers[leaf] = value

    def rates(self, ratio: float) -> list[tuple[nn.Parameter, float]]:
        """Each parameter, and what its learning rate is multiplied by.

        1 in the classifier, `ratio` in the first layer of the tail, and in between falling by the
        same factor from one layer to the one before it.
        """
        layers: dict[str, list[nn.Parameter]] = {}  # in the order in which they compute
        for node in self._evaluated.graph.nodes:
            if node.op == "call_module":
                module = self._evaluated.get_submodule(str(node.target))
                layers.setdefault(str(node.target), list(module.parameters()))
            elif node.op == "get_attr":
                value = _attribute(self._evaluated, str(node.target))
                if isinstance(value, nn.Parameter):
                    layers.setdefault(str(node.target), [value])
        of_layers = [parameters for parameters in layers.values() if parameters]
        step = math.log(ratio) / max(1, len(of_layers) - 1)
        rates: dict[nn.Parameter, float] = {}
        for before_last, parameters in enumerate(reversed(of_layers)):
            for parameter in parameters:
                rates.setdefault(parameter, math.exp(step * before_last))
        return list(rates.items())


def _replace(network: nn.Module, path: str, k: int, seed: int) -> None:
    """Put a layer of k outputs in the place of the classifier, drawn as PyTorch draws such ones."""
    old = network.get_submodule(path)
    device = next(old.parameters()).device
    new: nn.Linear | nn.Conv2d
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, k, old.bias is not None, device="meta")
    else:
        assert isinstance(old, nn.Conv2d), type(old)
        if old.groups != 1:
            raise InputError(f"the network's last layer ({path}) is a grouped convolution")
        new = nn.Conv2d(
            old.in_channels,
            k,
            old.kernel_size,  # type: ignore[arg-type]
            old.stride,  # type: ignore[arg-type]
            old.padding,  # type: ignore[arg-type]
            old.dilation,  # type: ignore[arg-type]
            bias=old.bias is not None,
            device="meta",
        )
    generator = torch.Generator().manual_seed(seed)
    bound = 1 / math.sqrt(math.prod(new.weight.shape[1:]))  # torch.nn's `reset_parameters`
    for name, value in list(new.named_parameters()):
        drawn = torch.empty(value.shape).uniform_(-bound, bound, generator=generator)
        setattr(new, name, nn.Parameter(drawn.to(device)))
    container, _, name = path.rpartition(".")
    setattr(network.get_submodule(container), name, new)


def _set_modes(network: nn.Module, batchnorm: BatchNormMode) -> None:
    if batchnorm == "frozen":
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def _attribute(module: nn.Module, path: str) -> object:
    container, _, name = path.rpartition(".")
    return getattr(module.get_submodule(container), name)


def shape_at(network: nn.Module, cut: str, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a cut's value for one image, from that of the images (n, c, h, w)."""
    graph = CutGraph(network, input_shape)
    shape = facts(graph.legal(cut)).shape
    assert shape is not None, cut
    return shape[1:]
