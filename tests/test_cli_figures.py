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


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("evaluate --repeats 3", "go with --cv"),
        ("evaluate --cv 2 --include-trained", "leave --on, --include-trained and --bootstrap away"),
        ("evaluate --cv 2 --on all", "leave --on, --include-trained and --bootstrap away"),
        ("evaluate --cv 2 --bootstrap 5", "leave --on, --include-trained and --bootstrap away"),
        ("fit-head --C 1 --cs dinov2", "--C gives the one value"),
        ("fit-head --C 1 --cv 3", "--C gives the one value"),
        ("fit-head --head mlp --hidden 12.7,3", "--hidden takes whole numbers"),
        ("fit-head --n-seeds 3", "has no parameter n_seeds (of mlp), nor such an option"),
        ("fit-head --head mlp --hidden inf", "--hidden takes whole numbers"),
        ("fit-head --like cache/a.logistic.safetensors --head logistic", "leave the others away"),
        ("fit-head --like cache/a.logistic.safetensors --curves x.png", "not logistic"),
        ("fit-head --like cache/a.knn.safetensors --curves x.png", "not knn"),
    ],
)
def test_an_option_that_would_be_left_unused_is_refused(cache: Path, words: str, told: str) -> None:
    if "safetensors" in words:
        featx_("fit-head", "--head", "knn" if "knn" in words else "logistic", *FAST)
    assert told in featx_(*words.split(), code=2).stderr


def test_the_curves_of_a_repeated_head_are_drawn(cache: Path, tmp_path: Path) -> None:
    like = tmp_path / "mlp.safetensors"
    featx_("fit-head", "--head", "mlp", "--epochs", 2, "--hidden", "8,4", "--out", like, *FAST)
    other = write_cache(tmp_path / "cache" / "b.h5", first_image=100)
    featx_("fit-head", other, "--like", like, "--curves", tmp_path / "x.png", *FAST)
    assert (tmp_path / "x.png").is_file()


def test_info_of_a_final_head_keeps_its_report_short(cache: Path, tmp_path: Path) -> None:
    featx_("fit-head", "--final", *FAST)
    final = tmp_path / "cache" / "a.logistic.final.safetensors"
    lines = featx_("info", final).stdout.splitlines()
    names = [line.split()[0] for line in lines if line.startswith("final.")]
    choice = [f"final.choice.{name}" for name in ("accuracy", "on", "params.C", "what")]
    accuracy = [f"final.accuracy.{name}" for name in ("high", "low", "value")]
    assert names == [*choice, "final.head", *accuracy, "final.n", "final.tested_on"]
    report = json.loads(featx_("info", final, "--json").stdout)["final"]["report"]
    assert "confusion" in report  # all of it, for programs
