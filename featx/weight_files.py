"""Files of weights as files: whether one may be read, and what its bytes are."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Final

from featx.errors import HeadError, WeightsError

_CHUNK_BYTES: Final = 1 << 20
_MAX_BYTES: Final = 64 * 2**30  # the largest published networks for images have some 25 GB


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, read in chunks of 1 MiB.

    Returns
    -------
    str
        64 lower-case hexadecimal digits.

    Raises
    ------
    WeightsError
        The file cannot be read.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> file = pathlib.Path(tempfile.mkdtemp(), "a"); _ = file.write_bytes(b"abc")
    >>> sha256_file(file)[:8]
    'ba7816bf'
    """
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise WeightsError(f"weights file {path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def check_made_with(made_with: str, found: str, *, backbone: str, weights: str) -> None:
    """Refuse weights that are not those that made some features.

    Parameters
    ----------
    made_with, found : SHA-256 of those that did, and of those at hand.
    backbone, weights : whose they are, and where those at hand were looked for.

    Raises
    ------
    HeadError
        They are others.
    """
    if made_with != found:
        raise HeadError(
            f"the features were made with {backbone} weights of SHA-256 {made_with[:16]}…, but "
            f"{weights} has {found[:16]}…; give the right file with --weights"
        )


def is_local_weights(path: str | os.PathLike[str]) -> bool:
    """Whether a path that a cache or head recorded may be looked at as a weights file.

    A plain file of a size that weights have, not of another host (asking for one tells Windows'
    server there who asks). Devices, pipes and endless files below /proc are none.
    """
    text = os.fspath(path)
    if os.name == "nt" and text.replace("/", "\\").startswith("\\\\"):
        return False
    try:
        status = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):  # ValueError: a NUL in it
        return False
    return stat.S_ISREG(status.st_mode) and 0 < status.st_size <= _MAX_BYTES
