"""Verification: every byte of a cache counts, and what is damaged is named."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from small_caches import create, features_of, finished, sha_of

import featx.cache.writer as writer_module
from featx.cache import open_cache, partial_path, verify
from featx.cache.verify import check
from featx.errors import CacheError, DiskError
from featx.featureset import load_intact
from featx.repairing import repair


def _flip(path: Path, position: int, bit: int = 1) -> None:
    with path.open("r+b") as stream:
        stream.seek(position)
        byte = stream.read(1)[0]
        stream.seek(position)
        stream.write(bytes([byte ^ bit]))


def test_verify_says_which_row_or_column_a_flipped_byte_is_in(tmp_path: Path) -> None:
    path = finished(tmp_path / "a.h5")
    file = open_cache(path)
    rng = np.random.default_rng(0)
    for name, column in file.columns.items():
        within = int(rng.integers(100 if name == "run" else column.nbytes))
        _flip(path, file.offsets[name] + within)
        found = verify(path)
        assert not found.ok, name
        assert found.digest_matches == (name == "features")
        assert found.bad_columns == (() if name == "features" else (name,))
        row = within // column.row_bytes
        told = (row,) if name in ("features", "crc32", "status") else ()
        assert found.bad_rows == told, name
        assert found.bad_paths == tuple(f"a/{row:03d}.jpg" for row in told)
        _flip(path, file.offsets[name] + within)
    assert verify(path).ok


def test_verify_tells_hdf5s_own_bytes_and_padding_from_columns(tmp_path: Path) -> None:
    path = finished(tmp_path / "a.h5")
    file = open_cache(path)
    after_labels = file.offsets["labels"] + file.columns["labels"].nbytes
    _flip(path, after_labels)
    assert verify(path).bad_columns == ("other bytes",)


def test_a_damaged_run_report_accuses_no_column(tmp_path: Path) -> None:
    path = finished(tmp_path / "a.h5")
    file = open_cache(path)
    text = file.read("run").tobytes().rstrip(b"\0")
    digest_of_labels = text.index(b'"labels":"') + len(b'"labels":"')
    for within in (0, digest_of_labels, len(text), 65_535):  # no JSON; a digest; padding
        for bit in (1, 32):  # 32 makes a space of a NUL, which JSON may end in
            _flip(path, file.offsets["run"] + within, bit)
            assert verify(path).bad_columns == ("run",)
            _flip(path, file.offsets["run"] + within, bit)
    assert verify(path).ok


def test_a_cache_without_digests_of_its_columns_is_still_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "sealed", lambda report, columns: report)
    path = finished(tmp_path / "a.h5")
    assert verify(path).ok
    file = open_cache(path)
    _flip(path, file.offsets["labels"])
    assert set(verify(path).bad_columns) == {*file.columns, "other bytes"} - {"features"}


def test_a_cache_whose_header_is_damaged_is_to_be_made_anew(tmp_path: Path) -> None:
    path = finished(tmp_path / "a.h5")
    data = path.read_bytes()
    words = r"a\.h5 .*cannot be mended: make it anew with `featx extract … --fresh`$"
    for wrong in (data[:8] + b"\xff" + data[9:], data[: len(data) // 2], b""):
        path.write_bytes(wrong)
        for opened in (verify, repair, load_intact):
            with pytest.raises(CacheError, match=words):
                opened(path)
        with pytest.raises(CacheError) as plain:
            open_cache(path)
        assert "--fresh" not in str(plain.value)  # for those who ask whether it is a cache


def test_what_is_not_damaged_is_not_to_be_made_anew(tmp_path: Path) -> None:
    newer, unfinished = finished(tmp_path / "a.h5"), partial_path(tmp_path / "b.h5")
    create(tmp_path / "b.h5").close()
    with h5py.File(newer, "r+", libver="latest") as file:
        file.attrs.create("format", np.bytes_(b"featx cache 3"))
    for path in (newer, unfinished, tmp_path / "none.h5"):
        with pytest.raises(CacheError) as told:
            verify(path)
        assert "--fresh" not in str(told.value)


def test_verify_tells_damaged_paths_as_far_as_they_are_text(tmp_path: Path) -> None:
    path = finished(tmp_path / "a.h5")
    file = open_cache(path)
    with path.open("r+b") as stream:
        stream.seek(file.offsets["paths"])
        stream.write(b"\xff\x00\xfe")
        stream.seek(file.offsets["features"])
        stream.write(b"\xff")
    found = verify(path)
    assert (found.bad_rows, found.bad_columns) == ((0,), ("paths",))
    assert len(found.bad_paths) == 1


def test_verify_finds_rows_whose_features_belie_their_status(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    features = features_of()
    features[2, 1], features[3] = np.inf, np.nan
    writer = create(path)
    writer.put(np.arange(10), features, sha_of())
    writer.finish(path, {})
    found = verify(path)
    assert (found.digest_matches, found.bad_rows) == (True, (2, 3))
    assert not found.ok


def test_reading_in_parts_gives_the_whole_and_never_maps(tmp_path: Path) -> None:
    file = open_cache(finished(tmp_path / "a.h5"))
    for name in file.columns:
        whole = file.read(name)
        assert np.array_equal(whole, file.map(name))
        assert not isinstance(whole.base, np.memmap)
        step = max(1, len(whole) // 3)
        parts = [file.read(name, at, at + step) for at in range(0, len(whole), step)]
        assert np.array_equal(np.concatenate(parts), whole)
    os.truncate(file.path, 5000)
    with pytest.raises(CacheError, match="cut short"):
        file.read("features")


@pytest.mark.parametrize("method", ["read", "readinto"])
def test_a_disk_that_cannot_read_is_no_damaged_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    file = open_cache(finished(tmp_path / "a.h5"))

    class Failing(io.FileIO):
        def fail(self, *arguments: Any) -> Any:
            raise OSError(errno.EIO, "Input/output error")

        locals()[method] = fail

    monkeypatch.setattr(Path, "open", lambda path, mode, buffering=0: Failing(path, mode))
    with pytest.raises(DiskError, match=r"cannot read .*input/output error. Mend the disk") as e:
        check(file)
    assert e.value.exit_code == 6
