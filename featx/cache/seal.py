"""The seal of a finished cache: digests that tell whether every byte is as it was written.

The features have a CRC-32 a row. Everything else is covered by one SHA-256, the digest; the run
report holds shorter ones of each dataset, so that a check can say which of them is damaged.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any, Final

from featx.cache.files import MEND, told_as_disk_error
from featx.cache.layout import RUN_BYTES, canonical_json
from featx.cache.reader import CacheFile
from featx.errors import CacheError

OTHER_BYTES: Final = "other bytes"  # those of HDF5 itself, and padding
_HEX_DIGITS: Final = 16  # of each dataset's digest; the whole is covered by all 64
_CHUNK: Final = 1 << 20


def seal_of(file: CacheFile) -> tuple[bytes, dict[str, str]]:
    """Digests of every byte outside `features`, in one pass and in bounded memory.

    Returns
    -------
    digest : SHA-256 (32 bytes) of all of them, the digest's own bytes taken as zeros.
    columns : the first 16 hex digits of the SHA-256 of each dataset but `features`, `run` and
        `digest`, and of the bytes that lie in no dataset (``other bytes``).
    """
    whole = hashlib.sha256()
    own = {name: hashlib.sha256() for name in file.columns.keys() - {"features", "run", "digest"}}
    own[OTHER_BYTES] = hashlib.sha256()
    spans = sorted((file.offsets[name], file.columns[name].nbytes, name) for name in file.columns)
    with told_as_disk_error(file.path, "read", MEND), file.path.open("rb") as stream:
        end = os.fstat(stream.fileno()).st_size
        position = 0
        for start, length, name in [*spans, (end, 0, OTHER_BYTES)]:
            _hash_range(stream, position, start, whole, own[OTHER_BYTES])
            if name == "digest":
                whole.update(bytes(length))
            elif name != "features":
                _hash_range(stream, start, start + length, whole, own.get(name))
            position = start + length
    columns = {name: own[name].hexdigest()[:_HEX_DIGITS] for name in sorted(own)}
    return whole.digest(), columns


def is_intact(file: CacheFile) -> bool:
    """Whether every byte of a finished cache outside its features is as it was written."""
    return seal_of(file)[0] == file.read("digest").tobytes()


def sealed(report: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The run report with the digest of each dataset, and with its own."""
    vouched = {**report, "columns": dict(columns)}
    return {**report, "columns": {**columns, "run": _own_digest(vouched)}}


def damaged_columns(file: CacheFile, columns: Mapping[str, str]) -> tuple[str, ...]:
    """What has changed in a file whose digest does not match.

    Parameters
    ----------
    columns : digests of the datasets as they are now, from `seal_of`.

    Returns
    -------
    Names of datasets, or ``other bytes``. Where ``run`` is damaged it stands alone: what vouches
    for each of the others lies in it. A cache without digests of its datasets gives all names,
    since it may be any of them.
    """
    try:
        report = file.run
    except CacheError:
        return ("run",)
    text = canonical_json(report).encode("ascii")
    if file.read("run").tobytes() != text.ljust(RUN_BYTES, b"\0"):
        return ("run",)
    recorded = report.get("columns")
    if recorded is None:
        return tuple(sorted({*columns, "run", "digest"}))
    if not isinstance(recorded, dict):
        return ("run",)
    vouched = {name: digest for name, digest in recorded.items() if name != "run"}
    if _own_digest({**report, "columns": vouched}) != recorded.get("run"):
        return ("run",)
    differing = tuple(name for name in columns if columns[name] != recorded.get(name))
    return differing or ("digest",)


def _own_digest(report: Mapping[str, Any]) -> str:
    text = canonical_json(report).encode("ascii")
    return hashlib.sha256(text).hexdigest()[:_HEX_DIGITS]


def _hash_range(stream: Any, start: int, stop: int, *hashes: Any) -> None:
    stream.seek(start)
    while start < stop and (chunk := stream.read(min(_CHUNK, stop - start))):
        for sha256 in hashes:
            if sha256 is not None:
                sha256.update(chunk)
        start += len(chunk)
