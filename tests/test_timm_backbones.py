"""timm's models, an optional package."""

from __future__ import annotations

import sys

import pytest
import torch

from featx import timm_backbones
from featx.backbones import load_backbone
from featx.cut import build_front
from featx.errors import InputError, MissingExtraError, WeightsError


def test_without_timm_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'featx\[timm\]'"):
        load_backbone("timm:resnet18", weights="random")


class TestWithTimm:
    """What needs the package."""

    @pytest.fixture(autouse=True)
    def timm(self):
        return pytest.importorskip("timm")

    def test_an_unknown_model_is_refused_with_the_nearest_names(self):
        with pytest.raises(
            InputError, match=r"unknown timm model 'resnet17x'; did you mean .*resnet"
        ):
            load_backbone("timm:resnet17x", weights="random")

    def test_the_transform_comes_from_timms_data_config(self, timm):
        backbone = load_backbone("timm:convnext_atto", weights="random")
        config = timm.data.resolve_model_data_config(backbone.network)
        own = timm.data.create_transform(**config, is_training=False).transforms
        assert (own[0].size, tuple(own[1].size)) == (
            backbone.transform.resize,
            (backbone.transform.crop,) * 2,
        )
        assert own[0].interpolation.value == backbone.transform.interpolation
        assert torch.allclose(own[-1].mean, torch.tensor(backbone.transform.mean))

    @pytest.mark.parametrize(
        "name", ["resnet10t", "vit_tiny_patch16_224", "mobilenetv3_small_050", "convnext_atto"]
    )
    def test_the_penultimate_features_are_timms_own(self, name):
        network = load_backbone(f"timm:{name}", weights="random").network
        x = torch.randn(2, 3, 224, 224)
        expected = network.forward_head(network.forward_features(x), pre_logits=True)
        assert torch.equal(build_front(network)(x), expected)

    def test_a_model_that_cannot_be_traced_gives_the_penultimate_and_nothing_else(self, timm):
        class Deciding(timm.models.ResNet):
            def forward(self, x):
                return super().forward(x if x.sum() > 0 else -x)

        network = Deciding(timm.models.resnet.BasicBlock, (1, 1, 1, 1), channels=(8, 8, 8, 8))
        network = network.eval().requires_grad_(False)
        x = torch.randn(2, 3, 64, 64)
        front = build_front(network)
        expected = network.forward_head(network.forward_features(x), pre_logits=True)
        assert torch.equal(front(x), expected)
        assert (front.cut, front.layout) == ("penultimate", "vector")
        with pytest.raises(InputError, match=r"cannot be traced .*got --cut layer1 --pool auto"):
            build_front(network, cut="layer1")

    def test_a_file_of_another_number_of_classes_loads_as_it_is(self, timm, tmp_path):
        source = timm.create_model("resnet10t", num_classes=9)
        torch.save(source.state_dict(), tmp_path / "a.pth")
        backbone = load_backbone("timm:resnet10t", weights=tmp_path / "a.pth")
        assert torch.equal(backbone.network.conv1[0].weight, source.conv1[0].weight)
        assert torch.equal(backbone.network.fc.weight, source.fc.weight)
        assert backbone.untrained == ()
        assert backbone.weights == "a.pth"

    def test_the_same_seed_gives_the_same_bits(self):
        first, again, other = (
            load_backbone("timm:resnet10t", weights="random", seed=s).weights_sha256
            for s in (1, 1, 2)
        )
        assert first == again != other

    def test_weights_that_cannot_be_had_name_the_alternatives(self, timm, monkeypatch):
        def fail(*args, **kwargs):
            raise OSError("We couldn't connect to the hub\nmore lines")

        monkeypatch.setattr(timm, "create_model", fail)
        with pytest.raises(WeightsError, match=r"couldn't connect to the hub\).*--weights random"):
            load_backbone("timm:resnet10t")

    def test_a_model_of_one_input_size_refuses_another_crop(self):
        with pytest.raises(InputError, match="takes images of exactly 224 pixels a side"):
            load_backbone("timm:vit_tiny_patch16_224", weights="random", transform={"crop": 160})

    def test_a_crop_mode_featx_has_not_is_said(self, timm):
        network = timm.create_model("resnet10t")
        network.pretrained_cfg["crop_mode"] = "squash"
        assert "crop mode 'squash'" in timm_backbones.transform_fields(network)[1][0]
