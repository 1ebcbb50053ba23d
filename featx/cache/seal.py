"""The seal of a finished cache: digests that tell whether every byte is as it was written.

The features have a CRC-32 a row. Everything else is covered by one SHA-256, the digest; the run
report holds shorter ones of each dataset, so that a check can say which of them is damaged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, Final

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
    pieces = _pieces(file)
    whole, own = hashlib.sha256(), _own_hashes(pieces)
    _hash(file, pieces, whole, own)
    return whole.digest(), _hex_digits(own)


def sealing(file: CacheFile) -> tuple[dict[str, str], Callable[[], bytes]]:
    """Digests of a file whose run report is still to be written: what is read is read once.

    Returns
    -------
    columns : as of `seal_of`; they belong in the report.
    digest : gives that of `seal_of` as soon as the report is in the file.
    """
    pieces = _pieces(file)
    run = next(i for i, (name, _, _) in enumerate(pieces) if name == "run")
    whole, own = hashlib.sha256(), _own_hashes(pieces)

    def digest() -> bytes:
        _hash(file, pieces[run:], whole, {})
        return whole.digest()

    with ThreadPoolExecutor(1) as beside:
        before = beside.submit(_hash, file, pieces[:run], whole, {})
        _hash(file, pieces, None, own)
        before.result()
    return _hex_digits(own), digest


def _pieces(file: CacheFile) -> list[tuple[str, int, int]]:
    """Name, start and stop of all that lies outside `features`, in the file's order."""
    spans = sorted((file.offsets[name], file.columns[name].nbytes, name) for name in file.columns)
    with told_as_disk_error(file.path, "read", MEND):
        end = file.path.stat().st_size
    pieces, position = [], 0
    for start, length, name in [*spans, (end, 0, OTHER_BYTES)]:
        pieces += [(OTHER_BYTES, position, start), (name, start, start + length)]
        position = start + length
    return [piece for piece in pieces if piece[0] != "features"]


def _own_hashes(pieces: Iterable[tuple[str, int, int]]) -> dict[str, Any]:
    return {name: hashlib.sha256() for name, _, _ in pieces if name not in ("run", "digest")}


def _hex_digits(own: Mapping[str, Any]) -> dict[str, str]:
    return {name: own[name].hexdigest()[:_HEX_DIGITS] for name in sorted(own)}


def _hash(
    file: CacheFile, pieces: Iterable[tuple[str, int, int]], whole: Any, own: Mapping[str, Any]
) -> None:
    """Feed pieces of a file to the hash of the whole, if any, and to that of each dataset."""
    with told_as_disk_error(file.path, "read", MEND), file.path.open("rb", buffering=0) as stream:
        for name, start, stop in pieces:
            hashes = [each for each in (whole, own.get(name)) if each is not None]
            if name != "digest":
                _hash_range(stream, start, stop, hashes)
            elif whole is not None:
                whole.update(bytes(stop - start))


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


def _hash_range(stream: BinaryIO, start: int, stop: int, hashes: Sequence[Any]) -> None:
    stream.seek(start)
    while hashes and start < stop and (chunk := stream.read(min(_CHUNK, stop - start))):
        for sha256 in hashes:
            sha256.update(chunk)
        start += len(chunk)
