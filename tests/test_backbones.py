"""A name becomes a network, its transform, its class names and its identity."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from featx import architectures, torchvision_backbones, weight_files, weights
from featx.backbones import list_backbones, load_backbone
from featx.classics import CLASSICS
from featx.cut import build_front
from featx.errors import InputError, WeightsError
from featx.transforms import Transform

_real = os.environ.get("FEATX_REAL_DATA") or Path(__file__).resolve().parents[1].parent / "shared"
REAL_WEIGHTS = Path(_real) / "weights"


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """An empty torch.hub folder, and no way out of this machine."""

    def refuse(*args, **kwargs):
        raise AssertionError("a test tried to download")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    folder = weights.checkpoint_folder()
    folder.mkdir(parents=True)
    return folder


def _trained_like(name, *, seed=1, num_classes=1000, entry=None):
    """State dict of a network as published, auxiliary heads included; BatchNorm has moved."""
    entry = entry or architectures.published(name)[0]
    classes = tuple(map(str, range(num_classes)))
    entry = dataclasses.replace(entry, classes=classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = architectures.build(name, entry=entry, for_weights=True)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 2)
    return network.state_dict()


@pytest.fixture
def publish(hub, monkeypatch):
    """Make a state dict the published file of an entry: its hash is in the entry's address."""
    original = architectures.published

    def publish_as(name, state, *, entry_name=None):
        torch.save(state, hub / "new")
        sha256 = weight_files.sha256_file(hub / "new")
        entries = list(original(name))
        at = next((i for i, e in enumerate(entries) if e.name == entry_name), 0)
        url = f"https://download.example.org/models/{name}-{sha256[:8]}.pth"
        entries[at] = dataclasses.replace(entries[at], url=url)
        monkeypatch.setattr(
            architectures, "published", lambda n: tuple(entries) if n == name else original(n)
        )
        (hub / "new").rename(hub / f"{name}-{sha256[:8]}.pth")
        return hub / f"{name}-{sha256[:8]}.pth"

    return publish_as


def _same_bits(first, second):
    a, b = first.state_dict(), second.state_dict()
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


def _old_densenet_names(state):
    """As the published files have them: written before BatchNorm counted its batches."""
    return {
        re.sub(r"(denselayer\d+\.(?:norm|relu|conv))([12])\.", r"\1.\2.", key): tensor
        for key, tensor in state.items()
        if not key.endswith("num_batches_tracked")
    }


@pytest.mark.parametrize(
    ("name", "enum", "size"),
    [
        ("densenet121", "DenseNet121_Weights", 64),
        ("googlenet", "GoogLeNet_Weights", 64),
        ("inception_v3", "Inception_V3_Weights", 80),
        ("mobilenet_v2", "MobileNet_V2_Weights", 64),
    ],
)
def test_a_published_file_by_path_equals_it_by_name_and_torchvisions_own_loader(
    name, enum, size, publish, tmp_path, monkeypatch
):
    state = _trained_like(name)
    if name == "densenet121":
        plain = set(state)
        state = _old_densenet_names(state)
        assert len(set(state) - plain) == 580
    published = publish(name, state)
    elsewhere = Path(shutil.copy(published, tmp_path / "my weights.pth"))

    by_name = load_backbone(name)
    by_path = load_backbone(name, weights=str(elsewhere))

    assert by_path.weights == by_name.weights == "IMAGENET1K_V1"
    assert by_path.weights_sha256 == by_name.weights_sha256 == weight_files.sha256_file(published)
    assert by_path.weights_path == str(elsewhere)
    assert by_path.transform == by_name.transform
    assert by_path.classes == by_name.classes
    assert len(by_path.classes) == 1000
    assert by_path.notes == by_name.notes == ()
    assert _same_bits(by_path.network, by_name.network)

    # torchvision's loader is given the same file's content in the place of a download.
    monkeypatch.setattr(getattr(models, enum), "get_state_dict", lambda *a, **k: dict(state))
    reference = models.get_model(name, weights="IMAGENET1K_V1").eval()
    if name == "inception_v3":  # torchvision keeps this one's auxiliary head; evaluation skips it
        reference.AuxLogits = None
    assert _same_bits(by_path.network, reference)
    assert getattr(by_path.network, "transform_input", None) == getattr(
        reference, "transform_input", None
    )
    x = torch.randn(2, 3, size, size)
    assert torch.equal(by_path.network(x), reference(x))


