"""`featx export` at the command line: words, streams and exit codes."""

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
    assert "1 images could not be used" in made.stderr
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
