"""Lists that name images: CSV, text lists and the tables of CUB-200-2011, as rows of text.

Level 0: only the list itself is read here. Finding the files it names is `featx.image_sources`.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from featx.counting import first_few
from featx.errors import InputError

# line in the list, path as written, label, split, group (None: the list has no such column)
Row = tuple[int, str, str | None, str | None, str | None]

_SHOWN: Final = 10  # columns that are named as not used


@dataclass(frozen=True)
class ImageList:
    """What a list says: `source` is its file, paths in `rows` are relative to its folder."""

    source: Path
    kind: str  # list | csv | cub-200-2011
    rows: tuple[Row, ...]
    has_labels: bool = False
    has_splits: bool = False
    classes: tuple[str, ...] | None = None  # an order the list prescribes
    notes: tuple[str, ...] = ()


def read_list(path: Path) -> ImageList:
    """Read a text list: one path a line, absolute or relative to the list's own folder.

    Blank lines are skipped; no character is special, `#` neither. A byte-order mark is ignored.

    Raises
    ------
    InputError
        When the file cannot be read.
    """
    lines = _read(path).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    rows: list[Row] = [
        (number, os.fsdecode(line.rstrip(b"\r")), None, None, None)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    return ImageList(path, "list", tuple(rows))


def read_csv(path: Path) -> ImageList:
    """Read a CSV with a header line `path[,label][,split][,group]`.

    Columns stand in any order; others are not used, and `notes` says so. `;` and tabs separate as
    well (spreadsheets write them), a byte-order mark is ignored.

    Raises
    ------
    InputError
        Naming the line: no column `path`, a row without path or longer than the header, text that
        is not UTF-8, broken quotes.
    """
    text = _read(path).removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    delimiter, header = _header(path, text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[Row] = []
    try:
        next(reader)
        for fields in reader:
            if not any(cell.strip() for cell in fields):
                continue
            if len(fields) > len(header):
                raise InputError(
                    f"{path}, line {reader.line_num}: {len(fields)} fields under {len(header)} "
                    f"columns; put paths that hold {delimiter!r} in double quotes"
                )
            cells = dict(zip(header, fields, strict=False))
            label, split, group = (
                _cell(path, reader.line_num, cells, name) if name in header else None
                for name in ("label", "split", "group")
            )
            rows.append((reader.line_num, cells.get("path", ""), label, split, group))
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not a valid CSV ({error})") from error
    unknown = [repr(name) for name in header if name not in {"path", "label", "split", "group"}]
    told = f"columns of {path.name} not used: {first_few(unknown, _SHOWN)}"
    notes = (told,) if unknown else ()
    return ImageList(
        path,
        "csv",
        tuple(rows),
        has_labels="label" in header,
        has_splits="split" in header,
        notes=notes,
    )


def has_column(path: Path, column: str) -> bool:
    """Whether a file is a CSV with the columns `path` and `column`; upper case counts as lower."""
    try:
        text = _read(path).removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
        return column.strip().lower() in _header(path, text)[1]
    except InputError:
        return False


def read_column(path: Path, column: str) -> list[tuple[str, str]]:
    """Path and cell of every row of a CSV that has both columns; written as `read_csv` reads it.

    Raises
    ------
    InputError
        As `read_csv`, and where there is no such column, naming those there are.
    """
    text = _read(path).removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    delimiter, header = _header(path, text)
    name = column.strip().lower()
    if name not in header or not name:
        raise InputError(
            f"{path} has no column {column!r}; it has {', '.join(filter(None, header))}"
        )
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        next(reader)
        return [
            (cells.get("path", ""), _cell(path, reader.line_num, cells, name))
            for fields in reader
            if any(cell.strip() for cell in fields)
            for cells in [dict(zip(header, fields, strict=False))]
        ]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not a valid CSV ({error})") from error


def _header(path: Path, text: str) -> tuple[str, list[str]]:
    """Return the delimiter and the lower-case column names of a CSV's first line."""
    first = re.split(r"[\r\n]", text, maxsplit=1)[0]  # old spreadsheets of the Mac end lines in \r
    for delimiter in ",;\t":
        # strict=False: whatever the file is, the message below says what its first line looks like
        try:
            cells = next(csv.reader([first], delimiter=delimiter), [])
        except csv.Error:  # no text at all
            continue
        header = [name.strip().lower() for name in cells]
        if "path" in header:
            twice = [name for name, n in Counter(header).items() if n > 1 and name]
            if twice:
                raise InputError(f"{path}: the column {twice[0]!r} is there twice")
            return delimiter, header
    raise InputError(
        f"{path} has no column 'path': its first line is {first[:80]!r}; "
        "expected a header line path,label[,split][,group]"
    )


def _cell(path: Path, line: int, cells: dict[str, str], name: str) -> str:
    """Return one cell, stripped; a row shorter than the header has an empty one."""
    value = cells.get(name, "").strip()
    if any("\udc80" <= c <= "\udcff" for c in value):  # what surrogateescape leaves behind
        raise InputError(
            f"{path}, line {line}: the {name} {value!r} is not UTF-8; save the file as 'CSV UTF-8'"
        )
    return value


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def find_cub(folder: Path) -> Path | None:
    """Return the folder of a CUB-200-2011 archive: `folder` itself or its CUB_200_2011/ child."""
    for candidate in (folder, folder / "CUB_200_2011"):
        if all((candidate / name).is_file() for name in ("images.txt", "image_class_labels.txt")):
            return candidate
    return None


def read_cub(folder: Path) -> ImageList:
    """Read CUB-200-2011 as downloaded: four tables keyed by numbers (Wah et al. 2011, README).

    `is_training` 1 is the split train, 0 is test; classes stand in the order of classes.txt.

    Raises
    ------
    InputError
        For a missing table, or an image without a class or split.
    """
    names = _numbered(folder / "images.txt")
    class_of = _numbered(folder / "image_class_labels.txt")
    class_names = _numbered(folder / "classes.txt")
    is_training = _numbered(folder / "train_test_split.txt")
    rows: list[Row] = []
    for line, (number, name) in enumerate(names.items(), start=1):
        label = class_names.get(class_of.get(number, ""))
        if label is None or is_training.get(number) not in {"0", "1"}:
            raise InputError(
                f"{folder}: image {number} ({name!r}) has no class or split; images.txt, "
                "image_class_labels.txt, classes.txt and train_test_split.txt belong together: "
                "unpack the archive again"
            )
        split = "train" if is_training[number] == "1" else "test"
        rows.append((line, "images/" + name, label, split, None))
    return ImageList(
        folder / "images.txt",
        "cub-200-2011",
        tuple(rows),
        has_labels=True,
        has_splits=True,
        classes=tuple(class_names.values()),
    )


def _numbered(path: Path) -> dict[str, str]:
    """Return a CUB table of lines `number value` as a dictionary, in the file's order."""
    if not path.is_file():
        raise InputError(f"{path.parent} looks like CUB-200-2011 but has no {path.name}")
    pairs = (line.split(maxsplit=1) for line in os.fsdecode(_read(path)).splitlines())
    return {pair[0]: pair[1].strip() for pair in pairs if len(pair) == 2}