def test_the_same_file_under_another_entry_brings_that_entrys_transform(publish, tmp_path):
    file = publish("mobilenet_v2", _trained_like("mobilenet_v2"), entry_name="IMAGENET1K_V2")
    backbone = load_backbone("mobilenet_v2", weights=shutil.copy(file, tmp_path / "x.pth"))
    assert (backbone.weights, backbone.transform.resize) == ("IMAGENET1K_V2", 232)
    assert load_backbone("mobilenet_v2", weights="DEFAULT").weights == "IMAGENET1K_V2"
    assert load_backbone("mobilenet_v2", weights="IMAGENET1K_V2").weights_path == str(file)


def test_an_unpublished_file_gets_the_first_entrys_transform_and_says_so(tmp_path):
    torch.save(_trained_like("mobilenet_v2"), tmp_path / "mine.pth")
    backbone = load_backbone("mobilenet_v2", weights=tmp_path / "mine.pth")
    assert backbone.transform == Transform.from_preset(
        models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    )
    assert backbone.weights == "mine.pth"
    assert backbone.weights_sha256 == weight_files.sha256_file(tmp_path / "mine.pth")
    assert backbone.classes == ()
    (note,) = backbone.notes
    assert note.startswith("transform assumed: that of mobilenet_v2 IMAGENET1K_V1")


def test_an_unpublished_googlenet_file_transforms_its_input_as_pretrained_ones_do(tmp_path):
    state = {k: v for k, v in _trained_like("googlenet").items() if not k.startswith("aux")}
    torch.save(state, tmp_path / "mine.pth")
    backbone = load_backbone("googlenet", weights=tmp_path / "mine.pth")
    assert backbone.network.transform_input is True
    assert backbone.network.aux1 is None
    assert any("auxiliary heads" in note for note in backbone.notes)


@pytest.mark.parametrize("old_names", [True, False])
def test_an_unpublished_densenet_file_loads_every_value_under_old_and_new_names(
    old_names, tmp_path
):
    state = _trained_like("densenet121", num_classes=20)
    saved = _old_densenet_names(state) if old_names else state
    save_file(saved, tmp_path / "birds.safetensors")
    backbone = load_backbone("densenet121", weights=tmp_path / "birds.safetensors")
    loaded = backbone.network.state_dict()
    for key, tensor in state.items():
        assert torch.equal(loaded[key], tensor)
    assert backbone.untrained == ()


def test_a_dropped_classifier_leaves_seeded_values_and_the_rest_of_the_file(tmp_path):
    state = {f"module.{k}": v for k, v in _trained_like("mobilenet_v2", num_classes=965).items()}
    del state["module.classifier.1.bias"]
    torch.save({"epoch": 9, "state_dict": state}, tmp_path / "a.pth")
    first = load_backbone("mobilenet_v2", weights=tmp_path / "a.pth", seed=3)
    again = load_backbone("mobilenet_v2", weights=tmp_path / "a.pth", seed=3)
    assert _same_bits(first.network, again.network)
    assert first.network.classifier[1].weight.shape == (1000, 1280)
    assert "the classifier (classifier.1)" in first.notes[0]
    assert first.classes == ()


@pytest.mark.parametrize(
    ("name", "build", "size"),
    [
        ("resnet34", models.resnet34, 32),
        ("squeezenet1_1", models.squeezenet1_1, 64),
        ("googlenet", models.googlenet, 32),
    ],
)
def test_a_file_of_five_classes_loads_as_it_is_and_gives_five_outputs(name, build, size, tmp_path):
    options = {"transform_input": True, "init_weights": False} if name == "googlenet" else {}
    trained = build(num_classes=5, **options).eval()
    torch.save(trained.state_dict(), tmp_path / "flowers.pth")
    backbone = load_backbone(name, weights=tmp_path / "flowers.pth")
    x = torch.randn(2, 3, size, size)
    assert torch.equal(backbone.network(x), trained(x))
    assert backbone.network(x).shape == (2, 5)
    assert build_front(backbone.network, cut="logits")(x).shape[:2] == (2, 5)
    assert backbone.untrained == ()
    (note,) = backbone.notes
    assert note.startswith("transform assumed")


