"""Import: foreign features become a cache like every other, or nothing is made."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exchanged import csv_rows, values, write_cache
from synthetic import TINY

import featx
from featx import importing
from featx.cache import CacheWriter, Status, open_cache, verify
from featx.errors import (
    CacheError,
    DiskError,
    HeadError,
    InputError,
    LockedError,
    TooManyFailedError,
)
from featx.evaluation import evaluate
from featx.exporting import export
from featx.fitting import fit_head
from featx.importing import import_features
from featx.interchange.npy import open_npy
from featx.report.showing import choose

Folder = Callable[..., Path]
N, D = 24, 6


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def features_of(n: int = N, d: int = D) -> np.ndarray:
    """(n, d) of two classes that are far apart: odd rows are around 3."""
    drawn = np.random.default_rng(2).normal(size=(n, d))
    return (drawn + 3 * (np.arange(n) % 2)[:, None]).astype(np.float32)


def write_table(path: Path, lines: list[str] | None = None, header: str = "path,label") -> Path:
    """A CSV whose rows are in the opposite order of their paths."""
    if lines is None:
        lines = [f"{N - i:03d}.jpg,{('tit', 'wren')[i % 2]}" for i in range(N)]
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def foreign(
    features: np.ndarray | None = None, name: str = "clip.npy", **table: Any
) -> tuple[Path, Path]:
    np.save(name, features_of() if features is None else features)
    return Path(name), write_table(Path("birds.csv"), **table)


# What is in the cache


def test_every_row_is_beside_its_path_and_label() -> None:
    done = import_features(*foreign())
    made = featx.load("cache/clip.h5")
    assert done.written
    assert done.features.path == Path("cache/clip.h5")
    assert made.paths == sorted(made.paths)
    for i, path in enumerate(made.paths):
        row = N - int(path[:3])
        assert np.array_equal(made.X[i], features_of()[row])
        assert made.classes[made.y[i]] == ("tit", "wren")[row % 2]
    assert made.root == os.fspath(Path().resolve())
    assert verify("cache/clip.h5").ok


def test_the_spec_says_that_the_features_are_imported() -> None:
    spec = import_features(
        *foreign(features_of().astype(np.float64)), name="clip-b32"
    ).features.spec
    assert spec["backbone"] == "imported:clip-b32"
    assert spec["weights_sha256"] == spec["features_sha256"]
    assert (spec["cut"], spec["pool"], spec["layout"], spec["transform"]) == (
        "imported",
        "none",
        "vector",
        {},
    )
    assert (spec["precision"], spec["dtype"], spec["shape"]) == ("float64", "float32", [D])
    assert not {"decode", "exif", "max_pixels"} & set(spec)  # nobody told featx


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [("<f2", "float16"), ("<f4", "float32"), ("<f8", "float32"), (">f4", "float32")],
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_numbers_are_kept_whatever_their_type_and_order(
    dtype: str, stored: str, order: str
) -> None:
    array = np.asarray(features_of(), dtype=dtype, order=order)  # type: ignore[call-overload]
    made = import_features(*foreign(array)).features
    assert made.X.dtype == stored
    rows = [N - int(path[:3]) for path in made.paths]
    assert np.array_equal(made.X, array[rows].astype(stored))


def test_the_same_numbers_have_the_same_hash_in_any_order_of_bytes() -> None:
    hashes = set()
    for dtype, order in (("<f4", "C"), ("<f4", "F"), (">f4", "C"), ("<f8", "C")):
        np.save("a.npy", np.asarray(features_of(), dtype=dtype, order=order))  # type: ignore[call-overload]
        hashes.add(open_npy("a.npy").survey().sha256)
    np.save("a.npy", features_of().reshape(N, D // 2, 2))
    hashes.add(open_npy("a.npy").survey().sha256)
    assert len(hashes) == 2


def test_maps_keep_their_shape() -> None:
    maps = values(N, (3, 2, 2), "float32")
    made = import_features(*foreign(maps)).features
    assert made.features.shape == (N, 3, 2, 2)
    assert np.array_equal(made.features[0], maps[N - 1])
    assert made.spec["layout"] == "unknown"


def test_split_group_and_labels_are_read_as_of_any_csv() -> None:
    lines = [f"{i:03d}.jpg;{'Grue cendrée'};{('train', 'valid', 'test')[i % 3]};bird {i // 2}"
             for i in range(N)]  # fmt: skip
    made = import_features(*foreign(lines=lines, header="\ufeffPath;Label;split;group")).features
    assert made.classes == ("Grue cendrée",)
    assert made.split.tolist() == ["train", "val", "test"] * (N // 3)
    assert len(set(made.groups.tolist())) == N // 2
    assert all(made.groups[::2] == made.groups[1::2])


def test_without_a_label_column_folders_are_labels() -> None:
    lines = [f"train/{'tit' if i % 2 else 'wren'}/{i:03d}.jpg" for i in range(N)]
    made = import_features(*foreign(lines=lines, header="path")).features
    assert made.classes == ("tit", "wren")
    assert set(made.split.tolist()) == {"train"}


# Images and their hashes


def test_images_that_are_there_are_known_by_their_files(colour_folder: Folder) -> None:
    root = colour_folder(per_class=8)
    files = sorted(root.rglob("*.png"))
    shutil.copyfile(files[0], files[5])  # a copy: the same image twice
    lines = [f"{file.relative_to(root)},{file.parent.name}" for file in files[:-2]]
    lines += ["gone/1.png,red", "gone/2.png,red"]
    done = import_features(*foreign(lines=lines), root=root)
    made = done.features
    assert done.hashed == N - 2
    for i, file in enumerate(made.files):
        expected = hashlib.sha256(file.read_bytes()).digest() if file.is_file() else None
        assert (made.sha256[i].tobytes() == expected) == file.is_file()
    assert len({row.tobytes() for row in made.sha256}) == N - 1
    cache = open_cache(made.path)
    gone = [path.startswith(b"gone/") for path in cache.paths]
    assert (cache.read("size_bytes") == 0).tolist() == gone
    assert (cache.read("mtime_ns") == 0).tolist() == gone
    assert cache.run["imported"]["hashed_by_file"] == N - 2
    assert cache.run["imported"]["hashed_by_path_and_features"] == 2


def test_images_that_are_not_there_are_the_same_where_path_and_features_are() -> None:
    one = import_features(*foreign(), out="one.h5").features
    assert len({row.tobytes() for row in one.sha256}) == N
    changed = features_of()
    changed[4] += 1
    two = import_features(*foreign(changed), out="two.h5").features
    lines = [f"{N - i:03d}.jpg,tit" for i in range(N)]
    lines[7] = "other.jpg,tit"
    three = import_features(*foreign(lines=lines), out="three.h5").features
    same = [
        {path: sha.tobytes() for path, sha in zip(each.paths, each.sha256, strict=True)}
        for each in (one, two, three)
    ]
    assert [path for path in one.paths if same[0][path] != same[1][path]] == [f"{N - 4:03d}.jpg"]
    assert set(same[2].values()) - set(same[0].values()) == {same[2]["other.jpg"]}
    stored = b"featx imported row\0" + b"024.jpg\0" + features_of()[0].astype("<f4").tobytes()
    assert same[0]["024.jpg"] == hashlib.sha256(stored).digest()


def test_paths_outside_the_root_move_it_up() -> None:
    lines = [f"../photos/{i:03d}.jpg" for i in range(N)]
    made = import_features(*foreign(lines=lines, header="path")).features
    assert made.root == os.fspath(Path("../photos").resolve())
    assert made.paths[0] == "000.jpg"


# Bad rows


def test_rows_that_are_not_finite_fail_and_the_others_stay_in_step() -> None:
    features = features_of()
    features[3, 2], features[8, 0] = np.nan, -np.inf
    made = import_features(*foreign(features)).features
    assert [(image.path, image.status) for image in made.failed] == [
        (f"{N - 8:03d}.jpg", Status.NON_FINITE),
        (f"{N - 3:03d}.jpg", Status.NON_FINITE),
    ]
    rows = [N - int(path[:3]) for path in made.paths]
    assert np.array_equal(made.X, features[rows])
    assert verify(made.path).ok


@pytest.mark.parametrize(("n_bad", "told"), [(3, "3 of the 24 rows"), (N, "24 of the 24 rows")])
def test_too_many_bad_rows_make_no_cache(n_bad: int, told: str) -> None:
    features = features_of()
    features[:n_bad] = np.nan
    with pytest.raises(TooManyFailedError, match=told):
        import_features(*foreign(features))
    assert not Path("cache").exists()
    if n_bad < N:
        assert len(import_features(*foreign(features), max_failed=0.2).features) == N - n_bad


def test_a_number_beyond_float32_is_refused_by_its_row() -> None:
    features = features_of().astype(np.float64)
    features[5, 1] = 1e39
    with pytest.raises(InputError, match=r"row 5 \(counted from 0\) holds 1e\+39, .* float32"):
        import_features(*foreign(features))
    assert not Path("cache").exists()


# What is refused


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def _with_a_tail(path: Path) -> None:
    with path.open("ab") as stream:
        np.save(stream, np.zeros(3))


def _npz(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez(stream, X=features_of())


def _objects(path: Path) -> None:
    np.save(path, np.array([{"a": 1}, print], dtype=object), allow_pickle=True)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _text(path: Path) -> None:
    path.write_text("0.1 0.2\n0.3 0.4\n")


def _broken_zip(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04 and no more")


def _negative(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"(24, 6)", b"(-4, 6)"))


def _huge(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"(24, 6), }      ", b"(99999999, 6), }"))


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (_truncated, "cannot be read as one array of numbers"),
        (_with_a_tail, "152 bytes longer than the array it begins with"),
        (_npz, "is an NPZ archive; take the features out of it"),
        (_objects, "cannot be read as one array of numbers"),
        (_empty, "cannot be read as one array of numbers"),
        (_text, "cannot be read as one array of numbers"),
        (_broken_zip, "is an NPZ archive; take the features out of it"),
        (_negative, "cannot be read as one array of numbers"),
        (_huge, "cannot be read as one array of numbers"),
        (lambda path: np.save(path, np.zeros((N, 2), int)), "holds int64; features are float16"),
        (lambda path: np.save(path, np.zeros((N, 2), "c8")), "holds complex64"),
        (lambda path: np.save(path, np.zeros(N, "f4,f4")), "holds .*f4"),
        (lambda path: np.save(path, np.zeros(N)), r"of shape \(24,\); features are \(n, d\)"),
        (lambda path: np.save(path, np.zeros((N, 0))), "cannot be read|of shape"),
        (lambda path: np.save(path, np.zeros((N, 1, 1, 1, 1))), r"of shape \(24, 1, 1, 1, 1\)"),
        (lambda path: path.unlink(), "there is no file clip.npy"),
    ],
)
def test_a_file_that_is_no_array_of_features_is_refused(
    spoil: Callable[[Path], None], error: str
) -> None:
    features, table = foreign()
    spoil(features)
    with pytest.raises(InputError, match=error):
        import_features(features, table)
    assert not Path("cache").exists()


def test_no_byte_of_a_header_makes_anything_but_an_error_or_an_array() -> None:
    np.save("a.npy", features_of())
    whole, n_refused = Path("a.npy").read_bytes(), 0
    for at in range(whole.index(b"\n") + 1):
        for byte in (0, 0xFF, ord("("), ord("'"), whole[at] ^ 1):
            Path("b.npy").write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
            try:
                assert open_npy("b.npy").survey().finite.shape == (N,)
            except InputError:
                n_refused += 1
    assert n_refused > 100


@pytest.mark.parametrize(
    "header",
    [
        "if x:\n    y\n  z\n",
        "-" * 9000 + "1",
        "{[]: 1}",
        f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**70}, 2)}}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 2)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -2)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (2, 2)}",
    ],
)
def test_a_header_made_to_harm_is_an_error_like_any_other(header: str) -> None:
    text = header.encode()
    start = b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little")
    Path("a.npy").write_bytes(start + text + bytes(64))
    with pytest.raises(InputError, match=r"a\.npy cannot be read as one array of numbers"):
        open_npy("a.npy")


@pytest.mark.parametrize(
    ("lines", "header", "error"),
    [
        (["a.jpg"] * 2, "path", r"lists a\.jpg twice: lines 2 and 3"),
        (["a.jpg", "./x/../a.jpg"], "path", "twice: lines 2 and 3"),
        (["a.jpg", ""], "path", "holds 24 rows and birds.csv lists 1 images"),
        ([f"{i}.jpg" for i in range(N + 1)], "path", "holds 24 rows and birds.csv lists 25 images"),
        ([], "path", "lists no images"),
        (["a.jpg,tit,exam"], "path,label,split", "unknown split 'exam'"),
        (["a.jpg,tit"], "file,label", "has no column 'path'"),
        (["a\0.jpg"], "path", "1 of 1 files cannot be found"),
        ([",tit"], "path,label", "no path"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(lines: list[str], header: str, error: str) -> None:
    with pytest.raises(InputError, match=error):
        import_features(*foreign(lines=lines, header=header))
    assert not Path("cache").exists()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"name": "a/b"}, "--name must be"),
        ({"name": ""}, "--name must be"),
        ({"out": "x.hdf"}, r"--out names the cache file, which ends in \.h5"),
        ({"root": "nowhere"}, "--root must be a folder, got 'nowhere'"),
        ({"weights": "nowhere.pth"}, r"cannot read --weights nowhere\.pth"),
        ({"max_failed": 2}, "max_failed must be a share from 0 to 1, got 2"),
    ],
)
def test_arguments_that_make_no_sense_are_told(arguments: dict[str, Any], error: str) -> None:
    with pytest.raises(InputError, match=error):
        import_features(*foreign(), **arguments)


def test_features_that_change_while_they_are_read_make_no_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = foreign()
    hashes = importing._hashes

    def changing(*arguments: Any) -> dict[int, bytes]:
        with paths[0].open("r+b") as stream:
            stream.seek(-4, os.SEEK_END)
            stream.write(b"\0\0\x80?")
        return hashes(*arguments)

    monkeypatch.setattr(importing, "_hashes", changing)
    with pytest.raises(InputError, match="has changed while it was read"):
        import_features(*paths)
    assert not list(Path("cache").glob("clip*"))


# What is there already


def test_the_same_import_again_writes_nothing() -> None:
    first = import_features(*foreign())
    inode = first.features.path.stat().st_ino
    again = import_features(*foreign())
    assert not again.written
    assert again.features.path.stat().st_ino == inode
    assert np.array_equal(again.features.X, first.features.X)


@pytest.mark.parametrize("what", ["features", "labels", "name", "cut short"])
def test_another_cache_is_replaced_only_by_force(what: str) -> None:
    path = import_features(*foreign()).features.path
    features, lines, name = features_of(), None, "clip"
    if what == "features":
        features[0, 0] += 1
    elif what == "labels":
        lines = [f"{N - i:03d}.jpg,tit" for i in range(N)]
    elif what == "name":
        name = "dino"
    else:
        path.write_bytes(path.read_bytes()[:-100])
    before = path.read_bytes()
    paths = foreign(features, lines=lines)
    with pytest.raises(CacheError, match=r"[Ss]ay --force to replace it"):
        import_features(*paths, out=path, name=name)
    assert path.read_bytes() == before
    assert import_features(*paths, out=path, name=name, force=True).written
    assert verify(path).ok


def test_what_an_extraction_has_done_so_far_is_not_lost(tmp_path: Path) -> None:
    from small_caches import create

    create(tmp_path / "cache" / "clip.h5").close()
    partial = tmp_path / "cache" / "clip.h5.partial"
    before = partial.read_bytes()
    with pytest.raises(CacheError, match="holds what an unfinished `featx extract` has done"):
        import_features(*foreign())
    assert partial.read_bytes() == before


def test_an_import_that_fails_leaves_nothing_and_one_that_was_killed_is_done_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(self: CacheWriter, *arguments: Any) -> None:
        raise DiskError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(CacheWriter, "put", full)
        with pytest.raises(DiskError):
            import_features(*foreign())
        assert not list(Path("cache").glob("clip*"))
        patched.setattr(importing.Disk, "remove", lambda self, path: None)  # as if killed
        with pytest.raises(DiskError):
            import_features(*foreign())
    assert Path("cache/clip.h5.partial").exists()
    assert import_features(*foreign()).written
    assert {path.name for path in Path("cache").glob("clip*")} == {"clip.h5"}


def test_two_imports_of_one_cache_do_not_meet() -> None:
    from featx.cache import cache_lock

    with cache_lock(Path("cache/clip.h5")), pytest.raises(LockedError):
        import_features(*foreign())


# Memory


@pytest.mark.parametrize("order", ["C", "F"])
def test_features_are_read_block_by_block(monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    monkeypatch.setattr("featx.interchange.npy.BLOCK_BYTES", 2**18)
    monkeypatch.setattr("featx.cache.waiting.WRITE_BYTES", 2**18)
    n, d = 2048, 1024
    lines = [f"{i:04d}.jpg" for i in range(n)][::-1]
    array = np.asarray(np.arange(n * d, dtype=np.float32).reshape(n, d), order=order)  # type: ignore[call-overload]
    paths = foreign(array, lines=lines, header="path")
    tracemalloc.start()
    try:
        made = import_features(*paths).features
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < array.nbytes / 2
    assert np.array_equal(made.X, array[::-1])


@pytest.mark.skipif(sys.platform != "linux", reason="what is mapped is read from /proc")
def test_nothing_stays_mapped() -> None:
    np.save("a.npy", features_of())
    found = open_npy("a.npy")
    found.survey()
    assert "a.npy" not in Path("/proc/self/maps").read_text()


def test_a_file_that_is_cut_short_while_it_is_read_is_told() -> None:
    np.save("a.npy", features_of())
    found = open_npy("a.npy")
    _truncated(Path("a.npy"))
    with pytest.raises(InputError, match=r"a\.npy has changed while it was read"):
        found.survey()


# The whole chain


def test_heads_are_fitted_measured_and_used_on_imported_features() -> None:
    made = import_features(*foreign()).features
    fit = fit_head(made.path)
    assert fit.file.metadata["cache"]["spec"]["backbone"] == "imported:clip"
    assert evaluate(made.path).report.accuracy.value == 1.0
    assert evaluate(head=fit.path).cache == made.path
    predicted = featx.predict(fit.path, made.path)
    assert [predicted.classes[label] for label in predicted.labels] == [
        made.classes[label] for label in made.y
    ]


def test_a_head_fits_only_its_own_features_unless_a_file_vouches_for_others() -> None:
    Path("weights.pth").write_bytes(b"weights of the network")
    vouched = {"name": "clip", "weights": "weights.pth"}
    head = fit_head(import_features(*foreign(), out="a.h5", name="clip").features.path).path
    known = fit_head(import_features(*foreign(), out="b.h5", **vouched).features.path).path
    lines = [f"new{i:03d}.jpg,{('tit', 'wren')[i % 2]}" for i in range(N)]
    others = foreign(features_of() + np.float32(0.01), lines=lines)
    import_features(*others, out="c.h5", **vouched)
    assert evaluate("c.h5", known).report.accuracy.value == 1.0
    with pytest.raises(HeadError, match="weights_sha256"):
        evaluate("c.h5", head)
    import_features(*others, out="d.h5", name="dino", weights="weights.pth")
    with pytest.raises(HeadError, match="'imported:dino', not 'imported:clip'"):
        evaluate("d.h5", known)


def test_images_cannot_be_predicted_by_a_head_on_imported_features(colour_folder: Folder) -> None:
    head = fit_head(import_features(*foreign()).features.path).path
    with pytest.raises(HeadError, match=r"imported features \(imported:clip\), which featx cannot"):
        featx.predict(head, [colour_folder() / "red" / "red0.png"])


@pytest.mark.parametrize("rules", [{}, {"fresh": True}, {"prune": True}, {"rehash": True}])
def test_extract_neither_extends_nor_replaces_imported_features(
    colour_folder: Folder, rules: dict[str, bool]
) -> None:
    root = colour_folder()
    files = sorted(root.rglob("*.png"))
    lines = [f"{file.relative_to(root)},{file.parent.name}" for file in files]
    made = import_features(*foreign(features_of(len(files)), lines=lines), root=root).features
    before = made.path.read_bytes()
    with pytest.raises(CacheError, match=r"holds imported features \(imported:clip\)"):
        featx.extract(root, out=made.path, **TINY, **rules)
    assert made.path.read_bytes() == before


def test_repair_says_to_import_again() -> None:
    made = import_features(*foreign()).features
    assert featx.repair(made.path).decision.action == "reuse"
    with made.path.open("r+b") as stream:
        stream.seek(open_cache(made.path).offsets["features"])
        stream.write(b"\x17")
    assert not verify(made.path).ok
    with pytest.raises(CacheError, match=r"import them anew, `featx import .* --force --out"):
        featx.repair(made.path)
    import_features(*foreign(), force=True)
    assert verify(made.path).ok


def test_pictures_are_shown_where_they_are(colour_folder: Folder) -> None:
    root = colour_folder(per_class=8)
    files = sorted(root.rglob("*.png"))
    lines = [f"{file.relative_to(root)},{file.parent.name}" for file in files]
    made = import_features(*foreign(lines=lines), root=root).features
    chosen = choose(made.path, n=N)
    assert list(chosen.files) == [root.resolve() / file.relative_to(root) for file in files]
    assert list(chosen.captions) == [file.parent.name for file in files]


# There and back


@pytest.mark.parametrize(
    ("shape", "dtype"), [((5,), "float32"), ((5,), "float16"), ((2, 3, 2), "float32")]
)
def test_what_was_exported_comes_back_as_it_was(shape: tuple[int, ...], dtype: str) -> None:
    before = featx.load(write_cache(Path("a.h5").absolute(), shape=shape, dtype=dtype))
    npz = np.load(export(before.path, to="npz").path)
    np.save("X.npy", npz["X"])
    after = import_features("X.npy", export(before.path, to="csv").path, out="b.h5").features
    assert after.features.tobytes() == np.asarray(before.features).tobytes()
    assert after.features.shape == before.features.shape
    assert list(after.raw_paths) == list(before.raw_paths)
    assert after.classes == before.classes
    for name in ("y", "split"):
        assert np.array_equal(getattr(after, name), getattr(before, name))
    assert _partition(after.groups) == _partition(before.groups)


def test_a_csv_alone_comes_back_too() -> None:
    before = featx.load(write_cache(Path("a.h5").absolute()))
    rows = csv_rows(export(before.path, to="csv").path)
    np.save("X.npy", np.array([[row[f"f{i}"] for i in range(5)] for row in rows], np.float32))
    told: list[str] = []
    after = import_features("X.npy", "a.csv", out="b.h5", tell=told.append).features
    assert after.X.tobytes() == np.asarray(before.X).tobytes()
    assert told == ["columns of a.csv not used: 'y', 'sha256', 'f0', 'f1', 'f2', 'f3', 'f4'"]


def _partition(groups: np.ndarray) -> list[list[int]]:
    return sorted(np.flatnonzero(groups == group).tolist() for group in set(groups[groups >= 0]))
