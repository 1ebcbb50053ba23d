"""What an extraction will do about the cache that is there: a function that only looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np

from featx.cache.layout import Status, differing_fields, fingerprint
from featx.cache.reader import CacheFile
from featx.cache.skeleton import Rows
from featx.counting import counted, first_few
from featx.errors import CacheError, SpecMismatchError

MAX_GONE: Final = 0.1  # a larger share of vanished files looks like a half-mounted disk

Action = Literal["create", "resume", "reuse", "extend"]

# SHA-256 of the files of these images, in order; None for a file that cannot be read.
Hashes = Callable[[Sequence[int]], Sequence[bytes | None]]


@dataclass(frozen=True)
class Trust:
    """What of a cache is believed without looking at the images again.

    Attributes
    ----------
    rehash : not even equal size and time of modification mean unchanged: every file is read.
    retry_failed : images that failed are computed again, whatever the reason.
    damaged : rows of a damaged finished cache, which must not be used; None where it is sound.
        A damaged one is never reused as it is.
    """

    rehash: bool = False
    retry_failed: bool = False
    damaged: frozenset[int] | None = None


@dataclass(frozen=True)
class Decision:
    """What to do, and which finished rows can be taken over.

    Attributes
    ----------
    action : ``create`` from nothing, ``resume`` the unfinished file as it is, ``reuse`` the
        finished one, or ``extend``: build anew, taking `kept` rows over from `source`.
    source : the cache that rows come from, if any.
    source_rows : (n,) int64; for each image its row in `source`, or -1 where it is to be computed.
    new, changed, gone : how many images are new, have other content, or are no longer there.
    renamed : how many of the kept images have another name than in `source`.
    again : how many images failed or were damaged there and are computed again.
    """

    action: Action
    source: CacheFile | None
    source_rows: np.ndarray
    new: int = 0
    changed: int = 0
    gone: int = 0
    renamed: int = 0
    again: int = 0

    @property
    def kept(self) -> int:
        """How many images need no forward pass."""
        return int((self.source_rows >= 0).sum())

    @property
    def unfinished(self) -> int:
        """How many images an interrupted run had not come to."""
        return len(self.source_rows) - self.kept - self.new - self.changed - self.again

    def __str__(self) -> str:
        names = f" ({self.renamed:,} under another name)" if self.renamed else ""
        parts = [f"{self.kept:,} kept{names}"]
        parts += [f"{self.unfinished:,} still to do"] if self.unfinished else []
        parts += [f"{self.new:,} new"]
        parts += [f"{self.changed:,} changed"] if self.changed else []
        parts += [f"{self.again:,} tried again"] if self.again else []
        parts += [f"{self.gone:,} gone"] if self.gone else []
        return f"{counted(len(self.source_rows), 'image')}: {', '.join(parts)}"


def decide(
    rows: Rows,
    spec: Mapping[str, Any],
    *,
    root: str,
    complete: CacheFile | None,
    partial: CacheFile | None,
    hashes: Hashes,
    prune: bool = False,
    trust: Trust | None = None,
) -> Decision:
    """Decide between creating, resuming, reusing and extending, or refuse.

    An image is unchanged where path, size and time of modification are those of its row;
    otherwise its content decides, and content that has a row under another name takes that row.
    A row that could not be read is computed again as soon as its file can be.

    Parameters
    ----------
    rows : the images that are there now.
    spec : what is asked for now.
    root : the folder that the paths of `rows` are relative to.
    complete, partial : the finished and the unfinished cache of that name, where they exist.
    hashes : reads files; asked only where size and time of modification do not settle it.
    prune : accept another root, and the loss of more than a tenth of the rows or of all of a
        class; images whose content had failed may go.
    trust : what is believed unseen; by default equal size and time, and failures of content.

    Raises
    ------
    SpecMismatchError
        The cache was made with another spec; the fields are named.
    CacheError
        Another root, or more than a tenth of its images or all of a class gone, without `prune`.
    """
    trust = trust or Trust()
    nothing = np.full(len(rows), -1, np.int64)
    if partial is None and complete is None:
        return Decision("create", None, nothing, new=len(rows))
    matches = []
    if complete is not None and _fits(complete, spec, root):
        found = _match(rows, complete, hashes, trust)
        sound = trust.damaged is None and _same_table(rows, complete)
        if sound and np.array_equal(found.rows, np.arange(len(rows))):
            return Decision("reuse", complete, found.rows)
        matches = [(complete, found)]
    unseen = replace(trust, damaged=None)  # damage was found in the finished one
    if partial is not None and _fits(partial, spec, root):
        matches = [(partial, _match(rows, partial, hashes, unseen)), *matches]
    if not matches:
        only = complete if complete is not None else partial
        assert only is not None
        _check_spec(only, spec)
        _check_root(only, root, prune=prune)
        matches = [(only, _match(rows, only, hashes, trust if only is complete else unseen))]
    # of two that fit, the unfinished one, unless images that came back have their rows in the other
    source, found = max(matches, key=lambda match: (match[1].rows >= 0).sum())
    for each, match in matches:
        if each in (source, complete) and not prune:
            _check_gone(each, match, root)
    counts = {
        "new": found.new,
        "changed": found.changed,
        "gone": found.gone,
        "renamed": found.renamed,
        "again": found.again,
    }
    if not (found.rows >= 0).any():
        return Decision("create", None, nothing, **counts)
    settled = source.map("status") != Status.PENDING
    as_it_is = source is partial and source.root == root and _same_table(rows, source)
    resumable = as_it_is and np.array_equal(found.rows[settled], np.flatnonzero(settled))
    return Decision("resume" if resumable else "extend", source, found.rows, **counts)


def _fits(cache: CacheFile, spec: Mapping[str, Any], root: str) -> bool:
    return cache.fingerprint == fingerprint(spec) and cache.root == root


def _check_root(source: CacheFile, root: str, *, prune: bool) -> None:
    if source.root != root and not prune:
        raise CacheError(
            f"{source.path} was made from another folder, {source.root}, not {root}; "
            "name another file with --out, or say --prune if the folder has moved"
        )


def _check_gone(source: CacheFile, match: _Match, root: str) -> None:
    if match.lost > MAX_GONE * len(source):
        raise CacheError(
            f"{match.lost:,} of the {len(source):,} images in {source.path} are no longer under "
            f"{root}; is a disk not mounted? Say --prune to drop them, or --out for another "
            "file"
        )
    if match.lost_classes:
        raise CacheError(
            f"no image of {first_few(match.lost_classes, 4)}, classes in {source.path}, is "
            f"under {root} any more; is a disk not mounted? Say --prune to go on without "
            "them, or --out for another file"
        )


def _check_spec(source: CacheFile, spec: Mapping[str, Any]) -> None:
    if source.fingerprint == fingerprint(spec):
        return
    fields = differing_fields(spec, source.spec)
    told = "; ".join(
        f"{name}: {theirs!r} there, {ours!r} asked" for name, (ours, theirs) in fields.items()
    )
    raise SpecMismatchError(
        f"{source.path} was made with other settings ({told}). Name another file with --out, "
        "or say --fresh to replace it",
        fields=tuple(fields),
    )


@dataclass(frozen=True)
class _Match:
    """For every image its finished row or -1, and what became of the others."""

    rows: np.ndarray
    new: int
    changed: int
    gone: int
    lost: int  # of those gone, all but the rows whose content had failed
    lost_classes: tuple[str, ...]  # names of those that have no other row
    renamed: int
    again: int


def _match(rows: Rows, source: CacheFile, hashes: Hashes, trust: Trust) -> _Match:
    """Find every image's row: by its path, else by its content."""
    row_of = {path: row for row, path in enumerate(source.paths)}
    row = np.fromiter((row_of.get(path, -1) for path in rows.paths), np.int64, len(rows))
    status = source.read("status")
    usable = _usable(status, trust)
    there = row >= 0
    settled = there & (status[row] != Status.PENDING)  # row -1 reads the last, and is masked
    same = _unchanged(rows, source, row, settled & usable[row], hashes, trust)
    matched = np.where(same, row, -1)
    unmatched = np.flatnonzero((settled & ~same) | ~there)
    by_content = _find_content(rows, source, unmatched, usable, hashes)
    again = settled & ~same & (by_content < 0)
    changed = again & (usable[row] & (status[row] != Status.UNREADABLE))
    matched = np.where(by_content >= 0, by_content, matched)
    renamed = by_content >= 0
    left = np.ones(len(source), bool)  # rows that no image of now belongs to
    left[row[there]] = False
    left[by_content[renamed]] = False
    lost = left & (status <= Status.UNREADABLE)
    return _Match(
        rows=matched,
        new=int((~there & ~renamed).sum()),
        changed=int(changed.sum()),
        gone=int(left.sum()),
        lost=int(lost.sum()),
        lost_classes=_lost_classes(source, left, lost),
        renamed=int(renamed.sum()),
        again=int((again & ~changed).sum()),
    )


