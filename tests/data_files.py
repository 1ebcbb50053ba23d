"""Small data sets in the files of CIFAR and MNIST, as they are downloaded."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets

FINE = tuple(f"fine_{i:02}" for i in range(100))
TEN = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
CIFAR = {
    "CIFAR10": ("cifar-10-batches-py", [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]),
    "CIFAR100": ("cifar-100-python", ["train", "test"]),
}
NAMES = ("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST")


def write(name: str, root: Path, *, n_train: int = 20, n_test: int = 10, seed: int = 0) -> Path:
    """Write a data set of random images below `root`; the folder of its files."""
    rng = np.random.default_rng(seed)
    if name not in CIFAR:
        folder = root / name / "raw"
        for part, n in (("train", n_train), ("t10k", n_test)):
            write_idx(folder, part, rng.integers(0, 256, (n, 28, 28), np.uint8), np.arange(n) % 10)
        return folder
    (top, files), names = CIFAR[name], TEN if name == "CIFAR10" else FINE
    key, meta = ("labels", "batches.meta") if name == "CIFAR10" else ("fine_labels", "meta")
    folder = root / top
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        n = n_test if file.startswith("test") else n_train // (len(files) - 1)
        labels = rng.permutation(max(n, len(names)))[:n] % len(names)
        pixels = rng.integers(0, 256, (n, 3072), np.uint8)
        (folder / file).write_bytes(python2({"data": pixels, key: labels.tolist()}))
    listed = "label_names" if name == "CIFAR10" else "fine_label_names"
    (folder / meta).write_bytes(python2({listed: list(names)}))
    return folder


def write_idx(folder: Path, part: str, images: np.ndarray, labels: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">IIII", 0x803, *images.shape)
    (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
    header = struct.pack(">II", 0x801, len(labels))
    (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.astype(np.uint8).tobytes())


def python2(entries: dict[str, object]) -> bytes:
    """A dictionary as Python 2 and its numpy pickled it, which is what CIFAR's files are."""
    return b"\x80\x02}(" + b"".join(_text(k) + _value(v) for k, v in entries.items()) + b"u."


def _value(value: object) -> bytes:
    if isinstance(value, np.ndarray):
        n, d = value.shape
        made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        kind = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN" + 2 * b"J\xff\xff\xff\xff"
        state = b"(K\x01" + _value(n) + _value(d) + b"\x86" + kind + b"K\x00tb\x89"
        return made + state + b"T" + struct.pack("<I", value.nbytes) + value.tobytes() + b"tb"
    if isinstance(value, list):
        return b"](" + b"".join(map(_value, value)) + b"e"
    return b"M" + struct.pack("<H", value) if isinstance(value, int) else _text(value)


def _text(value: object) -> bytes:
    assert isinstance(value, str)
    return b"U" + bytes([len(value)]) + value.encode()


def pack(name: str, root: Path) -> list[Path]:
    """Put the files of `write` into their archives, and remove them; the archives."""
    if name not in CIFAR:
        archives = []
        for file in sorted((root / name / "raw").iterdir()):
            archives.append(file.with_name(f"{file.name}.gz"))
            archives[-1].write_bytes(gzip.compress(file.read_bytes()))
            file.unlink()
        return archives
    folder = root / CIFAR[name][0]
    archive = root / f"{name.replace('CIFAR', 'cifar-')}-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
        readme = tarfile.TarInfo("../outside.txt")  # of no use, and never unpacked
        tar.addfile(readme, io.BytesIO(b""))
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    return [archive]


def torchvisions(name: str, root: Path, patch: pytest.MonkeyPatch, *, train: bool) -> object:
    """torchvision's own reading of the files that `write` has written."""
    its = getattr(torchvision.datasets, name)
    if name in CIFAR:
        folder, files = CIFAR[name]
        with_md5 = [[file, _md5(root / folder / file)] for file in files]
        patch.setattr(its, "train_list", with_md5[:-1])
        patch.setattr(its, "test_list", with_md5[-1:])
        meta = root / folder / its.meta["filename"]
        patch.setattr(its, "meta", its.meta | {"md5": _md5(meta)})
    return its(root, train=train)


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()
