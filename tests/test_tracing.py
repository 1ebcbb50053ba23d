"""A network as a graph with facts about every node."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from featx.errors import InputError
from featx.tracing import facts, is_in_place, trace


class Sizes(nn.Module):
    """Reads its input's size, and a value that does not depend on the input."""

    def __init__(self):
        super().__init__()
        self.offset = nn.Parameter(torch.ones(3))

    def forward(self, x):
        n = x.shape[0]
        offset = self.offset.exp().expand(n, -1)
        return x.mean((2, 3)) + offset


def _facts(network, shape=(2, 3, 4, 4)):
    return {facts(node).path: facts(node) for node in trace(network, shape).graph.nodes}


def test_what_depends_on_values_is_told_from_what_depends_on_sizes_only():
    found = _facts(Sizes().eval())
    assert (found["mean"].depends, found["mean"].carries) == (True, True)
    assert (found["expand"].depends, found["expand"].carries) == (True, False)
    assert (found["exp"].depends, found["exp"].carries) == (False, False)
    assert found["expand"].shape == (2, 3)
    assert found["getattr"].shape is None


def test_shapes_are_found_without_computing_on_data():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)).eval()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    assert _facts(network, (2, 3, 5, 6))["1"].shape == (2, 4, 5, 6)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(p.device.type == "cpu" for p in network.parameters())


def test_an_operator_without_a_meta_kernel_is_run_on_zeros():
    class Unique(nn.Module):
        def forward(self, x):
            return torch.nonzero(x + 1)

    assert _facts(Unique().eval(), (2, 3, 2, 2))["nonzero"].shape == (24, 4)


def test_an_input_that_does_not_fit_is_refused_or_traced_without_shapes():
    network = nn.Sequential(nn.Linear(5, 2)).eval()
    with pytest.raises(InputError, match=r"does not take an input of shape \(2, 3, 4, 4\)"):
        trace(network, (2, 3, 4, 4))
    module = trace(network, (2, 3, 4, 4), shapes_required=False)
    assert all(facts(node).shape is None for node in module.graph.nodes)


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda x: F.relu(x, inplace=True), True),
        (lambda x: F.relu(x, True), True),
        (lambda x: torch.relu_(x), True),
        (lambda x: x.add_(1), True),
        (lambda x: torch.exp(x, out=x), True),
        (lambda x: F.relu(x), False),
        (lambda x: x + 1, False),
        (lambda x: x.__add__(1), False),
    ],
)
def test_operators_that_write_into_their_argument_are_known(forward, expected):
    class Network(nn.Module):
        def forward(self, x):
            return forward(x)

    module = trace(Network().eval(), (2, 3, 4, 4))
    last = module.graph.output_node().args[0]
    assert is_in_place(last, module) is expected


def test_layers_that_write_into_their_argument_are_known_also_inside_others():
    module = trace(nn.Sequential(nn.ReLU(inplace=True), nn.ReLU()).eval())
    assert [is_in_place(n, module) for n in module.graph.nodes] == [False, True, False, False]


def test_the_graph_is_that_of_evaluation_mode_whatever_mode_the_network_is_in():
    class Auxiliary(nn.Module):
        def forward(self, x):
            return (x, x * 2) if self.training else F.dropout(x + 1, training=self.training)

    network = Auxiliary().train()
    x = torch.ones(2, 3, 4, 4)
    assert torch.equal(trace(network, (2, 3, 4, 4))(x), x + 1)
    assert network.training


def test_the_graph_may_be_that_of_the_modes_the_layers_are_in():
    class Drops(nn.Module):
        def forward(self, x):
            return F.dropout(x, 0.5, training=self.training)

    network = nn.Sequential(Drops(), nn.BatchNorm2d(3), Drops()).train()
    network[2].eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    graph = trace(network, (2, 3, 4, 4), modes_as_they_are=True).graph
    dropping = [n.kwargs["training"] for n in graph.nodes if n.op == "call_function"]
    assert dropping == [True, False]
    assert [module.training for module in network] == [True, True, False]
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
