"""The examples in the docstrings are run, so that none of them is broken."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import featx

ROOT = Path(featx.__file__).parent
MODULES = [
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    for path in sorted(ROOT.rglob("*.py"))
    if ">>>" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_give_what_they_say(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    found = doctest.DocTestFinder().find(module)
    written = Path(str(module.__file__)).read_text(encoding="utf-8").count(">>> ")
    assert sum(len(test.examples) for test in found) == written
    assert doctest.testmod(module).failed == 0
