"""What an extraction is for: images, and a cache file with whatever lies there already."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featx.cache import (
    CacheFile,
    Decision,
    Rows,
    Trust,
    check,
    decide,
    is_intact,
    open_cache,
    partial_path,
)
from featx.devices import Device
from featx.engines.choice import Running
from featx.errors import CacheError, InputError
from featx.foreign import check_replaceable
from featx.identity import BackboneIdentity
from featx.image_hashes import ImageHashes
from featx.images import ImageTable
from featx.plans import differing_bits, replayed
from featx.specs import ExtractOptions, ExtractRules, default_name
from featx.transforms import Transform
from featx.whole_files import followed


@dataclass(frozen=True)
class Job:
    """Images to extract, and the cache to extract them into.

    Attributes
    ----------
    source : folder, list or glob as given.
    table : the images that were found there.
    target : the cache file for a backbone; a link has been followed, so that it stays one.
    damaged : rows of a damaged finished cache that must not be used; None where it is sound.
    purpose : what the unfinished cache is noted to be for, so that the same command finds it
        again: empty, ``fresh``, or which damaged cache it is to replace.
    transform : replaces the preprocessing that comes with the weights.
    """

    source: str
    table: ImageTable
    target: Callable[[BackboneIdentity], Path]
    damaged: frozenset[int] | None = None
    purpose: str = ""
    transform: Transform | None = None


def target_of(
    source: str | os.PathLike[str],
    options: ExtractOptions,
    backbone: BackboneIdentity,
    cache_dir: str | os.PathLike[str],
    out: str | os.PathLike[str] | None,
) -> Path:
    """The cache file: `out`, or one of the default name in `cache_dir`.

    Raises
    ------
    InputError
        `out` is a folder or does not end in ``.h5``.
    """
    path = Path(cache_dir) / default_name(source, options, backbone) if out is None else Path(out)
    return cache_file(path)


def cache_file(path: Path) -> Path:
    """The file that a cache goes into: what a link names, so that it stays one.

    Raises
    ------
    InputError
        `path` is a folder or does not end in ``.h5``.
    """
    if path.suffix != ".h5" or path.is_dir():
        raise InputError(f"--out names the cache file, which ends in .h5, got {os.fspath(path)!r}")
    return followed(path)


def rows_of(table: ImageTable) -> Rows:
    """The table as the rows of a cache."""
    return Rows(
        paths=table.paths,
        labels=table.labels,
        split=table.split,
        groups=table.groups,
        size_bytes=table.size_bytes,
        mtime_ns=table.mtime_ns,
        classes=table.classes,
    )


def recorded_plan(job: Job, target: Path, device: Device) -> Running:
    """Engine, batch size and threads of the cache that is there, so that a resume replays them."""
    starts_over = job.purpose == "fresh"
    for path in (partial_path(target),) if starts_over else (partial_path(target), target):
        if path.exists():
            try:
                file = open_cache(path, partial=True)
            except CacheError:  # told of where it matters: when the cache is about to be used
                continue
            ours = not starts_over or purpose_of(file) == job.purpose
            if ours and file.plan.get("device") == device.kind:
                return replayed(file.plan)
    return Running()


class Look:
    """Decides, each time it is called, from what then lies on the disk.

    Parameters
    ----------
    job, rules : what is asked.
    spec, plan : of the cache that is wanted, and of this run.
    target : its file.
    tell : takes a sentence for the user.
    """

    def __init__(
        self,
        job: Job,
        rules: ExtractRules,
        spec: Mapping[str, Any],
        plan: Mapping[str, Any],
        target: Path,
        tell: Callable[[str], None],
    ) -> None:
        self._job, self._rules, self._target = job, rules, target
        self._spec, self._plan = spec, plan
        self._tell = tell
        self._told: set[str] = set()
        self._hashes = ImageHashes(job.table.file, tell)

    def __call__(self) -> Decision:
        """Decide.

        Raises
        ------
        CacheError
            What lies there does not fit, or is damaged; see `featx.cache.decide`. A finished cache
            that is to be used as it is, is checked to its last byte only where nothing is trusted
            (`rehash`).
        """
        rules, table = self._rules, self._job.table
        _spare_imported(self._target)
        complete = None if rules.fresh else _existing(self._target)
        partial = self._partial(complete)
        decision = decide(
            rows_of(table),
            self._spec,
            root=os.fspath(table.root),
            complete=complete,
            partial=partial,
            hashes=self._hashes,
            prune=rules.prune or rules.fresh,
            trust=Trust(
                rehash=rules.rehash,
                # who stops at the first failure wants to meet it again
                retry_failed=rules.retry_failed or rules.on_error == "stop",
                damaged=self._job.damaged,
            ),
        )
        if rules.rehash and decision.action == "reuse" and decision.source is not None:
            _check_whole(decision.source)
        return decision

    def _partial(self, complete: CacheFile | None) -> CacheFile | None:
        """The unfinished cache, if it is one of this command."""
        path = partial_path(self._target)
        starts_over = self._rules.fresh or self._job.damaged is not None
        try:
            partial = _existing(path)
        except CacheError as error:
            if not starts_over and complete is None:
                raise
            self._tell_once(f"not used, and replaced when rows are to be added: {error}")
            return None
        if partial is None:
            return None
        purpose = purpose_of(partial)
        if starts_over and purpose != self._job.purpose:
            return None
        if self._rules.fresh and not self._goes_on(partial):
            return None
        if purpose and not starts_over and complete is not None:
            command = "extract --fresh" if purpose == "fresh" else "verify --repair"
            self._tell_once(
                f"{path} holds what an unfinished `featx {command}` has done; it is used where it "
                "holds as many of the images as the finished cache"
            )
        return partial

    def _goes_on(self, partial: CacheFile) -> bool:
        """Whether what an interrupted start from nothing has done is what is asked now."""
        same = partial.spec == dict(self._spec) and partial.root == os.fspath(self._job.table.root)
        return same and not differing_bits(self._plan, partial.plan)

    def _tell_once(self, sentence: str) -> None:
        if sentence not in self._told:
            self._told.add(sentence)
            self._tell(sentence)


def check_source(decision: Decision, job: Job) -> None:
    """Take rows from no finished cache whose columns are damaged: they would look whole again.

    Raises
    ------
    CacheError
        It is damaged outside its features.
    """
    source = decision.source
    taken = source is not None and decision.action == "extend" and not source.is_partial
    if source is not None and taken and job.damaged is None and not is_intact(source):
        raise CacheError(
            f"{source.path} is damaged, so its rows cannot be taken over; mend it with "
            f"`featx verify --repair {source.path}`, or say --fresh to compute it anew"
        )


def _spare_imported(target: Path) -> None:
    """Refuse a target that holds imported features, also where it was to be replaced."""
    try:
        file = open_cache(target)
    except CacheError:  # told of where it matters: when the cache is about to be used
        return
    check_replaceable(file)


def _check_whole(file: CacheFile) -> None:
    """Refuse a finished cache of which a byte is not as it was written."""
    found = check(file)
    if not found.ok:
        raise CacheError(
            f"{file.path} is damaged ({found.damage}); mend it with "
            f"`featx verify --repair {file.path}`, or say --fresh to compute it anew"
        )


def purpose_of(partial: CacheFile) -> str:
    """What an unfinished cache is noted to be for; see `Job`."""
    try:
        purpose = partial.run.get("purpose", "")
    except CacheError:  # torn by a crash
        return ""
    return purpose if isinstance(purpose, str) else ""


def _existing(path: Path) -> CacheFile | None:
    try:
        return open_cache(path, partial=True)
    except CacheError as error:
        if not path.exists():  # also where another run has just given it its final name
            return None
        raise CacheError(
            f"{error}. Say --fresh to replace it, or name another with --out"
        ) from error
