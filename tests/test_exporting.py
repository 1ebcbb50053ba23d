"""Export: what another program reads is bit for bit what the cache holds, or there is no file."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from exchanged import CLASSES, csv_rows, write_cache
from small_caches import finished
from synthetic import write_cache as write_birds

import featx
from featx.cache import Disk, open_cache
from featx.errors import CacheError, DiskError, InputError, MissingExtraError
from featx.exporting import FORMATS, export
from featx.featureset import FeatureSet
from featx.interchange.exported import Exported
from featx.usable import usable_columns
from featx.whole_files import write_whole

SHAPES = [((5,), "float32"), ((5,), "float16"), ((2, 3, 2), "float32")]


@pytest.fixture(params=SHAPES, ids=["vectors", "halves", "maps"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> FeatureSet:
    shape, dtype = request.param
    return featx.load(write_cache(tmp_path / "a.h5", shape=shape, dtype=dtype))


def _same_bits(found: np.ndarray, expected: np.ndarray) -> bool:
    return found.dtype == expected.dtype and found.tobytes() == expected.tobytes()


def _labels(features: FeatureSet) -> list[str | None]:
    return [None if label < 0 else features.classes[label] for label in features.y]


# What is in the files


def test_an_npz_holds_the_arrays_of_load(cache: FeatureSet) -> None:
    done = featx.export(cache.path, to="npz")
    assert done.path == cache.path.with_suffix(".npz")
    with np.load(done.path, allow_pickle=False) as found:
        assert _same_bits(found["X"], np.asarray(cache.features))
        assert found["X"].shape == cache.features.shape
        assert _same_bits(found["y"], cache.y)
        assert found["paths"].tolist() == cache.paths
        assert found["classes"].tolist() == list(CLASSES)
        assert found["split"].tolist() == cache.split.tolist()
        assert _same_bits(found["groups"], cache.groups)
        assert [bytes.fromhex(text) for text in found["sha256"]] == [
            row.tobytes() for row in cache.sha256
        ]
        assert json.loads(str(found["spec"])) == cache.spec
        assert json.loads(str(found["plan"])) == cache.plan
        assert json.loads(str(found["fingerprint"])) == cache.fingerprint
        assert json.loads(str(found["root"])) == cache.root
        assert json.loads(str(found["shape"])) == list(cache.features.shape[1:])


def test_a_csv_holds_every_bit_of_every_number(cache: FeatureSet) -> None:
    done = featx.export(cache.path, to="csv")
    assert not done.path.read_bytes().startswith(b"\xef\xbb\xbf")
    rows = csv_rows(done.path)
    d = cache.X.shape[1]
    numbers = np.array([[row[f"f{i}"] for i in range(d)] for row in rows]).astype(cache.X.dtype)
    assert _same_bits(numbers, np.asarray(cache.X))
    assert max(len(row[f"f{i}"]) for row in rows for i in range(d)) <= 15  # the shortest text
    assert [row["path"] for row in rows] == cache.paths
    assert [row["label"] or None for row in rows] == _labels(cache)
    assert [int(row["y"]) for row in rows] == cache.y.tolist()
    assert [row["split"] for row in rows] == cache.split.tolist()
    assert [int(row["group"] or -1) for row in rows] == cache.groups.tolist()
    assert [bytes.fromhex(row["sha256"]) for row in rows] == [x.tobytes() for x in cache.sha256]


def test_pandas_reads_the_csv(cache: FeatureSet) -> None:
    import pandas as pd

    frame = pd.read_csv(featx.export(cache.path, to="csv").path)
    numbers = frame[[f"f{i}" for i in range(cache.X.shape[1])]].to_numpy().astype(cache.X.dtype)
    assert _same_bits(numbers, np.asarray(cache.X))
    assert frame["path"].tolist() == cache.paths


def test_a_parquet_file_holds_lists_of_fixed_size_and_where_they_are_from(
    cache: FeatureSet,
) -> None:
    table = pq.read_table(featx.export(cache.path, to="parquet").path)
    d = cache.X.shape[1]
    value = pa.from_numpy_dtype(cache.X.dtype)
    assert table.schema.field("features").type == pa.list_(value, d)
    flat = table["features"].combine_chunks().flatten().to_numpy()
    assert _same_bits(flat.reshape(len(cache), d), np.asarray(cache.X))
    found = table.drop_columns("features").to_pydict()
    assert found["path"] == cache.paths
    assert found["label"] == _labels(cache)
    assert found["y"] == cache.y.tolist()
    assert found["split"] == [name or None for name in cache.split.tolist()]
    assert found["group"] == [group if group >= 0 else None for group in cache.groups.tolist()]
    assert [bytes.fromhex(text) for text in found["sha256"]] == [x.tobytes() for x in cache.sha256]
    told = {
        name.decode().removeprefix("featx."): json.loads(text)
        for name, text in table.schema.metadata.items()
        if name.startswith(b"featx.")
    }
    assert told == {
        "spec": cache.spec,
        "plan": cache.plan,
        "fingerprint": cache.fingerprint,
        "classes": list(CLASSES),
        "shape": list(cache.features.shape[1:]),
        "root": cache.root,
    }


@pytest.mark.parametrize("to", FORMATS)
def test_failed_images_have_no_row_and_are_listed(tmp_path: Path, to: str) -> None:
    path = write_cache(tmp_path / "a.h5")
    done = export(path, to=to)
    assert done.n == len(featx.load(path)) == 7
    assert [(image.path, image.reason) for image in done.failed] == [("bad.jpg", "broken")]


@pytest.mark.parametrize("to", FORMATS)
def test_a_split_is_the_rows_of_load_and_is_in_the_name(tmp_path: Path, to: str) -> None:
    path = write_birds(tmp_path / "birds.h5")
    for split in ("train", "held-out"):
        done = export(path, to=to, split=split)
        assert done.path == tmp_path / f"birds.{split}.{to}"
        assert _paths(done.path) == featx.load(path, split=split).paths
    other = export(path, to=to, split="train", seed=3, test_fraction=0.5)
    assert other.path == tmp_path / f"birds.train+seed=3+test_fraction=0.5.{to}"
    expected = featx.load(path, split="train", seed=3, test_fraction=0.5).paths
    assert _paths(other.path) == expected


def _paths(path: Path) -> list[str]:
    if path.suffix == ".npz":
        return np.load(path)["paths"].tolist()
    if path.suffix == ".csv":
        return [row["path"] for row in csv_rows(path)]
    return pq.read_table(path)["path"].to_pylist()


def test_paths_that_are_no_utf8_keep_their_bytes(tmp_path: Path) -> None:
    odd = [b"\xff\xfe.jpg", b"plain.jpg"]
    path = write_cache(tmp_path / "a.h5", paths=odd, failed=None)
    npz = np.load(export(path, to="npz").path)
    assert [os.fsencode(name) for name in npz["paths"]] == sorted(odd)
    assert [os.fsencode(row["path"]) for row in csv_rows(export(path, to="csv").path)] == sorted(
        odd
    )
    table = pq.read_table(export(path, to="parquet").path)
    assert table.schema.field("path").type == pa.binary()
    assert table["path"].to_pylist() == sorted(odd)


def test_a_cache_without_labels_is_exported(tmp_path: Path) -> None:
    none = np.full(3, -1)
    path = write_cache(
        tmp_path / "a.h5", paths=[b"1", b"2", b"3"], failed=None, labels=none, classes=()
    )
    assert np.load(export(path, to="npz").path)["classes"].tolist() == []
    assert [row["label"] for row in csv_rows(export(path, to="csv").path)] == ["", "", ""]
    assert pq.read_table(export(path, to="parquet").path)["label"].to_pylist() == [None] * 3


def test_class_names_of_any_bytes_reach_every_format(tmp_path: Path) -> None:
    names = ("gro\udcdf", "klein")  # as a cache of unknown origin may have them
    path = write_cache(tmp_path / "a.h5", classes=names)
    assert np.load(export(path, to="npz").path)["classes"].tolist() == list(names)
    assert {row["label"] for row in csv_rows(export(path, to="csv").path)} == {*names, ""}
    labels = pq.read_table(export(path, to="parquet").path)["label"].to_pylist()
    assert set(labels) == {"gro\\udcdf", "klein", None}


def test_a_figure_can_be_recomputed_from_an_npz_alone(tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    path = write_birds(tmp_path / "birds.h5")
    train, test = (np.load(export(path, to="npz", split=s).path) for s in ("train", "held-out"))
    model = LogisticRegression().fit(train["X"], train["y"])
    assert model.score(test["X"], test["y"]) > 0.9


# Memory


def _exported(path: Path, block_bytes: int) -> Exported:
    file = open_cache(path)
    known = usable_columns(file)
    return Exported(
        file,
        known["rows"],
        known["labels"],
        known["split"],
        known["groups"],
        known["sha256"],
        block_bytes=block_bytes,
    )


@pytest.mark.parametrize("to", FORMATS)
def test_a_file_of_many_blocks_holds_what_that_of_one_holds(tmp_path: Path, to: str) -> None:
    path = write_cache(tmp_path / "a.h5")
    one, many = io.BytesIO(), io.BytesIO()
    FORMATS[to](one, _exported(path, 2**20))
    FORMATS[to](many, _exported(path, 2 * 5 * 4))  # two rows
    if to == "parquet":
        assert pq.ParquetFile(many).num_row_groups == 4
        assert pq.read_table(many).equals(pq.read_table(one))
    else:
        assert many.getvalue() == one.getvalue()


@pytest.mark.parametrize("to", FORMATS)
def test_only_a_block_of_features_is_in_memory(tmp_path: Path, to: str) -> None:
    n, d = 128, 2048
    paths = [b"%04d.jpg" % i for i in range(n)]
    path = write_cache(tmp_path / "a.h5", paths=paths, shape=(d,), failed=n - 1)
    exported = _exported(path, 2**15)
    before = pa.total_allocated_bytes()
    peaks = []
    with (tmp_path / "out").open("wb") as stream:
        watched = _Watched(stream, lambda: peaks.append(pa.total_allocated_bytes() - before))
        tracemalloc.start()
        try:
            FORMATS[to](watched, exported)  # type: ignore[arg-type]
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert max(peaks) < n * d * 4 * 0.6
    assert (tmp_path / "out").stat().st_size > n * d * 4


class _Watched(io.RawIOBase):
    """A file that tells of each write."""

    def __init__(self, stream: BinaryIO, told: Callable[[], None]) -> None:
        super().__init__()
        self._stream, self._told = stream, told

    def write(self, data: Any) -> int:
        self._told()
        return self._stream.write(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False


# Whole files only


@pytest.mark.parametrize("to", FORMATS)
def test_the_same_rows_give_the_same_bytes_and_nothing_is_written_again(
    tmp_path: Path, to: str
) -> None:
    path = write_cache(tmp_path / "a.h5")
    first = export(path, to=to)
    assert first.written
    inode = first.path.stat().st_ino
    again = export(path, to=to)
    assert not again.written
    assert again.path.stat().st_ino == inode
    assert _names(tmp_path) == {"a.h5", first.path.name}


def test_an_npz_carries_no_time(tmp_path: Path) -> None:
    with zipfile.ZipFile(export(write_cache(tmp_path / "a.h5"), to="npz").path) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_a_file_of_other_content_is_replaced_only_by_force(tmp_path: Path) -> None:
    path, there = write_cache(tmp_path / "a.h5"), tmp_path / "a.csv"
    there.write_text("my own table")
    with pytest.raises(InputError, match=r"holds something else; .*--force"):
        export(path, to="csv")
    assert there.read_text() == "my own table"
    assert export(path, to="csv", force=True).written
    assert csv_rows(there)
    assert _names(tmp_path) == {"a.h5", "a.csv"}


def test_a_file_has_its_name_only_when_all_of_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, there = tmp_path / "out.csv", []

    class Watched(Disk):
        def sync(self, fd: int) -> None:
            there.append(("sync", os.fstat(fd).st_size, path.exists()))
            super().sync(fd)

        def rename(self, source: Path, target: Path) -> None:
            there.append(("rename", source.stat().st_size, path.exists()))
            super().rename(source, target)

    monkeypatch.setattr("featx.whole_files.Disk", Watched)
    assert write_whole(path, lambda stream: stream.write(b"x" * 5000))  # type: ignore[arg-type,return-value]
    assert there == [("sync", 5000, False), ("rename", 5000, False)]
    assert path.read_bytes() == b"x" * 5000


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("before")

    def write(stream: BinaryIO) -> None:
        stream.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(DiskError, match=r"cannot write .*out\.csv: the disk is full"):
        write_whole(path, write, force=True)
    assert path.read_text() == "before"
    assert _names(tmp_path) == {"out.csv"}


@pytest.mark.parametrize("to", FORMATS)
def test_every_format_tells_of_a_disk_that_fills_up(tmp_path: Path, to: str) -> None:
    cache = write_cache(tmp_path / "a.h5")

    class Full(io.RawIOBase):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def tell(self) -> int:
            return 0

        def writable(self) -> bool:
            return True

    with pytest.raises(DiskError, match="the disk is full"):
        write_whole(
            tmp_path / "out",
            lambda stream: FORMATS[to](Full(), _exported(cache, 2**20)),  # type: ignore[arg-type]
        )
    assert _names(tmp_path) == {"a.h5"}


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    def write(stream: BinaryIO) -> None:
        stream.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "out.csv", write)
    assert _names(tmp_path) == set()


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    link = tmp_path / "link.csv"
    link.symlink_to(tmp_path / "far" / "real.csv")
    export(write_cache(tmp_path / "a.h5"), link)
    assert link.is_symlink()
    assert csv_rows(tmp_path / "far" / "real.csv")


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# What is refused


def test_a_damaged_cache_is_not_exported(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5")
    file = open_cache(path)
    with path.open("r+b") as stream:
        stream.seek(file.offsets["features"] + 3)
        stream.write(b"\x17")
    with pytest.raises(CacheError, match=r"is damaged .*verify --repair"):
        export(path, to="npz")
    assert _names(tmp_path) == {"a.h5"}


def test_parquet_without_pyarrow_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_cache(tmp_path / "a.h5")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'featx\[parquet\]'"):
        export(path, to="parquet")
    assert _names(tmp_path) == {"a.h5"}
    assert export(path, to="csv").written


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({}, "--to must be parquet, npz, csv, and no ending of a file says it"),
        ({"to": "xlsx"}, "--to must be parquet, npz, csv, got 'xlsx'; state-dict is of a head"),
        (
            {"to": "csv", "out": "b.npz"},
            r"--out names a csv file, which ends in \.csv, got 'b.npz'",
        ),
        ({"out": "b"}, "--to must be parquet, npz, csv"),
        ({"to": "csv", "split": "exam"}, "split must be one of train, val, held-out"),
        ({"to": "csv", "out": "folder.csv"}, r"folder\.csv is a folder"),
    ],
)
def test_what_cannot_be_exported_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], error: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match=error):
        export(finished(tmp_path / "a.h5"), **arguments)


def test_the_format_is_that_of_the_files_ending(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5")
    assert export(path, tmp_path / "new" / "b.NPZ").path.is_file()
    assert len(np.load(tmp_path / "new" / "b.NPZ")["y"]) == 7
