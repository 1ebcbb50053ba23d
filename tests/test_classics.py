"""The networks of textbooks: their published shapes, their transforms, and files of them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models.inception import InceptionA
from typer.testing import CliRunner

import featx
from featx.backbones import bare_network, list_backbones, load_backbone
from featx.classics import CLASSICS, DenseBlock, DenseNetSmall, LeNet5, transition
from featx.cli import app
from featx.cut import build_front, split_at
from featx.errors import InputError, WeightsError
from featx.extractor import FeatureExtractor
from featx.frozen import Backbone
from featx.heads import TailHead
from featx.pipeline import build_pipeline
from featx.specs import ExtractOptions

pytestmark = pytest.mark.usefixtures("kept_decoders")

N_FEATURES = {"lenet5": 84, "cifarnet": 84, "densenet_small": 248}


def n_values(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# --- as published ---------------------------------------------------------------------------------


def test_the_shapes_of_the_published_building_blocks() -> None:
    assert DenseBlock(2, 3, 10)(torch.zeros(4, 3, 8, 8)).shape == (4, 23, 8, 8)
    assert transition(23, 10)(torch.zeros(4, 23, 8, 8)).shape == (4, 10, 4, 4)
    assert InceptionA(32, pool_features=64)(torch.zeros(2, 32, 8, 8)).shape == (2, 288, 8, 8)


def test_a_convolution_of_a_dense_block_sees_all_maps_before_it_and_keeps_them() -> None:
    x = torch.randn(2, 3, 8, 8)
    out = DenseBlock(2, 3, 10).eval()(x)
    assert torch.equal(out[:, :3], x)
    seen = DenseBlock(2, 3, 10).convs[1][2]
    assert isinstance(seen, nn.Conv2d)
    assert (seen.in_channels, seen.out_channels) == (13, 10)


def test_the_small_densenet_ends_in_248_channels_and_its_transitions_halve() -> None:
    network = DenseNetSmall().eval()
    shapes = {}
    for name, layer in network.features.named_children():
        layer.register_forward_hook(lambda _, __, out, name=name: shapes.update({name: out.shape}))
    assert network(torch.zeros(1, 1, 96, 96)).shape == (1, 10)
    assert shapes["stem"] == (1, 64, 24, 24)
    assert shapes["relu"] == shapes["block4"] == (1, 248, 3, 3)
    sizes = [tuple(shapes[f"transition{i}"][1:3]) for i in (1, 2, 3)]
    assert sizes == [(96, 12), (112, 6), (120, 3)]


def test_lenet5_has_the_layers_of_the_paper_and_its_activations() -> None:
    # 156, 2,416 (of 1,516: the paper leaves connections out), 48,120, 10,164 and 850 values
    assert n_values(LeNet5()) == 61_706
    network = LeNet5().eval()
    features = build_front(network, input_shape=(2, 1, 32, 32))(100 * torch.randn(3, 1, 32, 32))
    assert features.shape == (3, 84)
    assert features.abs().max() <= 1  # tanh
    with torch.no_grad():  # without an activation it would be linear
        a, b = torch.randn(2, 1, 1, 32, 32)
        assert not torch.allclose(network(a + b) + network(0 * a), network(a) + network(b))


def test_a_checkpoint_of_the_cifar_tutorial_loads_as_it_is(tmp_path: Path) -> None:
    class Net(nn.Module):  # as PyTorch's tutorial has it
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 6, 5)
            self.pool = nn.MaxPool2d(2, 2)
            self.conv2 = nn.Conv2d(6, 16, 5)
            self.fc1 = nn.Linear(16 * 5 * 5, 120)
            self.fc2 = nn.Linear(120, 84)
            self.fc3 = nn.Linear(84, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.pool(nn.functional.relu(self.conv1(x)))
            x = self.pool(nn.functional.relu(self.conv2(x)))
            x = torch.flatten(x, 1)
            x = nn.functional.relu(self.fc1(x))
            x = nn.functional.relu(self.fc2(x))
            return self.fc3(x)

    published = Net().eval()
    torch.save(published.state_dict(), tmp_path / "cifar_net.pth")
    backbone = load_backbone("cifarnet", weights=tmp_path / "cifar_net.pth")
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(backbone.network(x), published(x))
    assert backbone.untrained == ()
    assert [note for note in backbone.notes if "transform" not in note] == []


# --- as backbones ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSICS)
def test_random_ones_are_seeded_frozen_and_can_be_cut(name: str) -> None:
    backbone = load_backbone(name, weights="random", seed=3)
    assert backbone.weights_sha256 == load_backbone(name, weights="random", seed=3).weights_sha256
    assert backbone.weights_sha256 != load_backbone(name, weights="random").weights_sha256
    assert not any(module.training for module in backbone.network.modules())
    x = torch.randn(2, *backbone.input_shape[1:])
    front, tail = split_at(backbone.network, "penultimate")
    assert front(x).shape == (2, N_FEATURES[name])
    assert torch.equal(tail(front(x)), backbone.network(x))
    assert backbone.network(x).shape == (2, 10)


@pytest.mark.parametrize("name", CLASSICS)
def test_a_file_decides_the_number_of_outputs(name: str, tmp_path: Path) -> None:
    trained = CLASSICS[name].build(7).eval()
    torch.save(trained.state_dict(), tmp_path / "mine.pth")
    backbone = load_backbone(name, weights=tmp_path / "mine.pth")
    x = torch.randn(2, *backbone.input_shape[1:])
    assert torch.equal(backbone.network(x), trained(x))
    assert backbone.weights == "mine.pth"


def test_their_transforms_are_told_and_can_be_changed() -> None:
    lenet = load_backbone("lenet5", weights="random")
    assert (lenet.transform.resize, lenet.transform.crop, lenet.transform.channels) == (28, 32, 1)
    assert "transform of lenet5 (the mean and deviation are MNIST's): short side 28" in str(
        lenet.notes
    )
    padded = lenet.transform.resize_crop(np.full((28, 28, 1), 9, np.uint8))
    assert (padded.shape, int(padded.sum())) == ((32, 32, 1), 28 * 28 * 9)  # a border of 2
    changed = load_backbone(
        "lenet5", weights="random", transform={"resize": 32, "mean": (0.0,), "std": (1.0,)}
    )
    assert (changed.transform.resize, changed.transform.mean) == (32, (0.0,))
    with pytest.raises(InputError, match="lenet5 takes images of exactly 32 pixels a side, got a"):
        load_backbone("lenet5", weights="random", transform={"crop": 28})
    with pytest.raises(InputError, match="densenet_small takes images of at least 32 pixels"):
        load_backbone("densenet_small", weights="random", transform={"crop": 31})
    with pytest.raises(InputError, match=r"mean must be one finite number \(grey\)"):
        load_backbone("lenet5", weights="random", transform={"mean": (0.5,) * 3})


@pytest.mark.parametrize("weights", ["default", "DEFAULT", "IMAGENET1K_V1"])
def test_there_are_no_published_weights_and_what_to_do_is_said(weights: str) -> None:
    words = r"no published weights of lenet5.*--weights, or take random ones with --weights random"
    with pytest.raises(WeightsError, match=words) as caught:
        load_backbone("lenet5", weights=weights)
    assert caught.value.exit_code == 7


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    torch.save(LeNet5().state_dict(), tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"another network: 1 have another shape \(conv1"):
        load_backbone("cifarnet", weights=tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"weights file .* does not exist"):
        load_backbone("cifarnet", weights=tmp_path / "b.pth")


def test_they_are_listed_and_suggested() -> None:
    infos = {info.name: info for info in list_backbones()}
    for name in CLASSICS:
        assert (infos[name].family, infos[name].weights) == ("classic", ())
        assert infos[name].params_millions == n_values(CLASSICS[name].build(10)) / 1e6
    assert infos["lenet5"].input_size == 32
    with pytest.raises(InputError, match="did you mean lenet5"):
        load_backbone("LeNet-5", weights="random")
    printed = CliRunner().invoke(app, ["backbones", "net_small"])
    assert "densenet_small" in printed.stdout
    assert "classic" in printed.stdout


def test_featx_cuts_gives_the_shapes_of_one_channel() -> None:
    printed = CliRunner().invoke(app, ["cuts", "lenet5", "--json"]).stdout
    assert '"name": "conv1"' in printed
    assert '"shape": [\n      1,\n      32,\n      32\n    ]' in printed


# --- one channel from the files to the picture ----------------------------------------------------


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """Twelve 28 x 28 PNGs of two classes, one of them in colour."""
    rng = np.random.default_rng(0)
    for label in ("0", "1"):
        folder = tmp_path / "digits" / label
        folder.mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 256, (28, 28), dtype=np.uint8) // (1 + int(label))
            Image.fromarray(pixels).save(folder / f"{i}.png")
    colour = rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)
    Image.fromarray(colour).save(tmp_path / "digits" / "1" / "5.png")
    return tmp_path / "digits"


def by_hand(files: list[Path]) -> np.ndarray:
    """Features of random LeNet-5 as a script would compute them."""
    grey = [np.asarray(Image.open(file).convert("L")) for file in files]
    batch = torch.from_numpy(np.stack(grey))[:, None].float() / 255
    batch = (nn.functional.pad(batch, (2, 2, 2, 2)) - 0.1307) / 0.3081
    network = load_backbone("lenet5", weights="random").network
    with torch.no_grad():
        return split_at(network, "penultimate")[0](batch).numpy()


@pytest.mark.parametrize("options", [{"engine": "torch-eager", "decode": "exact"}, {}])
def test_features_of_one_channel_are_those_of_a_plain_script(
    options: dict[str, Any], digits: Path, tmp_path: Path
) -> None:
    fs = featx.extract(
        digits, backbone="lenet5", weights="random", cache_dir=tmp_path / "cache", **options
    )
    files = [digits / path for path in fs.paths]
    assert fs.spec["transform"]["channels"] == 1
    np.testing.assert_allclose(fs.X, by_hand(files), rtol=1e-4, atol=1e-5)


def test_the_transformer_takes_grey_arrays_pictures_and_files(digits: Path) -> None:
    files = sorted(digits.rglob("*.png"))
    pictures = [Image.open(file) for file in files]
    grey = [np.asarray(picture.convert("L")) for picture in pictures]
    extractor = FeatureExtractor("lenet5", weights="random", engine="torch-eager")
    expected = by_hand(files)
    for X in (files, pictures, grey, [pixels[..., None] for pixels in grey]):
        np.testing.assert_allclose(extractor.transform(X), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=r"\(h, w, 3\), \(h, w, 1\) or \(h, w\), got uint8"):
        extractor.transform([np.zeros((8, 8, 2), np.uint8)])


def test_the_command_line_goes_all_the_way_with_one_channel(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> str:
        result = CliRunner().invoke(app, list(words))
        assert result.exit_code == 0, result.output
        return result.output

    eager = ("--engine", "torch-eager")
    network = ("--backbone", "lenet5", "--weights", "random", "--mean", "0.5", "--std", "0.5")
    assert "grey, mean 0.5, std 0.5" in run("extract", "digits", *network, *eager)
    run("fit-head", "--head", "centroid")
    (head,) = Path("cache").glob("*.safetensors")
    assert "digits" in run("predict", str(head), "digits", "--show", "grid.png", *eager)
    assert "wrote shown.png" in run("show", "digits", "--out", "shown.png")


def test_grey_and_colour_networks_share_one_pass(digits: Path, tmp_path: Path) -> None:
    grey, colour = featx.extract_many(
        digits,
        backbones=["lenet5", "cifarnet"],
        weights=["random"],
        engine="torch-eager",
        cache_dir=tmp_path,
    )
    expected = by_hand([digits / path for path in grey.paths])
    np.testing.assert_allclose(grey.X, expected, rtol=1e-4, atol=1e-5)
    assert colour.spec["transform"].get("channels", 3) == 3


def test_torchvisions_networks_work_at_small_sizes() -> None:
    size = {"resize": 32, "crop": 32}
    options = ExtractOptions(
        "resnet18", weights="random", engine="torch-eager", transform=size, batch_size=2
    )
    pipeline = build_pipeline(options)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    features = pipeline.engine(pixels)
    backbone = pipeline.backbone
    assert isinstance(backbone, Backbone)
    network = backbone.network
    network.fc = nn.Identity()
    expected = network(backbone.transform.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2)))
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


def test_the_cut_input_holds_grey_pixels_with_their_border(digits: Path, tmp_path: Path) -> None:
    fs = featx.extract(digits, backbone="lenet5", weights="random", cut="input", cache_dir=tmp_path)
    assert (fs.features.shape, fs.spec["shape"]) == ((12, 32, 32, 1), [32, 32, 1])
    for path, pixels in zip(fs.paths, fs.features, strict=True):
        grey = np.asarray(Image.open(digits / path).convert("L"))
        assert np.array_equal(pixels[..., 0], np.pad(grey, 2))


def test_the_rest_of_one_is_trained_as_a_head_and_built_without_values() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(24) % 2
    X = (rng.integers(0, 128, (24, 32, 32, 1)) + 120 * y[:, None, None, None]).astype(np.uint8)
    head = TailHead("lenet5", weights="random", cut="input", epochs=6, batch_size=8, device="cpu")
    assert head.fit(X, y).score(X, y) == 1
    for name in CLASSICS:
        bare = bare_network(name, crop=32, for_weights=False).state_dict()
        built = CLASSICS[name].build(10).state_dict()
        assert {key: value.shape for key, value in bare.items()} == {
            key: value.shape for key, value in built.items()
        }
        assert {value.device.type for value in bare.values()} == {"meta"}
    again = copy.copy(head)
    again._set_tensors(head._tensors())  # as a head file is read
    assert again.tail_ is not head.tail_
    assert np.array_equal(again._all_logits(X), head._all_logits(X))
