"""torchvision's classification networks as data."""

from __future__ import annotations

import pytest
import torch
from torchvision import models

from featx import architectures
from featx.errors import InputError


def test_all_classification_networks_of_torchvision_are_known_and_nothing_else():
    names = architectures.architecture_names()
    assert set(names) == set(models.list_models(module=models))
    assert len(names) >= 80
    assert not [n for n in names if "quantized" in n or "rcnn" in n or "segmentation" in n]


def test_every_network_has_published_weights_with_a_hash_in_the_name_and_a_preset():
    from featx.weights import hash_prefix

    for name in architectures.architecture_names():
        for entry in architectures.published(name):
            assert hash_prefix(entry.url), entry
            assert entry.preset().crop_size[0] >= entry.min_size
            assert entry.classes or entry.name == "IMAGENET1K_FEATURES"


@pytest.mark.parametrize(
    ("name", "wanted", "found"),
    [
        ("densenet121", "default", "IMAGENET1K_V1"),
        ("resnet50", "default", "IMAGENET1K_V1"),
        ("resnet50", "DEFAULT", "IMAGENET1K_V2"),
        ("resnet50", "ResNet50_Weights.IMAGENET1K_V2", "IMAGENET1K_V2"),
        ("vit_h_14", "default", "IMAGENET1K_SWAG_E2E_V1"),
        ("regnet_y_128gf", "default", "IMAGENET1K_SWAG_E2E_V1"),
        ("vit_b_16", "IMAGENET1K_SWAG_LINEAR_V1", "IMAGENET1K_SWAG_LINEAR_V1"),
    ],
)
def test_an_entry_is_found_by_its_name(name, wanted, found):
    assert architectures.published_named(name, wanted).name == found


def test_an_unknown_entry_is_none():
    assert architectures.published_named("resnet18", "IMAGENET1K_V9") is None


@pytest.mark.parametrize(
    ("name", "near"),
    [("densnet121", "densenet121"), ("ResNet-50", "resnet50"), ("vit-b-16", "vit_b_16")],
)
def test_an_unknown_backbone_is_refused_with_the_nearest_names(name, near):
    with pytest.raises(InputError, match=f"unknown backbone '{name}'; did you mean .*{near}") as e:
        architectures.check_name(name)
    assert "`featx backbones` lists them" in str(e.value)


def test_a_network_takes_the_input_size_of_its_entry():
    entry = architectures.published_named("vit_b_16", "IMAGENET1K_SWAG_E2E_V1")
    with torch.device("meta"):
        network = architectures.build("vit_b_16", entry=entry, for_weights=True)
    assert network.image_size == 384


@pytest.mark.parametrize("classes", [1000, 7])
@pytest.mark.parametrize("name", ["resnet18", "densenet121", "vgg11", "mobilenet_v2"])
def test_the_architecture_of_a_state_dict_is_guessed_by_its_size(name, classes):
    with torch.device("meta"):
        network = models.get_model(name, weights=None, num_classes=classes)
    assert architectures.guess(network.state_dict()) == name


def test_a_state_dict_of_no_known_size_is_not_guessed():
    assert architectures.guess({"a": torch.ones(3, 3)}) is None
