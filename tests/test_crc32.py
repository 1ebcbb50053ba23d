"""The checksums of rows: the numbers of zlib, by whatever they are computed."""

from __future__ import annotations

import runpy
import sys
import zlib

import numpy as np
import pytest

import featx.cache.crc32 as crc32
from featx.cache.crc32 import crc32_of, mask_of

CALLS = {"as installed": crc32.crc32_of_bytes, "zlib": zlib.crc32}


@pytest.fixture(params=CALLS, autouse=True)
def _call(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crc32, "crc32_of_bytes", CALLS[request.param])


@pytest.mark.parametrize("shape", [(7,), (1,), (3, 5, 5), (1024,)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_checksum_of_a_row_is_that_of_its_bytes(shape: tuple[int, ...], dtype: str) -> None:
    features = np.random.default_rng(0).normal(size=(9, *shape)).astype(dtype)
    for rows in (features, features[::2], features[:1], features[:0]):
        expected = [zlib.crc32(row.tobytes()) for row in rows]
        assert crc32_of(rows).tolist() == expected
    assert crc32_of(features).dtype == np.dtype("<u4")


def test_a_mask_is_the_checksum_of_a_status_a_hash_and_an_error() -> None:
    rng = np.random.default_rng(0)
    n = 50
    status, sha256 = rng.integers(0, 256, n, np.uint8), rng.integers(0, 256, (n, 32), np.uint8)
    errors = np.zeros(n, "S160")
    errors[::7], errors[3], errors[5] = b"no image", b"x" * 160, b"\0" * 159 + b"x"
    expected = [zlib.crc32(b"".join(map(bytes, row))) for row in zip(
        status[:, None], sha256, errors.view(np.uint8).reshape(n, 160), strict=True
    )]  # fmt: skip
    assert mask_of(status, sha256, errors).tolist() == expected
    assert mask_of(status[:0], sha256[:0], errors[:0]).tolist() == []


def test_without_a_faster_one_the_checksum_is_zlibs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "isal.isal_zlib", None)
    assert runpy.run_path(crc32.__file__)["crc32_of_bytes"] is zlib.crc32
