"""The data sets there are, and the files they are made of, laid out as torchvision has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from featx.datasets.blocks import Block
from featx.datasets.cifar import read_batch
from featx.datasets.digits import read_digits
from featx.datasets.idx import read_idx


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set, and how its files are read.

    Attributes
    ----------
    folder : of its files, below the data root; None: they come with scikit-learn.
    parts : train and test (of a set without parts, an empty name) -> the files of each block.
    read : files of a block and number of classes -> the block.
    classes : their names, in the order of the labels; of a set with `names_in`, none.
    names_in : the file that holds the names, and the key there.
    archives : path below the data root -> the files of `folder` that are packed in it.
    """

    folder: str | None
    parts: Mapping[str, Sequence[tuple[str, ...]]]
    read: Callable[[Sequence[Path], int], Block]
    classes: tuple[str, ...] = ()
    names_in: tuple[str, str] | None = None
    archives: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that has to be there."""
        blocks = [file for blocks in self.parts.values() for block in blocks for file in block]
        return (*blocks, *((self.names_in[0],) if self.names_in else ()))


def _cifar(folder: str, archive: str, train: tuple[str, ...], test: str, key: str) -> DataSet:
    names = "meta" if len(train) == 1 else "batches.meta"
    return DataSet(
        folder,
        {"train": [(file,) for file in train], "test": [(test,)]},
        read_batch,
        names_in=(names, key),
        archives={archive: (*train, test, names)},
    )


def _mnist(name: str, classes: Sequence[str]) -> DataSet:
    folder = f"{name}/raw"
    parts = {
        part: [(f"{start}-images-idx3-ubyte", f"{start}-labels-idx1-ubyte")]
        for part, start in (("train", "train"), ("test", "t10k"))
    }
    files = [file for blocks in parts.values() for file in blocks[0]]
    archives = {f"{folder}/{file}.gz": (file,) for file in files}
    return DataSet(folder, parts, read_idx, classes=tuple(classes), archives=archives)


SETS: Final[Mapping[str, DataSet]] = {
    "torchvision:CIFAR10": _cifar(
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
        tuple(f"data_batch_{i}" for i in range(1, 6)),
        "test_batch",
        "label_names",
    ),
    "torchvision:CIFAR100": _cifar(
        "cifar-100-python", "cifar-100-python.tar.gz", ("train",), "test", "fine_label_names"
    ),
    "torchvision:MNIST": _mnist("MNIST", "0123456789"),
    "torchvision:FashionMNIST": _mnist(
        "FashionMNIST",
        (
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
    ),
    "sklearn:digits": DataSet(
        None, {"": [("digits.csv.gz",)]}, read_digits, classes=tuple("0123456789")
    ),
}
