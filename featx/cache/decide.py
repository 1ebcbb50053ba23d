"""What an extraction will do about the cache that is there: a function that only looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from featx.cache.layout import Status, differing_fields, fingerprint
from featx.cache.reader import CacheFile
from featx.cache.skeleton import Rows
from featx.errors import CacheError, SpecMismatchError

MAX_GONE: Final = 0.1  # a larger share of vanished files looks like a half-mounted disk

Action = Literal["create", "resume", "reuse", "extend"]


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
    """

    action: Action
    source: CacheFile | None
    source_rows: np.ndarray
    new: int = 0
    changed: int = 0
    gone: int = 0

    @property
    def kept(self) -> int:
        """How many images need no forward pass."""
        return int((self.source_rows >= 0).sum())

    def __str__(self) -> str:
        parts = [f"{self.kept:,} kept", f"{self.new:,} new"]
        parts += [f"{self.changed:,} changed"] if self.changed else []
        parts += [f"{self.gone:,} gone"] if self.gone else []
        return f"{len(self.source_rows):,} images: {', '.join(parts)}"


def decide(
    rows: Rows,
    spec: Mapping[str, Any],
    *,
    root: str,
    complete: CacheFile | None,
    partial: CacheFile | None,
    same_content: Callable[[int, bytes], bool],
    fresh: bool = False,
    prune: bool = False,
    retry_failed: bool = False,
) -> Decision:
    """Decide between creating, resuming, reusing and extending, or refuse.

    Parameters
    ----------
    rows : the images that are there now.
    spec : what is asked for now.
    root : the folder that the paths of `rows` are relative to.
    complete, partial : the finished and the unfinished cache of that name, where they exist.
    same_content : tells whether image `i` still has the given SHA-256; asked only where the size
        is equal and the time of modification is not.
    fresh : start over whatever is there.
    prune : accept another root, and the loss of more than a tenth of the rows.
    retry_failed : compute images again that failed before.

    Raises
    ------
    SpecMismatchError
        The cache was made with another spec; the fields are named.
    CacheError
        Another root, or more than a tenth of its images gone, without `prune`.
    """
    nothing = np.full(len(rows), -1, np.int64)
    if fresh or (partial is None and complete is None):
        return Decision("create", None, nothing, new=len(rows))
    if complete is not None and _fits(complete, spec, root) and _same_table(rows, complete):
        matched, _ = _match(rows, complete, same_content, retry_failed=retry_failed)
        if (matched >= 0).all():
            return Decision("reuse", complete, matched)
    source = partial if partial is not None and _fits(partial, spec, root) else complete
    source = source or partial
    assert source is not None
    _check_spec(source, spec)
    if source.root != root and not prune:
        raise CacheError(
            f"{source.path} was made from another folder, {source.root}, not {root}; "
            "name another file with --out, or say --prune if the folder has moved"
        )
    source_rows, changed = _match(rows, source, same_content, retry_failed=retry_failed)
    known = set(source.paths)
    gone = len(known.difference(rows.paths))
    if gone > MAX_GONE * len(source) and not prune:
        raise CacheError(
            f"{gone:,} of the {len(source):,} images in {source.path} are no longer under {root}; "
            "is a disk not mounted? Say --prune to drop them, or --out for another file"
        )
    new = sum(path not in known for path in rows.paths)
    if not (source_rows >= 0).any():
        return Decision("create", None, nothing, new=new, changed=changed, gone=gone)
    settled = source.map("status") != Status.PENDING
    as_it_is = source is partial and source.root == root and _same_table(rows, source)
    resumable = as_it_is and bool((source_rows[settled] >= 0).all())
    action: Action = "resume" if resumable else "extend"
    return Decision(action, source, source_rows, new=new, changed=changed, gone=gone)


def _fits(cache: CacheFile, spec: Mapping[str, Any], root: str) -> bool:
    return cache.fingerprint == fingerprint(spec) and cache.root == root


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


def _match(
    rows: Rows,
    source: CacheFile,
    same_content: Callable[[int, bytes], bool],
    *,
    retry_failed: bool,
) -> tuple[np.ndarray, int]:
    """For every image its finished row in `source` or -1; and how many have changed."""
    row_of = {path: row for row, path in enumerate(source.paths)}
    status, sha256 = source.map("status"), source.map("sha256")
    size_bytes, mtime_ns = source.read("size_bytes"), source.read("mtime_ns")
    matched = np.full(len(rows), -1, np.int64)
    changed = 0
    for i, path in enumerate(rows.paths):
        row = row_of.get(path)
        if row is None or status[row] == Status.PENDING:
            continue
        if retry_failed and status[row] != Status.DONE:
            continue
        same_size = rows.size_bytes[i] == size_bytes[row]
        if same_size and (
            rows.mtime_ns[i] == mtime_ns[row] or same_content(i, sha256[row].tobytes())
        ):
            matched[i] = row
        else:
            changed += 1
    return matched, changed


def _same_table(rows: Rows, source: CacheFile) -> bool:
    """Whether every fixed column of `source` already says what `rows` says."""
    if len(rows) != len(source) or tuple(rows.classes) != source.classes:
        return False
    if tuple(rows.paths) != source.paths:
        return False
    names: Sequence[str] = ("labels", "split", "groups", "size_bytes", "mtime_ns")
    return all(np.array_equal(getattr(rows, name), source.map(name)) for name in names)
