"""A network of the user's own: found, built, told of, and never imported because a file says so."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import featx
from featx import own_network
from featx.backbones import bare_network, load_backbone
from featx.cache import open_cache
from featx.cli import app
from featx.cut import split_at
from featx.errors import CacheError, HeadError, InputError, WeightsError
from featx.extractor import FeatureExtractor
from featx.heads import load_head
from featx.loading import Loader
from featx.own_network import is_own
from featx.prediction import predict
from featx.whole_network import _maker, export_network

pytestmark = pytest.mark.usefixtures("kept_decoders")

Folder = Callable[..., Path]
EAGER = {"engine": "torch-eager", "weights": "random"}
SMALL = {"resize": 12, "crop": 12}
NETS = """
from pathlib import Path
import torch
from torch import nn
from torchvision import transforms

mark = Path("imported")
mark.write_text(mark.read_text() + "x" if mark.exists() else "x")


SCALE = torch.tensor(2.0)


class Tiny(nn.Module):
    def __init__(self, num_classes=3, channels=3):
        super().__init__()
        self.conv = nn.Conv2d(channels, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, num_classes)
        self.scale = SCALE  # neither a parameter nor a buffer

    def forward(self, x):
        return self.fc(self.scale * torch.relu(self.norm(self.conv(x))).mean((2, 3)))


def with_transform():
    network = Tiny(channels=1)
    network.transform = {"resize": 9, "crop": 8, "mean": (0.5,), "std": (0.25,)}
    return network


def strange():
    network = Tiny()
    network.transform = transforms.Normalize(0.5, 0.5)  # of torchvision
    return network


def without_classes():
    return Tiny()


def grey():
    return Tiny(channels=1)


def four():
    return Tiny(4)


def fails():
    raise OSError("no such thing")


def sized(width, *, depth, classes=10):
    return Tiny()


class Inside(nn.Module):  # whose keys all begin as a wrapper's do
    def __init__(self, num_classes=3):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(800, 5), nn.Tanh(),
            nn.Linear(5, num_classes),
        )

    def forward(self, x):
        return self.net(x)  # of 12 x 12 pixels and no other size


def lazy():
    return nn.LazyLinear(3)


def bare():
    return nn.ReLU()


def half():
    return Tiny().double()


