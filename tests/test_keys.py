"""Keys of a state dict: old names, and which may differ from the network's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featx.errors import WeightsError
from featx.keys import classifier_path, load_into, other_outputs, rename_old_keys


class Small(nn.Module):
    """Convolution, BatchNorm, an auxiliary head, and a classifier that may stand in a container."""

    def __init__(self, classifier=None):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.aux = nn.Linear(4, 7)
        self.classifier = classifier or nn.Sequential(nn.Dropout(), nn.Linear(4, 5))


def _load(network, state):
    return load_into(network, state, classifier="classifier.1", auxiliary=("aux",), source="a.pth")


def _with(state, **changes):
    return {k: changes.get(k.replace(".", "_"), v) for k, v in state.items()}


def test_all_keys_fit_and_every_value_is_loaded_without_a_note():
    source, network = Small(), Small()
    assert _load(network, source.state_dict()) == ()
    for key, tensor in source.state_dict().items():
        assert torch.equal(network.state_dict()[key], tensor)


def test_a_classifier_of_another_size_is_dropped_whole_and_said():
    source, network = Small(nn.Sequential(nn.Dropout(), nn.Linear(4, 9))), Small()
    kept = network.classifier[1].weight.clone()
    (note,) = _load(network, source.state_dict())
    assert "the classifier (classifier.1) of a.pth was dropped" in note
    assert "classifier.1.weight is (9, 4) in the file and (5, 4) in the network" in note
    assert torch.equal(network.conv.weight, source.conv.weight)
    assert torch.equal(network.classifier[1].weight, kept)


def test_a_bias_that_fits_is_not_loaded_beside_a_matrix_that_does_not():
    network = Small()
    kept = network.classifier[1].bias.clone()
    state = _with(Small().state_dict(), classifier_1_weight=torch.ones(5, 8))
    assert _load(network, state)
    assert torch.equal(network.classifier[1].bias, kept)


def test_a_missing_classifier_is_said():
    state = {k: v for k, v in Small().state_dict().items() if not k.startswith("classifier")}
    (note,) = _load(Small(), state)
    assert "missing: classifier.1.weight, classifier.1.bias" in note


def test_a_classifier_that_was_replaced_by_several_layers_is_dropped():
    source = Small(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    (note,) = _load(Small(), source.state_dict())
    assert "missing: classifier.1.weight" in note
    assert "unexpected: classifier.0.weight" in note


@pytest.mark.parametrize(
    ("file", "found"),
    [
        ({"weight": (9, 4), "bias": (9,)}, 9),
        ({"weight": (5, 4), "bias": (5,)}, None),  # fits
        ({"weight": (9, 4)}, None),
        ({"weight": (9, 4), "bias": (8,)}, None),
        ({"weight": (9, 6), "bias": (9,)}, None),
        ({"weight": (9, 4, 1, 1), "bias": (9,)}, None),
        ({"weight": (9, 4), "bias": ()}, None),
        ({"weight": (0, 4), "bias": (0,)}, None),
    ],
)
def test_other_outputs_are_found_where_the_classifier_differs_in_nothing_else(file, found):
    state = {f"classifier.1.{key}": torch.ones(shape) for key, shape in file.items()}
    assert other_outputs(state, Small(), "classifier.1") == found


def test_layers_beside_the_classifier_in_its_container_are_features_and_must_fit():
    def container(width, outputs=5):
        return nn.Sequential(nn.Linear(4, width), nn.Linear(width, outputs))

    assert _load(Small(container(6)), Small(container(6, outputs=9)).state_dict())
    with pytest.raises(WeightsError, match=r"classifier\.0\.weight is \(7, 4\)"):
        _load(Small(container(6)), Small(container(7)).state_dict())


def test_auxiliary_heads_and_batch_counts_may_be_missing():
    state = Small().state_dict()
    del state["bn.num_batches_tracked"]
    assert _load(Small(), state) == ()
    del state["aux.weight"], state["aux.bias"]
    (note,) = _load(Small(), state)
    assert note == "auxiliary heads of a.pth do not fit or are missing: aux.weight, aux.bias"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("bn.running_mean"), r"1 of 6 keys are missing \(bn.running_mean\)"),
        (lambda s: s.update({"more.weight": torch.ones(1)}), r"1 are not .* \(more\.weight\)"),
        (
            lambda s: s.update({"conv.weight": torch.ones(4, 3, 5, 5)}),
            r"1 have another shape \(conv.weight is \(4, 3, 5, 5\) in the file and \(4, 3, 3, 3\)",
        ),
    ],
)
def test_anything_else_that_differs_is_another_network_and_nothing_is_loaded(change, words):
    state = dict(Small().state_dict())
    change(state)
    network = Small()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(WeightsError, match=f"a.pth is a file of another network: {words}"):
        _load(network, state)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_the_refusal_names_what_the_file_looks_like():
    with pytest.raises(WeightsError, match="it looks like resnet18: give --backbone resnet18"):
        load_into(Small(), {}, classifier="classifier.1", source="a", looks_like="resnet18")


def test_the_refusal_names_what_most_keys_have_in_front():
    state = {f"net.encoder.{key}": tensor for key, tensor in Small().state_dict().items()}
    with pytest.raises(WeightsError, match=r"; 6 keys have 'net.encoder.' in front .* --rename-key"
                       "s net.encoder.= takes"):  # fmt: skip
        _load(Small(), state)
    few = {key: tensor for key, tensor in state.items() if key.startswith("net.encoder.conv")}
    with pytest.raises(WeightsError, match="6 of 6 keys are missing") as caught:
        _load(Small(), few)
    assert "in front" not in str(caught.value)


def test_the_given_state_dict_is_not_changed():
    state = Small(nn.Sequential(nn.Dropout(), nn.Linear(4, 9))).state_dict()
    keys = list(state)
    _load(Small(), state)
    rename_old_keys(state, "densenet")
    assert list(state) == keys


def test_old_key_names_are_renamed_in_their_family_only():
    densenet = "features.denseblock1.denselayer1.norm.1.weight"
    vit = "encoder.layers.encoder_layer_0.mlp.linear_2.bias"
    state = {densenet: torch.ones(1), vit: torch.ones(1)}
    assert next(iter(rename_old_keys(state, "densenet"))).endswith("denselayer1.norm1.weight")
    assert list(rename_old_keys(state, "vit"))[1].endswith("mlp.3.bias")
    assert list(rename_old_keys(state, "resnet")) == list(state)


def test_the_classifier_is_the_last_linear_or_convolution_that_is_no_auxiliary_head():
    assert classifier_path(Small()) == "classifier.1"
    network = nn.Sequential()
    network.add_module("fc", nn.Linear(2, 2))
    network.add_module("aux", nn.Linear(2, 2))
    assert classifier_path(network, auxiliary=("aux",)) == "fc"
