"""Prepared networks kept on the disk between runs, each in one file with a digest of its own.

Preparing a network for an engine takes seconds; what comes out depends on nothing but what its key
says. A file that is damaged, of another key or of another format is as good as none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

FOLDER_VARIABLE: Final = "FEATX_ENGINE_FOLDER"
_MAGIC: Final = b"featx prepared network 1\n"
_SUFFIX: Final = ".engine"
_MAX_HEADER_BYTES: Final = 1 << 20
_ABANDONED_S: Final = 3_600  # no file takes so long to write
_MAX_TOTAL_BYTES: Final = 4 << 30  # a dozen large networks; the longest unused go first


@dataclass(frozen=True)
class Prepared:
    """A network as an engine takes it.

    Attributes
    ----------
    graph, weights : in the engine's own form; both empty where it cannot take the network.
    facts : JSON of what is known of it, such as how far its features were from PyTorch's.
    """

    graph: bytes
    weights: bytes
    facts: Mapping[str, Any]


def folder() -> Path:
    """Where they lie: ``FEATX_ENGINE_FOLDER``, else the user's folder for caches."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named)
    import platformdirs

    return platformdirs.user_cache_path("featx") / "engines"


def load_prepared(key: Mapping[str, Any]) -> Prepared | None:
    """What was kept under `key`; None where there is nothing, or nothing whole."""
    path = _path(key)
    try:
        data = path.read_bytes()
    except OSError:
        return None
    prepared = _unpacked(data, key)
    if prepared is not None:
        with contextlib.suppress(OSError):  # its age decides when it has to make room
            os.utime(path)
    return prepared


def save_prepared(key: Mapping[str, Any], prepared: Prepared) -> None:
    """Keep `prepared` for the next run. The file appears whole or not at all.

    Raises
    ------
    OSError
        The folder cannot be written.
    """
    path = _path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(_packed(key, prepared))
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
    _make_room(path)


def _path(key: Mapping[str, Any]) -> Path:
    return folder() / f"{hashlib.sha256(_canonical(key)).hexdigest()[:32]}{_SUFFIX}"


def _canonical(key: Mapping[str, Any]) -> bytes:
    return json.dumps(key, sort_keys=True, separators=(",", ":")).encode()


def _packed(key: Mapping[str, Any], prepared: Prepared) -> bytes:
    header = _canonical(
        {
            "key": dict(key),
            "facts": dict(prepared.facts),
            "sizes": [len(prepared.graph), len(prepared.weights)],
        }
    )
    body = b"".join(
        (_MAGIC, len(header).to_bytes(4, "little"), header, prepared.graph, prepared.weights)
    )
    return body + hashlib.sha256(body).digest()


def _unpacked(data: bytes, key: Mapping[str, Any]) -> Prepared | None:
    start = len(_MAGIC) + 4
    body = memoryview(data)[:-32]
    if not data.startswith(_MAGIC) or len(body) < start:
        return None
    if hashlib.sha256(body).digest() != data[-32:]:
        return None
    header_bytes = int.from_bytes(body[len(_MAGIC) : start], "little")
    if header_bytes > _MAX_HEADER_BYTES:
        return None
    header = json.loads(bytes(body[start : start + header_bytes]))
    if _canonical(header["key"]) != _canonical(key):
        return None
    first, second = header["sizes"]
    rest = body[start + header_bytes :]
    assert len(rest) == first + second, "the digest covers the sizes"
    return Prepared(bytes(rest[:first]), bytes(rest[first:]), header["facts"])


def _make_room(newest: Path) -> None:
    """Remove the longest unused files beyond `_MAX_TOTAL_BYTES`, and what a crash left behind.

    The newest stays, however large it is.
    """
    found = []
    for path in newest.parent.iterdir():
        with contextlib.suppress(OSError):  # another run may be doing the same
            status = path.stat()
            if path.suffix == ".tmp" and time.time() - status.st_mtime > _ABANDONED_S:
                path.unlink()
            elif path.suffix == _SUFFIX and path != newest:
                found.append((status.st_mtime_ns, status.st_size, path))
    room = _MAX_TOTAL_BYTES - newest.stat().st_size
    for _, size_bytes, path in sorted(found, reverse=True):
        room -= size_bytes
        if room < 0:
            with contextlib.suppress(OSError):
                path.unlink()
