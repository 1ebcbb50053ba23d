"""What is refused before any work is done for it, and pictures that have not room for all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from synthetic import write_cache
from typer.testing import CliRunner, Result

from featx.cli import app
from featx.report.grid import image_grid, n_fitting

CACHE, HEAD = "cache/a.h5", "cache/a.logistic+C=1.safetensors"


def featx_(*arguments: Any, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


@pytest.fixture(autouse=True)
def _cache_and_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_cache(tmp_path / CACHE, failed=(7,))
    featx_("fit-head", CACHE, "--C", 1)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (f"predict {HEAD} {CACHE} --json --csv -", 2, "both write to standard output"),
        (f"predict {HEAD} {CACHE} --csv cache", 6, "cannot write cache: a folder is in the way"),
        (f"predict {HEAD} {CACHE} --csv {CACHE}/new/x.csv", 6, "x.csv: a file is in the way"),
        (f"predict {HEAD} {CACHE} --show x.gif", 2, "a picture is written as .png or .jpg or"),
        (f"predict {HEAD} {CACHE} --show x", 2, "got 'x'"),
        (f"predict {HEAD} {CACHE} --show x.png", 6, "cannot write x.png: a folder is in the way"),
        (f"show {CACHE} --out x.gif", 2, "got 'x.gif'"),
        (f"show {CACHE} --out x.png", 6, "cannot write x.png: a folder is in the way"),
        (f"audit {CACHE} --show x.gif", 2, "got 'x.gif'"),
        (f"audit {CACHE} --show x.png", 6, "cannot write x.png: a folder is in the way"),
    ],
)
def test_what_cannot_be_written_is_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch, words: str, code: int, told: str
) -> None:
    for work in ("prediction.predict", "report.showing.choose", "auditing.audit"):
        monkeypatch.setattr(f"featx.{work}", None)
    Path("x.png").mkdir()
    result = featx_(*words.split(), code=code)
    assert told in result.stderr
    assert result.stdout == ""


def test_a_folder_that_takes_no_files_is_refused_and_nothing_made_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("featx.prediction.predict", None)
    # for root every folder takes some
    monkeypatch.setattr(os, "access", lambda place, mode: mode != os.W_OK)
    for option in ("--csv", "--show"):
        result = featx_("predict", HEAD, CACHE, option, "new/x.png", code=6)
        assert "cannot write new/x.png: permission denied" in result.stderr
    assert not Path("new").exists()


def test_a_folder_that_is_not_there_yet_is_made() -> None:
    featx_("predict", HEAD, CACHE, "--csv", "new/er/x.csv", "--show", "new/est/x.png", code=3)
    assert len(Path("new/er/x.csv").read_text("utf-8").splitlines()) == 60
    with Image.open("new/est/x.png") as picture:
        assert picture.format == "PNG"


def test_of_too_many_images_the_first_that_fit_are_drawn_and_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("featx.report.grid._MAX_PIXELS", 500_000)
    drawn: list[tuple[list[Path], list[str]]] = []

    def noting(files: Any, captions: Any, **options: Any) -> Image.Image:
        drawn.append((list(files), list(captions)))
        return image_grid(files, captions, **options)

    monkeypatch.setattr("featx.report.grid.image_grid", noting)
    result = featx_("predict", HEAD, CACHE, "--json", "--show", "x.png", code=3)
    ((files, captions),) = drawn
    assert len(files) == len(captions) < 20
    assert [file.name for file in files] == [f"{i:06d}.jpg" for i in range(20) if i != 7][
        : len(files)
    ]
    assert f"x.png has room for the first {len(files)} of 59 images" in result.stderr
    assert len([json.loads(line) for line in result.stdout.splitlines()]) == 59
    # what failed is told although the picture comes to nothing
    assert result.stderr.index("1 image could not be used") < result.stderr.index("x.png")
    told = featx_("show", CACHE, "-o", "x.png", "-n", 59).stdout
    assert f"wrote x.png: {len(drawn[1][0])} of 59" in told


@pytest.mark.parametrize("columns", [None, 3])
def test_as_many_images_are_drawn_as_the_pixels_are_enough_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: int | None
) -> None:
    captions = [f"caption {'of several lines ' * (i % 3)}" for i in range(60)]
    files = [tmp_path / "gone.jpg"] * 60
    assert n_fitting(captions, columns=columns) == 60
    whole = image_grid(files, captions, columns=columns)
    monkeypatch.setattr("featx.report.grid._MAX_PIXELS", whole.width * whole.height)
    assert n_fitting(captions, columns=columns) == 60
    monkeypatch.setattr("featx.report.grid._MAX_PIXELS", whole.width * whole.height // 2)
    n = n_fitting(captions, columns=columns)
    part = np.asarray(image_grid(files[:n], captions[:n], columns=columns))
    assert part.shape[0] * part.shape[1] <= whole.width * whole.height // 2
    assert n >= 24
