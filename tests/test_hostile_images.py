"""A folder of bad and odd images through the whole of an extraction: each ends as it must."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from awkward import (
    DONE,
    SKIPPED,
    UNREADABLE,
    Awkward,
    encoded,
    picture,
    png,
    postscript,
    write_awkward,
)
from PIL import EpsImagePlugin, Image

from featx.cache import Status, open_cache, verify
from featx.decoding import TOO_LARGE, DecodeOptions, decode
from featx.errors import ImageError
from featx.extraction import Extraction, Listener, run_extraction
from featx.images import list_images
from featx.specs import ExtractOptions

TINY: dict[str, Any] = {
    "backbone": "squeezenet1_1", "weights": "random", "device": "cpu", "batch_size": 4,
    "transform": {"resize": 64, "crop": 64},
}  # fmt: skip
ARGUMENTS = [
    "--backbone", "squeezenet1_1", "--weights", "random", "--device", "cpu", "--batch-size", "4",
    "--resize", "64", "--crop", "64", "--max-failed", "1",
]  # fmt: skip


def extract(images: Path, out: Path, **changes: Any) -> Extraction:
    return run_extraction(images, ExtractOptions(**TINY), out=out, max_failed=1.0, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def awkward(folder: Path) -> list[Awkward]:
    return write_awkward(folder / "images", proof=folder / "proof")


@pytest.fixture(scope="module")
def extraction(folder: Path, awkward: list[Awkward]) -> Iterator[Extraction]:
    """The folder extracted where an interpreter of PostScript stands ready to be called."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(folder / "torch-home"))
        patch.setenv("PATH", f"{interpreter(folder)}{os.pathsep}{os.environ['PATH']}")
        yield extract(folder / "images", folder / "cache.h5")


def interpreter(folder: Path) -> Path:
    """A folder with a program called gs, as Pillow calls it, that only leaves a proof."""
    (folder / "bin").mkdir(exist_ok=True)
    program = folder / "bin" / "gs"
    program.write_text(f"#!/bin/sh\ntouch '{folder / 'proof'}'\nexit 1\n")
    program.chmod(0o755)
    return folder / "bin"


def states(cache: Path) -> dict[bytes, tuple[str, str]]:
    """Status and reason of every row, by path."""
    file = open_cache(cache)
    rows = zip(file.paths, file.read("status"), file.read("errors").tolist(), strict=True)
    return {path: (Status(status).name, reason.decode()) for path, status, reason in rows}


def test_every_file_ends_in_its_expected_state(
    extraction: Extraction, awkward: list[Awkward]
) -> None:
    found = states(extraction.features.path)
    expected = {file.path: file for file in awkward if file.state != SKIPPED}
    assert sorted(found) == sorted(expected)
    wrong = {
        path: (state, reason)
        for path, (state, reason) in found.items()
        if state != expected[path].state or expected[path].says not in reason
    }
    assert wrong == {}
    met = {file.state for file in awkward}
    assert len(met) == 5 or (sys.platform != "linux" and len(met) >= 4)
    assert verify(extraction.features.path).ok


def test_every_reason_is_a_line_of_plain_words(extraction: Extraction) -> None:
    for path, (state, reason) in states(extraction.features.path).items():
        assert (reason == "") == (state == DONE), path
        assert reason.isprintable(), path
        assert not any(word in reason for word in ("Traceback", "<class", "object at 0x")), reason
        assert state == DONE or any(c.isalpha() for c in reason), path


def test_what_is_no_file_of_an_image_is_passed_over_and_counted(
    folder: Path, awkward: list[Awkward]
) -> None:
    skipped = list_images(folder / "images").skipped
    for says in {file.says for file in awkward if file.state == SKIPPED}:
        n = sum(file.state == SKIPPED and file.says == says for file in awkward)
        assert skipped.get(says) == n, says


def test_every_row_is_that_of_a_clean_picture_of_the_same_pixels(
    extraction: Extraction, awkward: list[Awkward], tmp_path: Path
) -> None:
    good = [file for file in awkward if file.state == DONE]
    assert [os.fsencode(path) for path in extraction.features.paths] == [f.path for f in good]
    (tmp_path / "clean").mkdir()
    for i, file in enumerate(reversed(good)):  # in other batches, beside other pictures
        Image.fromarray(file.pixels).save(tmp_path / "clean" / f"{i:04d}.png")
    clean = extract(tmp_path / "clean", tmp_path / "clean.h5").features.X[::-1]
    differs = [
        file.path
        for file, ours, theirs in zip(good, clean, extraction.features.X, strict=True)
        if (ours != theirs).any()
    ]
    assert differs == []
    assert len(np.unique(clean, axis=0)) > len(good) // 2  # pictures can be told apart