def _lost_classes(source: CacheFile, left: np.ndarray, lost: np.ndarray) -> tuple[str, ...]:
    """Names of the classes that had images which could be used, and have lost every one."""
    if not lost.any():
        return ()
    labels = source.read("labels")
    gone = np.setdiff1d(labels[lost & (labels >= 0)], labels[~left])
    return tuple(source.classes[label] for label in gone)


def _usable(status: np.ndarray, trust: Trust) -> np.ndarray:
    """(rows of the source,) bool: which may be taken over if their image is unchanged."""
    usable = status == Status.DONE if trust.retry_failed else status != Status.PENDING
    usable[list(trust.damaged or ())] = False
    return usable


def _unchanged(
    rows: Rows,
    source: CacheFile,
    row: np.ndarray,
    candidates: np.ndarray,
    hashes: Hashes,
    trust: Trust,
) -> np.ndarray:
    """(n,) bool: which of the candidate images have the content their row was made of."""
    status, sha256 = source.map("status"), source.map("sha256")
    same_size = rows.size_bytes == source.map("size_bytes")[row]
    same_time = rows.mtime_ns == source.map("mtime_ns")[row]
    unread = candidates & (status[row] == Status.UNREADABLE)
    # a file too large to be read has no hash, and its size is all that is known of it
    unhashed = (status[row] == Status.TOO_LARGE) & ~sha256[row].any(axis=1)
    same = candidates & same_size & (same_time | unhashed) & ~unread
    doubtful = candidates & same_size & ~unhashed & (trust.rehash | ~same_time)
    asked = np.flatnonzero(unread | doubtful)
    for i, found in zip(asked.tolist(), hashes(asked.tolist()), strict=True):
        if unread[i]:
            same[i] = found is None  # as unreadable as before
        else:
            same[i] = found == sha256[row[i]].tobytes()
    return same


