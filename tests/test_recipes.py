"""The recipes: every command in them is one that featx has, and each runs to its end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer.main

import featx
from featx.cli import app

ROOT = Path(featx.__file__).parents[1]
RECIPES = ROOT / "recipes"
SCRIPTS = sorted(path.name for path in RECIPES.glob("*.sh"))
SETTINGS = ("BACKBONE", "BACKBONES", "WEIGHTS", "EPOCHS", "BATCH", "WAYS", "CUT", "SEEDS", "OUT")
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a recipe in an empty folder, where `featx` and `python` are those given here."""
    programs = tmp_path / "programs"
    programs.mkdir()

    def put(name: str, body: str) -> None:
        program = programs / name
        program.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        program.chmod(0o755)

    def start(script: str, *words: str, featx_is: str, python_is: str, **settings: str) -> object:
        put("featx", featx_is)
        put("python", python_is)
        unset = {name: value for name, value in os.environ.items() if name not in SETTINGS}
        paths = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            ["bash", str(RECIPES / script), *words],
            cwd=tmp_path,
            env={**unset, **paths, **settings},
            capture_output=True,
            text=True,
        )

    return start


def _recorded(run: Run, tmp_path: Path, script: str) -> list[list[str]]:
    """The words of every featx command of a recipe that is run with nothing set."""
    log = tmp_path / "log"
    done = run(
        script,
        featx_is=f"printf '%s\\0' \"$@\" >>'{log}'; printf '\\n' >>'{log}'",
        python_is="exit 0",
    )
    assert done.returncode == 0, done.stderr
    return [line.split("\0")[:-1] for line in log.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_command_of_a_recipe_is_one_that_featx_has(
    script: str, run: Run, tmp_path: Path
) -> None:
    commands = _recorded(run, tmp_path, script)
    assert len(commands) >= 2
    group = typer.main.get_command(app)
    for name, *words in commands:
        command = group.get_command(None, name)
        assert command is not None, name
        with command.make_context(name, words):  # fails for a word that it does not know
            pass


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_table_of_recipes_names_each(script: str) -> None:
    assert f"]({script})" in (RECIPES / "README.md").read_text(encoding="utf-8")


FAST = {  # settings that leave little to compute
    "birds.sh": {"BACKBONE": "squeezenet1_1", "WEIGHTS": "random", "EPOCHS": "1", "WAYS": "train"},
    "leaderboard.sh": {"BACKBONES": "squeezenet1_1 mobilenet_v3_small", "WEIGHTS": "random"},
    "flowers.sh": {
        "BACKBONE": "squeezenet1_1",
        "WEIGHTS": "random",
        "CUT": "features.10",
        "EPOCHS": "1",
    },
    "cifar10.sh": {"EPOCHS": "1"},
    "fashion.sh": {"EPOCHS": "1"},
    "digits.sh": {"EPOCHS": "1", "SEEDS": "0"},
}


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_recipe_runs_to_its_end(
    script: str, run: Run, colour_folder: Callable[..., Path]
) -> None:
    images = colour_folder(per_class=10)
    done = run(
        script,
        str(images),
        featx_is=f'exec {sys.executable} -m featx "$@"',
        python_is=f'exec {sys.executable} "$@"',
        **FAST[script],
    )
    assert done.returncode == 0, done.stderr
    end = "mean 0." if script == "digits.sh" else "95 % interval"  # of a table
    assert end in done.stdout
