"""The command line: what it prints, where, and the exit code it ends with."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic import write_cache
from typer.testing import CliRunner, Result

import featx
from featx.cache import cache_lock, open_cache
from featx.cli import app, main
from featx.heads import LR_GRID, load_head
from featx.resampling import why_pillow

pytestmark = pytest.mark.usefixtures("kept_decoders")

Folder = Callable[..., Path]
TINY = ["--backbone", "squeezenet1_1", "--resize", "64", "--crop", "64", "--batch-size", "4"]
NAME = "birds-squeezenet1_1+weights=random+crop=64+resize=64"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def featx_(*arguments: Any, code: int = 0, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    assert result.exit_code == code, (result.output, result.exception)
    return result


def program(
    monkeypatch: pytest.MonkeyPatch, *arguments: Any, stdin: bytes = b"", encoding: str = "utf-8"
) -> tuple[str, str]:
    """What the program itself writes where warnings and streams are those Python starts with.

    The streams refuse what `encoding` cannot show, until the program says otherwise.
    """
    written = io.BytesIO(), io.BytesIO()
    streams = [io.TextIOWrapper(raw, encoding, "strict") for raw in (*written, io.BytesIO(stdin))]
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("default")
        patch.setattr(sys, "argv", ["featx", *map(str, arguments)])
        for name, stream in zip(("stdout", "stderr", "stdin"), streams, strict=True):
            patch.setattr(sys, name, stream)
        with pytest.raises(SystemExit) as ended:
            main()
        for stream in streams[:2]:
            stream.flush()
    out, err = (raw.getvalue().decode(encoding) for raw in written)
    assert ended.value.code == 0, err
    return out, err


def test_the_four_commands_run_one_after_another(colour_folder: Folder) -> None:
    colour_folder()
    made = featx_("extract", *TINY, "--weights", "random", "birds/")
    assert f"cache/{NAME}.h5" in made.stdout
    assert "18 images" in made.stderr
    featx_("fit-head")
    report = featx_("evaluate", "--json")
    assert json.loads(report.stdout)["accuracy"]["value"] == 1.0
    head = f"cache/{NAME}.logistic.safetensors"
    named = featx_("predict", head, "birds/red/red0.png", "birds/blue", "--json")
    lines = [json.loads(line) for line in named.stdout.splitlines()]
    assert [line["class"] for line in lines] == ["red"] + ["blue"] * 6


def test_a_second_extract_says_that_nothing_was_to_do(colour_folder: Folder) -> None:
    colour_folder()
    featx_("extract", *TINY, "--weights", "random", "birds")
    again = featx_("extract", *TINY, "--weights", "random", "birds", "--json")
    told = json.loads(again.stdout)
    assert (told["forward_passes"], told["kept"], told["failed"]) == (0, 18, 0)
    assert "no forward pass was made" in again.stderr


def test_failed_images_end_in_code_3_and_are_named(colour_folder: Folder) -> None:
    root = colour_folder()
    (root / "red" / "bad.jpg").write_text("no picture")
    made = featx_("extract", *TINY, "--weights", "random", "birds", code=3)
    assert "1 image could not be used" in made.stderr
    assert "red/bad.jpg: undecodable" in made.stderr
    featx_("fit-head")
    head = f"cache/{NAME}.logistic.safetensors"
    named = featx_("predict", head, "birds/red", code=3)
    assert "red0.png" in named.stdout
    assert "bad.jpg" in named.stderr


def test_usage_errors_end_in_code_2(colour_folder: Folder) -> None:
    colour_folder()
    for arguments, message in (
        (["extract", "nowhere"], "nowhere"),
        (["extract", "birds", "--backbone", "densnet121"], "densenet121"),
        (["extract", "birds", "--weights", "random", "--cut", "nothing", *TINY], "featx cuts"),
        (["extract", "birds", "--device", "cuda:99"], "featx doctor"),
        (["extract", "birds", "--device", "gpu"], "auto, cpu, cuda, cuda:N or mps"),
        (["extract", "birds", "--precision", "fp16", "--device", "cpu"], "fp32 and bf16"),
        (["extract", "birds", "--mean", "1,2"], "--mean takes 1 or 3 numbers"),
        (["evaluate", "a.h5", "b.h5"], "one cache and one head"),
        (["evaluate", "--on", "train"], "held-out or all"),
        (["show", "birds", "--errors"], "predict --show"),
        (["show", "a.h5", "--errors"], "--errors needs --head"),
    ):
        result = featx_(*arguments, code=2)
        assert message in result.stderr, (arguments, result.stderr)
        assert result.stdout == ""
        assert "Traceback" not in result.output


def test_unusable_caches_and_heads_end_in_code_4(tmp_path: Path) -> None:
    (tmp_path / "bad.h5").write_text("hello")
    (tmp_path / "bad.safetensors").write_text("hello")
    featx_("fit-head", "bad.h5", code=4)
    featx_("info", "bad.safetensors", code=4)
    featx_("evaluate", "bad.safetensors", code=4)
    assert "featx extract" in featx_("fit-head", code=4).stderr
    assert "featx fit-head" in featx_("evaluate", code=4).stderr


def test_a_locked_cache_ends_in_code_5(colour_folder: Folder, tmp_path: Path) -> None:
    colour_folder()
    extract = ("extract", *TINY, "--weights", "random", "birds", "--out", "a.h5")
    with cache_lock(tmp_path / "a.h5"):  # another process's in the slow tests
        assert f"process {os.getpid()} on" in featx_(*extract, code=5).stderr


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_ends_in_code_6(colour_folder: Folder, tmp_path: Path) -> None:
    colour_folder()
    (tmp_path / "cache").mkdir(mode=0o500)
    featx_("extract", *TINY, "--weights", "random", "birds", code=6)


def test_a_cache_folder_that_is_a_file_ends_in_code_6(
    colour_folder: Folder, tmp_path: Path
) -> None:
    colour_folder()
    (tmp_path / "cache").write_text("a file")
    result = featx_("extract", *TINY, "--weights", "random", "birds", code=6)
    assert "cache" in result.stderr
    assert "--out" in result.stderr


def test_missing_weights_end_in_code_7(
    colour_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*args: Any, **kwargs: Any) -> None:
        raise OSError("Name or service not known")

    colour_folder()
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    result = featx_("extract", "birds", code=7)
    for part in ("densenet121-a639ec97.pth", "https://download.pytorch.org", "--weights"):
        assert part in result.stderr


def test_an_interrupt_ends_in_code_130(
    colour_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    colour_folder()
    monkeypatch.setattr("featx.passes.run_lanes", interrupted)
    result = featx_("extract", *TINY, "--weights", "random", "birds", code=130)
    assert "featx: interrupted; what was committed is kept, run the same" in result.stderr
    monkeypatch.setattr("featx.fitting.fit_head", interrupted)
    assert featx_("fit-head", code=130).stderr == "featx: interrupted\n"  # it commits nothing


def test_a_defect_shows_where_and_ends_in_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("featx.workspace.newest_cache", broken)
    result = featx_("info", code=1)
    assert "please report it" in result.stderr


def test_predict_reads_a_list_and_writes_csv(colour_folder: Folder) -> None:
    colour_folder()
    featx_("extract", *TINY, "--weights", "random", "birds")
    featx_("fit-head")
    head = f"cache/{NAME}.logistic.safetensors"
    listed = "birds/green/green1.png\nbirds/red/red1.png\n"
    made = featx_("predict", head, "-", "--csv", "-", "--top-k", "2", stdin=listed)
    rows = list(csv.DictReader(io.StringIO(made.stdout)))
    assert [row["class1"] for row in rows] == ["green", "red"]
    assert [row["path"] for row in rows] == listed.split()
    assert float(rows[0]["probability1"]) > float(rows[0]["probability2"])
    table = featx_("predict", head, f"cache/{NAME}.h5").stdout
    assert table.count("green") >= 6


def test_evaluate_writes_its_report_as_files(tmp_path: Path) -> None:
    write_cache(tmp_path / "cache" / "a.h5")
    featx_("fit-head")
    shown = featx_("evaluate", "--out", "report")
    for word in ("accuracy", "majority baseline", "macro F1", "麻雀", "Grue cendrée", "95 %"):
        assert word in shown.stdout
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "classes.csv", "confusion.csv", "confusion.png", "leaks.csv", "predictions.csv",
        "reliability.png",
        "report.json",
    ]  # fmt: skip
    with Image.open(tmp_path / "report" / "confusion.png") as picture:
        assert picture.size > (100, 100)


def test_every_figure_is_printed_and_what_it_was_measured_on(tmp_path: Path) -> None:
    write_cache(tmp_path / "cache" / "a.h5", n=150, spread=2.5)
    featx_("fit-head")
    shown = featx_("evaluate").stdout
    told = json.loads(featx_("evaluate", "--json").stdout)
    lines = [line.split() for line in shown.splitlines()]
    for words, name in (
        ("weighted F1", "weighted_f1"),
        ("macro average precision", "average_precision"),
        ("macro ROC AUC", "roc_auc"),
        ("log-loss", "log_loss"),
        ("Brier score (0 to 2)", "brier"),
    ):
        figures = [f"{told[name][part]:.3f}" for part in ("value", "low", "high")]
        assert [*words.split(), figures[0], figures[1], "to", figures[2]] in lines
    low, high = told["ece_if_calibrated"]
    ece = f"ECE (15 bins) {told['ece']['value']:.3f} a calibrated head: {low:.3f} to {high:.3f}"
    assert ece.split() in lines
    first = told["per_class"][0]
    ranks = [f"{first[part]:.3f}" for part in ("average_precision", "roc_auc")]
    assert any(line[:2] == ["Great", "tit"] and line[5:7] == ranks for line in lines)
    assert (
        "protocol: trained on 120 images; chosen on 5-fold cross-validation; calibrated on "
        "nothing; tested on 30 images (held-out 20 % images), used for these figures only"
    ) in shown
    assert "without calibration" not in shown
    assert "intervals draw" not in shown


def test_where_groups_were_kept_whole_it_is_said_that_intervals_draw_them(tmp_path: Path) -> None:
    groups = np.where(np.arange(60) < 50, np.arange(60) // 3, -1)
    write_cache(tmp_path / "cache" / "a.h5", groups=groups)
    featx_("fit-head")
    told = json.loads(featx_("evaluate", "--json").stdout)
    clause = told["protocol"]["intervals_draw"]
    assert re.fullmatch(r"whole groups \(\d groups, \d images? alone\)", clause)
    assert f"intervals draw {clause}" in featx_("evaluate").stdout
    assert "intervals draw" not in featx_("evaluate", "--bootstrap", 0).stdout


def test_a_calibrated_head_says_so_wherever_it_is_used(tmp_path: Path) -> None:
    write_cache(tmp_path / "cache" / "a.h5", n=150, spread=2.5)
    fitted = featx_("fit-head", "--C", "100", "--calibrate").stderr
    found = json.loads(featx_("evaluate", "--json").stdout)["calibration"]
    named = f"temperature {found['temperature']:.3g}"
    low, high = found["interval"]
    assert (
        f"calibrated: {named} (95 % interval {low:.3g} to {high:.3g}) fitted on 120 out-of-fold "
        f"training images, {found['n_wrong']} of them wrong; on these"
    ) in fitted
    assert "may be no gain" not in fitted
    shown = featx_("evaluate", "--out", "report").stdout
    assert f"at {named}, as above" in shown
    assert "without calibration" in shown
    assert "calibrated on 120 out-of-fold training images; tested on" in shown
    head = "cache/a.logistic+C=100+calibrated.safetensors"
    calibrated = featx_("predict", head, "cache/a.h5", "--json")
    plain = featx_("predict", head, "cache/a.h5", "--json", "--uncalibrated")
    assert (
        f"probabilities at {named}, which was fitted with the head, or with the one before a final "
        "fit; --uncalibrated gives the head's own"
    ) in calibrated.stderr
    assert "temperature" not in plain.stderr
    first, other = (json.loads(r.stdout.splitlines()[0]) for r in (calibrated, plain))
    assert first["class"] == other["class"]
    assert first["probability"] < other["probability"]


def test_heads_of_every_kind_are_fitted_with_their_options(tmp_path: Path) -> None:
    write_cache(tmp_path / "cache" / "a.h5")
    featx_("fit-head", "--C", "0.5", "--class-weight", "balanced")
    featx_("fit-head", "--head", "linear", "--epochs", "5", "--optimizer", "sgd", "--lr", "0.1",
           "--curves", "curves.png")  # fmt: skip
    featx_("fit-head", "--head", "mlp", "--hidden", "8,4", "--dropout", "0.1", "--epochs", "4",
           "--patience", "2", "--weight-decay", "0.1", "--batch-size", "16",
           "--out", "my.safetensors")  # fmt: skip
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size > (100, 100)
    featx_("fit-head", "--head", "ridge", "--alpha", "3", "--no-standardise")
    assert Path("cache/a.ridge+alpha=3+standardise=False.safetensors").is_file()
    featx_("fit-head", "--head", "knn", "--n-neighbors", "3", "--weights", "uniform",
           "--temperature", "0.1", "--standardise")  # fmt: skip
    assert Path(
        "cache/a.knn+n_neighbors=3+standardise=True+temperature=0.1+weights=uniform.safetensors"
    ).is_file()
    featx_("fit-head", "--head", "centroid", "--metric", "cosine")
    assert Path("cache/a.centroid+metric=cosine.safetensors").is_file()
    told = json.loads(featx_("info", "my.safetensors", "--json").stdout)
    assert told["kind"] == "mlp"
    assert told["settings"]["params"]["hidden"] == [8, 4]
    error = featx_("fit-head", "--hidden", "8", code=2).stderr
    assert "head 'logistic' has no parameter hidden" in error
    assert "linear, mlp or tail" in featx_("fit-head", "--curves", "c.png", code=2).stderr


@pytest.mark.parametrize("head", ["logistic", "linear", "mlp", "ridge", "knn", "centroid"])
def test_fit_head_tells_what_it_chose_and_on_what(head: str, tmp_path: Path) -> None:
    write_cache(tmp_path / "cache" / "a.h5")
    made = featx_("fit-head", "--head", head).stdout
    choice = load_head(f"cache/a.{head}.safetensors").metadata["fit"]["choice"]
    assert f"{choice['what']} (accuracy {choice['accuracy']:.3f})" in made
    assert choice["on"] in made


def test_learning_rates_and_seeds_are_trained_side_by_side(tmp_path: Path) -> None:
    write_cache(tmp_path / "cache" / "a.h5")
    shown = featx_("fit-head", "--head", "linear", "--lr", "1e-9,0.01", "--schedule", "cosine",
                   "--epochs", "5", "--curves", "curves.png").stdout  # fmt: skip
    assert "linear+epochs=5+lr=1e-09,0.01+schedule=cosine" in shown
    assert "lr 0.01, epoch" in shown
    assert (tmp_path / "curves.png").is_file()
    fit = json.loads(featx_("fit-head", "--head", "linear", "--lr", "grid", "--epochs", "2",
                            "--json").stdout)["fit"]  # fmt: skip
    assert [row["lr"] for row in fit["lr_results"]] == list(LR_GRID)
    shown = featx_("fit-head", "--head", "mlp", "--n-seeds", "3", "--epochs", "2").stdout
    assert re.search(r"seed [012], epoch \d \(accuracy [\d.]+; 3 seeds [\d.]+ to [\d.]+\)", shown)
    error = featx_("fit-head", "--head", "linear", "--lr", "fast", code=2).stderr
    assert "--lr takes numbers separated by commas, got 'fast'" in error


@pytest.mark.parametrize(
    ("text", "tried", "name"),
    [
        ("dinov2", 45, "dinov2"),
        ("default", 7, "default"),
        ("1e-3,1e-2,1", 3, "0.001,0.01,1"),
        ("1e-2", 1, "0.01"),
        ("1,2,3,4,5,6,0.5", 7, "1,..,0.5,7-values"),
    ],
)
def test_the_grid_of_c_is_a_name_or_numbers(
    tmp_path: Path, text: str, tried: int, name: str
) -> None:
    write_cache(tmp_path / "cache" / "a.h5")
    told = json.loads(featx_("fit-head", "--cs", text, "--cv", "2", "--json").stdout)
    assert len(told["fit"]["cv_results"]["C"]) == tried
    assert f"logistic+cs={name}+cv=2.safetensors" in told["head"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("all", "featx: --cs must be default, dinov2 or several numbers above 0, got 'all'"),
        ("1;2", "--cs takes numbers separated by commas, got '1;2'"),
        ("-1,2", "several numbers above 0, got (-1.0, 2.0)"),
    ],
)
def test_a_grid_of_c_that_is_none_is_told(tmp_path: Path, text: str, message: str) -> None:
    write_cache(tmp_path / "cache" / "a.h5")
    assert message in featx_("fit-head", f"--cs={text}", code=2).stderr


def test_info_tells_what_is_in_a_cache(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "cache" / "a.h5", failed=(3,))
    told = json.loads(featx_("info", "--json").stdout)
    assert told["status"] == {"done": 59, "undecodable": 1}
    assert told["spec"]["backbone"] == "squeezenet1_1"
    assert told["classes"]["003.麻雀"] == 20
    shown = featx_("info", path).stdout
    assert "fingerprint" in shown
    assert "spec.backbone" in shown


def test_verify_ends_in_code_4_where_a_byte_has_changed(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5")
    assert "as they were written" in featx_("verify", path).stdout
    file = open_cache(path)
    with path.open("r+b") as stream:
        stream.seek(file.offsets["features"] + file.columns["features"].nbytes - 1)
        stream.write(b"\xff")
    made = featx_("verify", path, code=4)
    assert "row 59 is damaged: 000059.jpg" in made.stdout
    assert json.loads(featx_("verify", path, "--json", code=4).stdout)["bad_rows"] == [59]


def test_bad_images_end_a_run_as_asked(
    colour_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featx.image_hashes._MANY", 9)
    root, path = colour_folder(), tmp_path / "birds.h5"
    for name in ("red0", "red1", "red2"):
        (root / "red" / f"{name}.png").write_bytes(b"cut short")
    asked = ("extract", root, "--out", path, *TINY, "--weights", "random")
    stopped = featx_(*asked, "--on-error", "stop", code=1)
    assert "featx: red/red0.png cannot be used (undecodable:" in stopped.stderr
    failed = featx_(*asked, code=1)
    assert "3 of the 18 images could not be used" in failed.stderr
    assert not path.exists()
    done = featx_(*asked, "--max-failed", "0.2", code=3)
    assert "18 images: 18 kept, 0 new" in done.stderr
    assert "red/red2.png: undecodable" in done.stderr
    again = featx_(*asked, "--rehash", "--retry-failed", "--max-failed", "0.2", code=3)
    assert "18 images: 15 kept, 0 new, 3 tried again" in again.stderr
    assert again.stderr.count("reading 15 files to compare their content") == 1
    assert "a share from 0 to 1" in featx_(*asked, "--max-failed", "10", code=2).stderr


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"),
     RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")],
)  # fmt: skip
def test_memory_that_ran_out_is_no_defect(
    colour_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def forward(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr("featx.engines.eager.EagerEngine.__call__", forward)
    made = featx_("extract", colour_folder(), "--out", tmp_path / "a.h5", *TINY,
                  "--engine", "torch-eager", "--weights", "random", code=1)  # fmt: skip
    assert "the memory ran out; rows that an extraction has committed" in made.stderr
    assert "defect" not in made.stderr


def test_the_home_folder_is_meant_by_every_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write_cache(tmp_path / "caches/a.h5")
    featx_("fit-head", "--cache-dir=~/caches", "--out=~/h.safetensors")
    featx_("evaluate", "~/caches/a.h5", "~/h.safetensors", "--out=~/report")
    assert (tmp_path / "report/report.json").is_file()
    assert "~nobody_here.h5" in featx_("info", "~nobody_here.h5", code=4).stderr


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENAMETOOLONG, errno.ESTALE])
def test_a_path_that_the_system_does_not_let_be_looked_at_is_no_defect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def is_dir(path: Path) -> bool:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr("featx.images.Path.is_dir", is_dir)
    made = featx_("extract", tmp_path / "birds", code=6)
    assert made.stderr.startswith(f"featx: {tmp_path / 'birds'}: {os.strerror(code).lower()}")


def test_nothing_is_fitted_or_measured_on_damaged_rows(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5")
    featx_("fit-head", path)
    head = tmp_path / "a.logistic.safetensors"
    file = open_cache(path)
    with path.open("r+b") as stream:
        stream.seek(file.offsets["features"] + 9 * file.columns["features"].row_bytes)
        stream.write(b"\x01")
    for command in (("fit-head", path), ("evaluate", path, head), ("predict", head, path)):
        told = featx_(*command, code=4).stderr
        assert "is damaged (1 of its rows); mend it with `featx verify --repair" in told


def test_verify_repair_mends_a_cache(colour_folder: Folder, tmp_path: Path) -> None:
    path = tmp_path / "birds.h5"
    featx_("extract", colour_folder(), "--out", path, *TINY, "--weights", "random")
    file = open_cache(path)
    with path.open("r+b") as stream:
        for column, row_bytes in (("features", 4 * 512), ("labels", 8)):
            stream.seek(file.offsets[column] + 7 * row_bytes)
            stream.write(b"\x7f")
    told = featx_("verify", path, code=4)
    assert "row 7 is damaged: green/green1.png" in told.stdout
    assert "damaged outside the features: labels" in told.stdout
    assert "featx verify --repair" in told.stderr
    mended = featx_("verify", "--repair", path)
    assert "repaired; 17 rows copied, 1 computed again" in mended.stdout
    assert "row 7 is damaged" in mended.stderr
    assert "as they were written" in featx_("verify", "--repair", path).stdout


def test_backbones_lists_all_of_torchvision_and_the_classics_and_filters() -> None:
    told = json.loads(featx_("backbones", "--json").stdout)
    assert len(told) == 80 + 3
    shown = featx_("backbones", "densenet").stdout
    for name in ("densenet121", "densenet161", "densenet169", "densenet201"):
        assert name in shown
    assert "resnet50" not in shown


def test_cuts_lists_where_a_network_can_be_cut() -> None:
    told = json.loads(featx_("cuts", "squeezenet1_1", "--json").stdout)
    names = {cut["name"]: cut for cut in told}
    assert names["features.12.cat"]["shape"] == [512, 13, 13]
    assert all(cut["is_legal"] for cut in told)
    everything = json.loads(featx_("cuts", "squeezenet1_1", "--all", "--json").stdout)
    assert any(not cut["is_legal"] for cut in everything)
    some = featx_("cuts", "squeezenet1_1", "features.3", "logits", "--all").stdout.splitlines()
    assert [" ".join(line.split()) for line in some] == [
        "cut shape layout bytes an image parameters before after saved also",
        "features.3.cat 128x55x55 nchw 1,548,800 13,200 1,222,296 15.9% features.3",
        "flatten 1000 vector 4,000 1,235,496 0 100.0% logits",
    ]
    inside = featx_("cuts", "squeezenet1_1", "features.3.expand1x1", "--all").stdout
    assert inside.rstrip().endswith("crossed by features.3.squeeze_activation")
    refused = featx_("cuts", "squeezenet1_1", "features.3.expand*", code=2)
    crossed = "no cut features.3.expand* that nothing else crosses: what comes after features.3."
    assert crossed in refused.output
    assert "also takes features.3.squeeze_activation; --all shows them" in refused.output
    refused = featx_("cuts", "squeezenet1_1", "penultimat", code=2)
    assert "no cut penultimat; did you mean penultimate? `featx cuts squeeze" in refused.output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("extract . --store int8", "featx: --store must be float32 or float16, got 'int8'"),
        ("extract . --on-error ask", "featx: --on-error must be record or stop"),
        ("extract . --store-size 300", "featx: --store-size is of pixels"),
        ("fit-head a.h5 --max-iter 3 --head knn", "featx: head 'knn' has no parameter max_iter"),
        (
            "fit-head a.h5 --head linear --no-standardise --optimizer x",
            "featx: --optimizer must be",
        ),
        ("fit-head no_such.h5", "featx: there is no cache at no_such.h5"),
    ],
)
def test_messages_begin_with_the_option_that_was_typed(
    tmp_path: Path, words: str, told: str
) -> None:
    write_cache(tmp_path / "a.h5")
    assert told in featx_(*words.split(), code=4 if "no_such" in words else 2).stderr


def test_names_are_printed_as_they_are(tmp_path: Path) -> None:
    told = featx_("cuts", "no_such_module:factory", code=2).output
    assert "--backbone no_such_module:factory: there is no module" in told
    path = write_cache(tmp_path / "a.h5", classes=(":bee:", "[red]ant", "wasp"))
    told = featx_("info", path).stdout
    assert "classes.:bee:" in told
    assert "classes.[red]ant" in told


def test_cuts_takes_models_of_timm() -> None:
    pytest.importorskip("timm")
    told = json.loads(featx_("cuts", "timm:test_resnet", "l*", "--json").stdout)
    named = [(*cut["modules"][:1], *cut["aliases"]) for cut in told]
    assert [*filter(None, named)][-4:] == [("layer2",), ("layer3",), ("layer4",), ("logits",)]
    assert all(cut["is_legal"] and 0 < cut["saved"] <= 1 for cut in told)


BENCH = ["--backbone", "lenet5", "--weights", "random", "--engine", "torch-eager",
         "--batch-size", "2", "--workers", "1", "--seconds", "0.05", "--device", "cpu"]  # fmt: skip


def test_bench_names_the_bottleneck_and_leaves_nothing(
    colour_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featx.limits._SIDE", {"cpu": 8})
    root = colour_folder(per_class=2)
    made = featx_("bench", "birds", *BENCH)
    lines = made.stdout.splitlines()
    for line, stage in zip(
        lines[1:6], ("decode, one core", "decode", "forward", "write", "end to end"), strict=True
    ):
        assert line.startswith(stage)
        assert " of " in line
    assert "is the bottleneck: " in lines[6]
    assert "of the slowest stage)." in lines[6]
    assert "measuring" in made.stderr
    (root / "red" / "bad.jpg").write_text("no picture")
    told = featx_("bench", "birds", *BENCH, "--json", code=3)
    document = json.loads(told.stdout)
    assert "is the bottleneck: " in document["verdict"]
    assert len(document["stages"]) == 5
    assert [image["path"] for image in document["failed"]] == ["red/bad.jpg"]
    assert "red/bad.jpg: undecodable" in told.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["birds"]


def test_bench_ends_in_the_codes_of_extract(
    colour_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    def no_network(*args: Any, **kwargs: Any) -> None:
        raise OSError("Name or service not known")

    colour_folder(per_class=2)
    monkeypatch.setattr("featx.limits._SIDE", {"cpu": 8})
    for arguments, message in (
        (["nowhere"], "nowhere"),
        (["birds", "--seconds", "0"], "seconds must be a number above 0"),
        (["birds", "--decode", "quick"], "fast or exact"),
        (["birds", "--engine", "quick"], "torch-eager"),
        (["birds", "--cut", "nothing"], "featx cuts"),
    ):
        result = featx_("bench", *BENCH, *arguments, code=2)
        assert message in result.stderr, (arguments, result.stderr)
        assert result.stdout == ""
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    published = ("--backbone", "squeezenet1_1", "--weights", "default")
    missing = featx_("bench", "birds", *BENCH, *published, code=7)
    assert "https://download.pytorch.org" in missing.stderr
    monkeypatch.setattr("featx.passes.run_lanes", interrupted)
    assert featx_("bench", "birds", *BENCH, code=130).stderr.endswith("featx: interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["birds"]


def test_doctor_tells_what_this_machine_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    told = json.loads(featx_("doctor", "--json").stdout)
    assert told["versions"]["featx"] == featx.__version__
    assert told["device"]
    assert told["engine"] in ("openvino", "torch-eager")
    assert told["prepared networks"].endswith("engines")
    assert (told["fast resizing"] == "compiled") == (why_pillow("bilinear") is None)
    assert "torch" in featx_("doctor").stdout
    monkeypatch.setattr("featx.resampling.why_pillow", lambda interpolation: "want of a kernel")
    told = json.loads(featx_("doctor", "--json").stdout)
    assert told["fast resizing"] == "no: Pillow is used; want of a kernel"
    lines = featx_("doctor").stdout.splitlines()
    assert not [line for line in lines if line.endswith(" ")]


def test_show_draws_a_grid(colour_folder: Folder, tmp_path: Path) -> None:
    colour_folder()
    said = featx_("show", "birds", "-o", "grid.png", "-n", "5").stdout
    assert "5 of 18 images" in said
    with Image.open(tmp_path / "grid.png") as image:
        picture = np.asarray(image.convert("RGB"))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
    featx_("extract", *TINY, "--weights", "random", "birds")
    featx_("fit-head")
    head = f"cache/{NAME}.logistic.safetensors"
    assert "6 of 6" in featx_("show", f"cache/{NAME}.h5", "--head", head, "--class", "red").stdout
    assert (
        "none of these images wrong"
        in featx_("show", f"cache/{NAME}.h5", "--head", head, "--errors", code=2).stderr
    )
    featx_("predict", head, "birds/red", "--show", "named.png")
    assert (tmp_path / "named.png").stat().st_size > 1000


@pytest.mark.slow
def test_demo_runs_the_four_public_commands(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "featx", "demo", "out", "--backbone", "squeezenet1_1"],
        capture_output=True, text=True, check=False, encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "PYTHONUTF8": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    for command in ("extract", "fit-head", "evaluate", "predict"):
        assert (
            f"$ featx {command} out" in run.stderr
            or f"$ featx {command} --cache-dir out" in run.stderr
        )
    assert "random weights" in run.stderr
    report = json.loads((tmp_path / "out" / "report" / "report.json").read_text("utf-8"))
    assert report["accuracy"]["value"] > 2 * report["baseline"]["accuracy"]["value"]
    assert (tmp_path / "out" / "predictions.png").is_file()


def test_progress_is_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    from featx.cli import output

    clock = iter(range(0, 1000, 3))
    monkeypatch.setattr(output.time, "monotonic", lambda: float(next(clock)))
    told: list[str] = []
    monkeypatch.setattr(output, "tell", told.append)
    with output.progress("extract") as bar:
        bar.start(100)
        for _ in range(4):
            bar.advance(10)
    assert told
    assert told[0].startswith("extract: 20 of 100 images, ")
    assert "images/s" in told[0]
    assert "s left" in told[0]


def test_names_in_any_script_reach_a_terminal_that_cannot_show_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cache(tmp_path / "cache" / "a.h5")
    featx_("fit-head")
    shown, _ = program(monkeypatch, "evaluate", encoding="ascii")
    assert "accuracy" in shown
    assert r"\u9ebb\u96c0" in shown
    run = subprocess.run(  # of a command that starts without PyTorch
        [sys.executable, "-m", "featx", "info", "cache/a.h5"], capture_output=True, check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert rb"003.\u9ebb\u96c0" in run.stdout


def test_the_version_is_told() -> None:
    assert featx_("--version").stdout.strip() == f"featx {featx.__version__}"


def test_every_command_is_in_the_readme() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
    for command in app.registered_commands:
        assert f"featx {command.name}" in readme, command.name


def test_no_table_is_printed_of_bad_files_alone(colour_folder: Folder, tmp_path: Path) -> None:
    colour_folder()
    featx_("extract", *TINY, "--weights", "random", "birds")
    featx_("fit-head")
    (tmp_path / "bad.png").write_bytes(b"cut short")
    made = featx_("predict", f"cache/{NAME}.logistic.safetensors", tmp_path / "bad.png", code=3)
    assert made.stdout == ""
    assert "1 image could not be used" in made.stderr


def test_predictions_of_files_with_odd_names_are_written(
    colour_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = colour_folder(per_class=2)
    featx_("extract", *TINY, "--weights", "random", "birds")
    featx_("fit-head", "--C", "1")
    head = f"cache/{NAME}.logistic+C=1.safetensors"
    odd = os.fsencode(root / "red") + b"/caf\xe9,\n.png"
    line = odd.replace(b",\n", b"")
    for name in (odd, line):
        Path(os.fsdecode(name)).write_bytes((root / "red" / "red0.png").read_bytes())
    words = ("predict", head, "-", "--csv", "new/o.csv", "--json")
    shown, _ = program(monkeypatch, *words, stdin=line + b"\n")
    assert json.loads(shown)["path"].endswith("red/caf\udce9.png")
    made = featx_("predict", head, "birds", "--csv", "new/odd.csv", "--json")
    assert len([json.loads(line) for line in made.stdout.splitlines()]) == 8
    with Path("new/odd.csv").open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert sum("caf\\udce9,\n.png" in row["path"] for row in rows) == 1
    assert (
        "standard output" in featx_("predict", head, "birds", "--json", "--csv", "-", code=2).stderr
    )


def test_a_head_without_images_to_choose_on_is_fitted_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cache(tmp_path / "cache" / "a.h5", n=6)
    words = ("fit-head", "--head", "linear", "--epochs", "2", "--curves", "c.png")
    shown, told = program(monkeypatch, *words)
    assert "epoch 2" in shown
    warned = [line for line in told.splitlines() if line.startswith("warning: ")]
    assert len(warned) == 1
    assert warned[0].startswith("warning: no rows could be set aside to choose the epoch (")
    assert "UserWarning" not in told
    assert ".py" not in told
    assert (tmp_path / "c.png").is_file()


def test_a_picture_needs_an_ending_that_says_its_format(colour_folder: Folder) -> None:
    colour_folder()
    for name in ("grid", "grid.xyz"):
        assert ".png" in featx_("show", "birds", "-o", name, code=2).stderr


def test_curves_of_a_head_without_epochs_are_refused_before_it_is_fitted(tmp_path: Path) -> None:
    write_cache(tmp_path / "cache" / "a.h5")
    featx_("fit-head", "--curves", "c.png", code=2)
    assert not list((tmp_path / "cache").glob("*.safetensors"))


def test_several_networks_and_cuts_are_extracted_in_one_pass(
    colour_folder: Folder, tmp_path: Path
) -> None:
    colour_folder()
    asked = ["extract", "birds", "--engine", "torch-eager", "--weights", "random", *TINY[2:],
             "--backbone", "squeezenet1_1", "--backbone", "resnet18"]  # fmt: skip
    made = featx_(*asked)
    for name in ("squeezenet1_1", "resnet18"):
        assert f"cache/birds-{name}+weights=random+crop=64+resize=64.h5" in made.stdout
        assert f"birds-{name}+weights=random+crop=64+resize=64.h5: 18 images in" in made.stderr
    assert made.stderr.count("18 images: 0 kept, 18 new") == 2
    assert made.stderr.count("18 images in ") == 3  # the folder's, and each cache's
    assert "; slowest was " in made.stderr
    told = json.loads(featx_(*asked, "--json").stdout)
    assert [each["forward_passes"] for each in told] == [0, 0]
    refused = featx_(*asked, "--out", tmp_path / "a.h5", code=2)
    assert "--out names one cache, but 2 are asked for" in refused.stderr
    refused = featx_(*asked, "--weights", "default", "--weights", "random", code=2)
    assert "3 weights for 2 backbones" in refused.stderr