def _find_content(
    rows: Rows, source: CacheFile, images: np.ndarray, usable: np.ndarray, hashes: Hashes
) -> np.ndarray:
    """(n,) int64: for each of `images` a usable row of the same content, else -1.

    Only files that have the size of some row are read.
    """
    found = np.full(len(rows), -1, np.int64)
    if not len(images):
        return found
    usable = usable & (source.map("status") != Status.UNREADABLE)  # those have no content
    sizes = source.read("size_bytes")
    images = images[np.isin(rows.size_bytes[images], sizes[usable])]
    if not len(images):
        return found
    wanted = np.flatnonzero(usable & np.isin(sizes, rows.size_bytes[images]))
    contents = source.map("sha256")[wanted]
    row_of = {sha.tobytes(): int(at) for sha, at in zip(contents, wanted, strict=True)}
    for i, sha256 in zip(images.tolist(), hashes(images.tolist()), strict=True):
        found[i] = row_of.get(sha256 or b"", -1)
    return found


def _same_table(rows: Rows, source: CacheFile) -> bool:
    """Whether every fixed column of `source` already says what `rows` says."""
    if len(rows) != len(source) or tuple(rows.classes) != source.classes:
        return False
    if tuple(rows.paths) != source.paths:
        return False
    names: Sequence[str] = ("labels", "split", "groups", "size_bytes", "mtime_ns")
    return all(np.array_equal(getattr(rows, name), source.map(name)) for name in names)
