"""The cache's file before its first row: HDF5's own bytes, laid out in memory."""

from __future__ import annotations

import io
import signal
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from small_caches import create

from featx.cache import CacheWriter, Rows, open_cache, partial_path, size_of
from featx.cache.layout import ALIGNMENT, columns
from featx.cache.skeleton import _allocate_dataset, _fixed_attribute, _SparseFile, build_skeleton

ATTRIBUTES = {"format": "featx cache 1", "spec": "{}" * 1000, "root": "/birds/\udcff"}


def test_the_bytes_are_those_hdf5_writes_to_a_file_of_its_own(tmp_path: Path) -> None:
    layout = columns(1000, (7, 3, 3), "float16", 33, 5, 9)
    path = tmp_path / "by-hdf5.h5"
    options = {
        "libver": ("v110", "v110"),
        "alignment_threshold": 1,
        "alignment_interval": ALIGNMENT,
    }
    with h5py.File(path, "w", **options) as file:
        for name, text in ATTRIBUTES.items():
            _fixed_attribute(file, name, text)
        offsets = {name: _allocate_dataset(file, name, column) for name, column in layout.items()}
    made = build_skeleton(layout, ATTRIBUTES)
    assert made.offsets == offsets
    whole = bytearray(made.size_bytes)
    for offset, data in made.metadata:
        whole[offset : offset + len(data)] = data
    assert bytes(whole) == path.read_bytes()


def test_a_cache_of_400_gigabytes_is_laid_out_in_a_few_kilobytes() -> None:
    layout = columns(100_000_000, (1024,), "float32", 64, 1000, 20)
    made = build_skeleton(layout, ATTRIBUTES)
    assert made.size_bytes > 400e9
    assert sum(len(data) for _, data in made.metadata) < 16_384
    assert made.offsets["features"] % ALIGNMENT == 0


@pytest.mark.parametrize("call", ["write", "seek"])
def test_ctrl_c_while_hdf5_lays_it_out_is_ctrl_c(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = columns(10, (5,), "float32", 20, 2, 10)
    real = getattr(_SparseFile, call)
    calls: list[int] = []

    def interrupted(self: _SparseFile, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == at[0]:
            signal.raise_signal(signal.SIGINT)
        return real(self, *arguments)

    monkeypatch.setattr(_SparseFile, call, interrupted)
    at = [0]
    build_skeleton(layout, ATTRIBUTES)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for n in range(1, len(calls) + 1):
            at[0] = n
            calls.clear()
            with pytest.raises(KeyboardInterrupt):
                build_skeleton(layout, ATTRIBUTES)
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_size_of_a_cache_is_known_before_it_is_laid_out(tmp_path: Path) -> None:
    names = ("a", "grue cendrée")
    for n, shape, dtype in ((3, (7,), "float32"), (4096, (4, 5, 5), "float16")):
        number = np.arange(n)
        rows = Rows(
            [b"%d.jpg" % i for i in range(n)], number % 2, np.zeros(n, np.uint8),
            *(number - 1,) * 3, names,
        )  # fmt: skip
        path = tmp_path / f"{n}.h5"
        writer = CacheWriter.create(
            path, rows, root="/", spec={}, plan={}, feature_shape=shape, dtype=dtype
        )
        writer.close()
        own = partial_path(path).stat().st_size - size_of(rows, shape, dtype)
        assert 0 <= own < 32_768


def test_nothing_but_its_file_appears_beside_a_cache(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.h5"
    create(path).close()
    assert list(path.parent.iterdir()) == [partial_path(path)]
    assert len(open_cache(partial_path(path), partial=True)) == 10


def test_the_file_in_memory_behaves_as_one_on_disk() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = _SparseFile(), io.BytesIO()
    for _ in range(300):
        offset, length = int(rng.integers(500)), int(rng.integers(1, 60))
        for file in (ours, theirs):
            file.seek(offset)
        if rng.random() < 0.5:
            data = rng.bytes(length)
            assert ours.write(data) == theirs.write(data)
        else:
            assert ours.read(length) == theirs.read(length)
        assert ours.tell() == theirs.tell()
    assert ours.seek(-9, io.SEEK_END) == theirs.seek(-9, io.SEEK_END)
    assert ours.read(99) == theirs.read(99)
    assert ours.truncate(9999) == theirs.truncate(9999)