def test_features_before_the_classifier_are_the_same_whatever_its_size(tmp_path):
    many, few = _trained_like("squeezenet1_1"), _trained_like("squeezenet1_1", num_classes=5)
    few |= {key: tensor for key, tensor in many.items() if not key.startswith("classifier")}
    fronts = []
    for state in (many, few):
        torch.save(state, tmp_path / "a.pth")
        network = load_backbone("squeezenet1_1", weights=tmp_path / "a.pth").network
        fronts.append(build_front(network))
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(fronts[0](x), fronts[1](x))
    assert fronts[0].identity == fronts[1].identity


def test_a_file_of_another_network_is_refused_and_recognised(tmp_path):
    torch.save(_trained_like("squeezenet1_1"), tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"another network.*it looks like squeezenet1_1") as e:
        load_backbone("mobilenet_v2", weights=tmp_path / "a.pth")
    assert "features.0.0.weight" in str(e.value)


def test_a_published_file_of_another_network_is_refused_by_its_hash(publish):
    file = publish("squeezenet1_1", _trained_like("squeezenet1_1"))
    with pytest.raises(WeightsError, match=r"IMAGENET1K_V1 of squeezenet1_1; give --backbone squ"):
        load_backbone("mobilenet_v2", weights=file)


def test_a_damaged_file_in_torch_hubs_folder_is_refused(publish):
    file = publish("squeezenet1_1", _trained_like("squeezenet1_1"))
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=r"is damaged: its SHA-256 begins .*delete it"):
        load_backbone("squeezenet1_1")


def test_weights_that_are_not_there_are_an_error_never_random_ones(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(WeightsError, match=r"densenet121-a639ec97\.pth") as caught:
        load_backbone("densenet121")
    assert caught.value.exit_code == 7


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        ("IMAGENET1K_V9", InputError, r"unknown weights 'IMAGENET1K_V9' of resnet50; there are IM"),
        ("absent.pth", WeightsError, r"weights file absent\.pth does not exist"),
        (Path("absent"), WeightsError, r"weights file absent does not exist"),
        (".", WeightsError, r"weights file \. is a folder"),
    ],
)
def test_weights_that_are_neither_an_entry_nor_a_file_are_refused(given, kind, words):
    with pytest.raises(kind, match=words):
        load_backbone("resnet50", weights=given)


def test_random_weights_are_the_same_in_any_process_and_leave_the_global_generator_alone(
    monkeypatch,
):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    monkeypatch.setattr("torch.cuda.manual_seed_all", None)  # what torch.manual_seed calls
    backbone = load_backbone("squeezenet1_1", weights="random", seed=7)
    assert torch.equal(torch.rand(3), expected)
    code = (
        "from featx.backbones import load_backbone;"
        "print(load_backbone('squeezenet1_1', weights='random', seed=7).weights_sha256)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == backbone.weights_sha256
    assert backbone.weights_sha256 == weights.state_dict_sha256(backbone.network.state_dict())
    other = load_backbone("squeezenet1_1", weights="random", seed=8)
    assert other.weights_sha256 != backbone.weights_sha256


def test_random_weights_are_the_same_in_many_threads_at_once():
    together = threading.Barrier(4)

    def load(_):
        together.wait()
        return load_backbone("squeezenet1_1", weights="random", seed=7).weights_sha256

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(load, range(4)))) == 1


def test_random_weights_say_that_they_are_and_whose_transform_they_have():
    backbone = load_backbone("squeezenet1_1", weights="random")
    assert (backbone.weights, backbone.weights_path, backbone.classes) == ("random", None, ())
    assert "weights are random (seed 0)" in backbone.notes[0]
    assert "transform assumed: that of squeezenet1_1 IMAGENET1K_V1" in backbone.notes[1]


