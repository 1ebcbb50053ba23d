"""Final heads: the measured settings on all images, the honest report kept, no second measure."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from synthetic import CLASSES, SPEC, write_cache
from typer.testing import CliRunner

import featx
from featx.cache import open_cache
from featx.cli import app
from featx.comparing import compare, leaderboard
from featx.errors import CacheError, HeadError, InputError
from featx.evaluation import evaluate
from featx.finalising import fit_final
from featx.fitting import fit_head, fit_like
from featx.heads import HEADS, LogisticHead, load_head, save_head
from featx.prediction import predict
from featx.usable import open_intact


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("kind", HEADS)
def test_the_chosen_settings_are_fitted_on_every_labelled_image(tmp_path: Path, kind: str) -> None:
    labels = np.where(np.arange(60) < 5, -1, np.arange(60) % 3)
    path = write_cache(tmp_path / "a.h5", labels=labels, spread=2.0)
    fit = fit_head(path, head=kind, device="cpu")
    final = fit_final(fit.path, device="cpu")
    assert final.path == tmp_path / f"a.{kind}.final.safetensors"
    features = featx.load(path)
    labelled = features.y >= 0
    assert np.array_equal(final.file.split["train"], features.sha256[labelled])
    assert not len(final.file.split["held_out"])
    chosen = fit.file.metadata["fit"]["choice"]["params"]
    expected = HEADS[kind](**{"device": "cpu", **chosen}).fit(
        features.X[labelled], features.y[labelled]
    )
    assert np.array_equal(
        final.file.head.predict_proba(features.X), expected.predict_proba(features.X)
    )
    assert final.file.metadata["final"]["choice"] == fit.file.metadata["fit"]["choice"]


def test_duplicates_stay_together_in_a_final_head_too(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5", spread=2.0)
    fit = fit_head(path, head="ridge", group_duplicates=True, duplicate_threshold=0.9, device="cpu")
    final = fit_final(fit.path, device="cpu")
    groups = fit.file.metadata["split"]["groups"]
    assert "duplicates of similarity 0.9" in groups
    assert final.file.metadata["split"]["groups"] == groups
    features = featx.load(path, group_duplicates=True, duplicate_threshold=0.9)
    chosen = fit.file.metadata["fit"]["choice"]["params"]
    expected = HEADS["ridge"](device="cpu", **chosen).fit(
        features.X, features.y, groups=features.groups
    )
    assert final.file.head.temperature_ == expected.temperature_
    with pytest.raises(InputError, match=r"is final: .* name the head it repeats \(a\.ridge"):
        fit_like(final.path, path)


def test_a_cosine_schedule_is_run_to_its_end(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5", spread=2.0)
    for schedule, expected in (("cosine", 12), ("constant", None)):
        fit = fit_head(path, head="linear", schedule=schedule, epochs=12, device="cpu")
        final = fit_final(fit.path, device="cpu")
        assert final.file.head.epochs == (expected or fit.file.head.best_epoch_)
        assert len(final.file.head.history_) == final.file.head.epochs


def test_the_report_of_the_measured_head_is_kept(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5", n=200, spread=2.5)
    fit = fit_head(path)
    final = fit_final(fit.path)
    kept = load_head(final.path).metadata["final"]
    assert kept["head"] == "a.logistic.safetensors"
    assert kept["report"] == json.loads(json.dumps(evaluate(path, fit.path).to_dict()))
    assert final.file.metadata["split"]["chosen_on"] == fit.file.metadata["split"]["chosen_on"]


def test_it_is_not_measured_on_what_it_was_fitted_on(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5", n=200, spread=2.5)
    fit = fit_head(path)
    accuracy = evaluate(path, fit.path).report.accuracy.value
    final = fit_final(fit.path)
    words = rf"fitted on all labelled images.*accuracy of {accuracy:.3f}, .* on 39 held-out 20 %"
    for on in ("held-out", "all"):
        with pytest.raises(InputError, match=words):
            evaluate(path, final.path, on=on)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="leave --include-trained away"):
        evaluate(path, final.path, include_trained=True)


def test_images_that_came_later_and_other_caches_can_measure_it(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5", n=60, spread=1.0)
    final = fit_final(fit_head(path).path)
    write_cache(path, n=90, spread=1.0)  # thirty more in the same folder
    later = evaluate(path, final.path)
    assert later.report.n == 30
    assert later.tested_on == "images that came after it was fitted on all there were"
    other = write_cache(tmp_path / "b.h5", n=50, first_image=40, root="/elsewhere")
    external = evaluate(other, final.path)
    assert external.report.n == 30
    assert external.trained_left_out == 20


def test_the_newest_head_to_measure_is_none_that_is_final(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5")
    fit = fit_head(path)
    final = fit_final(fit.path)
    assert final.path.stat().st_mtime_ns >= fit.path.stat().st_mtime_ns
    assert evaluate(path).head == fit.path
    assert evaluate(cache_dir=tmp_path).head == fit.path
    board = leaderboard(tmp_path)
    assert [entry.head for c in board.comparisons for entry in c.entries] == [fit.path]
    assert "fitted on all labelled images" in board.skipped[final.path]
    fit.path.unlink()
    with pytest.raises(HeadError, match="fit one with"):
        evaluate(cache_dir=tmp_path)


def test_a_final_head_predicts(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5")
    final = fit_final(fit_head(path).path)
    predicted = predict(final.path, [path])
    assert len(predicted.paths) == 60


def test_what_cannot_be_made_final_is_said(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5")
    final = fit_final(fit_head(path).path)
    with pytest.raises(InputError, match="is final already"):
        fit_final(final.path)
    with pytest.raises(InputError, match=r"ends in \.safetensors"):
        fit_final(final.path, out=tmp_path / "head.bin")
    X, y = featx.load(path, return_X_y=True)
    foreign = save_head(
        tmp_path / "b.safetensors", LogisticHead(C=1.0).fit(X, y), classes=CLASSES,
        metadata={"cache": {"spec": SPEC, "plan": {}, "file": "a.h5", "path": str(path),
                            "fingerprint": "", "root": ""},
                  "split": {"held_out_name": "none", "train_counts": [1, 1, 1]}},
    )  # fmt: skip
    with pytest.raises(HeadError, match="does not say what it chose"):
        fit_final(foreign)


@pytest.mark.parametrize("garbled", [1, {}, {"report": {"n": 3}}, {"report": {"accuracy": {}}}])
def test_a_garbled_report_is_refused(tmp_path: Path, garbled: object) -> None:
    path = write_cache(tmp_path / "a.h5")
    fit = fit_head(path)
    save_head(
        fit.path, fit.file.head, classes=CLASSES,
        metadata={**fit.file.metadata, "final": garbled}, split=fit.file.split,
    )  # fmt: skip
    with pytest.raises(HeadError, match="report of what it was measured at"):
        evaluate(path, fit.path)


def test_the_bytes_of_a_cache_are_checked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_cache(tmp_path / "a.h5")
    heads = [fit_head(path, C=C).path for C in (1.0, 0.1)]
    checked: list[Path] = []
    check = open_intact
    monkeypatch.setattr(
        "featx.featureset.open_intact", lambda path: checked.append(Path(path)) or check(path)
    )
    fit_final(heads[0])
    assert checked == [path]
    checked.clear()
    compare([path, heads[0]])  # the cache stands for the newer head
    assert checked == [path, path]  # once for each of the two
    with path.open("r+b") as stream:
        stream.seek(open_cache(path).offsets["features"] + 9)
        stream.write(b"\xee")
    for run_ in (lambda: fit_final(heads[0], force=True), lambda: compare([path, heads[0]])):
        with pytest.raises(CacheError, match="damaged"):
            run_()


def test_the_command_fits_measures_and_fits_again(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5", n=200, spread=2.5)
    code, stdout, stderr = run("fit-head", path, "--final")
    assert code == 0, stderr
    assert "a.logistic.safetensors" in stdout
    measured = evaluate(path, tmp_path / "a.logistic.safetensors").report.accuracy
    assert f"{measured.value:.3f} ({measured.low:.3f} to {measured.high:.3f})" in stderr
    assert "all 200 labelled images" in stderr
    code, _, stderr = run("evaluate", path, tmp_path / "a.logistic.final.safetensors")
    assert code == 2
    assert "fitted on all labelled images" in stderr
    split = np.where(np.arange(200) < 150, 1, 2).astype(np.uint8)
    one_group = write_cache(
        tmp_path / "b.h5", n=200, split=split, groups=np.where(split == 2, 0, -1)
    )
    code, _, stderr = run("fit-head", one_group, "--final")  # of one group there is no interval
    assert code == 0, stderr
    assert "images: accuracy 1.000. Next: featx predict" in stderr
    code, stdout, _ = run("fit-head", path, "--final", "--json")
    parsed = json.loads(stdout)
    assert parsed["final"]["report"]["accuracy"]["value"] == measured.value
