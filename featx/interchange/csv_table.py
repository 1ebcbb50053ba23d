"""Features as CSV: for programs that read nothing else."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Final

import numpy as np

from featx.interchange.exported import Exported

COLUMNS: Final = ("path", "label", "y", "split", "group", "sha256")
_TEXTS: Final = 2**11  # values that are text at a time
_END: Final = "\r\n"  # as RFC 4180 asks; names that hold a line break are quoted for it


def write_csv(stream: BinaryIO, exported: Exported) -> None:
    """Write path, label, y, split, group, sha256 and a column for each value, ``f0``, ``f1``, ….

    Every number is the shortest text that gives the same bits when it is read as the type it was
    stored in. Text is UTF-8 without a byte-order mark, and paths that are no UTF-8 keep their
    bytes.
    """
    text = io.TextIOWrapper(stream, "utf-8", errors="surrogateescape", newline="")
    text.write(_line((*COLUMNS, *(f"f{i}" for i in range(exported.d)))) + _END)
    for block in exported.blocks():
        groups = ["" if group < 0 else group for group in exported.groups[block].tolist()]
        rows = zip(
            map(os.fsdecode, exported.paths(block)),
            exported.labels(block),
            exported.y[block].tolist(),
            exported.splits(block),
            groups,
            exported.hashes(block),
            strict=True,
        )
        for cells, numbers in zip(rows, _texts(exported.features(block)), strict=True):
            text.write(f"{_line(cells)},{','.join(numbers)}{_END}")
    text.detach()  # flushes; the file is its owner's to close


def _line(cells: Sequence[object]) -> str:
    line = io.StringIO(newline="")
    csv.writer(line, lineterminator=_END).writerow(cells)
    return line.getvalue().removesuffix(_END)


def _texts(features: np.ndarray) -> Iterator[list[str]]:
    """Each row of `features` (b, d...) as the texts of its values."""
    flat = features.reshape(len(features), -1)
    step = max(1, _TEXTS // flat.shape[1])
    for start in range(0, len(flat), step):
        yield from flat[start : start + step].astype(str).tolist()
