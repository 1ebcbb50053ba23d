"""Folding: the same function without the BatchNorms that a convolution can take in."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import fx, nn

from featx.backbones import load_backbone
from featx.cut import build_front
from featx.engines.folding import folded
from featx.weights import state_dict_sha256


class Block(nn.Module):
    """Conv, norm, ReLU; a shared convolution; a convolution whose value is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.shared, self.norm_a, self.norm_b = (
            nn.Conv2d(4, 4, 1),
            *(nn.BatchNorm2d(4) for _ in range(2)),
        )
        self.twice, self.norm_c = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.first = nn.BatchNorm2d(4)  # of a ReLU, as in DenseNet
        self.batch_norm_of_batches = nn.BatchNorm2d(4, track_running_stats=False)
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.plain(x)))
        x = self.norm_a(self.shared(x)) + self.norm_b(self.shared(x))
        y = self.twice(x)
        x = self.norm_c(y) + y
        x = torch.relu(self.first(torch.relu(x)))
        return self.batch_norm_of_batches(self.last(x)).flatten(1)


class Whole(nn.Module):
    """A traced graph as a child, as a front has it."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) * 2


def trained(network: nn.Module) -> nn.Module:
    """Running statistics and weights that are none of 0 and 1."""
    torch.manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.uniform_(layer.bias, -1, 1)
            if layer.running_mean is not None and layer.running_var is not None:
                nn.init.uniform_(layer.running_mean, -1, 1)
                nn.init.uniform_(layer.running_var, 0.5, 2)
    return network.eval().requires_grad_(False)


def norms(network: nn.Module) -> int:
    """BatchNorms that the graph still calls, also inside of layers that are kept whole."""
    return sum(
        isinstance(layer, nn.BatchNorm2d)
        for body in network.children()
        if isinstance(body, fx.GraphModule)
        for node in body.graph.nodes
        if node.op == "call_module"
        for layer in body.get_submodule(str(node.target)).modules()
    )


def test_only_what_is_exact_is_folded_and_the_function_stays() -> None:
    block = trained(Block()).double()  # the last norm would enlarge the rounding of float32
    whole = Whole(fx.symbolic_trace(block)).eval()
    images = torch.randn(4, 3, 9, 9, dtype=torch.float64)
    expected, before = whole(images), copy.deepcopy(whole.state_dict())
    made = folded(whole)
    torch.testing.assert_close(made(images), expected, rtol=1e-10, atol=1e-10)
    assert not torch.equal(made.body.plain.weight, whole.body.plain.weight)
    assert (norms(whole), norms(made)) == (6, 5)  # one of six can be folded
    assert state_dict_sha256(whole.state_dict()) == state_dict_sha256(before)
    assert torch.equal(whole(images), expected)
    assert made.body.shared is whole.body.shared


def test_a_norm_in_training_mode_is_left_alone() -> None:
    whole = Whole(fx.symbolic_trace(trained(Block()))).eval()
    whole.body.norm.train()
    assert norms(folded(whole)) == 6


def test_a_network_that_is_no_graph_is_returned_as_it_is() -> None:
    block = trained(Block())
    assert folded(block) is block


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [("resnet18", 20, 0), ("mobilenet_v2", 52, 0), ("densenet121", 121, 62)],
)
def test_published_networks_lose_their_norms_and_keep_their_features(
    name: str, before: int, after: int
) -> None:
    front = build_front(load_backbone(name, weights="random").network)
    trained(front)
    made = folded(front)
    assert (norms(front), norms(made)) == (before, after)
    images = torch.randn(2, 3, 64, 64)
    expected, found = front(images), made(images)
    assert float((expected - found).abs().max()) <= 1e-5 * float(expected.abs().max())
