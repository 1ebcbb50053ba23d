"""Cutting networks: names, legality, the two parts, pooling, and equality with the reference."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models
from torchvision.models.feature_extraction import get_graph_node_names
from torchvision.ops import StochasticDepth

from featx import architectures
from featx.cut import build_front, list_cuts, split_at
from featx.cut_costs import costs
from featx.cut_graph import CutGraph
from featx.errors import InputError
from featx.tracing import facts, trace

SHAPE = (1, 3, 16, 16)


class Tiny(nn.Module):
    """A residual block with BatchNorm and in-place ReLU, dropout before the classifier."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(x))
        y += x
        y = self.relu(y)
        return self.fc(self.drop(torch.flatten(self.pool(y), 1)))


class Writing(nn.Module):
    """In-place operators whose results nobody takes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        x = self.conv(x)
        torch.relu_(x)
        x = self.norm(x)
        x.mul_(2)
        F.relu(x, True)
        return self.fc(x.mean((2, 3)))


class Tokens(nn.Module):
    """A small transformer with a class token."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.cls = nn.Parameter(torch.randn(1, 1, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], dim=1)
        return self.head(self.norm(self.block(x))[:, 0])


def _ready(network):
    """Evaluation mode, with BatchNorm that does something."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2)
    return network.eval().requires_grad_(False)


@pytest.fixture
def tiny():
    return _ready(Tiny())


@pytest.fixture
def images():
    return torch.randn(3, *SHAPE[1:], generator=torch.Generator().manual_seed(1))


def test_cuts_are_named_as_torchvision_names_them(tiny):
    pixels, *cuts = list_cuts(tiny, SHAPE)
    assert (pixels.name, cuts[0].name) == ("input", "x")
    assert [cut.name for cut in cuts] == get_graph_node_names(tiny, suppress_diff_warning=True)[1]
    resnet = _untrained("resnet18", on="meta").eval()
    assert [cut.name for cut in list_cuts(resnet)[1:]] == get_graph_node_names(resnet)[1]
    for name in ("swin_t", "inception_v3"):  # names that end in numbers, shared layers
        network = _untrained(name, on="meta").eval()
        theirs = get_graph_node_names(network, suppress_diff_warning=True)[1]
        ours = [facts(node).path for node in trace(network).graph.nodes]
        # torchvision has no names for buffers that are only read
        assert [path for path in ours if path in set(theirs)] == theirs


def test_a_cut_is_legal_where_nothing_else_crosses(tiny):
    cuts = {cut.name: cut for cut in list_cuts(tiny, SHAPE)}
    assert [name for name, cut in cuts.items() if not cut.is_legal] == ["conv2", "bn2"]
    assert cuts["bn2"].crossing == ("relu",)
    assert (cuts["relu_1"].shape, cuts["relu_1"].layout) == ((8, 16, 16), "nchw")
    assert (cuts["flatten"].shape, cuts["flatten"].layout) == ((8,), "vector")
    assert (cuts["x"].aliases, cuts["x"].size_bytes) == ((), 4 * 3 * 16 * 16)
    pixels = cuts["input"]  # uint8, as a cache holds them
    assert (pixels.shape, pixels.layout, pixels.size_bytes) == ((16, 16, 3), "nhwc", 3 * 16 * 16)
    assert cuts["flatten"].aliases == ("penultimate",)
    assert cuts["fc"].aliases == ("logits",)


def test_a_cut_tells_what_lies_before_and_after_it(tiny):
    cuts = {cut.name: cut for cut in list_cuts(tiny, SHAPE)}
    n = sum(parameter.numel() for parameter in tiny.parameters())
    assert (cuts["x"].parameters_before, cuts["x"].parameters_after) == (0, n)
    bn1 = 3 * 8 * 9 + 8 + 2 * 8  # a convolution with bias, a norm
    assert (cuts["bn1"].parameters_before, cuts["bn1"].parameters_after) == (bn1, n - bn1)
    assert (cuts["fc"].parameters_before, cuts["fc"].parameters_after) == (n, 0)
    first, second, last = 3 * 8 * 9 * 256, 8 * 8 * 9 * 256, 8 * 5
    assert cuts["bn1"].saved == first / (first + second + last)
    assert cuts["flatten"].saved == (first + second) / (first + second + last)
    assert (cuts["x"].saved, cuts["fc"].saved) == (0, 1)
    assert cuts["relu_1"].size_bytes == 4 * 8 * 16 * 16


def test_parameters_count_in_the_part_that_uses_them():
    class Sharing(nn.Module):
        def __init__(self):
            super().__init__()
            self.late = nn.Parameter(torch.zeros(7))
            self.shared = nn.Linear(3, 3)
            self.unused = nn.Linear(3, 5)
            self.fc = nn.Linear(3, 2)

        def forward(self, x):
            self.unused(x.mean((2, 3)))  # its result leads nowhere
            late = torch.exp(self.late).sum()  # computed first, used behind the cut
            x = self.shared(x.mean((2, 3)))
            return self.fc(self.shared(torch.relu(x)) + late)

    cuts = {cut.name: cut for cut in list_cuts(Sharing(), SHAPE)}
    assert (cuts["relu"].parameters_before, cuts["relu"].parameters_after) == (12, 12 + 7 + 8)
    front, tail = split_at(Sharing(), "relu")
    for part, n in ((front, 12), (tail, 12 + 7 + 8)):
        assert sum(parameter.numel() for parameter in part.parameters()) == n


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16", "swin_v2_t"])
def test_multiply_adds_and_parameters_are_those_that_torchvision_publishes(name):
    network = _untrained(name, on="meta").eval()
    entry = next(iter(models.get_model_weights(name)))
    size = entry.transforms().crop_size[0]
    graph = CutGraph(network, (1, 3, size, size), count=True)
    total = sum(facts(node).multiply_adds for node in graph.nodes)
    assert round(total / 1e9, 3) == entry.meta["_ops"]
    before = costs(graph.module, graph.needed)[graph.position[graph.alias("logits")]]
    assert before.parameters_before == entry.meta["num_params"]


def test_cuts_are_found_by_pattern_alias_and_module():
    found = list_cuts(_untrained("densenet121", on="meta"))
    for pattern, names in {
        "features.denseblock?": [f"features.denseblock{i}.cat" for i in (1, 2, 3, 4)],
        "features.transition1.p*": ["features.transition1.pool"],
        "features.denseblock2": ["features.denseblock2.cat"],
        "penultimate": ["flatten"],
        "features": ["features.norm5"],
    }.items():
        assert [cut.name for cut in found if cut.matches(pattern)] == names


def test_values_that_do_not_depend_on_the_input_may_cross():
    class Biased(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.randn(2))
            self.conv = nn.Conv2d(3, 2, 3)
            self.fc = nn.Linear(2, 2)

        def forward(self, x):
            bias = torch.exp(self.bias)
            x = self.conv(x).mean((2, 3))
            return self.fc(x + bias)

    network = _ready(Biased())
    assert all(cut.is_legal for cut in list_cuts(network, SHAPE))
    x = torch.randn(2, *SHAPE[1:])
    front, tail = split_at(network, "mean")
    assert torch.equal(tail(front(x)), network(x))


def test_an_illegal_cut_names_what_crosses_and_the_nearest_legal_ones(tiny):
    with pytest.raises(InputError) as caught:
        split_at(tiny, "bn2")
    assert str(caught.value) == (
        "the network cannot be cut at 'bn2': relu also crosses there; the nearest places where it "
        "can are relu and add (`featx cuts BACKBONE` lists the cuts)"
    )


def test_an_unknown_cut_names_the_nearest(tiny):
    with pytest.raises(InputError, match=r"unknown cut 'flaten'; did you mean flatten.*featx cuts"):
        split_at(tiny, "flaten")


def test_a_modules_path_means_its_last_value():
    network = _untrained("resnet18", on="meta").eval()
    assert build_front(network, cut="layer2", pool="none").cut == "layer2.1.relu_1"
    densenet = _untrained("densenet121", on="meta").eval()
    front = build_front(densenet, cut="features.denseblock3", pool="none")
    assert front.cut == "features.denseblock3.cat"


@pytest.mark.parametrize("make", [Tiny, Writing, Tokens])
def test_tail_of_front_is_the_network_bit_for_bit_at_every_legal_cut(make, images):
    network = _ready(make())
    expected = network(images.clone())
    legal = [cut.name for cut in list_cuts(network, SHAPE) if cut.is_legal]
    assert len(legal) >= 5
    for name in (*legal, "input", "penultimate", "logits"):
        front, tail = split_at(network, name)
        assert torch.equal(tail(front(images.clone())), expected), name


@pytest.mark.parametrize("make", [Tiny, Writing])
def test_the_tail_does_not_write_into_its_argument_nor_the_front_into_the_images(make, images):
    network = _ready(make())
    before = images.clone()
    for cut in list_cuts(network, SHAPE):
        if not cut.is_legal:
            continue
        front, tail = split_at(network, cut.name)
        features = front(images)
        kept = features.clone()
        tail(features)
        assert torch.equal(features, kept), cut.name
    assert torch.equal(images, before)


def test_features_are_those_before_the_next_in_place_relu(tiny, images):
    features = build_front(tiny, cut="bn1", pool="none")(images)
    assert torch.equal(features, tiny.bn1(tiny.conv1(images)))
    assert (features < 0).any()


def test_a_network_in_training_mode_is_neither_used_as_such_nor_changed(images):
    network = _ready(Tiny()).train()
    statistics = network.bn1.running_mean.clone()
    front = build_front(network, input_shape=SHAPE)
    front.train()
    features = front(images)
    assert torch.equal(features, front(images))
    assert torch.equal(network.bn1.running_mean, statistics)
    assert network.bn1.training
    assert list_cuts(network, SHAPE)
    assert all(module.training for module in network.modules())


def test_frozen_means_no_statistics_move_and_no_gradient_flows(tiny, images):
    state = {key: value.clone() for key, value in tiny.state_dict().items()}
    front = build_front(tiny, input_shape=SHAPE)
    front.train()
    for _ in range(3):
        features = front(images)
    assert not features.requires_grad
    assert all(torch.equal(value, state[key]) for key, value in tiny.state_dict().items())


def test_tracing_leaves_nothing_on_the_network():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)
            self.fc = nn.Linear(2, 2)

        def forward(self, x):
            return self.fc(self.conv(x).mean((2, 3)) * torch.tensor([1.0, 2.0]))

    network = _ready(Constant())
    attributes = set(vars(network))
    x = torch.randn(2, *SHAPE[1:])
    front, tail = split_at(network, "conv")
    assert torch.equal(tail(front(x)), network(x))
    assert set(vars(network)) == attributes


def test_a_network_without_a_classifier_at_its_end_has_no_penultimate():
    network = _untrained("resnet18", on="meta").eval()
    network.fc = nn.Identity()
    with pytest.raises(InputError, match=r"has no 'penultimate'.*name another cut"):
        build_front(network)
    assert build_front(network, cut="logits").cut == "fc"


def test_a_network_that_cannot_be_traced_says_why():
    class Deciding(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(InputError, match="Deciding cannot be traced into a graph"):
        split_at(Deciding(), "input")


def test_an_input_the_network_does_not_take_is_refused():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
    with pytest.raises(InputError, match=r"does not take an input of shape \(2, 3, 224, 224\)"):
        build_front(network)
    assert build_front(network, input_shape=(1, 3, 2, 2)).layout == "vector"


@pytest.mark.parametrize("pool", ["avg", "max", "gem", "none"])
def test_a_pool_at_penultimate_replaces_the_networks_own(tiny, images, pool):
    map_ = build_front(tiny, cut="relu_1", pool="none", input_shape=SHAPE)(images)
    expected = {
        "avg": map_.mean((2, 3)),
        "max": map_.amax((2, 3)),
        "gem": map_.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3),
        "none": map_,
    }[pool]
    front = build_front(tiny, pool=pool, input_shape=SHAPE)
    assert torch.allclose(front(images), expected, rtol=1e-6, atol=0)
    assert (front.cut, front.pool) == ("relu_1", pool)
    assert front.layout == ("nchw" if pool == "none" else "vector")


def test_auto_pools_a_map_by_its_mean_and_says_so_but_not_the_input(tiny, images):
    front = build_front(tiny, cut="relu", input_shape=SHAPE)
    assert torch.equal(front(images), tiny.relu(tiny.bn1(tiny.conv1(images))).mean((2, 3)))
    assert front.notes[0].startswith("pool auto at relu (nchw): the mean over its positions")
    pixels = build_front(tiny, cut="input", input_shape=SHAPE)
    assert torch.equal(pixels(images), images)
    assert (pixels.pool, pixels.layout) == ("none", "nchw")


def test_tokens_are_pooled_without_the_class_token(images):
    network = _ready(Tokens())
    tokens = build_front(network, cut="norm", pool="none", input_shape=SHAPE)(images)
    assert tokens.shape == (3, 17, 8)
    rest = tokens[:, 1:]
    for pool, expected in {
        "cls": tokens[:, 0],
        "avg": rest.mean(1),
        "max": rest.amax(1),
        "cls+avg": torch.cat([tokens[:, 0], rest.mean(1)], 1),
        "none": tokens,
    }.items():
        for cut in ("norm", "penultimate"):
            front = build_front(network, cut=cut, pool=pool, input_shape=SHAPE)
            assert torch.equal(front(images), expected), (cut, pool)
    assert torch.equal(build_front(network, input_shape=SHAPE)(images), tokens[:, 0])


def test_pools_that_have_nothing_to_pool_are_refused(tiny):
    with pytest.raises(InputError, match="unknown pool 'mean'; known are auto, avg"):
        build_front(tiny, pool="mean")
    with pytest.raises(InputError, match=r"needs a class token, but relu_1 \(nchw\) has none"):
        build_front(tiny, pool="cls", input_shape=SHAPE)
    with pytest.raises(InputError, match=r"flatten is a vector; name a map .* --cut relu_1 "):
        build_front(tiny, cut="flatten", pool="avg", input_shape=SHAPE)


@pytest.mark.parametrize(
    ("name", "map_cut"), [("vgg11", "avgpool"), ("convnext_tiny", r"features\.7\.2\.add")]
)
def test_a_penultimate_made_by_further_layers_names_a_map_to_cut_at(name, map_cut):
    network = _untrained(name, on="meta").eval()
    words = rf"pool 'max' cannot replace .* made by further layers; name a map .* --cut {map_cut} "
    with pytest.raises(InputError, match=words):
        build_front(network, pool="max")


def test_densenet_without_pooling_is_its_last_map_after_the_final_relu():
    front = build_front(_ready(models.densenet121()), pool="none")
    features = front(torch.randn(1, 3, 224, 224))
    assert features.shape == (1, 1024, 7, 7)
    assert features.numel() == 50_176
    assert features.min() == 0


# The smallest member of each family, at an input size that keeps it quick.
FAMILIES = {
    "alexnet": 64,
    "convnext_tiny": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "googlenet": 64,
    "inception_v3": 80,
    "maxvit": 64,
    "mnasnet0_5": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "regnet_y_400mf": 64,
    "resnet18": 64,
    "resnext50_32x4d": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
    "swin_t": 64,
    "swin_v2_t": 64,
    "vgg11": 32,
    "vit": 32,
    "wide_resnet50_2": 64,
}
MADE_SMALL = {  # of families that have no small member
    "maxvit": lambda: models.MaxVit(
        input_size=(64, 64), stem_channels=8, block_channels=[8, 16], block_layers=[1, 2],
        head_dim=8, partition_size=4, stochastic_depth_prob=0.2,
    ),
    "vit": lambda: models.VisionTransformer(
        image_size=32, patch_size=16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64
    ),
}  # fmt: skip


def _untrained(name, on="cpu"):
    """A network of torchvision, unmodified; slow initialisations that tests do not need are off."""
    slow = name.startswith(("vgg", "googlenet", "inception"))
    with torch.random.fork_rng(devices=[]), torch.device(on):
        torch.manual_seed(0)
        if name in MADE_SMALL:
            return MADE_SMALL[name]()
        return models.get_model(name, weights=None, **({"init_weights": False} if slow else {}))


def _check_against_reference(network, size, *, cuts=3):
    """Penultimate features as a hook sees them, and a few cuts, on the same input.

    Returns the input, the logits and the last of the cuts.
    """
    network = _ready(network)
    x = torch.randn(2, 3, size, size)
    last = [m for m in network.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
    seen = []
    hook = last.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    logits = network(x)
    hook.remove()
    (expected,) = seen
    if expected.ndim == 4:  # SqueezeNet
        expected = F.adaptive_avg_pool2d(expected, 1).flatten(1)
    # MaxVit takes one size alone; the others are traced at another than that of the input
    shape = {"input_shape": x.shape} if isinstance(network, models.MaxVit) else {}
    features = build_front(network, **shape)(x)
    assert torch.isfinite(features).all()
    assert features.std() > 0
    assert torch.equal(features, expected)
    error = (features - expected).abs().amax(1)
    assert (error <= 1e-5 * expected.abs().amax(1)).all()

    graph = CutGraph(network, (1, 3, size, size))
    legal = [node for node in graph.candidates if not graph.crossing[node]]
    for node in [legal[(i + 1) * len(legal) // (cuts + 1)] for i in range(cuts)]:
        map_ = graph.front(node)(x)
        assert map_.shape == facts(node).shape
        assert torch.equal(graph.tail(node)(map_), logits), facts(node).path
    return x, logits, facts(node).path


@pytest.mark.parametrize("name", FAMILIES)
def test_penultimate_features_are_what_a_hook_on_the_reference_sees(name):
    _check_against_reference(_untrained(name), FAMILIES[name], cuts=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", architectures.architecture_names())
def test_every_network_is_its_front_and_its_tail_bit_for_bit(name):
    gc.collect()  # one network in memory at a time: the largest has 2.6 GB of weights
    network = _untrained(name)
    fixed = 224 if name.startswith("maxvit") else getattr(network, "image_size", None)
    # Layers that differ in training: the parts keep those that the network calls.
    modal = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd, StochasticDepth)
    called = {}
    for path, module in network.named_modules():
        if isinstance(module, modal):
            module.register_forward_hook(lambda m, *_, path=path: called.update({path: m}))
    # a pass through the four largest takes many seconds: one cut of those
    cuts = 1 if sum(value.numel() for value in network.parameters()) > 200e6 else 3
    x, logits, cut = _check_against_reference(network, fixed or 96, cuts=cuts)

    front, tail = split_at(network, cut)
    tail.train().eval()  # as while it is trained, between epochs
    assert torch.equal(tail(front(x)), logits)
    kept = {id(module) for part in (front, tail) for module in part.modules()}
    assert [path for path, module in called.items() if id(module) not in kept] == []
