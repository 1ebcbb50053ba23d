"""Mending a damaged cache: its good rows are copied to a new file, the others computed again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import numpy as np

from featx.cache import CacheFile, Decision, Verification, check, open_to_check, seal_of
from featx.datasets.packed import find, located
from featx.errors import CacheError, InputError
from featx.featureset import feature_set
from featx.filling import Extraction, Listener, fill_caches
from featx.foreign import check_repairable
from featx.image_sources import mtime_ns
from featx.images import ImageTable, list_images
from featx.recorded import options_of_spec
from featx.specs import ExtractRules
from featx.target import Job
from featx.transforms import Transform
from featx.whole_files import followed

# Damaged columns beside which the cache still says truly which images it is made of: where one of
# these is wrong, the row itself shows it.
_TABLE_INTACT: Final = frozenset({"crc32", "errors", "status", "sha256", "other bytes"})


def repair(
    cache: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    backbone: str | None = None,
    weights: str | None = None,
    device: str = "auto",
    prune: bool = False,
    mix_plans: bool = False,
    listener: Listener | None = None,
) -> Extraction:
    """Copy the good rows of a damaged cache to a new file, compute the others, and put it in place.

    The damaged file stays as it is until the whole new one replaces it. Where labels, paths or
    other columns of the image list are damaged, the images are listed anew; where it cannot be
    told which rows are good, every image is read and compared with the hash of its row.

    Parameters
    ----------
    cache : a finished cache.
    images : folder, list or glob to list anew; by default the one recorded in the cache.
    backbone : ``package.module:factory``, where the cache was made by the user's own code.
    weights : the backbone's weights file; by default where it lay.
    device : to compute on; must be of the kind the cache was computed on.
    prune : accept that the listed folder has moved, or lost more than a tenth of its images or all
        of a class.
    mix_plans : compute rows although machine or versions differ from those of the cache.
    listener : is told what is done.

    Returns
    -------
    Extraction
        Of an intact cache: a ``reuse`` without a forward pass.

    Raises
    ------
    CacheError
        So damaged that it cannot be opened, made otherwise than can be repeated here, or imported.
    InputError, WeightsError, LockedError, DiskError
        As `featx.extract`.
    """
    file = open_to_check(cache)
    found = check(file)
    if found.ok:
        kept = Decision("reuse", file, np.arange(len(file)))
        return Extraction(feature_set(file), kept, file.run, 0)
    check_repairable(file)
    bad = set(found.bad_columns)
    options = options_of_spec(
        file.spec, file.plan, backbone=backbone, weights=weights, device=device
    )
    if images is None and bad <= _TABLE_INTACT:
        table, source = _own_table(file, found), _recorded_source(file)
    else:
        source = _recorded_source(file) if images is None else os.fspath(located(images))
        table = list_images(
            source,
            label_from=options.label_from,  # type: ignore[arg-type]  # checked by ExtractOptions
            split_folders=options.split_folders,
            prune=prune,
        )
    rules = ExtractRules(
        prune=prune,
        mix_plans=mix_plans,
        max_failed=1.0,  # what failed before is no reason not to mend the others
        retry_failed=not found.digest_matches,
        rehash=bool(bad & {"run", "sha256"}),
        max_size="none",  # as large as the cache that is there
    )
    target = followed(Path(cache))
    job = Job(
        source=source,
        table=table,
        target=lambda _backbone: target,
        damaged=frozenset(found.bad_rows),
        purpose=f"repair of {seal_of(file)[0].hex()}",
        transform=Transform.from_dict(file.spec["transform"]),
    )
    (done,) = fill_caches([(job, options)], rules, listener or Listener())
    return done


def _recorded_source(file: CacheFile) -> str:
    """Where the images of a cache were listed from; its root where that cannot be read."""
    try:
        source: Any = file.run.get("source")
    except CacheError:
        source = None
    return source if isinstance(source, str) and source else file.root


def _own_table(file: CacheFile, found: Verification) -> ImageTable:
    """The images as the cache lists them; those of bad rows with the size and time of today."""
    size_bytes, times = file.read("size_bytes"), file.read("mtime_ns")
    root = Path(file.root)
    if found.bad_rows and not root.exists() and find(root) is None:
        raise InputError(
            f"{root}, the folder of the images, is not there, and {len(found.bad_rows):,} rows are "
            "to be computed from it again: say where it is now with --images"
        )
    for row in found.bad_rows:
        try:
            status = (root / os.fsdecode(file.paths[row])).stat()
        except OSError:  # gone: told of, with its reason, when it is to be read
            continue
        size_bytes[row], times[row] = status.st_size, mtime_ns(status)
    groups = file.read("groups")
    return ImageTable(
        root=root,
        paths=file.paths,
        labels=file.read("labels"),
        classes=file.classes,
        split=file.read("split"),
        groups=groups,
        group_names=tuple(str(i) for i in range(int(groups.max()) + 1)),
        size_bytes=size_bytes,
        mtime_ns=times,
        skipped={},
        notes=(),
        rules=dict(file.spec["images"]),
    )
