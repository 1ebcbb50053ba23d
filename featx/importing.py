"""The stage that takes features of others in: an NPY file and a CSV become a cache."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from featx.cache import (
    CacheFile,
    CacheWriter,
    Disk,
    Rows,
    Status,
    cache_lock,
    fingerprint,
    open_cache,
    partial_path,
)
from featx.cache.crc32 import crc32_of
from featx.errors import CacheError, InputError, TooManyFailedError
from featx.featureset import FeatureSet, feature_set
from featx.foreign import imported_spec, is_imported
from featx.image_hashes import ImageHashes
from featx.image_lists import read_csv
from featx.image_sources import Listing, place, shown
from featx.images import ImageTable, table_of
from featx.interchange.npy import ForeignFeatures, Survey, open_npy
from featx.target import cache_file

_REASON: Final = "not all of its features are finite"
_ROW: Final = b"featx imported row\0"  # before what is hashed instead of an image


@dataclass(frozen=True)
class Import:
    """What an import did.

    Attributes
    ----------
    features : the usable rows of the cache.
    hashed : images that were there, and are recognised by the SHA-256 of their files.
    written : False where the same cache was there already.
    """

    features: FeatureSet
    hashed: int
    written: bool


def import_features(
    features: str | os.PathLike[str],
    table: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    name: str | None = None,
    root: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    max_failed: float = 0.1,
    force: bool = False,
    cache_dir: str | os.PathLike[str] = "cache",
    tell: Callable[[str], None] = lambda sentence: None,
) -> Import:
    """Make a cache of features that were computed elsewhere.

    Everything that works on a cache works on it, but for what would need the network. Rows are
    sorted by path, as in every cache; features are read block by block. An image that lies under
    `root` is known by the SHA-256 of its file, as always, so that copies of it are found. Of one
    that does not, its path and features are hashed instead, and its size and time are 0: it is
    the same image where both are the same.

    Parameters
    ----------
    features : an NPY file, (n, d) or maps (n, c, h, w), of float16, float32 or float64, which is
        stored as float32. Rows with a value that is not finite are recorded as failed.
    table : a CSV ``path[,label][,split][,group]``, one row for each row of `features`, in their
        order. Without a column label, folders in the paths are labels and split, as of `extract`.
    out : the cache file; by default called `name`, in `cache_dir`.
    name : of what computed the features; by default the name of the NPY file.
    root : the folder that paths are relative to; by default that of `table`.
    weights : the file that computed the features, of the network's weights say. It is only hashed:
        caches of one `name` and one such file fit the same heads. Without it a head fits only
        these very features.
    max_failed : share of the rows, 0 to 1, that may be not finite.
    force : replace another cache.
    tell : takes a sentence for the user.

    Raises
    ------
    InputError
        A file that is not there or not as described, a path that is listed twice, another number
        of rows than of features.
    TooManyFailedError
        Too many rows are not finite.
    CacheError
        Another cache of that name is there.
    LockedError, DiskError
        As `featx.extract`.

    Examples
    --------
    >>> import_features("clip.npy", "birds.csv").features.X.shape  # doctest: +SKIP
    (590, 512)
    """
    if not 0 <= max_failed <= 1:
        raise InputError(f"max_failed must be a share from 0 to 1, got {max_failed}")
    foreign = open_npy(features)
    images, order = _images(Path(table), root)
    if len(images) != len(foreign):
        raise InputError(
            f"{foreign.path} holds {len(foreign):,} rows and {os.fspath(table)} lists "
            f"{len(images):,} images; row i of one must be row i of the other"
        )
    name = _checked_name(foreign.path.stem if name is None else name)
    target = cache_file(Path(cache_dir) / f"{name}.h5" if out is None else Path(out))
    for note in images.notes:
        tell(note)
    survey = foreign.survey()
    _check_finite(survey.finite[order], images, max_failed)
    spec = imported_spec(
        name,
        weights_sha256=_sha256_file(Path(weights)) if weights is not None else survey.sha256,
        features_sha256=survey.sha256,
        shape=foreign.shape[1:],
        source_dtype=foreign.source_dtype.name,
        dtype=foreign.dtype,
        images=images.rules,
    )
    report = {
        "features": os.path.abspath(foreign.path),  # noqa: PTH100 (links stay)
        "table": os.path.abspath(table),  # noqa: PTH100
    }
    with cache_lock(target):
        there = _existing(target, images, spec, force=force)
        if there is not None:
            return Import(feature_set(there), int(_has_file(images).sum()), written=False)
        hashes = _hashes(images, tell)
        writer = CacheWriter.create(
            target,
            _rows(images),
            root=os.fspath(images.root),
            spec=spec,
            plan={"engine": "imported", "versions": {"numpy": np.__version__}},
            feature_shape=foreign.shape[1:],
            dtype=foreign.dtype,
        )
        try:
            with closing(writer):
                _fill(writer, foreign, survey, order, hashes)
                file = writer.finish(target, _report(survey, hashes, report))
        except BaseException:
            with suppress(OSError):  # half an import is of no use to anybody
                Disk().remove(partial_path(target))
            raise
    return Import(feature_set(file), len(hashes), written=True)


def _images(table: Path, root: str | os.PathLike[str] | None) -> tuple[ImageTable, np.ndarray]:
    """The images that a CSV lists, sorted by path, and for each its row among the features."""
    if root is not None and not Path(root).is_dir():
        raise InputError(f"--root must be a folder, got {os.fspath(root)!r}")
    listed = read_csv(table)
    top, found = place(
        table, listed.rows, folder=Path(root) if root is not None else None, missing_ok=True
    )
    order = sorted(range(len(found)), key=lambda row: found[row].path)
    listing = Listing(top, "csv", [found[row] for row in order], notes=listed.notes)
    return table_of(listing, listed), np.array(order)


def _checked_name(name: str) -> str:
    if not name or not name.isprintable() or name.startswith(".") or set(name) & set("/\\"):
        raise InputError(
            f"--name must be the name of what computed the features, which may be part of the name "
            f"of a file, got {name!r}"
        )
    return name


def _check_finite(finite: np.ndarray, images: ImageTable, max_failed: float) -> None:
    """Refuse features of which no row, or too few, could be used."""
    n, bad = len(finite), np.flatnonzero(~finite)
    if len(bad) < n and len(bad) / n <= max_failed:
        return
    accept = ", or accept that with --max-failed" if len(bad) < n else ""
    raise TooManyFailedError(
        f"{len(bad):,} of the {n:,} rows hold values that are not finite, the first that of "
        f"{shown(images.paths[bad[0]])}; compute them again{accept}"
    )


def _existing(
    target: Path, images: ImageTable, spec: Mapping[str, Any], *, force: bool
) -> CacheFile | None:
    """The cache that is there, if it is the one that is wanted; None if it may be written.

    Raises
    ------
    CacheError
        Something else is there, and `force` is not said.
    """
    if force:
        return None
    if target.exists():
        file = _opened(target)
        same = (file.fingerprint, file.root) == (fingerprint(spec), os.fspath(images.root))
        columns = _rows(images).arrays() if same else {}
        if same and all(np.array_equal(file.read(name), each) for name, each in columns.items()):
            return file
        raise CacheError(
            f"{target} is there already and holds something else ({file.spec.get('backbone')}); "
            "name another file with --out, or say --force to replace it"
        )
    unfinished = partial_path(target)
    if unfinished.exists() and not is_imported(open_cache(unfinished, partial=True).spec):
        raise CacheError(
            f"{unfinished} holds what an unfinished `featx extract` has done; name another file "
            "with --out, or say --force to replace it"
        )
    return None


def _opened(target: Path) -> CacheFile:
    try:
        return open_cache(target)
    except CacheError as error:
        raise CacheError(
            f"{error}. Say --force to replace it, or name another with --out"
        ) from error


def _rows(images: ImageTable) -> Rows:
    return Rows(
        paths=images.paths,
        labels=images.labels,
        split=images.split,
        groups=images.groups,
        size_bytes=images.size_bytes,
        mtime_ns=images.mtime_ns,
        classes=images.classes,
    )


def _has_file(images: ImageTable) -> np.ndarray:
    """(n,) bool: which images were there when they were listed."""
    return (images.size_bytes != 0) | (images.mtime_ns != 0)


def _hashes(images: ImageTable, tell: Callable[[str], None]) -> dict[int, bytes]:
    """SHA-256 of the files of those images that are there."""
    there = np.flatnonzero(_has_file(images)).tolist()
    found = zip(there, ImageHashes(images.file, tell)(there), strict=True)
    return {number: digest for number, digest in found if digest is not None}


def _fill(
    writer: CacheWriter,
    foreign: ForeignFeatures,
    survey: Survey,
    order: np.ndarray,
    hashes: Mapping[int, bytes],
) -> None:
    """Write every row: that of image `i` is row ``order[i]`` of the features."""
    paths = writer.file.paths
    for start in range(0, len(order), foreign.step):
        numbers = np.arange(start, min(start + foreign.step, len(order)))
        features = foreign.take(order[numbers])
        if not np.array_equal(crc32_of(features), survey.crc32[order[numbers]]):
            raise InputError(f"{foreign.path} has changed while it was read; import it again")
        digests = [
            hashes.get(number) or _row_digest(paths[number], row)
            for number, row in zip(numbers.tolist(), features, strict=True)
        ]
        finite = survey.finite[order[numbers]]
        sha256 = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
        if finite.any():
            writer.put(numbers[finite], features[finite], sha256[finite])
        for at in np.flatnonzero(~finite).tolist():
            writer.fail(int(numbers[at]), Status.NON_FINITE, _REASON, digests[at])


def _row_digest(path: bytes, features: np.ndarray) -> bytes:
    """What stands for the SHA-256 of an image that is not there; never that of a file."""
    return hashlib.sha256(_ROW + path + b"\0" + features.tobytes()).digest()


def _report(
    survey: Survey, hashes: Mapping[int, bytes], imported: Mapping[str, str]
) -> dict[str, Any]:
    n, n_done = len(survey.finite), int(survey.finite.sum())
    return {
        "images": n,
        "done": n_done,
        "failed": n - n_done,
        "imported": {
            **imported,
            "hashed_by_file": len(hashes),
            "hashed_by_path_and_features": n - len(hashes),
        },
    }


def _sha256_file(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read --weights {path}: {error.strerror}") from error
