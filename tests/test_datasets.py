"""Data sets by name: each image is the one that torchvision or scikit-learn reads there."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets
from data_files import CIFAR, NAMES, pack, python2, torchvisions, write, write_idx
from PIL import Image
from sklearn.datasets import load_digits
from synthetic import TINY
from typer.testing import CliRunner, Result

import featx
from featx.cache import Status, open_cache
from featx.cli import app
from featx.datasets.catalogue import SETS
from featx.datasets.cifar import class_names, read_batch
from featx.decoding import DecodeOptions, decode, read_image
from featx.engines.eager import EagerEngine
from featx.errors import ImageError, InputError
from featx.filling import table_notes
from featx.images import ImageTable, expand_inputs, list_images

pytestmark = pytest.mark.usefixtures("kept_decoders")


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every forward pass of a whole batch."""
    passes: list[int] = []
    forward = EagerEngine.__call__

    def counted(self: EagerEngine, pixels: np.ndarray) -> np.ndarray:
        passes.append(len(pixels))
        return forward(self, pixels)

    monkeypatch.setattr(EagerEngine, "__call__", counted)
    return passes


def picture(table: ImageTable, i: int) -> np.ndarray:
    return decode(read_image(table.file(i)), DecodeOptions(), fast=True)


@pytest.mark.filterwarnings("ignore:numpy.core.* is deprecated")  # by numpy 1's files of CIFAR
@pytest.mark.parametrize("name", NAMES)
def test_every_image_and_label_is_that_of_torchvision(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(name, tmp_path)
    table = list_images(f"torchvision:{name}", data_root=tmp_path)
    assert table.root == tmp_path / f"torchvision:{name}"
    assert list(table.paths) == sorted(table.paths)
    n_seen = 0
    for code, part in ((1, "train"), (3, "test")):
        expected: Any = torchvisions(name, tmp_path, monkeypatch, train=part == "train")
        rows = np.flatnonzero(table.split == code)
        assert len(rows) == len(expected)
        for row in rows:
            found, label, number = os.fsdecode(table.paths[row]).split("/")
            image, target = expected[int(number)]
            assert (found, table.labels[row]) == (part, target)
            assert label == table.classes[target].replace("/", "-")
            assert np.array_equal(picture(table, row), np.asarray(image.convert("RGB")))
            n_seen += 1
        names = [each[0] for each in expected.classes] if name == "MNIST" else expected.classes
        assert list(table.classes) == list(names)
    assert n_seen == len(table) == 30


def test_the_digits_are_those_of_scikit_learn() -> None:
    table = list_images("sklearn:digits")
    assert table_notes(table)[0].startswith("1,797 images in sklearn:digits, 10 classes")
    expected = load_digits()
    assert len(table) == len(expected.target) == 1797
    assert not table.split.any()
    assert table.classes == tuple("0123456789")
    for row in range(0, len(table), 7):
        label, number = os.fsdecode(table.paths[row]).split("/")
        assert int(label) == table.labels[row] == expected.target[int(number)]
        grey = picture(table, row)
        assert np.array_equal(grey[..., 0], grey[..., 2])
        assert np.array_equal(np.rint(grey[..., 0] / 255 * 16), expected.images[int(number)])


def test_listing_imports_neither_torch_nor_scikit_learn(tmp_path: Path) -> None:
    write("CIFAR10", tmp_path)
    code = (
        "import sys\nfrom featx.images import list_images\n"
        f"n = len(list_images('torchvision:CIFAR10', data_root={str(tmp_path)!r}))\n"
        "n += len(list_images('sklearn:digits'))\n"
        "print(n, *{'torch', 'torchvision', 'sklearn', 'scipy'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["1827"]


# --- names ----------------------------------------------------------------------------------------


def test_an_unknown_name_is_told_with_those_there_are() -> None:
    with pytest.raises(InputError, match=r"no data set 'torchvision:SVHN'; there are torchvision:"):
        list_images("torchvision:SVHN")


def test_a_folder_of_such_a_name_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sklearn:digits" / "a"
    folder.mkdir(parents=True)
    Image.new("RGB", (4, 4), (9, 9, 9)).save(folder / "0.png")
    monkeypatch.chdir(tmp_path)
    table = list_images("sklearn:digits")
    assert table.paths == (b"a/0.png",)
    assert picture(table, 0).shape == (4, 4, 3)


def test_a_part_is_no_source_but_can_be_predicted(tmp_path: Path) -> None:
    write("MNIST", tmp_path)
    with pytest.raises(InputError, match="is a part of a data set: name"):
        list_images("torchvision:MNIST/test", data_root=tmp_path)
    files = expand_inputs(["torchvision:MNIST/test", "torchvision:MNIST/train/3/00013"],
                          data_root=tmp_path)  # fmt: skip
    root = tmp_path / "torchvision:MNIST"
    assert [str(file.relative_to(root)) for file in files] == [
        *(f"test/{i}/{i:05}" for i in range(10)),
        "train/3/00013",
    ]
    with pytest.raises(InputError, match=r"torchvision:MNIST has no images 'val'"):
        expand_inputs([root / "val"])


# --- files that are damaged, or change ------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("train-images-idx3-ubyte", lambda b: b[:-1], "15,695 bytes for a shape of"),
        ("train-images-idx3-ubyte", lambda b: b"\0\0\x0d" + b[3:], "that start with 00 00 0d 03"),
        ("train-images-idx3-ubyte", lambda b: b"", "0 bytes"),
        ("train-images-idx3-ubyte", lambda b: b[:4] + bytes(12), r"a shape of \[0, 0, 0\]"),
        ("train-labels-idx1-ubyte", lambda b: b[:7] + b"\x13" + b[8:-1], "19 labels for the 20"),
        ("train-labels-idx1-ubyte", lambda b: b[:-1] + b"\x0a", "it has the label 10"),
    ],
)
def test_damaged_files_of_mnist_are_refused_by_name(
    file: str, change: Callable[[bytes], bytes], message: str, tmp_path: Path
) -> None:
    path = write("MNIST", tmp_path) / file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=f"{file}.*{message}.*get (it|both) anew"):
        list_images("torchvision:MNIST", data_root=tmp_path)


