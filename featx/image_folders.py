"""What the folders of images say: the class of each and its part of a split."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from featx.counting import counted
from featx.errors import InputError
from featx.image_sources import Listing, some
from featx.units import TEST, TRAIN, VAL

SPLIT_CODES = {"train": TRAIN, "val": VAL, "valid": VAL, "validation": VAL, "test": TEST}
LAYOUT = "a folder of class folders (birds/<class>/*.jpg), train/ val/ test/ above them if wanted"


def split_levels(listing: Listing, split_folders: bool | None) -> int:
    """Return how many leading folders of each path are the split: 1 or 0."""
    tops = Counter(path.split(b"/", 1)[0] for row in listing.found if b"/" in (path := row.path))
    tops.update({folder: 0 for folder in listing.folders if b"/" not in folder})
    splits = sorted(name for name in tops if split_code(name))
    others = sorted(name for name, n in tops.items() if n and not split_code(name))
    if split_folders is False or (split_folders is None and not any(tops[name] for name in splits)):
        return 0
    if not splits:
        raise InputError(
            f"no train, val or test folder in {listing.root}: found {some(others) or 'no folder'}; "
            "leave --split-folders away"
        )
    if others:
        raise InputError(
            f"{listing.root} holds split folders ({some(splits)}) beside other folders with images "
            f"({some(others)}): move one kind away, or if all of them are classes, "
            "use --no-split-folders (split_folders=False)"
        )
    return 1


def split_code(name: bytes | str) -> int:
    """Return the code of a split's name in any case, or 0 for no such name."""
    text = os.fsdecode(name) if isinstance(name, bytes) else name
    return SPLIT_CODES.get(text.casefold(), 0)


def labels_of_folders(
    listing: Listing, label_from: str, n_levels: int
) -> tuple[list[str | None], np.ndarray]:
    """Return the class name (None: none) and split code of each image, from its folders."""
    names: list[str | None] = []
    split = np.zeros(len(listing.found), np.uint8)
    known: dict[bytes, str] = {}
    for i, row in enumerate(listing.found):
        parts = row.path.split(b"/")
        if n_levels and len(parts) > 1:
            split[i] = split_code(parts[0])
        folders = parts[n_levels:-1]
        if not folders:
            names.append(None)
            continue
        folder = folders[0 if label_from == "first" else -1]
        if folder not in known:
            known[folder] = _class_name(folder)
        names.append(known[folder])
    return names, split


def folder_notes(
    listing: Listing, names: Sequence[str | None], label_from: str, n_levels: int, *, prune: bool
) -> list[str]:
    """Return what the folder rule left without a label; raise for a class folder without images."""
    classes = {name for name in names if name is not None}
    if not classes:
        return [f"no class folders in {listing.root}: all {len(names):,} images are unlabelled"]
    notes = _notes_on_empty(listing, classes, label_from, n_levels, prune=prune)
    below = [len(row.path.split(b"/")) - 1 for row in listing.found]
    n_stray = below.count(0)
    if n_stray:
        where = listing.root.resolve().name
        notes.append(f"{counted(n_stray, 'image')} directly in {where}/, in no class: unlabelled")
    n_bare = below.count(1) if n_levels else 0
    if n_bare:
        notes.append(f"{counted(n_bare, 'image')} directly in a split folder: unlabelled")
    return notes


def _notes_on_empty(
    listing: Listing, classes: set[str], label_from: str, n_levels: int, *, prune: bool
) -> list[str]:
    """Name the folders without images; unless `prune`, raise where one would be a class."""
    if listing.kind != "folder":  # a glob leaves folders out because it was told to
        return []
    used: set[bytes] = set()
    for folder in {row.path[: max(row.path.rfind(b"/"), 0)] for row in listing.found}:
        while folder and folder not in used:
            used.add(folder)
            folder = folder[: max(folder.rfind(b"/"), 0)]
    empty = [folder for folder in listing.folders if folder not in used]
    if label_from == "first":
        empty = [folder for folder in empty if folder.count(b"/") <= n_levels]
    else:
        parents = {folder.rpartition(b"/")[0] for folder in listing.folders}
        empty = [folder for folder in empty if folder not in parents]
    # A split folder may be empty, and so may a class that has its images in another split. A folder
    # of caches is none: it appears where a command is run in the folder of the images.
    new = [
        folder
        for folder in empty
        if folder.count(b"/") >= n_levels
        and _class_name(folder.rpartition(b"/")[2]) not in classes
        and not _is_of_caches(listing.root, folder)
    ]
    if new and not prune:
        raise InputError(
            f"{len(new):,} of the class folders in {listing.root} hold no images: {some(new)}; "
            "fill or remove them, or extract with --prune to go on without these classes; "
            f"expected {LAYOUT}"
        )
    return [f"no images in {some(empty)}"] if empty else []


def _is_of_caches(root: Path, folder: bytes) -> bool:
    """Whether a cache, finished or not, lies in a folder below the root, or in one it lies in."""
    place = root / os.fsdecode(folder)
    while place != root:
        with suppress(OSError):
            if any(each.name.endswith((".h5", ".h5.partial")) for each in place.iterdir()):
                return True
        place = place.parent
    return False


def _class_name(folder: bytes) -> str:
    """Return a folder's name as text; bytes that are not UTF-8 stay visible as ``\\xNN``.

    NFC, because macOS hands out decomposed letters: train/Grue cendrée and val/Grue cendrée
    copied from two systems are one class.
    """
    return unicodedata.normalize("NFC", folder.decode("utf-8", "backslashreplace"))
