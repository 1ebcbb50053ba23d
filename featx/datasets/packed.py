"""Paths of images that lie in data files, and the bytes they stand for."""

from __future__ import annotations

import functools
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from featx.datasets.blocks import Block
from featx.datasets.catalogue import SETS, DataSet
from featx.datasets.cifar import class_names
from featx.datasets.digits import digits_folder
from featx.datasets.fetching import ensure
from featx.errors import InputError
from featx.home import at_home

_PREFIXES: Final = ("torchvision:", "sklearn:")
_BUNDLED: Final = Path("/")  # the same on every machine, as what comes with scikit-learn is
_SEP: Final = re.escape(os.sep) + "/"
_NAMED: Final = re.compile(
    rf"((?:.*[{_SEP}])?)({'|'.join(map(re.escape, SETS))})(?:[{_SEP}]+(.*?)[{_SEP}]*)?", re.DOTALL
)
_lock = threading.Lock()


class Packed(NamedTuple):
    """One image: its path below the root, what a `stat` of it would say, label and split."""

    path: bytes
    size_bytes: int
    mtime_ns: int
    label: str
    split: str


@dataclass(frozen=True)
class Place:
    """A data set in a data root, or one part or image of it.

    Attributes
    ----------
    name : of the data set.
    data_root : the folder of its files.
    within : path below `root` of the part or image; empty for the whole.
    """

    name: str
    data_root: Path
    within: str = ""

    @property
    def root(self) -> Path:
        """What the paths of its images are relative to. There is no such folder."""
        return self.data_root / self.name

    @property
    def data_set(self) -> DataSet:
        """The catalogue's entry."""
        return SETS[self.name]

    @property
    def home(self) -> Path:
        """The folder of its files."""
        folder = self.data_set.folder
        return digits_folder() if folder is None else self.data_root / folder


def located(
    source: str | os.PathLike[str], data_root: str | os.PathLike[str] = "data"
) -> str | os.PathLike[str]:
    """A data set by name as the path that stands for it, ``data/torchvision:CIFAR10``.

    Every other source is returned as it is.

    Raises
    ------
    InputError
        There is no such data set.

    Examples
    --------
    >>> Path(located("torchvision:CIFAR10/test", "sets")).parts
    ('sets', 'torchvision:CIFAR10', 'test')
    >>> located("birds/")
    'birds/'
    """
    text = os.fspath(source)
    if not text.startswith(_PREFIXES) or Path(text).exists():
        return source
    name = Path(text).parts[0]
    if name not in SETS:
        raise InputError(f"there is no data set {name!r}; there are {', '.join(SETS)}")
    top = _BUNDLED if SETS[name].folder is None else at_home(data_root)
    return os.fspath(top / text)


def find(path: str | os.PathLike[str]) -> Place | None:
    """The data set that a path names, or an image of which; None for any other path.

    A folder that is there and has such a name is a folder.
    """
    found = _NAMED.fullmatch(os.fspath(path))
    if found is None or os.path.lexists(found[1] + found[2]):
        return None
    return Place(found[2], Path(found[1]), (found[3] or "").replace(os.sep, "/"))


def images_of(place: Place) -> tuple[list[Packed], tuple[str, ...], tuple[str, ...]]:
    """The images of a data set, sorted by path; its classes by label; sentences on what was done.

    Files that are not there are unpacked from their archive, which is downloaded where it is not
    there either.

    Raises
    ------
    InputError, DiskError
        Files are damaged or not to be had, or there is no such part or image.
    """
    data_set = place.data_set
    notes = ensure(place.name, data_set, place.data_root) if data_set.folder is not None else ()
    try:
        classes = _classes(place)
        found = sorted(_packed(place, classes))
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from error
    if place.within:
        wanted = os.fsencode(place.within)
        found = [row for row in found if row.path == wanted or row.path.startswith(wanted + b"/")]
    if not found:
        raise InputError(f"{place.name} has no images {place.within!r}")
    return found, classes, notes


def _packed(place: Place, classes: tuple[str, ...]) -> Iterator[Packed]:
    folders = [_folder(name) for name in classes]
    for part, blocks in place.data_set.parts.items():
        start = f"{part}/" if part else ""
        first = 0
        for names in blocks:
            files = [place.home / name for name in names]
            block = _block(place, files, len(classes))
            size, time = block.picture_bytes, _time(files[0])
            for number, label in enumerate(block.labels.tolist(), start=first):
                path = os.fsencode(f"{start}{folders[label]}/{number:05}")
                yield Packed(path, size, time, classes[label], part)
            first += len(block.labels)


def _time(file: Path) -> int:
    """When a file was last changed, within what a cache can hold."""
    return min(max(file.stat().st_mtime_ns, -(2**63)), 2**63 - 1)


def read_packed(path: str | os.PathLike[str]) -> bytes | None:
    """The picture file that the path of an image in a data file stands for; None for another path.

    Raises
    ------
    InputError
        There is no such image, or the file is damaged.
    OSError
        The file cannot be read.
    """
    place = find(path)
    if place is None:
        return None
    parts = place.data_set.parts
    part, _, rest = ("", "", place.within) if "" in parts else place.within.partition("/")
    folder, _, number = rest.rpartition("/")
    if part not in parts or not (number.isascii() and number.isdecimal()):
        raise InputError(f"{place.name} has no image {place.within!r}")
    classes, at = _classes(place), int(number)
    for names in parts[part]:
        block = _block(place, [place.home / name for name in names], len(classes))
        if at < len(block.labels):
            is_now = _folder(classes[block.labels[at]])
            if is_now != folder:
                raise InputError(
                    f"image {number} of {part or place.name} is {is_now} now: list anew"
                )
            return block.picture(at)
        at -= len(block.labels)
    raise InputError(f"{place.name} has no image {place.within!r}")


def _folder(name: str) -> str:
    """A class name as a part of a path."""
    return name.replace("/", "-")


# --- opened files, kept for as long as they do not change -----------------------------------------


class _Stamp(NamedTuple):
    path: Path
    size_bytes: int
    mtime_ns: int


def _stamp(path: Path) -> _Stamp:
    status = path.stat()
    return _Stamp(path, status.st_size, status.st_mtime_ns)


def _block(place: Place, files: list[Path], n_classes: int) -> Block:
    with _lock:  # of several threads that want a file, one reads it
        return _read_block(place.name, tuple(map(_stamp, files)), n_classes)


def _classes(place: Place) -> tuple[str, ...]:
    names_in = place.data_set.names_in
    if names_in is None:
        return place.data_set.classes
    with _lock:
        return _read_classes(_stamp(place.home / names_in[0]), names_in[1])


@functools.lru_cache(16)
def _read_block(name: str, files: tuple[_Stamp, ...], n_classes: int) -> Block:
    return SETS[name].read([file.path for file in files], n_classes)


@functools.lru_cache(4)
def _read_classes(file: _Stamp, key: str) -> tuple[str, ...]:
    return class_names(file.path, key)