number = 3
text = lambda: "a network"
"""


@pytest.fixture(autouse=True)
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module of networks in the current folder, which leaves a mark where it is imported."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "nets_of_mine.py"
    file.write_text(NETS)
    (tmp_path / "broken_nets.py").write_text("import not_installed_anywhere\n")
    yield file
    forget()


def forget() -> None:
    for name in ("nets_of_mine", "broken_nets"):
        sys.modules.pop(name, None)


def of_seven(name: str, folder: Path) -> Any:
    """A network of the module in a folder, of seven classes."""
    sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module("nets_of_mine")
    finally:
        sys.path.remove(str(folder))
    return getattr(module, name)(num_classes=7).eval()


def marks() -> int:
    mark = Path("imported")
    return len(mark.read_text()) if mark.exists() else 0


def test_a_colon_after_anything_but_a_known_prefix_is_a_network_of_ones_own() -> None:
    assert is_own("nets_of_mine:Tiny")
    assert not any(map(is_own, ("resnet18", "timm:resnet18", "torchvision:CIFAR10", "sklearn:x")))
    with pytest.raises(InputError, match="unknown backbone 'torchvision:resnet18'"):
        load_backbone("torchvision:resnet18", weights="random")


def test_it_is_seeded_frozen_in_float32_and_found_in_the_current_folder() -> None:
    before = list(sys.path)
    backbone = load_backbone("nets_of_mine:half", weights="random", seed=4)
    assert sys.path == before
    assert backbone.name == "nets_of_mine:half"
    assert backbone.weights == "random"
    again = load_backbone("nets_of_mine:half", weights="random", seed=4)
    other = load_backbone("nets_of_mine:half", weights="random", seed=5)
    assert again.weights_sha256 == backbone.weights_sha256 != other.weights_sha256
    assert not any(module.training for module in backbone.network.modules())
    parameters = list(backbone.network.parameters())
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in parameters)


def test_a_module_in_the_current_folder_comes_before_others_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "installed"
    elsewhere.mkdir()
    (elsewhere / "nets_of_mine.py").write_text("raise RuntimeError('another module')")
    monkeypatch.syspath_prepend(elsewhere)
    assert load_backbone("nets_of_mine:Tiny", weights="random").name == "nets_of_mine:Tiny"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_module:make", r"no module 'no_such_module' in the current folder \(/.*timm:NAME"),
        ("nets_of_mine.deeper:make", r"no module 'nets_of_mine.deeper'|is not a package"),
        ("broken_nets:make", r"importing broken_nets failed: ModuleNotFoundError: No module named "
         r"'not_installed_anywhere' \(.*broken_nets.py, line 1\)"),
        ("nets_of_mine:Tyni", "has no function or class 'Tyni'; did you mean Tiny"),
        ("nets_of_mine:number", "has no function or class 'number'"),
        ("nets_of_mine:a.b", "expected package.module:factory"),
        ("nets-of-mine:make", "expected package.module:factory"),
        (":make", "expected package.module:factory"),
        ("nets_of_mine:text", "the factory gave something of type str, not a torch"),
        ("nets_of_mine:fails", r"the factory failed: OSError: no such thing \(.*mine.py, line \d+"),
        ("nets_of_mine:sized", "called without arguments, but needs width, depth: name a function"),
        ("nets_of_mine:lazy", "lazy layers of unknown size"),
        ("nets_of_mine:bare", "neither a Linear nor a Conv2d layer"),
    ],
)  # fmt: skip
def test_what_is_no_network_is_one_clear_sentence(name: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        load_backbone(name, weights="random")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"--backbone {name}")


def test_it_has_no_published_weights() -> None:
    with pytest.raises(WeightsError, match="no published weights of nets_of_mine:Tiny"):
        load_backbone("nets_of_mine:Tiny")


def test_its_transform_is_its_attribute_or_imagenets_and_is_told() -> None:
    own = load_backbone("nets_of_mine:with_transform", weights="random")
    assert own.transform.to_dict() == {
        "resize": 9, "crop": 8, "mean": [0.5], "std": [0.25], "interpolation": "bilinear",
        "antialias": True, "channels": 1,
    }  # fmt: skip
    assert "transform of nets_of_mine:with_transform, its attribute `transform`:" in own.notes[1]
    assumed = load_backbone("nets_of_mine:Tiny", weights="random")
    assert (assumed.transform.resize, assumed.transform.crop) == (256, 224)
    assert assumed.transform.mean == (0.485, 0.456, 0.406)
    assert "ImageNet's, for the network has no attribute `transform`" in assumed.notes[1]
    strange = load_backbone("nets_of_mine:strange", weights="random")
    assert strange.transform == assumed.transform
    assert "for the network has a Normalize as its attribute `transform`" in strange.notes[1]
    grey = {**SMALL, "mean": (0.5,), "std": (0.5,)}
    one = load_backbone("nets_of_mine:grey", weights="random", transform=grey)
    assert (one.transform.channels, one.transform.crop) == (1, 12)
    with pytest.raises(InputError, match="std must be one finite number"):
        load_backbone("nets_of_mine:grey", weights="random", transform={"mean": (0.5,)})


@pytest.mark.parametrize(("factory", "outputs"), [("Tiny", 7), ("without_classes", 3)])
def test_a_file_decides_the_number_of_outputs_where_the_factory_can(
    factory: str, outputs: int, tmp_path: Path
) -> None:
    trained = of_seven("Tiny", tmp_path)
    torch.save(trained.state_dict(), "seven.pth")
    backbone = load_backbone(f"nets_of_mine:{factory}", weights="seven.pth", transform=SMALL)
    x = torch.randn(2, 3, 12, 12)
    assert backbone.network(x).shape == (2, outputs)
    first, second = (split_at(net, "penultimate")[0](x) for net in (backbone.network, trained))
    assert torch.equal(first, second)
    assert backbone.untrained == (() if outputs == 7 else ("fc.weight", "fc.bias"))


@pytest.mark.parametrize("wrapped", ["", "module.", "module.model."])
def test_keys_that_all_begin_as_a_wrappers_are_found(wrapped: str, tmp_path: Path) -> None:
    trained = of_seven("Inside", tmp_path)
    state = {wrapped + key: value for key, value in trained.state_dict().items()}
    torch.save(state, "inside.pth")
    backbone = load_backbone("nets_of_mine:Inside", weights="inside.pth", transform=SMALL)
    x = torch.randn(2, 3, 12, 12)
    assert torch.equal(backbone.network(x), trained(x))
    assert backbone.untrained == ()


def test_what_takes_one_size_only_is_exported_with_a_head(colour_folder: Folder) -> None:
    root = colour_folder(per_class=4)
    asked = {"transform": SMALL, **EAGER}
    fs = featx.extract(root, backbone="nets_of_mine:Inside", **asked)
    head = featx.fit_head(fs.path, head="centroid")
    made = export_network(head.path, backbone="nets_of_mine:Inside")
    loaded = load_backbone("nets_of_mine:Inside", weights=made.path, transform=SMALL)
    pixels = np.stack([Loader(loaded.transform)(file).pixels for file in fs.files])
    x = loaded.transform.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    with torch.no_grad():
        found = loaded.network(x).softmax(1).numpy()
    np.testing.assert_allclose(found, head.file.head.predict_proba(fs.X), atol=1e-5)


@pytest.mark.parametrize(
    ("factory", "call"), [("Tiny", "(num_classes=5)"), ("without_classes", "()  # with 5 outputs")]
)
def test_an_export_says_how_it_is_made_with_so_many_outputs(factory: str, call: str) -> None:
    backbone = load_backbone(f"nets_of_mine:{factory}", weights="random", transform=SMALL)
    assert _maker(backbone, 5) == f"nets_of_mine.{factory}{call}"


def test_features_of_ones_own_network_in_a_pipeline() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 12, 12, 3), dtype=np.uint8)
    extractor = FeatureExtractor("nets_of_mine:Tiny", preprocessing=SMALL, **EAGER)
    backbone = load_backbone("nets_of_mine:Tiny", weights="random", transform=SMALL)
    x = backbone.transform.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    expected = split_at(backbone.network, "penultimate")[0](x)
    np.testing.assert_allclose(extractor.transform(pixels), expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match=r"does not take an input of shape .*--mean"):
        FeatureExtractor("nets_of_mine:grey", preprocessing=SMALL, **EAGER).fit()


# --- what files record ----------------------------------------------------------------------------


@pytest.fixture
def made(colour_folder: Folder) -> tuple[Path, Path, Path]:
    """A folder, its cache by a network of one's own and a head; the module is forgotten again."""
    root = colour_folder(per_class=4)
    fs = featx.extract(root, backbone="nets_of_mine:Tiny", transform=SMALL, **EAGER)
    assert fs.path.name == ("birds-nets_of_mine.Tiny+weights=random+crop=12+resize=12.h5")
    head = featx.fit_head(fs.path, head="centroid").path
    forget()
    Path("imported").unlink()
    return root, fs.path, head