PIXELS = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072)
GOOD = python2({"data": PIXELS, "labels": [1, 0]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD[:-9], "is no file of CIFAR, or damaged"),
        (b"<!doctype html>", "is no file of CIFAR, or damaged"),
        (python2({"data": PIXELS, "labels": [1]}), "1 labels, but 6,144 bytes of pixels"),
        (python2({"data": PIXELS[:, :-1], "labels": [1, 0]}), "6,142 bytes"),
        (python2({"data": PIXELS, "labels": [1, 10]}), "a label is no number from 0 to 9"),
        (python2({"data": PIXELS, "labels": []}), "no array of bytes with a list of labels"),
        (python2({"data": [1], "labels": [1]}), "no array of bytes with a list of labels"),
        (python2({"labels": [1]}), "no array of bytes with a list of labels"),
        (GOOD.replace(b"U\x02u1", b"U\x02i1"), "an array of b'i1' where bytes should be"),
        (GOOD.replace(b"K\x00tb\x89", b"K\x00tb\x88"), "not one of bytes in rows"),
        (pickle.dumps([1]), "it holds a list, not a dictionary"),
    ],
)
def test_damaged_files_of_cifar_are_refused_by_name(
    content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(InputError, match=f"data_batch_1 .*{message}"):
        read_batch([tmp_path / "data_batch_1"], 10)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_today_are_read_too(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "train"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 3072), np.uint8)
    labels = list(range(40))
    path.write_bytes(pickle.dumps({"data": pixels, "fine_labels": labels}, protocol))
    block = read_batch([path], 100)
    assert np.array_equal(block.labels, labels)
    assert np.array_equal(block.pixels, pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


@pytest.mark.parametrize("name", NAMES)
def test_pixels_are_mapped_not_copied(name: str, tmp_path: Path) -> None:
    home = write(name, tmp_path)
    data_set = SETS[f"torchvision:{name}"]
    for files in data_set.parts["train"]:
        pixels = data_set.read([home / file for file in files], 100).pixels
        while pixels.base is not None and not isinstance(pixels, np.memmap):
            pixels = pixels.base
        assert isinstance(pixels, np.memmap)


def test_an_image_that_is_not_there_any_more_is_unreadable(tmp_path: Path) -> None:
    home = write("MNIST", tmp_path)
    root = tmp_path / "torchvision:MNIST"
    assert read_image(root / "train/3/00003").startswith(b"P5\n28 28\n255\n")
    for path, words in (
        ("train/4/00003", "image 00003 of train is 3 now"),
        ("train/3/00023", "has no image 'train/3/00023'"),
        ("val/3/00003", "has no image"),
        ("train/3/x", "has no image"),
        ("train", "has no image"),
    ):
        with pytest.raises(ImageError, match=words) as caught:
            read_image(root / path)
        assert caught.value.status == Status.UNREADABLE
    (home / "train-images-idx3-ubyte").unlink()
    with pytest.raises(ImageError, match="No such file"):
        read_image(root / "train/3/00003")


def test_a_file_that_has_changed_is_read_anew(tmp_path: Path) -> None:
    write("MNIST", tmp_path)
    path = tmp_path / "torchvision:MNIST" / "train/3/00003"
    before = read_image(path)
    images = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    images.rename(tmp_path / "old")  # a new file, not new bytes below the same memory map
    write("MNIST", tmp_path, seed=1)
    os.utime(images, ns=(1, 1))
    assert read_image(path) != before


# --- hostile files --------------------------------------------------------------------------------


class Hostile:
    """Unpickled by pickle itself, it calls something."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


SET_ATTRIBUTE = (  # sets the attribute `_call` of what a name stands for, or of a class
    b"\x80\x02cnumpy\ndtype\nN}X\x05\x00\x00\x00_callNs\x86b0}."
)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (lambda f: pickle.dumps(Hostile(os.system, f"touch {f}")), r"posix\.system"),
        (lambda f: pickle.dumps(Hostile(eval, f"open({str(f)!r}, 'w')")), r"builtins\.eval"),
        (lambda f: pickle.dumps(Hostile(Path.touch, f)), "names"),
        (lambda f: pickle.dumps({"data": Hostile(getattr, f, "x")}), r"builtins\.getattr"),
        (lambda _: b"cnumpy.core.multiarray\nscalar\n.", "scalar, which is not run"),
        (lambda _: b"cnumpy\nload\n.", r"numpy\.load, which is not run"),
        (lambda _: b"cnumpy\ndtype.__class__\n.", "which is not run"),
        (lambda _: SET_ATTRIBUTE, "it changes what it names"),
        (lambda _: b"\x80\x02Pabc\n.", "persistent"),
    ],
)
def test_a_hostile_pickle_runs_nothing(
    content: Callable[[Path], bytes], named: str, tmp_path: Path
) -> None:
    touched = tmp_path / "touched"
    for name in ("data_batch_1", "batches.meta"):
        (tmp_path / name).write_bytes(content(touched))
    with pytest.raises(InputError, match=f"data_batch_1 .*{named}"):
        read_batch([tmp_path / "data_batch_1"], 10)
    with pytest.raises(InputError, match=f"batches.meta .*{named}"):
        class_names(tmp_path / "batches.meta", "label_names")
    assert not touched.exists()
    (tmp_path / "good").write_bytes(GOOD)  # nothing was changed for those that come after
    assert read_batch([tmp_path / "good"], 10).labels.tolist() == [1, 0]


# --- archives and downloads -----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_archives_are_unpacked_where_torchvision_would(name: str, tmp_path: Path) -> None:
    home = write(name, tmp_path)
    before = {path.name: path.read_bytes() for path in home.iterdir()}
    archives = pack(name, tmp_path)
    table = list_images(f"torchvision:{name}", data_root=tmp_path)
    assert len(table) == 30
    assert [f"unpacked {path}" for path in archives] == sorted(table.notes)
    left = {path.name: path.read_bytes() for path in home.iterdir() if path not in archives}
    assert left == before
    assert not (tmp_path.parent / "outside.txt").exists()
    assert list_images(f"torchvision:{name}", data_root=tmp_path).notes == ()


@pytest.mark.parametrize("name", ["CIFAR10", "MNIST"])
@pytest.mark.parametrize("at", [-6, -30, 0])  # the checksum at the end, the data, the start
def test_a_damaged_archive_is_refused_by_name_and_leaves_nothing(
    name: str, at: int, tmp_path: Path
) -> None:
    home = write(name, tmp_path)
    archive = pack(name, tmp_path)[0]
    data = bytearray(archive.read_bytes())
    data[at] ^= 0xFF
    archive.write_bytes(data)
    with pytest.raises(InputError, match=f"{archive.name} is damaged .*; get it anew"):
        list_images(f"torchvision:{name}", data_root=tmp_path)
    assert not (home / archive.stem).exists()
    assert not list(home.parent.glob(".featx-*"))
    assert name == "MNIST" or not home.exists()


def test_an_archive_without_a_file_is_told(tmp_path: Path) -> None:
    home = write("CIFAR10", tmp_path)
    (home / "data_batch_3").unlink()
    pack("CIFAR10", tmp_path)
    with pytest.raises(InputError, match=r"python.tar.gz does not hold data_batch_3; get it anew"):
        list_images("torchvision:CIFAR10", data_root=tmp_path)


@pytest.mark.parametrize("name", ["CIFAR10", "MNIST"])
def test_what_is_not_there_is_downloaded_by_torchvision(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = tmp_path / "served"
    write(name, served)
    md5 = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in pack(name, served)}
    with _served(monkeypatch, name, served, md5):
        table = list_images(f"torchvision:{name}", data_root=tmp_path / "new" / "data")
    assert len(table) == 30
    assert table.notes[0].startswith(f"downloaded {'MNIST/raw/' if name == 'MNIST' else ''}")


@pytest.mark.parametrize("served", [True, False])
def test_what_cannot_be_had_is_told_with_its_address_and_its_place(
    served: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No network, or a file of another MD5: nothing of it stays."""
    archive = tmp_path / "cifar-10-python.tar.gz"
    if served:
        archive.write_bytes(b"a page of a hotel's network")
    data = tmp_path / "data"
    with (
        _served(monkeypatch, "CIFAR10", tmp_path, {archive.name: "0" * 32}) as address,
        pytest.raises(InputError) as caught,
    ):
        list_images("torchvision:CIFAR10", data_root=data)
    told = str(caught.value)
    assert told.startswith(f"torchvision:CIFAR10 is not in {data} and cannot be downloaded (")
    assert f"Put {address}/{archive.name} as {data / archive.name}, or name the folder" in told
    assert not data.exists()


@contextmanager
def _served(
    patch: pytest.MonkeyPatch, name: str, folder: Path, md5: dict[str, str]
) -> Iterator[str]:
    """Let torchvision download the archives from a folder, by a server on this machine."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    patch.setenv("NO_PROXY", "127.0.0.1")
    its: Any = getattr(torchvision.datasets, name)
    with http.server.HTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        if name in CIFAR:
            patch.setattr(its, "url", f"{address}/{its.filename}")
            patch.setattr(its, "tgz_md5", md5[its.filename])
        else:
            patch.setattr(its, "mirrors", [f"{address}/nowhere/", f"{address}/{name}/raw/"])
            patch.setattr(its, "resources", [(file, md5[file]) for file, _ in its.resources])
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            yield address
        finally:
            server.shutdown()


# --- everything behind works as with files --------------------------------------------------------


def as_files(table: ImageTable, folder: Path, mode: str) -> Path:
    """The same images as PNG, in split and class folders."""
    for i, path in enumerate(table.paths):
        file = folder / f"{os.fsdecode(path)}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(table, i)).convert(mode).save(file)
    return folder


@pytest.mark.parametrize(("name", "decode"), [("CIFAR10", "fast"), ("MNIST", "exact")])
def test_features_are_those_of_the_same_pictures_as_files(
    name: str, decode: str, tmp_path: Path
) -> None:
    write(name, tmp_path / "data")
    options = {**TINY, "decode": decode, "cache_dir": tmp_path / "cache"}
    found = featx.extract(f"torchvision:{name}", data_root=tmp_path / "data", **options)
    table = list_images(found.root)
    folder = as_files(table, tmp_path / "files", "L" if name == "MNIST" else "RGB")
    expected = featx.extract(folder, **options)
    assert found.path.name.startswith(f"{name}-squeezenet1_1")
    assert [f"{path}.png" for path in found.paths] == expected.paths
    assert np.array_equal(found.X, expected.X)
    assert np.array_equal(found.split, expected.split)
    assert [found.classes[i] for i in found.y] == [expected.classes[i] for i in expected.y]
    assert found.fingerprint != expected.fingerprint or found.spec == expected.spec
    digest = hashlib.sha256(read_image(table.file(4))).digest()
    assert found.sha256[4].tobytes() == digest


def test_a_network_of_one_channel_gets_the_grey_values_of_the_file(tmp_path: Path) -> None:
    home = write("MNIST", tmp_path)
    options = {"backbone": "lenet5", "weights": "random", "cut": "input"}
    found = featx.extract(tmp_path / "torchvision:MNIST", out=tmp_path / "a.h5", **options)
    stored = (home / "train-images-idx3-ubyte").read_bytes()[16:]
    grey = np.frombuffer(stored, np.uint8).reshape(-1, 28, 28)
    assert found.features.shape == (30, 32, 32, 1)
    for i, path in enumerate(found.paths[10:], start=10):
        assert np.array_equal(found.features[i, 2:-2, 2:-2, 0], grey[int(path[-5:])])
    assert found.paths[10].startswith("train/0/")


def test_only_images_whose_bytes_have_changed_are_computed_again(
    tmp_path: Path, computed: list[int]
) -> None:
    file = write("CIFAR10", tmp_path) / "data_batch_2"  # images 4 to 7
    source = tmp_path / "torchvision:CIFAR10"
    first = featx.extract(source, out=tmp_path / "a.h5", **TINY)
    del computed[:]
    featx.extract(source, out=tmp_path / "a.h5", **TINY)
    block = read_batch([file], 10)
    planes = np.array(block.pixels).transpose(0, 3, 1, 2).reshape(4, 3072)
    labels = block.labels.tolist()
    file.write_bytes(pickle.dumps({"data": planes, "labels": labels}))  # another size and time
    featx.extract(source, out=tmp_path / "a.h5", **TINY)
    assert computed == []
    planes[3] ^= 0xFF
    file.write_bytes(pickle.dumps({"data": planes, "labels": labels}))
    second = featx.extract(source, out=tmp_path / "a.h5", **TINY)
    assert computed == [4]  # one batch, of one image
    changed = np.flatnonzero((first.X != second.X).any(axis=1))
    assert [second.paths[i] for i in changed] == [f"train/{second.classes[labels[3]]}/00007"]


def test_the_commands_take_a_data_set_as_they_take_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for part, n in (("train", 16), ("t10k", 6)):
        labels = np.arange(n) % 2
        grey = 150 * labels[:, None, None] + rng.integers(0, 60, (n, 28, 28))
        write_idx(tmp_path / "sets/MNIST/raw", part, grey.astype(np.uint8), labels)
    root = ["--data-root", "sets"]
    tiny = ["--backbone", "squeezenet1_1", "--weights", "random", "--engine", "torch-eager"]
    told = run(
        "extract", "torchvision:MNIST", *root, *tiny, "--crop", "64", "--resize", "64"
    ).stderr
    assert f"22 images in {tmp_path}/sets/torchvision:MNIST, 10 classes, 16 train, 6 test" in told
    (cache,) = (tmp_path / "cache").glob("MNIST-squeezenet1_1*.h5")
    run("fit-head")
    assert json.loads(run("evaluate", "--json").stdout)["accuracy"]["value"] == 1.0
    (head,) = (tmp_path / "cache").glob("*.safetensors")
    lines = run("predict", head, "torchvision:MNIST/test", *root, *tiny[-2:], "--json").stdout
    assert [json.loads(line)["class"] for line in lines.splitlines()] == ["0"] * 3 + ["1"] * 3
    for source in ("torchvision:MNIST", cache):
        run("show", source, *root, "--class", "1", "-o", "grid.png")
        assert np.asarray(Image.open("grid.png"))[20, 20].max() < 220  # bright, not a grey tile
    _damage(cache, "features", row=7)
    _damage(cache, "labels", row=7)  # so that the images are listed anew
    assert "21 rows copied, 1 computed again" in run("verify", "--repair", cache).stdout


def _damage(cache: Path, column: str, *, row: int) -> None:
    file = open_cache(cache)
    with cache.open("r+b") as stream:
        stream.seek(file.offsets[column] + row * file.columns[column].nbytes // len(file))
        stream.write(b"\x7f")


def run(*arguments: Any) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result