@pytest.mark.skipif(os.name != "posix", reason="the program that is called is a shell script")
def test_postscript_in_an_image_runs_nothing(
    extraction: Extraction, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert extraction.features.path.is_file()
    assert not (folder / "proof").exists()
    # the same bytes, given to Pillow without featx's list of formats, do call the program
    monkeypatch.setenv("PATH", f"{interpreter(tmp_path)}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    (tmp_path / "a.eps").write_bytes(postscript(tmp_path / "proof"))
    with (
        Image.open(tmp_path / "a.eps") as image,
        pytest.raises((OSError, subprocess.SubprocessError)),
    ):
        image.load()
    assert (tmp_path / "proof").exists()


def test_the_program_tells_of_them_one_a_line_and_ends_with_code_3(
    folder: Path, awkward: list[Awkward], tmp_path: Path
) -> None:
    run = featx("extract", folder / "images", *ARGUMENTS, "--out", tmp_path / "a.h5", "--json")
    assert run.returncode == 3, run.stderr
    told = json.loads(run.stdout)  # and nothing else
    n_bad = sum(file.state not in (DONE, SKIPPED) for file in awkward)
    assert (told["failed"], told["done"]) == (n_bad, sum(f.state == DONE for f in awkward))
    lines = run.stderr.splitlines()
    at = lines.index(f"{n_bad} images could not be used:")
    assert len(lines[at + 1 :]) >= 11
    assert all(line.startswith("  ") and ": " in line for line in lines[at + 1 : at + 11])
    assert lines[at + 11] == f"  … and {n_bad - 10} more"
    if b"bad\nline\ttab.jpg" in {file.path for file in awkward}:  # not on Windows
        assert r"  bad\nline\ttab.jpg: undecodable (not a picture" in run.stderr
    assert all(line.isprintable() for line in lines)
    assert not any(word in run.stderr for word in ("Warning", "warn(", "Traceback"))


def featx(*arguments: Any) -> subprocess.CompletedProcess[str]:
    """Run the program with every warning shown."""
    command = [sys.executable, "-W", "default", "-m", "featx", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8",
        env=os.environ | {"PYTHONIOENCODING": "utf-8", "COLUMNS": "400"},
    )  # fmt: skip


def test_a_folder_deleted_during_the_run_costs_its_rows_and_no_other(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for i in range(60):
        (images / f"{i:02d}.png").write_bytes(encoded(picture(seed=i)))
    whole = extract(images, tmp_path / "whole.h5").features
    shutil.copytree(images, tmp_path / "kept")

    def delete(_: int) -> None:
        shutil.rmtree(images, ignore_errors=True)

    part = extract(images, tmp_path / "part.h5", listener=Listener(advance=delete)).features
    assert 4 <= len(part) < 60
    assert len(part) + len(part.failed) == 60
    for image in part.failed:
        assert (image.status.name, image.reason) == (UNREADABLE, "No such file or directory")
    rows = [whole.paths.index(path) for path in part.paths]
    assert np.array_equal(part.X, whole.X[rows])
    shutil.copytree(tmp_path / "kept", images)  # it was the network's share that was away
    again = extract(images, tmp_path / "part.h5")
    assert np.array_equal(again.features.X, whole.X)
    assert again.decision.kept == len(part)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory and its limit are asked of Linux")
def test_bombs_are_refused_within_little_memory(
    folder: Path, awkward: list[Awkward], tmp_path: Path
) -> None:
    bombs = [f.path for f in awkward if f.path.startswith((b"promise", b"bomb"))]
    assert len(bombs) >= 9
    files = [os.fsdecode(os.fsencode(folder / "images") + b"/" + path) for path in bombs]
    told = statuses_and_growth(files)
    assert all(status in (3, TOO_LARGE) for status, _ in told)
    grown = {path: grew for path, (_, grew) in zip(files, told, strict=True) if grew > 64 * 2**20}
    assert grown == {}
    # a picture of 96 megapixels is decoded and does grow the process: the measure measures
    (tmp_path / "large.png").write_bytes(
        png(12_000, 8_000, bytes(1 + 12_000 // 8) * 8_000, depth=1, colour=0)
    )
    ((status, grew),) = statuses_and_growth([os.fspath(tmp_path / "large.png")])
    assert status == 1
    assert grew > 250 * 2**20


def statuses_and_growth(files: list[str]) -> list[tuple[int, int]]:
    """Status of each file, 1 for a picture, and the bytes by which it raised its process's peak."""
    program = """
import json, resource, sys
from pathlib import Path
from featx.decoding import DecodeOptions, decode, read_image
from featx.errors import ImageError
def peak(): return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 2**30, now + 2**30))
told = []
for file in json.loads(sys.argv[1]):
    before, status = peak(), 1
    try:
        decode(read_image(Path(file)), DecodeOptions(), fast=True)
    except ImageError as error:
        status = error.status
    told.append((status, peak() - before))
print(json.dumps(told))
"""
    command = [sys.executable, "-c", program, json.dumps(files)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    told: list[tuple[int, int]] = json.loads(run.stdout)
    return told


def test_a_picture_just_within_the_limit_is_decoded() -> None:
    data = encoded(picture(20, 30))
    assert decode(data, DecodeOptions(max_pixels=600), fast=True).shape == (20, 30, 3)
    with pytest.raises(ImageError, match="30 x 20 = 600 pixels, more than 599"):
        decode(data, DecodeOptions(max_pixels=599), fast=True)


@pytest.mark.slow
@pytest.mark.real_data
def test_every_real_awkward_file_ends_as_its_manifest_says(real_data: Path, tmp_path: Path) -> None:
    import csv

    root = real_data / "data" / "awkward"
    if not (root / "manifest.csv").is_file():
        pytest.skip("no data/awkward there")
    with (root / "manifest.csv").open(encoding="utf-8", newline="") as stream:
        decodes = {r["file"]: r["decodes_with_pillow"] == "decodes" for r in csv.DictReader(stream)}
    run = featx("extract", root, *ARGUMENTS, "--out", tmp_path / "a.h5", "--json")
    assert run.returncode == 3, run.stderr
    assert json.loads(run.stdout)["failed"] == sum(not good for good in decodes.values())
    found = {os.fsdecode(path): state for path, (state, _) in states(tmp_path / "a.h5").items()}
    assert {path: state == DONE for path, state in found.items()} == decodes
    assert not any(word in run.stderr for word in ("Warning", "warn(", "Traceback"))
