"""`featx demo`: which cache and which head it shows where several lie in its folder."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from synthetic import SPEC, write_cache
from typer.testing import CliRunner

from featx.cli import app
from featx.drawing import draw_birds
from featx.fitting import fit_head

Completed = subprocess.CompletedProcess[str]


@pytest.fixture(autouse=True)
def _few_birds(monkeypatch: pytest.MonkeyPatch) -> None:
    few = functools.partial(draw_birds, images_per_species=1, size_px=64)
    monkeypatch.setattr("featx.drawing.draw_birds", few)


@pytest.mark.usefixtures("few_to_choose_from")
def test_a_demo_shows_the_network_it_names_though_another_was_tried_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, other = (
        write_cache(tmp_path / "out" / "cache" / f"{name}.h5", spec={**SPEC, "backbone": name})
        for name in ("alexnet", "resnet18")
    )
    later = time.time() + 3600
    for path in (other, fit_head(other, C=1.0).path):
        os.utime(path, (later, later))
    ran: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Completed:
        """Runs fit-head and evaluate; the extraction is done already."""
        words = command[3:]
        ran.append(words)
        if words[0] not in ("fit-head", "evaluate"):
            return Completed(command, 0, json.dumps({"cache": str(cache)}))
        result = CliRunner().invoke(app, words)
        return Completed(command, result.exit_code, result.stdout, result.stderr)

    monkeypatch.setattr("featx.cli.demo.subprocess.run", run)
    arguments = ["demo", str(tmp_path / "out"), "--backbone", "alexnet"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    head = cache.with_suffix(".logistic.safetensors")
    report = json.loads((tmp_path / "out" / "report" / "report.json").read_text("utf-8"))
    assert (report["cache"], report["head"]) == (str(cache), str(head))
    fitted, predicted = (next(w for w in ran if w[0] == c) for c in ("fit-head", "predict"))
    assert (fitted[1], predicted[1]) == (str(cache), str(head))


def test_a_demo_ends_as_the_extraction_does_that_names_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **_: Any) -> Completed:
        return Completed(command, 6 if "--json" in command else 0, "", "the disk is full")

    monkeypatch.setattr("featx.cli.demo.subprocess.run", run)
    result = CliRunner().invoke(app, ["demo", str(tmp_path / "out")])
    assert result.exit_code == 6
    assert "the disk is full" in result.stderr


@pytest.mark.parametrize(
    ("weights", "tried"),
    [("default", 2), ("DEFAULT", 2), ("typo.pth", 1), ("IMAGENET1K_V1", 1)],
)
def test_a_demo_never_replaces_weights_that_were_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str, tried: int
) -> None:
    ran: list[str] = []

    def run(command: list[str], **_: Any) -> Completed:
        """No weights are to be had."""
        ran.append(command[command.index("--weights") + 1])
        return Completed(command, 7 if ran[-1] == weights else 6)

    monkeypatch.setattr("featx.cli.demo.subprocess.run", run)
    result = CliRunner().invoke(app, ["demo", str(tmp_path / "out"), "--weights", weights])
    assert ran == [weights, "random"][:tried]
    assert result.exit_code == (7 if tried == 1 else 6)  # of the last extraction
    assert ("random weights" in result.stderr) == (tried == 2)
