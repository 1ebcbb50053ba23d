"""A folder, CSV, text list or glob becomes an ordered table of image files.

Nothing is read but folders, lists and `stat`: no image is opened, no heavy package imported.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from featx.datasets.packed import Place, find, images_of, located
from featx.errors import InputError
from featx.image_folders import LAYOUT, folder_notes, labels_of_folders, split_code, split_levels
from featx.image_lists import ImageList, find_cub, read_csv, read_cub, read_list
from featx.image_sources import (
    IMAGE_SUFFIXES,
    Found,
    Listing,
    expand_inputs,
    has_magic,
    locate,
    shown,
    some,
    walk,
    walk_glob,
)

__all__ = ["IMAGE_SUFFIXES", "ImageTable", "display_names", "expand_inputs", "list_images"]

# "001.Black_footed_Albatross", "0042-wren"; but neither "2.5mm" nor "7_spot_ladybird"
NUMBER_PREFIX = re.compile(r"^(?:\d+\.\s*|\d{3,}[_\- ]+)(?=\D)")


@dataclass(frozen=True, eq=False)
class ImageTable:
    """The images of one source, in the order every later stage keeps.

    Attributes
    ----------
    root : absolute, resolved folder the paths are below.
    paths : `os.fsencode` bytes relative to `root`, `/`-separated, unique, sorted bytewise.
    labels : (n,) int64, index into `classes`; -1: none.
    classes : (k,) names as in the folder or list, NFC-normalised, sorted; () when unlabelled.
    split : (n,) uint8: 0 none, 1 train, 2 val, 3 test.
    groups : (n,) int64, index into `group_names`; -1: none.
    group_names : sorted.
    size_bytes, mtime_ns : (n,) int64 from `stat`; 0 where it failed.
    skipped : reason -> how many files or folders were left out for it.
    notes : sentences for the user on what may surprise.
    rules : the listing rules that enter the spec.
    """

    root: Path
    paths: tuple[bytes, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    split: np.ndarray
    groups: np.ndarray
    group_names: tuple[str, ...]
    size_bytes: np.ndarray
    mtime_ns: np.ndarray
    skipped: Mapping[str, int]
    notes: tuple[str, ...]
    rules: Mapping[str, str | bool]

    def __len__(self) -> int:
        return len(self.paths)

    def file(self, i: int) -> Path:
        """Return the absolute path of image `i`."""
        return self.root / os.fsdecode(self.paths[i])

    @property
    def names(self) -> tuple[str, ...]:
        """The class names as people read them; see `display_names`."""
        return display_names(self.classes)


def list_images(
    source: str | os.PathLike[str],
    *,
    label_from: Literal["first", "leaf"] = "first",
    split_folders: bool | None = None,
    prune: bool = False,
    data_root: str | os.PathLike[str] = "data",
) -> ImageTable:
    """List the images of a source, with their labels and split.

    Parameters
    ----------
    source
        A folder of class folders, of train/, val/ and test/ folders above them, or of images only
        (unlabelled); a CSV `path[,label][,split][,group]`; a text list of paths (.txt); a glob
        (``"birds/**/*.jpg"``); CUB-200-2011 as unpacked; or a data set by name
        (``"torchvision:CIFAR10"``). Lists are relative to their folder.
    label_from
        Which folder is the label: the `first` under the root or split, or the `leaf`, which
        holds the file. Not used where a list has labels.
    split_folders
        Whether the top folders train, val (valid, validation) and test, in any case, are the
        split. None: if there are any.
    prune
        Accept class folders without images: they are no classes, as if they were not there.
    data_root
        The folder that data sets by name lie in, or are downloaded to.

    Returns
    -------
    ImageTable
        Sorted by path. Symbolic links are followed, except in circles. Hidden files and what is
        no image are left out and counted.

    Raises
    ------
    InputError
        No such source, no images in it, a class folder without images (but see `prune`), train/
        beside class folders, and everything wrong in a list (missing files, files listed twice,
        unknown splits).

    Examples
    --------
    >>> table = list_images("birds/")  # doctest: +SKIP
    >>> table.file(0), table.classes[table.labels[0]]  # doctest: +SKIP
    """
    if label_from not in ("first", "leaf"):
        raise InputError(f"label_from must be 'first' or 'leaf', got {label_from!r}")
    listing, listed = _find(source, data_root)
    return table_of(
        listing, listed, label_from=label_from, split_folders=split_folders, prune=prune
    )


def table_of(
    listing: Listing,
    listed: ImageList | None,
    *,
    label_from: Literal["first", "leaf"] = "first",
    split_folders: bool | None = None,
    prune: bool = False,
) -> ImageTable:
    """Labels, split and groups of files that were found.

    Parameters
    ----------
    listing : the files, sorted by path.
    listed : the list that named them, if one did.
    label_from, split_folders, prune : as of `list_images`.

    Raises
    ------
    InputError
        As `list_images`, for what is wrong in folders or columns.
    """
    rules: dict[str, str | bool] = {
        "source": listing.kind,
        "label_from": label_from,
        "split_folders": "auto" if split_folders is None else split_folders,
    }
    found = listing.found
    notes = list(listing.notes)
    if listed is not None and listed.has_labels:
        rules = {"source": listing.kind}
        names: list[str | None] = [
            unicodedata.normalize("NFC", row.label) if row.label else None for row in found
        ]
        split = np.zeros(len(found), np.uint8)
    else:
        n_levels = split_levels(listing, split_folders)
        names, split = labels_of_folders(listing, label_from, n_levels)
        notes += folder_notes(listing, names, label_from, n_levels, prune=prune)
    if listed is not None and listed.has_splits:
        split = _split_column(listed, found)
    present = {name for name in names if name is not None}
    if listed is not None and listed.classes is not None:
        classes = tuple(unicodedata.normalize("NFC", name) for name in listed.classes)
    else:
        classes = tuple(sorted(present))
    if len(present) == 1:
        notes.append(
            f"only one class, {next(iter(present))!r}: a head needs two; if the classes lie "
            "deeper, list that folder, or take the label from the leaf folder (--label-from leaf)"
        )
    groups, group_names = _codes([row.group or None for row in found])
    return ImageTable(
        root=listing.root.resolve(),
        paths=tuple(row.path for row in found),
        labels=_frozen(_codes(names, classes)[0]),
        classes=classes,
        split=_frozen(split),
        groups=_frozen(groups),
        group_names=group_names,
        size_bytes=_frozen(np.array([row.size_bytes for row in found], np.int64)),
        mtime_ns=_frozen(np.array([row.mtime_ns for row in found], np.int64)),
        skipped=dict(sorted(listing.skipped.items())),
        notes=tuple(notes),
        rules=rules,
    )


def _find(
    source: str | os.PathLike[str], data_root: str | os.PathLike[str]
) -> tuple[Listing, ImageList | None]:
    """Find the files of a source by what it is, a data set, folder, CSV, text list or glob."""
    text = os.path.expanduser(os.fspath(located(source, data_root)))  # noqa: PTH111 (a glob is no path)
    path = Path(text)
    place = find(path)
    if place is not None:
        return _of_data_set(place)
    if not text:
        raise InputError(f"the source of images is empty; expected {LAYOUT}")
    if path.is_dir():
        cub = find_cub(path)
        if cub is None:
            return _not_empty(walk(path), path), None
        listed = read_cub(cub)
    elif path.is_file():
        suffix = path.suffix.lower()
        if suffix == ".csv":
            listed = read_csv(path)
        elif suffix == ".txt":
            listed = read_list(path)
        else:
            raise InputError(_wrong_file(path, suffix))
    elif has_magic(text):
        return _not_empty(walk_glob(text), shown(text)), None
    else:
        raise InputError(f"no such file or folder: {shown(text)}; expected {LAYOUT}")
    listing = locate(listed.source, listed.rows, kind=listed.kind)
    notes = listing.notes + listed.notes
    return Listing(listing.root, listing.kind, listing.found, notes=notes), listed


def _of_data_set(place: Place) -> tuple[Listing, ImageList]:
    if place.within:
        raise InputError(f"{place.root / place.within} is a part of a data set: name {place.root}")
    rows, classes, notes = images_of(place)
    has_splits = any(row.split for row in rows)
    found = [Found(row.path, row.size_bytes, row.mtime_ns, row.label, row.split) for row in rows]
    listed = ImageList(
        place.home, "data set", (), has_labels=True, has_splits=has_splits, classes=classes
    )
    return Listing(place.root, listed.kind, found, notes=notes), listed


def _wrong_file(path: Path, suffix: str) -> str:
    if suffix in IMAGE_SUFFIXES:
        return (
            f"{path} is one image; expected {LAYOUT}, a CSV, a text list or a glob "
            "(featx predict takes single images)"
        )
    if suffix in {".zip", ".tar", ".tgz", ".gz", ".7z", ".rar"}:
        return f"{path} is an archive: unpack it and name the folder"
    return f"{path} is a {suffix or 'plain'} file; expected {LAYOUT}, a .csv, a .txt or a glob"


def _not_empty(listing: Listing, source: Path | str) -> Listing:
    """Return the listing, or say what was found where no image was."""
    if listing.found:
        return listing
    seen = [f"{n:,} x {reason}" for reason, n in listing.skipped.most_common(6)]
    if listing.folders:
        word = "folder" if len(listing.folders) == 1 else "folders"
        seen.append(f"{len(listing.folders):,} {word} ({some(listing.folders)})")
    what = "; ".join(seen) or "nothing at all"
    raise InputError(f"no images in {source}: found {what}; expected {LAYOUT}")


def _split_column(listed: ImageList, found: Sequence[Found]) -> np.ndarray:
    """Return the split codes of a list's own column; raise for a word that is no split."""
    for line, _, _, word, _ in listed.rows:
        if word and not split_code(word):
            raise InputError(
                f"{listed.source}, line {line}: unknown split {word!r}; expected train, val or "
                "test (valid and validation are val), or nothing"
            )
    return np.array([split_code(row.split or "") for row in found], np.uint8)


