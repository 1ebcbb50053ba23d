"""The whole life of a small cache, and what must be true of it at every moment.

Three versions of a folder of images: the first is cached, interrupted and finished; the second
changes an image and adds three, and is interrupted; the third adds two more while the second is
unfinished, is interrupted, and is finished over the first.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from small_caches import PLAN, SPEC

from featx.cache import (
    CacheFile,
    CacheWriter,
    Disk,
    Rows,
    Status,
    decide,
    open_cache,
    partial_path,
    verify,
)
from featx.errors import CacheError

D: Final = 200  # 800 bytes of features: rows begin and end inside sectors
BATCH: Final = 2
IMAGES: Final = {1: 7, 2: 10, 3: 12}  # by version
BAD: Final = 1  # the image that is undecodable
CHANGED: Final = 2  # the one whose content changes

NAME: Final = "a.h5"
PARTIAL: Final = partial_path(Path(NAME)).name

# Made after every commit and every finish: the version, the paths that are settled, and whether
# the cache is finished.
Promised = tuple[int, frozenset[bytes], bool]
Promise = Callable[[int, frozenset[bytes], bool], None]


class JoiningDisk(Disk):
    """Writes parts as one `write`, which tests note, fail or cut."""

    def write_parts(self, fd: int, parts: Sequence[memoryview], offset: int) -> None:
        self.write(fd, b"".join(parts), offset)


class FastDisk(JoiningDisk):
    """Forces nothing to the medium: for files that no power cut will meet."""

    def datasync(self, fd: int) -> None:
        pass

    def sync(self, fd: int) -> None:
        pass

    def sync_folder(self, folder: Path) -> None:
        pass


def contents(version: int) -> list[bytes]:
    """What each image of the folder holds; its SHA-256 and features follow from it."""
    made = [b"image %d" % i for i in range(IMAGES[version])]
    if version > 1:
        made[CHANGED] += b", edited"
    return made


def sha256_of(content: bytes) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(content).digest(), np.uint8)


def features_of(content: bytes) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(content)).normal(size=D).astype(np.float32)


def rows_of(version: int) -> Rows:
    images = contents(version)
    n = len(images)
    return Rows(
        paths=[b"a/%03d.jpg" % i for i in range(n)],
        labels=np.arange(n) % 2,
        split=np.zeros(n, np.uint8),
        groups=np.full(n, -1),
        size_bytes=np.array([len(image) for image in images]),
        mtime_ns=np.arange(n) + 10**18,
        classes=("one", "two"),
    )


def run(
    path: Path,
    version: int,
    *,
    disk: Disk | None = None,
    writer_class: type[CacheWriter] = CacheWriter,
    batches: int | None = None,
    promise: Promise = lambda version, paths, is_final: None,
) -> None:
    """One run of featx over the folder, as `featx.extraction` makes it, without a network.

    It stops without a word after some `batches`, with one more written but not committed.
    """
    disk, rows = disk or FastDisk(), rows_of(version)
    images = contents(version)
    partial = partial_path(path)
    decision = decide(
        rows,
        SPEC,
        root="/birds",
        complete=open_cache(path) if path.exists() else None,
        partial=open_cache(partial, partial=True) if partial.exists() else None,
        hashes=lambda wanted: [sha256_of(images[i]).tobytes() for i in wanted],
    )
    if decision.action == "reuse":
        return
    if decision.action == "resume":
        writer = writer_class.resume(path, disk=disk)
    else:
        writer = writer_class.create(
            path,
            rows,
            root="/birds",
            spec=SPEC,
            plan=PLAN,
            feature_shape=(D,),
            source=decision.source,
            source_rows=decision.source_rows,
            disk=disk,
        )
    try:
        _extract(writer, images, batches, lambda paths: promise(version, paths, False))
        if batches is None:
            writer.finish(path, {"images": len(rows)})
            promise(version, frozenset(rows.paths), True)
    finally:
        writer.close()


def _extract(
    writer: CacheWriter,
    images: list[bytes],
    batches: int | None,
    settled: Callable[[frozenset[bytes]], None],
) -> None:
    pending = writer.pending
    writer.write_run({"plans": [PLAN]})
    for number, start in enumerate(range(0, len(pending), BATCH)):
        batch = pending[start : start + BATCH]
        good = batch[batch != BAD]
        if number == batches:  # never committed: features, and a reason that will not hold
            writer.fail(int(good[0]), Status.UNREADABLE, "a share was away for a moment")
            _put(writer, good[1:], images)
            writer._write_beside()  # as far as a commit comes that is killed before its first sync
            return
        if BAD in batch:
            writer.fail(BAD, Status.UNDECODABLE, "no image", sha256_of(images[BAD]).tobytes())
        _put(writer, good, images)
        writer.commit()
        paths = writer.file.paths
        settled(frozenset(paths) - {paths[row] for row in writer.pending})


def _put(writer: CacheWriter, rows: np.ndarray, images: list[bytes]) -> None:
    if not len(rows):
        return
    contents = [images[row] for row in rows.tolist()]
    writer.put(
        rows, np.stack(list(map(features_of, contents))), np.stack(list(map(sha256_of, contents)))
    )


# The runs of a whole life: the version, and after how many batches it is interrupted.
RUNS: Final = ((1, 1), (1, None), (2, 1), (3, 1), (3, None))


def undisturbed(folder: Path) -> dict[int, bytes]:
    """The finished file of every version, of runs that were never interrupted."""
    path = folder / NAME
    made = {}
    for version in IMAGES:
        run(path, version)
        made[version] = path.read_bytes()
    return made


class Judge:
    """Says what must be true of a folder at any instant, whatever has happened to the disk.

    Parameters
    ----------
    folder : an empty one to work in.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.expected = undisturbed(folder)
        self._known: dict[tuple[bytes, bool], tuple[int, frozenset[bytes]]] = {}
        self._went_on: set[tuple[int, bytes | None, bytes | None]] = set()

    def __call__(self, files: Mapping[str, bytes], promises: Iterable[Promised]) -> None:
        """Every file under a name that is read is whole or truly unfinished; promises are kept."""
        final, partial = (
            None if data is None else self._inspect(data, is_final=name == NAME)
            for name, data in ((name, files.get(name)) for name in (NAME, PARTIAL))
        )
        for version, paths, is_final in promises:
            if final is not None and final[0] >= version:
                continue
            assert not is_final, f"the finished cache of version {version} is gone"
            assert partial is not None, f"the unfinished cache of version {version} is gone"
            assert partial[0] >= version, f"rows of version {version} are gone"
            assert paths <= partial[1], f"committed rows are gone: {sorted(paths - partial[1])}"

    def goes_on(self, files: Mapping[str, bytes], version: int) -> None:
        """The same command again ends with the bytes of runs that were never interrupted."""
        state = (version, files.get(NAME), files.get(PARTIAL))
        if state in self._went_on:
            return
        self._went_on.add(state)
        restore(self._folder, files)
        run(self._folder / NAME, version)
        assert os.listdir(self._folder) == [NAME]  # noqa: PTH208
        assert (self._folder / NAME).read_bytes() == self.expected[version]

    def _inspect(self, data: bytes, *, is_final: bool) -> tuple[int, frozenset[bytes]]:
        """Version and settled paths of a file; every settled row must be exactly what was put."""
        if (data, is_final) not in self._known:
            path = self._folder / NAME
            path.write_bytes(data)
            try:
                file = open_cache(path)
                assert not is_final or verify(path).ok
            except CacheError as error:
                raise AssertionError(
                    f"what has a name that is read does not open: {error}"
                ) from error
            self._known[data, is_final] = _settled(file, is_final=is_final)
        return self._known[data, is_final]


