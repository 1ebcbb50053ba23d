"""What `fit-head`, `evaluate` and `audit` print of a cache, and which options they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from synthetic import write_cache
from typer.testing import CliRunner, Result

from featx.cli import app

FAST = ("--device", "cpu")


def featx_(*arguments: Any, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return write_cache(tmp_path / "cache" / "a.h5", spread=1.0)


@pytest.mark.parametrize(
    ("words", "figures"),
    [
        ("fit-head --head linear --epochs 2 --curves FILE/x.png", "chosen on"),
        ("fit-head --shots 1 --repeats 2 --curves FILE/x.png", "images a class"),
        ("evaluate --cv 2 --repeats 1 --out FILE", "balanced accuracy"),
        ("evaluate --out FILE", "balanced accuracy"),
        ("audit --no-labels --out FILE", "outliers"),
    ],
)
def test_figures_are_there_although_they_cannot_be_written(
    cache: Path, tmp_path: Path, words: str, figures: str
) -> None:
    (tmp_path / "FILE").write_text("no folder")
    if words == "evaluate --out FILE":
        featx_("fit-head", *FAST)
    result = featx_(*words.split(), *(() if words == "evaluate --out FILE" else FAST), code=6)
    assert figures in result.stdout
    place = words.split()[-1]
    assert f"{place}: a file is in the way" in result.stderr
    assert "name another place" in result.stderr
    assert "committed" not in result.stderr
    result = featx_(*words.split(), "--json", code=6)
    assert json.loads(result.stdout)