def test_a_head_that_names_code_does_not_make_it_run(made: tuple[Path, Path, Path]) -> None:
    root, _, head = made
    files = [str(root / "red" / "red0.png")]
    with pytest.raises(HeadError, match=r"'nets_of_mine:Tiny', and featx imports no .*--backbone"):
        predict(head, files)
    told = CliRunner().invoke(app, ["predict", str(head), *files])
    assert (told.exit_code, marks()) == (4, 0)
    words = ["predict", str(head), *files, "--backbone", "nets_of_mine:Tiny"]
    assert "red0.png" in CliRunner().invoke(app, [*words, "--engine", "torch-eager"]).stdout
    assert marks() == 1


def test_a_damaged_cache_that_names_code_does_not_make_it_run(
    made: tuple[Path, Path, Path],
) -> None:
    _, cache, _ = made
    with cache.open("r+b") as stream:
        stream.seek(open_cache(cache).offsets["features"])
        stream.write(b"\xff\xff")
    told = CliRunner().invoke(app, ["verify", str(cache), "--repair"])
    assert "featx imports no code" in " ".join(told.output.split())
    assert (told.exit_code, marks()) == (4, 0)
    words = ["verify", str(cache), "--repair", "--backbone", "nets_of_mine:Tiny"]
    told = CliRunner().invoke(app, words)
    assert (told.exit_code, marks()) == (0, 1), told.output