def _codes(
    names: Sequence[str | None], order: Sequence[str] | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return (n,) int64 indices into the sorted names (or `order`), -1 for None; and the names."""
    if order is None:
        order = sorted({name for name in names if name is not None})
    index: dict[str | None, int] = {name: i for i, name in enumerate(order)}
    index[None] = -1
    return np.array([index[name] for name in names], np.int64), tuple(order)


def _frozen(values: np.ndarray) -> np.ndarray:
    values.flags.writeable = False
    return values


def display_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Return class names as people read them: no leading number, spaces for underscores.

    Where two names would be equal, both keep their numbers; they are always distinct.

    Examples
    --------
    >>> display_names(["001.Black_footed_Albatross", "002.Laysan_Albatross"])
    ('Black footed Albatross', 'Laysan Albatross')
    >>> display_names(["1.gull", "2.gull", "003"])
    ('1.gull', '2.gull', '003')
    """
    forms = [
        (
            NUMBER_PREFIX.sub("", name).replace("_", " ").strip() or name,
            name.replace("_", " "),
            name,
        )
        for name in classes
    ]
    level = [0] * len(forms)
    while True:
        names = [form[step] for form, step in zip(forms, level, strict=True)]
        count = Counter(names)
        raised = [min(step + (count[name] > 1), 2) for name, step in zip(names, level, strict=True)]
        if raised == level:
            return tuple(names)
        level = raised
