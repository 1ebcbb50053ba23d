"""The README's promise: every figure that is printed comes out of five lines of scikit-learn."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import write_cache

from featx.evaluation import Evaluation, evaluate
from featx.fitting import fit_head

README = Path(__file__).parents[1] / "README.md"
CACHE, HEAD = "cache/birds-densenet121.h5", "cache/birds-densenet121.logistic.safetensors"


def block() -> str:
    text = README.read_text("utf-8")
    (found,) = [b for b in re.findall(r"```python\n(.*?)```", text, re.S) if "sk.log_loss" in b]
    return found


def printed(calibrated: bool, **cache: Any) -> tuple[list[Any], Evaluation]:
    """What the block prints in a folder with such a cache and head, and what featx says."""
    path = write_cache(Path(CACHE), **{"n": 300, "spread": 2.5, **cache})
    fit_head(path, out=HEAD, calibrate=calibrated)
    code = block()
    if calibrated:  # as the comment in the block says
        line, steps = re.search(r"(p, y = .*?)# if calibrated: (.*)\n", code).groups()
        code = code.replace(f"{line}# if calibrated: {steps}", f"{line}\n{steps}")
        assert "# if" not in code
    values: list[Any] = []
    exec(compile(code, "README.md", "exec"), {"print": lambda *found: values.extend(found)})
    return values, evaluate(path, HEAD)


def test_the_part_that_computes_is_five_lines() -> None:
    assert sum(line.startswith("print(") for line in block().splitlines()) == 5
    assert CACHE in block()
    assert HEAD in block()


@pytest.mark.parametrize("calibrated", [False, True])
def test_the_block_in_the_readme_gives_every_figure(tmp_path, monkeypatch, calibrated) -> None:
    monkeypatch.chdir(tmp_path)
    (table, confusion, *figures, accuracy_interval), evaluation = printed(calibrated)
    report = evaluation.report
    assert np.array_equal(confusion, report.confusion)
    assert (confusion != np.diag(np.diag(confusion))).any()
    expected = [
        report.balanced_accuracy,
        report.baseline.accuracy,
        report.average_precision,
        report.roc_auc,
        report.log_loss,
        report.brier,
        report.ece,
    ]
    assert figures == pytest.approx([estimate.value for estimate in expected], rel=1e-9)
    assert (report.accuracy.low, report.accuracy.high) == pytest.approx(tuple(accuracy_interval))
    rows = {row[0].strip(): row[1].split() for row in re.findall(r"(.{12,}?)  +(\d.*)\n", table)}
    for scored in report.per_class:
        shares = (scored.precision, scored.recall, scored.f1)
        assert rows[scored.name] == [*(f"{share:.3f}" for share in shares), str(scored.support)]
    assert rows["accuracy"][0] == f"{report.accuracy.value:.3f}"
    assert rows["macro avg"][2] == f"{report.macro_f1.value:.3f}"
    assert rows["weighted avg"][2] == f"{report.weighted_f1.value:.3f}"
    if calibrated:
        assert report.log_loss != evaluation.uncalibrated.log_loss


def test_all_but_ranking_holds_with_copies_of_known_files_and_a_class_without_a_test_image(
    tmp_path, monkeypatch
) -> None:
    def copy(features: np.ndarray, sha256: np.ndarray) -> None:
        features[[240, 241]], sha256[[240, 241]] = features[[0, 201]], sha256[[0, 201]]

    monkeypatch.chdir(tmp_path)
    numbers = np.arange(300)
    split = np.select([numbers < 200, numbers < 240], [1, 2], 3).astype(np.uint8)
    labels = np.where(split == 3, numbers % 2, numbers % 3)  # none of the third is tested
    labels[[240, 241]] = labels[[0, 201]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, of the class without a test image
        (table, confusion, *figures, _), evaluation = printed(
            False, split=split, labels=labels, plant=copy
        )
    report = evaluation.report
    assert evaluation.trained_left_out == 2
    assert report.n == confusion.sum() == 58
    assert np.array_equal(confusion, report.confusion)
    expected = [report.balanced_accuracy.value, report.baseline.accuracy.value]
    assert figures[:2] == pytest.approx(expected, rel=1e-9)
    assert figures[4:] == pytest.approx(
        [estimate.value for estimate in (report.log_loss, report.brier, report.ece)], rel=1e-9
    )
    assert f"{report.macro_f1.value:.3f}" in re.search("macro avg (.*)", table).group(1)