def test_other_weights_and_other_code_are_not_taken_for_those_recorded(
    made: tuple[Path, Path, Path], nets: Path
) -> None:
    root, cache, head = made
    files = [root / "red" / "red0.png"]
    with pytest.raises(HeadError, match="weights of SHA-256"):
        predict(head, files, backbone="nets_of_mine:four", engine="torch-eager")
    for changed in (NETS.replace("torch.relu(", "torch.tanh("), NETS.replace("2.0", "4.0")):
        forget()
        nets.write_text(changed)
        with pytest.raises(HeadError, match="nets_of_mine:Tiny computes something else than the"):
            predict(head, files, backbone="nets_of_mine:Tiny", engine="torch-eager")
    with pytest.raises(CacheError, match="code_sha256"):
        featx.extract(root, backbone="nets_of_mine:Tiny", transform=SMALL, out=cache, **EAGER)


@pytest.mark.slow
def test_an_engine_prepared_for_other_code_is_not_used(nets: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), dtype=np.uint8)

    def features() -> np.ndarray:
        forget()
        options: dict[str, Any] = {"engine": "openvino", "weights": "random"}
        return FeatureExtractor("nets_of_mine:Tiny", preprocessing=SMALL, **options).transform(
            pixels
        )

    pytest.importorskip("openvino")
    before = features()
    nets.write_text(NETS.replace("torch.relu(", "torch.sigmoid("))
    assert not np.allclose(before, features())


def test_the_command_line_names_it(colour_folder: Folder) -> None:
    shown = CliRunner().invoke(app, ["cuts", "nets_of_mine:with_transform"]).stdout
    assert "8x8x8" in shown
    assert "package.module:factory" in CliRunner().invoke(app, ["backbones", "resnet18"]).stderr


def test_the_rest_of_one_is_built_only_after_the_user_gave_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(own_network, "_given", set())
    with pytest.raises(HeadError, match="featx imports no code because a file names it"):
        bare_network("nets_of_mine:Tiny", crop=12, for_weights=False)
    assert marks() == 0
    load_backbone("nets_of_mine:Tiny", weights="random")
    bare = bare_network("nets_of_mine:Tiny", crop=12, for_weights=False)
    assert {value.device.type for value in bare.parameters()} == {"meta"}


def test_a_head_of_the_rest_of_one_is_of_use_where_the_user_gives_its_name(
    colour_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_network, "_given", set())
    root = colour_folder(per_class=5)
    extract = dict(backbone="nets_of_mine:Tiny", cut="input", transform=SMALL, **EAGER)
    cache = featx.extract(root, **extract).path
    head = featx.fit_head(cache, head="tail", epochs=1, backbone="nets_of_mine:Tiny").path
    other = head.with_name("other.safetensors")
    other.write_bytes(head.read_bytes())
    commands = [
        ["evaluate", cache, head],
        ["evaluate", cache, head, "--cv", "2", "--repeats", "1"],
        ["compare", head, other],
        ["info", head],
        ["show", cache, "--head", head],
        ["export", head, "--to", "state-dict"],
        ["fit-head", cache, "--like", head, "--final"],
    ]
    for words in commands:
        own_network._given.clear()
        forget()
        Path("imported").unlink(missing_ok=True)
        said = CliRunner().invoke(app, [str(word) for word in words])
        assert (said.exit_code, marks()) == (4, 0), words
        given = [*map(str, words), "--backbone", "nets_of_mine:Tiny"]
        done = CliRunner().invoke(app, given)
        assert (done.exit_code, marks()) == (0, 1), (words, done.output)
    own_network._given.clear()
    with pytest.raises(HeadError, match="imports no code"):
        featx.evaluate(cache, head)
    assert len(featx.compare([head, other], backbones=["nets_of_mine:Tiny"]).entries) == 2
    own_network._given.clear()
    told = featx.evaluate(cache, head, backbone="nets_of_mine:Tiny")
    assert told.report.n == 3


def test_a_head_of_the_rest_of_one_is_refused_where_the_code_after_the_cut_has_changed(
    colour_folder: Folder, nets: Path
) -> None:
    root = colour_folder(per_class=5)
    extract = dict(backbone="nets_of_mine:Tiny", cut="input", transform=SMALL, **EAGER)
    cache = featx.extract(root, **extract).path
    head = featx.fit_head(cache, head="tail", epochs=1, backbone="nets_of_mine:Tiny").path
    forget()
    assert load_head(head).kind == "tail"
    forget()
    nets.write_text(NETS.replace("torch.relu(", "torch.sigmoid("))
    with pytest.raises(HeadError, match="computes something else after input than when"):
        load_head(head)