def test_frozen_is_evaluation_mode_and_no_gradients():
    network = load_backbone("mobilenet_v3_small", weights="random").network
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_the_transform_can_be_overridden_and_wrong_overrides_are_refused():
    given = {"resize": 128, "crop": 96, "interpolation": None}
    transform = load_backbone("squeezenet1_1", weights="random", transform=given).transform
    assert (transform.resize, transform.crop, transform.interpolation) == (128, 96, "bilinear")
    assert given["interpolation"] is None
    with pytest.raises(InputError, match="unknown transform field 'size'; known are resize"):
        load_backbone("squeezenet1_1", weights="random", transform={"size": 3})
    with pytest.raises(
        InputError, match="takes images of at least 17 pixels a side, got a crop of 8"
    ):
        load_backbone("squeezenet1_1", weights="random", transform={"crop": 8})


def test_a_network_of_one_input_size_refuses_another_crop(monkeypatch):
    monkeypatch.setattr(
        architectures, "build", lambda *a, **k: models.VisionTransformer(224, 112, 1, 1, 2, 2)
    )
    with pytest.raises(InputError, match="vit_b_16 takes images of exactly 224 pixels"):
        load_backbone("vit_b_16", weights="random", transform={"crop": 256})


@pytest.mark.parametrize(
    ("side", "entry"), [(384, "IMAGENET1K_SWAG_E2E_V1"), (224, "IMAGENET1K_V1")]
)
def test_the_input_size_of_a_vision_transformer_file_is_read_from_its_keys(side, entry):
    state = {
        "encoder.pos_embedding": torch.zeros(1, 1 + (side // 16) ** 2, 768),
        "conv_proj.weight": torch.zeros(768, 3, 16, 16),
    }
    assert torchvision_backbones._form_for("vit_b_16", state).name == entry


def test_values_that_are_not_finite_are_said(tmp_path):
    state = _trained_like("squeezenet1_1")
    state["features.0.bias"][3] = float("nan")
    torch.save(state, tmp_path / "a.pth")
    notes = load_backbone("squeezenet1_1", weights=tmp_path / "a.pth").notes
    assert "1 of the weights' tensors hold values that are not finite (features.0.bias" in notes[0]


def test_an_unknown_backbone_points_at_the_list():
    with pytest.raises(InputError, match=r"did you mean densenet121.*`featx backbones`"):
        load_backbone("densenet12", weights="random")


def test_the_list_has_every_network_with_its_size_and_builds_none(hub, monkeypatch):
    monkeypatch.setattr(architectures, "build", None)
    (hub / "resnet50-11ad3fa6.pth").write_bytes(b"")
    infos = {info.name: info for info in list_backbones()}
    assert list(infos) == sorted({*architectures.architecture_names(), *CLASSICS})
    resnet = infos["resnet50"]
    assert (resnet.family, resnet.input_size) == ("resnet", 224)
    assert resnet.params_millions == pytest.approx(25.557032)
    assert resnet.weights == ("IMAGENET1K_V1", "IMAGENET1K_V2")
    assert resnet.downloaded == ("IMAGENET1K_V2",)
    assert infos["inception_v3"].input_size == 299


@pytest.mark.real_data
@pytest.mark.skipif(not REAL_WEIGHTS.is_dir(), reason="no real weights on this machine")
def test_the_real_mobilenet_files_load_whole():
    whole = load_backbone("mobilenet_v2", weights=REAL_WEIGHTS / "mobilenet_v2-e36a8f4b.pth")
    assert len(whole.notes) == 1
    assert whole.weights_sha256.startswith("e36a8f4b")
    plain = models.mobilenet_v2()
    plain.load_state_dict(weights.read_state_dict(whole.weights_path), strict=True)
    assert _same_bits(whole.network, plain)
    (birds,) = REAL_WEIGHTS.glob("mobilenet_v2_inat_birds-*.pth")
    assert load_backbone("mobilenet_v2", weights=birds).network.classifier[1].out_features == 965
