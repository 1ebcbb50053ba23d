"""What an extraction decides about the cache that is there, as a table of cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial as bound
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_caches import SPEC, create, features_of, finished, rows_of, sha_of

from featx.cache import Rows, Status, Trust, decide, open_cache, partial_path
from featx.errors import CacheError, SpecMismatchError

TRUST = ("rehash", "retry_failed", "damaged")


def decision(rows: Rows, complete: Path | None = None, partial: Path | None = None, **changes: Any):
    options: dict[str, Any] = {
        "root": "/birds",
        "complete": open_cache(complete) if complete else None,
        "partial": open_cache(partial, partial=True) if partial else None,
        "hashes": lambda images: [b"another content" for _ in images],
        "trust": Trust(**{k: changes.pop(k) for k in TRUST if k in changes}),
    }
    spec = changes.pop("spec", SPEC)
    return decide(rows, spec, **(options | changes))


def test_without_a_cache_everything_is_new() -> None:
    made = decision(rows_of())
    assert (made.action, made.kept, made.new) == ("create", 0, 10)
    assert str(made) == "10 images: 0 kept, 10 new"


def test_an_unchanged_folder_is_reused(tmp_path: Path) -> None:
    made = decision(rows_of(), finished(tmp_path / "a.h5"))
    assert (made.action, made.kept) == ("reuse", 10)


def test_an_unfinished_cache_is_resumed(tmp_path: Path) -> None:
    writer = create(tmp_path / "a.h5")
    writer.put(np.arange(3), features_of(3), sha_of(3))
    writer.commit()
    writer.close()
    made = decision(rows_of(), partial=partial_path(tmp_path / "a.h5"))
    assert (made.action, made.kept) == ("resume", 3)


def test_new_changed_and_vanished_images_are_told_apart(tmp_path: Path) -> None:
    path = finished(tmp_path / "a.h5", rows_of(20))
    now = rows_of(21)
    size, mtime = now.size_bytes.copy(), now.mtime_ns.copy()
    size[3] += 1  # other size: changed
    mtime[4] += 1  # touched, other content: changed
    mtime[5] += 1  # touched, same content: kept
    keep = np.arange(21) != 7  # gone
    rows = Rows(
        [p for p, k in zip(now.paths, keep, strict=True) if k],
        now.labels[keep], now.split[keep], now.groups[keep], size[keep], mtime[keep], now.classes,
    )  # fmt: skip
    made = decision(
        rows,
        path,
        hashes=lambda images: [sha_of(20)[5].tobytes() if i == 5 else b"" for i in images],
    )
    assert (made.action, made.kept, made.new, made.changed, made.gone) == ("extend", 17, 1, 2, 1)
    assert str(made) == "20 images: 17 kept, 1 new, 2 changed, 1 gone"
    assert made.source_rows.tolist() == [0, 1, 2, -1, -1, 5, 6, *range(8, 20), -1]


def test_relabelled_images_are_kept_without_a_forward_pass(tmp_path: Path) -> None:
    made = decision(rows_of(labels=np.zeros(10, np.int64)), finished(tmp_path / "a.h5"))
    assert (made.action, made.kept) == ("extend", 10)


def test_another_spec_is_refused_by_name(tmp_path: Path) -> None:
    path = finished(tmp_path / "a.h5")
    other = {**SPEC, "cut": "features", "images": {"label_from": "leaf"}}
    with pytest.raises(SpecMismatchError, match=r"cut: 'penultimate' there, 'features' asked") as e:
        decision(rows_of(), path, spec=other)
    assert e.value.fields == ("cut", "images.label_from")
    assert e.value.exit_code == 4


def test_another_root_of_the_same_name_is_refused_unless_pruned(tmp_path: Path) -> None:
    path = finished(tmp_path / "a.h5")
    with pytest.raises(CacheError, match=r"another folder, /birds, not /elsewhere.*--prune"):
        decision(rows_of(), path, root="/elsewhere")
    assert decision(rows_of(), path, root="/elsewhere", prune=True).kept == 10


def test_a_half_mounted_disk_is_refused_unless_pruned(tmp_path: Path) -> None:
    path = finished(tmp_path / "a.h5", rows_of(10))
    with pytest.raises(CacheError, match=r"2 of the 10 images .* are no longer under .*--prune"):
        decision(rows_of(8), path)
    assert decision(rows_of(8), path, prune=True).gone == 2
    assert decision(rows_of(9), path).gone == 1  # a tenth is no more than a tenth


def test_a_class_without_any_image_left_is_refused_unless_pruned(tmp_path: Path) -> None:
    labels = np.arange(30) % 2
    labels[[4, 5]] = 2
    classes = ("ants", "bees", "wasps")
    before = replace(rows_of(30, labels=labels), classes=classes)
    path = finished(tmp_path / "a.h5", before)

    def without(*gone: int) -> Rows:
        keep = np.setdiff1d(np.arange(30), gone)
        return replace(
            before,
            paths=[before.paths[i] for i in keep],
            **{
                name: getattr(before, name)[keep]
                for name in ("labels", "split", "groups", "size_bytes", "mtime_ns")
            },
        )

    assert decision(without(4), path).gone == 1
    with pytest.raises(CacheError, match=r"no image of wasps, classes in .* --prune to go on"):
        decision(without(4, 5), path)
    assert decision(without(4, 5), path, prune=True).gone == 2
    # to another class: the images are there
    paths = [b"new/" + p if i in (4, 5) else p for i, p in enumerate(before.paths)]
    moved = replace(before, paths=paths, classes=("ants", "bees", "new"))
    content = decision(moved, path, hashes=lambda images: [sha_of(30)[i].tobytes() for i in images])
    assert (content.gone, content.renamed) == (0, 2)


def test_bad_images_may_be_removed_without_pruning(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    writer = create(path)
    writer.put(np.arange(7), features_of(7), sha_of(7))
    for row in (7, 8, 9):
        writer.fail(row, Status.UNDECODABLE, "broken")
    writer.finish(path, {})
    made = decision(rows_of(7), path)
    assert (made.action, made.kept, made.gone) == ("extend", 7, 3)
    with pytest.raises(CacheError, match="2 of the 10 images"):
        decision(rows_of(5), path)


def test_failed_images_are_computed_again_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    writer = create(path)
    writer.put(np.arange(9), features_of(9), sha_of(9))
    writer.fail(9, Status.UNDECODABLE, "broken")
    writer.finish(path, {})
    assert decision(rows_of(), path).action == "reuse"
    again = decision(rows_of(), path, retry_failed=True)
    assert (again.action, again.source_rows[9]) == ("extend", -1)


def test_a_file_that_could_not_be_read_is_tried_on_every_run(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    writer = create(path)
    writer.put(np.arange(9), features_of(9), sha_of(9))
    writer.fail(9, Status.UNREADABLE, "permission denied")
    writer.finish(path, {})
    asked: list[int] = []

    def hashes(images: Sequence[int], *, found: bytes | None) -> list[bytes | None]:
        asked.extend(images)
        return [found for _ in images]

    still = decision(rows_of(), path, hashes=bound(hashes, found=None))
    assert (still.action, asked) == ("reuse", [9])
    again = decision(rows_of(), path, hashes=bound(hashes, found=b"readable now"))
    assert (again.action, again.source_rows[9], again.again) == ("extend", -1, 1)
    assert str(again) == "10 images: 9 kept, 0 new, 1 tried again"


def renamed(rows: Rows, names: dict[int, bytes]) -> tuple[Rows, list[int]]:
    """The table after images were renamed, sorted again; and which row each image had."""
    paths = [names.get(i, path) for i, path in enumerate(rows.paths)]
    order = sorted(range(len(rows)), key=paths.__getitem__)
    columns = ("labels", "split", "groups", "size_bytes", "mtime_ns")
    moved = {name: getattr(rows, name)[order] for name in columns}
    return Rows([paths[i] for i in order], **moved, classes=rows.classes), order


def test_content_under_another_name_keeps_its_row(tmp_path: Path) -> None:
    path = finished(tmp_path / "a.h5", rows_of(10))
    names = {0: b"z/first.jpg", 3: b"b/3.jpg", 7: b"a/0065.jpg"}  # 3 of 10: no disk is missing
    rows, was = renamed(rows_of(10), names)
    asked: list[int] = []

    def hashes(images: Sequence[int]) -> list[bytes | None]:
        asked.extend(images)
        return [sha_of(10)[was[i]].tobytes() for i in images]

    made = decision(rows, path, hashes=hashes)
    assert (made.action, made.source_rows.tolist()) == ("extend", was)
    assert str(made) == "10 images: 10 kept (3 under another name), 0 new"
    assert sorted(was[i] for i in asked) == [0, 3, 7]  # what kept its name is not read


def test_two_files_that_swapped_names_keep_their_own_rows(tmp_path: Path) -> None:
    path = finished(tmp_path / "a.h5", rows_of(10))
    now = rows_of(10)
    swap = np.array([1, 0, *range(2, 10)])
    rows = rows_of(10, size_bytes=now.size_bytes[swap], mtime_ns=now.mtime_ns[swap])
    made = decision(
        rows, path, hashes=lambda images: [sha_of(10)[swap[i]].tobytes() for i in images]
    )
    assert made.source_rows.tolist() == swap.tolist()
    times = rows_of(10, size_bytes=np.full(10, 7))  # nor where size and time do not tell
    path = finished(tmp_path / "b.h5", times)
    made = decision(
        times,
        path,
        hashes=lambda images: [sha_of(10)[swap[i]].tobytes() for i in images],
        rehash=True,
    )
    assert (made.action, made.source_rows.tolist()) == ("extend", swap.tolist())


def test_only_files_of_a_known_size_are_read_to_recognise_them(tmp_path: Path) -> None:
    path = finished(tmp_path / "a.h5", rows_of(10))
    rows = rows_of(12, size_bytes=np.array([*(np.arange(10) + 100), 5_000, 104]))
    asked: list[int] = []
    made = decision(
        rows, path, hashes=lambda images: asked.extend(images) or [None for _ in images]
    )
    assert (made.new, asked) == (2, [11])


def test_nothing_is_recognised_by_a_row_that_failed_to_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    writer = create(path)
    writer.put(np.arange(9), features_of(9), sha_of(9))
    writer.fail(9, Status.UNREADABLE, "permission denied", bytes(32))
    writer.finish(path, {})
    rows = rows_of(11, size_bytes=np.array([*(np.arange(10) + 100), 109]))
    made = decision(rows, path, hashes=lambda images: [bytes(32) for _ in images])
    assert made.source_rows[10] == -1


def test_rehash_reads_every_file_and_trusts_no_time(tmp_path: Path) -> None:
    path = finished(tmp_path / "a.h5")
    asked: list[int] = []

    def hashes(images: Sequence[int]) -> list[bytes | None]:
        asked.extend(images)
        return [b"edited in place" if i == 4 else sha_of()[i].tobytes() for i in images]

    assert decision(rows_of(), path, hashes=hashes).action == "reuse"
    assert not asked
    made = decision(rows_of(), path, hashes=hashes, rehash=True)
    assert (made.changed, made.source_rows[4], made.kept) == (1, -1, 9)
    assert set(asked) == set(range(10))


def test_damaged_rows_are_never_taken_over(tmp_path: Path) -> None:
    path = finished(tmp_path / "a.h5")
    rows, was = renamed(rows_of(), {2: b"z.jpg"})
    made = decision(rows_of(), path, damaged=frozenset({2, 5}))
    assert (made.action, np.flatnonzero(made.source_rows < 0).tolist()) == ("extend", [2, 5])
    assert (made.again, made.changed) == (2, 0)
    made = decision(
        rows,
        path,
        damaged=frozenset({2}),
        hashes=lambda images: [sha_of()[was[i]].tobytes() for i in images],
    )
    assert made.new == 1  # not even by its content


def test_a_stale_unfinished_file_does_not_hide_a_finished_cache_that_fits(tmp_path: Path) -> None:
    path = finished(tmp_path / "a.h5")
    other = {**SPEC, "decode": "exact"}
    create(path, spec=other).close()  # an interrupted --fresh of another spec
    assert decision(rows_of(), path, partial_path(path)).action == "reuse"
    create(path, rows_of(30)).close()  # an interrupted extension; its new images are gone again
    assert decision(rows_of(), path, partial_path(path)).action == "reuse"


def test_failed_rows_of_an_unfinished_cache_are_computed_again_when_asked(tmp_path: Path) -> None:
    writer = create(tmp_path / "a.h5")
    writer.put(np.arange(3), features_of(3), sha_of(3))
    writer.fail(3, Status.UNREADABLE, "permission denied")
    writer.commit()
    writer.close()
    partial = partial_path(tmp_path / "a.h5")
    made = decision(rows_of(), partial=partial, hashes=lambda images: [None for _ in images])
    assert (made.action, str(made)) == ("resume", "10 images: 4 kept, 6 still to do, 0 new")
    again = decision(rows_of(), partial=partial, retry_failed=True)
    assert (again.action, again.source_rows.tolist()) == ("extend", [0, 1, 2] + [-1] * 7)


def test_of_two_caches_that_fit_the_one_that_knows_more_is_taken(tmp_path: Path) -> None:
    path = finished(tmp_path / "a.h5", rows_of(10))
    writer = create(path, rows_of(8), source=open_cache(path), source_rows=np.arange(8))
    writer.close()  # while two images were away; now they are back, and one is new
    made = decision(rows_of(11), path, partial_path(path))
    assert (made.source and made.source.path, made.kept, made.new) == (path, 10, 1)
    writer = create(
        path, rows_of(11), source=open_cache(path), source_rows=np.r_[np.arange(10), -1]
    )
    writer.close()
    made = decision(rows_of(11), path, partial_path(path))
    assert (made.action, made.kept) == ("resume", 10)


def test_a_file_too_large_to_be_read_is_unchanged_while_its_size_is(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    writer = create(path)
    writer.put(np.arange(9), features_of(9), sha_of(9))
    writer.fail(9, Status.TOO_LARGE, "the file has 2,000,000,000 bytes")
    writer.finish(path, {})
    now = rows_of()
    size, mtime = now.size_bytes.copy(), now.mtime_ns.copy()
    mtime[9] += 1
    known = sha_of()

    def hashes(images: Sequence[int]) -> list[bytes]:
        assert 9 not in images
        return [known[i].tobytes() for i in images]

    made = decision(replace(now, mtime_ns=mtime), path, hashes=hashes, rehash=True)
    assert (made.kept, made.changed) == (10, 0)
    size[9] += 1
    made = decision(replace(now, size_bytes=size), path)
    assert (made.kept, made.changed) == (9, 1)
