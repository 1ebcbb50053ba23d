"""Files of formats 1 and 2 load for ever. They were made once, by `tests/golden/make.py`.

What must be found in them is written here, computed by hand or from the raw bytes, so that no
change of featx can change the files and the expectation together.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import featx
from featx.cache import Status, open_cache, verify
from featx.heads import load_head

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parents[1]

FILES = {
    "cache-1-float16-map.h5": "772a8e87ece17bf2b239b2fe3a1d247511af896ed1939ec3f45236178fb946c2",
    "cache-1-float32.h5": "b157158a5a64e73629253b2352957aa476080fca9706cdf88dbca22e0b903f83",
    "cache-2-pixels.h5": "b23526dfa9614af43f69760192ac68bc7c6d3048a33e55bcc74ad9a4480f610d",
    "cache-2-whole-pictures.h5": "9263452504bb03868e4ce7336fd0c6ecc10a56055cc8a1b266cb2baaede65c33",
    "linear-1.safetensors": "8fee3226ab1ed18da7a1086724f895cbb2a4936440cae5a1bed340f2f1a0f4d8",
    "logistic-1.safetensors": "0fd52a2df2ee6145d71a90a1840b9437442b9023142897eb3f432b0337fabb3e",
    "mlp-1.safetensors": "70692ae4d450bf41dcf2124559750d4668dc7fd8f7efa73b0b89843e23679821",
}
PATHS = [
    b"test/001.Caf\xe9/03.jpg",
    "test/002.Grue_cendrée/07.jpg".encode(),
    "test/003.麻雀/11.jpg".encode(),
    b"train/001.Caf\xe9/00.jpg",
    b"train/001.Caf\xe9/01.jpg",
    "train/002.Grue_cendrée/04.jpg".encode(),
    "train/002.Grue_cendrée/05.jpg".encode(),
    "train/003.麻雀/08.jpg".encode(),
    "train/003.麻雀/09.jpg".encode(),
    b"val/001.Caf\xe9/02.jpg",
    "val/002.Grue_cendrée/06.jpg".encode(),
    "val/003.麻雀/10.jpg".encode(),
]
DAMAGED = 1  # the row of image 7
IMAGES = [3, 7, 11, 0, 1, 4, 5, 8, 9, 2, 6, 10]  # the number in each row's path
CLASSES = ("001.Caf\udce9", "002.Grue_cendrée", "003.麻雀")
SPLIT = [3, 3, 3, 1, 1, 1, 1, 1, 1, 2, 2, 2]
ROW_3 = [1.625, -0.375, -0.375, -0.375, -0.375, -0.375, -0.375, -0.375]  # of image 0
ROW_6 = [-0.375, 2.25, 0.0, -0.25, 0.375, 0.125, -0.125, -0.375]  # of image 5
FEATURES_SHA256 = {
    "cache-1-float32.h5": "afdec18841c4ac20d90a9ee0e3bee5b0bbd87e3c4d75c75a27884acf12df5ee8",
    "cache-1-float16-map.h5": "3623f6ffb1c9d1f000e63496a75ccbb85e4abb2e415e3994696d27bffcb85c98",
    "cache-2-pixels.h5": "85aae6eafc29f2bd4711e9b73ab710bb7a90eff8ec66e1bad781754ee268a3a2",
    "cache-2-whole-pictures.h5": "c6f0fe1d8215d7e9a167fa5d09d79a5c4c862445f61afdba78f84a7205b43c1f",
}
PIXELS_3 = [7, 14, 21, 28, 35, 42, 49, 56]  # of image 0
PIXELS_6 = [42, 84, 126, 168, 210, 1, 43, 85]  # of image 5
HEIGHTS = [4, 0, 2, 1, 2, 5, 1, 4, 5, 3, 2, 1]  # of what is picture in each row; 0 of a damaged one
PROBE = np.array([[1.0, 0.5, 0.0, 0.25, 0.0, -0.25, 0.0, 0.0], [0.0, 0.0, 0.75, 0, 0, 0, 0.5, 0]])
PROBABILITIES = {  # worked out from the files' tensors with numpy alone
    "linear": [[0.59958719, 0.19904486, 0.20136795], [0.22974277, 0.08104489, 0.68921234]],
    "logistic": [[0.53166322, 0.24514932, 0.22318746], [0.30157908, 0.16272556, 0.53569536]],
    "mlp": [[0.55451402, 0.23279748, 0.2126885], [0.34514204, 0.20961117, 0.44524679]],
}

each_cache = pytest.mark.parametrize("name", FEATURES_SHA256)
each_head = pytest.mark.parametrize("kind", PROBABILITIES)


def test_the_files_are_those_that_were_made() -> None:
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in GOLDEN.iterdir()
        if path.suffix in (".h5", ".safetensors")
    }
    assert found == FILES


@pytest.mark.skipif(
    not (ROOT / ".git").exists() or shutil.which("git") is None, reason="not a checkout of git"
)
def test_git_keeps_them_as_they_are() -> None:
    paths = [f"tests/golden/{name}" for name in FILES]
    done = subprocess.run(
        ["git", "check-attr", "binary", "--", *paths],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [f"{path}: binary: set" for path in paths]


@each_cache
def test_a_cache_says_what_it_said(name: str) -> None:
    file = open_cache(GOLDEN / name)
    assert file.paths == tuple(PATHS)
    assert file.classes == CLASSES
    assert file.read("labels").tolist() == [image // 4 for image in IMAGES]
    assert file.read("split").tolist() == SPLIT
    assert file.read("groups").tolist() == [image // 2 for image in IMAGES]
    assert file.read("size_bytes").tolist() == [10_000 + image for image in IMAGES]
    assert file.read("mtime_ns").tolist() == [1_700_000_000_000_000_000 + i for i in IMAGES]
    assert file.read("sha256").tolist() == [[image] * 32 for image in IMAGES]
    status = file.read("status").tolist()
    assert status == [Status.UNDECODABLE if row == DAMAGED else 1 for row in range(12)]
    assert file.read("errors")[DAMAGED] == b"Truncated File Read"
    features = file.read("features")
    assert hashlib.sha256(features.tobytes()).hexdigest() == FEATURES_SHA256[name]
    is_of_pixels = name.startswith("cache-2")
    assert (features[DAMAGED] == 0 if is_of_pixels else np.isnan(features[DAMAGED])).all()
    assert features[3].ravel()[:8].tolist() == (PIXELS_3 if is_of_pixels else ROW_3)
    assert file.root == "/home/anna/birds"
    assert file.spec["backbone"] == "squeezenet1_1"
    assert file.spec["transform"]["resize"] == 256
    assert file.plan["batch_size"] == 16
    assert file.run["failed"] == 1
    assert verify(GOLDEN / name).ok


def test_the_float32_cache_is_ready_for_scikit_learn() -> None:
    X, y = featx.load(GOLDEN / "cache-1-float32.h5", return_X_y=True)
    assert (X.shape, X.dtype) == ((11, 8), np.float32)
    assert y.tolist() == [0, 2, 0, 0, 1, 1, 2, 2, 0, 1, 2]
    assert X[2].tolist() == ROW_3
    assert X[5].tolist() == ROW_6


def test_the_float16_map_keeps_its_shape() -> None:
    features = featx.load(GOLDEN / "cache-1-float16-map.h5")
    assert (features.features.shape, features.features.dtype) == ((11, 3, 2, 2), np.float16)
    assert features.spec["layout"] == "nchw"
    assert features.X.shape == (11, 12)


def test_pixels_are_pixels_for_a_tail_and_scikit_learn_alike() -> None:
    pixels = featx.load(GOLDEN / "cache-2-pixels.h5")
    assert (pixels.features.shape, pixels.features.dtype) == ((11, 4, 4, 3), np.uint8)
    assert (pixels.spec["cut"], pixels.spec["layout"]) == ("input", "nhwc")
    assert pixels.X[5, :8].tolist() == PIXELS_6


def test_whole_pictures_say_how_much_of_a_row_is_picture() -> None:
    file = open_cache(GOLDEN / "cache-2-whole-pictures.h5")
    assert file.spec["store_size"] == 5
    assert file.read("extent").tolist() == [[height, 5 * (height > 0)] for height in HEIGHTS]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no paths that are no Unicode")
def test_paths_that_are_no_unicode_name_their_files() -> None:
    features = featx.load(GOLDEN / "cache-1-float32.h5")
    assert [os.fsencode(path) for path in features.paths] == PATHS[:1] + PATHS[2:]
    assert os.fsencode(features.failed[0].path) == PATHS[DAMAGED]


@each_head
def test_a_head_predicts_what_it_predicted(kind: str) -> None:
    file = load_head(GOLDEN / f"{kind}-1.safetensors")
    assert file.kind == kind
    assert file.classes == CLASSES
    assert np.abs(file.head.predict_proba(PROBE) - PROBABILITIES[kind]).max() < 1e-6
    assert file.head.predict(PROBE).tolist() == np.argmax(PROBABILITIES[kind], axis=1).tolist()
    trained = sorted(file.split["train"][:, 0].tolist())
    assert trained == [0, 1, 4, 5, 8, 9]
    assert sorted(file.split["val"][:, 0].tolist()) == [2, 6, 10]
    assert sorted(file.split["held_out"][:, 0].tolist()) == [3, 11]
    cache = open_cache(GOLDEN / "cache-1-float32.h5")
    assert file.metadata["cache"]["fingerprint"] == cache.fingerprint


@each_head
def test_a_head_is_evaluated_on_the_cache_it_was_fitted_on(kind: str) -> None:
    head = GOLDEN / f"{kind}-1.safetensors"
    evaluation = featx.evaluate(GOLDEN / "cache-1-float32.h5", head)
    assert sorted(evaluation.y_true.tolist()) == [0, 2]
    assert (len(evaluation.paths), evaluation.failed) == (2, 1)