def _settled(file: CacheFile, *, is_final: bool) -> tuple[int, frozenset[bytes]]:
    version = {n: version for version, n in IMAGES.items()}[len(file)]
    rows, images = rows_of(version), contents(version)
    for name, array in rows.arrays().items():
        assert np.array_equal(file.read(name), array), f"{name} differ"
    masking = ("status", "sha256", "errors")
    names = ("features", "crc32", *masking)
    columns = {name: file.read(name) for name in names}
    settled = np.flatnonzero(columns["status"] != Status.PENDING).tolist()
    for row in settled:
        got = {name: column[row] for name, column in columns.items()}
        bad = row == BAD
        features = np.full(D, np.nan, np.float32) if bad else features_of(images[row])
        assert got["status"] == (Status.UNDECODABLE if bad else Status.DONE)
        assert got["features"].tobytes() == features.tobytes(), f"row {row} is not its features"
        mask = zlib.crc32(b"".join(columns[name][row : row + 1].tobytes() for name in masking))
        bare = zlib.crc32(features.tobytes())
        allowed = {bare} if is_final else mixed(bare, bare ^ mask)
        assert int(got["crc32"]) in allowed, f"row {row}: crc32"
        assert np.array_equal(got["sha256"], sha256_of(images[row])), f"row {row}: sha256"
        assert got["errors"] == (b"no image" if bad else b""), f"row {row}: errors"
    assert len(settled) == len(file) or not is_final, "a finished cache with pending rows"
    return version, frozenset(rows.paths[row] for row in settled)


def mixed(a: int, b: int) -> set[int]:
    """Every number that has some of its four bytes of `a` and the others of `b`."""
    bytes_of = [{part.to_bytes(4, "little")[i] for part in (a, b)} for i in range(4)]
    return {int.from_bytes(bytes(choice), "little") for choice in itertools.product(*bytes_of)}


def restore(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make the folder hold exactly these files."""
    for name in os.listdir(folder):  # noqa: PTH208
        if name not in files:
            (folder / name).unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)
