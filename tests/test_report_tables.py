"""An evaluation as files: every figure in them is the evaluation's, whatever the names are."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    precision_recall_fscore_support,
    roc_auc_score,
)
from synthetic import write_cache

from featx.errors import DiskError
from featx.evaluation import Evaluation, evaluate
from featx.fitting import fit_head
from featx.report import fonts as fonts_module
from featx.report import tables
from featx.report.tables import write_evaluation

NAMES = ("Great tit", "Grue cendrée", "麻雀")


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """A head that makes mistakes, on 60 held-out images."""
    path = write_cache(tmp_path_factory.mktemp("cache") / "a.h5", n=300, spread=2.5)
    fit_head(path, C=1.0)
    return evaluate(path, bootstrap=50)


@pytest.fixture(scope="module")
def folder(evaluation: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "new" / "report"
    write_evaluation(folder, evaluation)
    return folder


def _table(path: Path) -> list[list[str]]:
    # newline="" and no universal newlines: what a spreadsheet's own parser gets
    return list(csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline="")))


def _predicted(evaluation: Evaluation) -> np.ndarray:
    return evaluation.probabilities.argmax(axis=1)


def test_the_files_it_says_it_wrote_are_all_there_is(evaluation, tmp_path):
    paths, notes = write_evaluation(tmp_path / "a" / "b", evaluation)
    names = ["report.json", "classes.csv", "confusion.csv", "predictions.csv", "leaks.csv"]
    names += ["confusion.png", "reliability.png"]
    assert [path.name for path in paths] == names
    assert sorted(paths) == sorted((tmp_path / "a" / "b").iterdir())
    assert notes == ()


def test_the_json_report_is_the_evaluation_in_readable_utf_8(evaluation, folder):
    text = (folder / "report.json").read_text("utf-8")
    assert json.loads(text) == evaluation.to_dict()
    assert "麻雀" in text
    assert "Grue cendrée" in text
    assert text.endswith("}\n")


def test_the_class_table_has_scikit_learns_figures(evaluation, folder):
    header, *rows = _table(folder / "classes.csv")
    names = ["class", "precision", "recall", "f1", "average_precision", "roc_auc", "images"]
    assert header == names
    assert [row[0] for row in rows] == list(NAMES)
    y, p = evaluation.y_true, evaluation.probabilities
    *shares, support = precision_recall_fscore_support(y, _predicted(evaluation))
    true = np.eye(3)[y]
    expected = [*shares, average_precision_score(true, p, average=None),
                roc_auc_score(true, p, average=None), support]  # fmt: skip
    np.testing.assert_allclose([[float(cell) for cell in row[1:]] for row in rows],
                               np.transpose(expected))  # fmt: skip


def test_the_confusion_table_has_true_classes_down_and_predicted_ones_across(evaluation, folder):
    expected = confusion_matrix(evaluation.y_true, _predicted(evaluation))
    assert (expected != expected.T).any()  # else a transposed table would pass
    header, *rows = _table(folder / "confusion.csv")
    assert header == ["true class", *NAMES]
    assert [row[0] for row in rows] == list(NAMES)
    assert [[int(cell) for cell in row[1:]] for row in rows] == expected.tolist()


def test_the_prediction_table_names_every_tested_image_once(evaluation, folder):
    header, *rows = _table(folder / "predictions.csv")
    assert header == ["path", "true", "predicted", "probability"]
    assert tuple(row[0] for row in rows) == evaluation.paths
    assert len(set(evaluation.paths)) == len(rows) == 60
    assert [row[1] for row in rows] == [NAMES[label] for label in evaluation.y_true]
    assert accuracy_score([row[1] for row in rows], [row[2] for row in rows]) == pytest.approx(
        evaluation.report.accuracy.value
    )


def test_the_probability_is_that_of_the_predicted_class(evaluation, folder):
    _, *rows = _table(folder / "predictions.csv")
    columns = [NAMES.index(row[2]) for row in rows]
    expected = evaluation.probabilities[np.arange(len(rows)), columns]
    assert [row[3] for row in rows] == [f"{probability:.6f}" for probability in expected]
    assert all(float(row[3]) > 1 / 3 for row in rows)


@pytest.mark.parametrize("name", ["classes.csv", "confusion.csv", "predictions.csv"])
def test_tables_begin_with_the_mark_by_which_spreadsheets_know_utf_8(folder, name):
    data = (folder / name).read_bytes()
    assert data.startswith(b"\xef\xbb\xbf")
    assert data.count(b"\xef\xbb\xbf") == 1
    assert "麻雀".encode() in data


def test_the_confusion_picture_is_a_picture(folder):
    with Image.open(folder / "confusion.png") as image:
        image.load()
        assert image.format == "PNG"
        assert min(image.size) > 200
        assert len(image.convert("RGB").getcolors(1 << 24)) > 50


def test_the_reliability_picture_has_a_curve_with_the_temperature_and_one_without(
    evaluation, tmp_path, monkeypatch
):
    drawn = []
    monkeypatch.setattr(
        tables, "reliability_png", lambda path, curves, **_: drawn.append(curves) or ()
    )
    write_evaluation(tmp_path / "plain", evaluation)
    fit = fit_head(evaluation.cache, C=100.0, calibrate=True)
    calibrated = evaluate(evaluation.cache, fit.path, bootstrap=0)
    write_evaluation(tmp_path / "calibrated", calibrated)
    plain, both = drawn
    assert plain == {"this head": evaluation.report.reliability}
    temperature = fit.file.metadata["calibration"]["temperature"]
    assert both == {
        f"at temperature {temperature:.3g}": calibrated.report.reliability,
        "without calibration": calibrated.uncalibrated.reliability,
    }


def test_names_with_commas_quotes_and_line_breaks_stay_one_cell(evaluation, tmp_path):
    odd = ('Tit, "great"', "Grue\ncendrée", "a;b")
    report = dataclasses.replace(evaluation.report, classes=odd)
    paths = ("x, y/\n1.jpg", *evaluation.paths[1:])
    write_evaluation(tmp_path, dataclasses.replace(evaluation, report=report, paths=paths))
    assert _table(tmp_path / "confusion.csv")[0] == ["true class", *odd]
    rows = _table(tmp_path / "predictions.csv")
    assert {len(row) for row in rows} == {4}
    assert {row[1] for row in rows[1:]} == set(odd)
    assert rows[1][0] == "x, y/\n1.jpg"


def test_a_path_that_is_not_utf_8_is_written_with_escapes(evaluation, tmp_path):
    paths = ("grue_cendr\udce9e.jpg", *evaluation.paths[1:])
    write_evaluation(tmp_path, dataclasses.replace(evaluation, paths=paths))
    rows = _table(tmp_path / "predictions.csv")
    assert rows[1][0] == "grue_cendr\\udce9e.jpg"
    assert [row[0] for row in rows[2:]] == list(evaluation.paths[1:])


def test_a_class_that_is_never_predicted_has_no_precision(tmp_path):
    labels = np.where(np.arange(200) % 20 == 0, 2, np.arange(200) % 2)  # few sparrows, in noise
    path = write_cache(tmp_path / "a.h5", n=200, labels=labels, spread=3.0)
    fit_head(path, C=1e-4)
    evaluation = evaluate(path, bootstrap=0)
    assert not (_predicted(evaluation) == 2).any()
    assert (evaluation.y_true == 2).any()
    write_evaluation(tmp_path / "out", evaluation)
    row = _table(tmp_path / "out" / "classes.csv")[3]
    assert row[:3] == ["麻雀", "", "0.0"]
    assert row[-1] == str((evaluation.y_true == 2).sum())
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert report["per_class"][2]["precision"] is None
    assert report["accuracy"]["low"] is None


def test_what_was_there_is_replaced_and_other_files_stay(evaluation, tmp_path):
    (tmp_path / "classes.csv").write_text("old" * 10_000, "utf-8")
    (tmp_path / "notes.txt").write_text("mine", "utf-8")
    write_evaluation(tmp_path, evaluation)
    assert len(_table(tmp_path / "classes.csv")) == 4
    assert "old" not in (tmp_path / "classes.csv").read_text("utf-8")
    assert (tmp_path / "notes.txt").read_text("utf-8") == "mine"
    assert len(list(tmp_path.iterdir())) == 8


def test_the_same_evaluation_gives_the_same_bytes(evaluation, folder, tmp_path):
    write_evaluation(tmp_path, evaluation)
    for path in folder.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_characters_without_a_font_are_told_of(evaluation, tmp_path, monkeypatch):
    monkeypatch.setattr(fonts_module, "_more_faces", lambda: iter(()))
    _, notes = write_evaluation(tmp_path, evaluation)
    assert len(notes) == 1
    assert notes[0].startswith("no font here has the characters U+96C0, U+9EBB")
    assert "麻雀" in (tmp_path / "classes.csv").read_text("utf-8-sig")  # tables need no font


def test_a_folder_that_cannot_be_made_is_a_disk_error_that_names_it(evaluation, tmp_path):
    (tmp_path / "report").write_text("a file", "utf-8")
    with pytest.raises(
        DiskError, match=r"cannot write to .*report: a file is in the way. .*another place"
    ) as raised:
        write_evaluation(tmp_path / "report", evaluation)
    assert raised.value.exit_code == 6
    assert (tmp_path / "report").read_text("utf-8") == "a file"
