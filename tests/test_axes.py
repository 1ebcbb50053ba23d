"""Axes followed through a graph."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models

from featx.axes import follow_axes
from featx.tracing import facts, trace


def _layouts(forward, shape=(2, 3, 8, 12)):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1, 2, 3))

        def forward(self, x):
            return forward(self, x)

    module = trace(Network(), shape)
    layouts = follow_axes(module)
    last = module.graph.output_node().args[0]
    return layouts[last]


@pytest.mark.parametrize(
    ("forward", "letters", "name"),
    [
        (lambda _, x: x, "nchw", "nchw"),
        (lambda _, x: x.permute(0, 2, 3, 1), "nhwc", "nhwc"),
        (lambda _, x: torch.permute(x, (0, -2, -1, 1)), "nhwc", "nhwc"),
        (lambda _, x: x.flatten(2), "nct", "nct"),
        (lambda _, x: x.flatten(2).transpose(1, 2), "ntc", "tokens"),
        (lambda _, x: x.permute(0, 2, 3, 1).reshape(2, -1, 3), "ntc", "tokens"),
        (lambda _, x: x.flatten(1), "n?", "vector"),
        (lambda _, x: x.mean((2, 3)), "nc", "vector"),
        (lambda _, x: x.mean([2, 3], keepdim=True), "nchw", "nchw"),
        (lambda _, x: x.mean([2, 3], keepdim=True).squeeze(-1).squeeze(-1), "nc", "vector"),
        (lambda _, x: x.mean(dim=2), "ncw", "other"),
        (lambda _, x: x.flatten(2).transpose(1, 2)[:, 0], "nc", "vector"),
        (lambda _, x: x[:, :, 0, :], "ncw", "other"),
        (lambda _, x: x[..., 2:], "nchw", "nchw"),
        (lambda _, x: x[:, None], "n1chw", "other"),
        (lambda _, x: x.permute(0, 2, 3, 1) * 2 + 1, "nhwc", "nhwc"),
        (lambda _, x: torch.cat([x, x], 1), "nchw", "nchw"),
        (lambda _, x: x.swapaxes(1, -1), "nwhc", "other"),
        (lambda _, x: x.chunk(3, dim=1)[1], "nchw", "nchw"),
        # attention windows of 4 x 4: cut out of the map, then put back
        (
            lambda _, x: x.reshape(2, 3, 2, 4, 3, 4).permute(0, 2, 4, 3, 5, 1).reshape(2, 6, 16, 3),
            "nttc",
            "other",
        ),
        (
            lambda _, x: (
                x.reshape(2, 3, 2, 4, 3, 4)
                .permute(0, 2, 4, 3, 5, 1)
                .reshape(2, 6, 16, 3)
                .reshape(2, 2, 3, 4, 4, 3)
                .permute(0, 5, 1, 3, 2, 4)
                .reshape(2, 3, 8, 12)
            ),
            "nchw",
            "nchw",
        ),
        # not put back in its place: the axes are mixed
        (lambda _, x: x.permute(0, 2, 1, 3).reshape(2, 12, 2, 12), "n???", "other"),
    ],
)
def test_axes_are_followed(forward, letters, name):
    layout = _layouts(forward)
    assert (layout.letters, layout.name) == (letters, name)


def test_tokens_that_stand_for_no_position_are_counted():
    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        return torch.cat([self.token.expand(tokens.shape[0], -1, -1), tokens], dim=1)

    layout = _layouts(forward)
    assert (layout.name, layout.prefix_tokens) == ("tokens", 2)
    assert _layouts(lambda self, x: forward(self, x) + 1).prefix_tokens == 2
    assert _layouts(lambda self, x: forward(self, x)[:, 2:]).prefix_tokens == 0
    assert _layouts(lambda self, x: x.flatten(2).transpose(1, 2)).prefix_tokens == 0


def test_a_residual_sum_with_a_known_value_makes_axes_known_again():
    def forward(_, x):
        mixed = x.permute(0, 2, 1, 3).reshape(2, 12, 2, 12).reshape(x.shape)
        return mixed + x

    assert _layouts(forward).name == "nchw"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("swin_t", {"features.1.0.add": "nhwc", "permute": "nchw"}),
        ("vit_b_32", {"conv_proj": "nchw", "encoder.ln": "tokens", "reshape": "nct"}),
        ("convnext_tiny", {"features.1.0.block.3": "nhwc", "features.1.0.add": "nchw"}),
        ("maxvit_t", {"blocks.0.layers.0.layers.MBconv.add": "nchw"}),
        ("shufflenet_v2_x0_5", {"stage2.0.reshape": "nchw", "stage2.0.view_1": "nchw"}),
    ],
)
def test_layouts_of_published_networks_are_known(name, expected):
    with torch.device("meta"):
        network = models.get_model(name, weights=None)
    module = trace(network.eval())
    found = {facts(node).path: layout.name for node, layout in follow_axes(module).items()}
    for path, layout in expected.items():
        if path in found:
            assert found[path] == layout, path
    assert any(path in found for path in expected)


def test_every_map_of_maxvit_between_its_blocks_is_known():
    with torch.device("meta"):
        network = models.maxvit_t(weights=None)
    module = trace(network.eval())
    maps = {
        facts(node).path: layout.name
        for node, layout in follow_axes(module).items()
        if len(facts(node).shape) == 4
        and facts(node).path.endswith("grid_attention.departition_op.reshape_1")
    }
    assert len(maps) == 11
    assert set(maps.values()) == {"nchw"}
