"""The files of MNIST: an image file and a label file, big-endian headers before plain bytes.

Source: LeCun, Cortes & Burges, "The MNIST database", section "File formats". Fashion-MNIST has the
same.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from featx.datasets.blocks import Block
from featx.errors import InputError

_IMAGES, _LABELS = 0x0803, 0x0801  # unsigned bytes in three dimensions, and in one
_WHAT: Final = {_IMAGES: "images", _LABELS: "labels"}


def read_idx(files: Sequence[Path], n_classes: int) -> Block:
    """The images of an image file and its label file.

    Parameters
    ----------
    files : the two, unpacked.
    n_classes : above every label.

    Raises
    ------
    InputError
        Naming the file that is damaged or does not belong to the other.
    OSError
        A file cannot be read.
    """
    pixels, labels = _mapped(files[0], _IMAGES), _mapped(files[1], _LABELS)
    if len(labels) != len(pixels):
        raise InputError(
            f"{files[1]} has {len(labels):,} labels for the {len(pixels):,} images of {files[0]}; "
            "they belong together: get both anew"
        )
    if labels.max() >= n_classes:
        raise InputError(
            f"{files[1]} is damaged: it has the label {labels.max()}, where {n_classes} classes "
            "are numbered from 0; get it anew"
        )
    return Block(pixels, np.array(labels))


def _mapped(path: Path, kind: int) -> np.ndarray:
    """The values of a file as a memory map; its header and its size are checked first."""
    n_dimensions = kind & 0xFF
    header = struct.Struct(f">{1 + n_dimensions}I")
    with path.open("rb") as stream:
        start = stream.read(header.size)
    found, *shape = header.unpack(start.ljust(header.size, b"\0"))
    wanted = header.size + math.prod(shape)
    size = path.stat().st_size
    if found != kind or not all(shape) or size != wanted:
        told = f"{size:,} bytes that start with {start[:4].hex(' ')}"
        if found == kind:
            told = f"{size:,} bytes for a shape of {shape}, which takes {wanted:,}"
        raise InputError(f"{path} is no file of {_WHAT[kind]}, or damaged: {told}; get it anew")
    return np.memmap(path, np.uint8, "r", header.size, tuple(shape))
