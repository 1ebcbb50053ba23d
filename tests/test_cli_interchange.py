"""`featx export` and `featx import` at the command line: words, streams and exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exchanged import write_cache
from synthetic import write_cache as write_birds
from typer.testing import CliRunner, Result

from featx.cli import app


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def featx_(*arguments: Any, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_the_newest_cache_is_exported_beside_it() -> None:
    write_birds(Path("cache/birds.h5"))
    made = featx_("export", "--to", "npz")
    assert made.stdout.startswith("cache/birds.npz: 60 rows of cache/birds.h5, ")
    assert len(np.load("cache/birds.npz")["X"]) == 60
    again = featx_("export", "--to", "npz", "--json")
    assert json.loads(again.stdout)["written"] is False
    assert "nothing to do" in again.stderr


def test_images_without_features_are_named_and_end_in_code_3() -> None:
    write_cache(Path("a.h5"))
    made = featx_("export", "a.h5", "--to", "csv", code=3)
    assert "1 image could not be used" in made.stderr
    assert "bad.jpg: undecodable (broken)" in made.stderr
    assert json.loads(featx_("export", "a.h5", "--to", "csv", "--json", code=3).stdout) == {
        "file": "a.csv",
        "cache": "a.h5",
        "rows": 7,
        "failed": 1,
        "written": False,
        "size_bytes": Path("a.csv").stat().st_size,
    }


def test_what_cannot_be_exported_ends_in_its_code() -> None:
    write_birds(Path("birds.h5"))
    assert "--to must be parquet" in featx_("export", "birds.h5", code=2).stderr
    Path("birds.csv").write_text("mine")
    refused = featx_("export", "birds.h5", "--to", "csv", code=2)
    assert "holds something else" in refused.stderr
    featx_("export", "birds.h5", "--to", "csv", "--force")
    featx_("export", "nothing.h5", "--to", "csv", code=4)
    featx_("export", "birds.h5", "--out", "/proc/birds.csv", code=6)


def test_foreign_features_are_imported_fitted_and_measured() -> None:
    y = np.arange(40) % 2
    features = np.random.default_rng(0).normal(size=(40, 4)) + 4 * y[:, None]
    features[7] = np.nan
    np.save("clip.npy", features)
    rows = [f"{i}.jpg,{'tit' if y[i] else 'wren'}" for i in range(40)]
    Path("birds.csv").write_text("\n".join(["path,label", *rows]))
    made = featx_("import", "clip.npy", "birds.csv", code=3)
    assert "cache/clip.h5  40      1       4 float32  2" in made.stdout
    assert "7.jpg: non-finite features (not all of its features are finite)" in made.stderr
    assert "0 of 40 images are there" in made.stderr
    facts = json.loads(featx_("import", "clip.npy", "birds.csv", "--json", code=3).stdout)
    assert (facts["written"], facts["failed"], facts["hashed"]) == (False, 1, 0)
    featx_("fit-head")
    assert json.loads(featx_("evaluate", "--json").stdout)["accuracy"]["value"] == 1.0
    told = json.loads(featx_("info", "--json").stdout)
    assert told["spec"]["backbone"] == "imported:clip"
    assert told["run"]["imported"]["hashed_by_path_and_features"] == 40
    assert "all 40 rows" in featx_("verify").stdout
    featx_("show", "cache/clip.h5", "-n", "4")  # grey tiles where no picture is


def test_what_cannot_be_imported_ends_in_its_code() -> None:
    np.save("clip.npy", np.zeros((2, 3)))
    Path("birds.csv").write_text("path\na.jpg\n")
    refused = featx_("import", "clip.npy", "birds.csv", code=2)
    assert "holds 2 rows and birds.csv lists 1 images" in refused.stderr
    Path("birds.csv").write_text("path\na.jpg\nb.jpg\n")
    featx_("import", "clip.npy", "birds.csv")
    np.save("clip.npy", np.ones((2, 3)))
    assert "--force" in featx_("import", "clip.npy", "birds.csv", code=4).stderr
    featx_("import", "clip.npy", "birds.csv", "--force")
    np.save("clip.npy", np.full((2, 3), np.inf))
    featx_("import", "clip.npy", "birds.csv", "--force", code=1)
