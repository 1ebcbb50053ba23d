"""The benchmark's own promise: who disagrees gets no times. Small, and nothing here is timed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import featx

if TYPE_CHECKING:
    from benchmarks.peers import Request
    from benchmarks.runs import Run

ROOT = Path(__file__).parents[1]
NETWORK = "shufflenet_v2_x0_5"  # the smallest of torchvision's that ends in a linear layer

pytestmark = pytest.mark.skipif(
    not (ROOT / "benchmarks" / "extraction.py").is_file(),
    reason="benchmarks/ is not part of this copy",
)


@pytest.fixture(autouse=True)
def _benchmarks_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    from benchmarks.photographs import draw_photographs

    draw_photographs(tmp_path / "drawn", 5)
    return tmp_path / "drawn"


def in_this_process(request: Request) -> Run:
    """What `benchmarks.runs.run` gives, without the seconds that fresh processes take."""
    from benchmarks.peers import answer
    from benchmarks.runs import Run, read_features

    if request.peer == "featx":
        rows = featx.extract(
            request.folder,
            backbone=request.network,
            weights=request.weights,
            out=f"{request.out}.h5",
            device="cpu",
            decode="exact" if "exact" in request.options else "fast",
            workers=1,
            fresh=True,
        )
        return Run(np.array(rows.X), tuple(rows.paths), 1.0, 1.0)
    done = answer(request)
    paths = [Path(path).relative_to(request.folder).as_posix() for path in done.paths]
    return Run(read_features(done.features), tuple(paths), 1.0, 1.0)


def test_featx_the_script_and_the_loop_agree_on_drawn_photographs(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import measurement
    from benchmarks.networks import write_weights
    from benchmarks.peers import Request

    monkeypatch.setattr(measurement, "_GEMM_S", 0.0)
    monkeypatch.setattr("featx.limits._SIDE", {"cpu": 8})
    weights = tmp_path / "weights.pth"
    write_weights(NETWORK, weights)
    request = Request(
        "featx", NETWORK, str(weights), str(photographs), str(tmp_path / "out"), batch_size=4
    )
    result = measurement.measure(request, ["script", "loop"], repeats=1, runner=in_this_process)
    assert result.ok, [str(comparison) for comparison in result.comparisons]
    assert set(result.turns) == {"featx", "script", "loop"}
    assert result.turns["featx"][0].features.shape == (5, 1024)
    exact = next(c for c in result.comparisons if c.what.startswith("exact"))
    assert 0 <= exact.largest <= 1e-5


@pytest.fixture
def bench(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Runs the benchmark with features made up: those of `wrong` are off by a thousandth."""
    from benchmarks import extraction, limits, measurement
    from benchmarks.runs import Run

    monkeypatch.setattr(measurement, "_GEMM_S", 0.0)
    monkeypatch.setattr("featx.limits._SIDE", {"cpu": 8})
    monkeypatch.setattr(limits, "WRITTEN_ROWS", 20)

    def run(wrong: tuple[str, ...]) -> tuple[int, dict[str, Any]]:
        def made_up(request: Request, *, environment: object) -> Run:
            paths = sorted(
                path.relative_to(request.folder).as_posix()
                for path in Path(request.folder).rglob("*.jpg")
            )
            rows = np.random.default_rng(0).random((len(paths), 8), np.float32)
            wall_s = {"featx": 2.0, "script": 5.0, "loop": 7.0}[request.peer]
            exact = "exact" in request.options
            off = request.peer in wrong and (request.peer != "featx" or exact)
            return Run(rows * (1.001 if off else 1), tuple(paths), wall_s, wall_s / 2)

        monkeypatch.setattr(extraction, "run", made_up)
        out = tmp_path / "results.json"
        words = ["--images", str(photographs), "--networks", NETWORK, "--repeats", "2"]
        words += ["--peers", "script", "loop", "--device", "cpu", "--out", str(out)]
        return extraction.main(words), json.loads(out.read_text("utf-8"))

    return run


def test_the_benchmark_tells_rates_and_ratios_of_those_who_agree(
    bench: Callable[..., tuple[int, dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    code, told = bench(wrong=())
    assert code == 0
    found = told["networks"][NETWORK]
    assert found["agree"]
    assert found["runs"]["featx"]["images_per_s"] == 2.5  # 5 images in 2 s
    assert found["runs"]["loop"]["featx_over_this_wall"] == 3.5
    assert told["work"]["count"] == 5
    assert told["machine"]["cores"] >= 1
    assert "3.50 x" in capsys.readouterr().out


def test_a_peer_whose_features_differ_gets_no_times_and_the_benchmark_fails(
    bench: Callable[..., tuple[int, dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    code, told = bench(wrong=("loop",))
    assert code == 1
    found = told["networks"][NETWORK]
    assert set(found["runs"]) == {"featx", "script"}
    assert "DISAGREES" in found["left_out"]["loop"]
    assert "3.50 x" not in capsys.readouterr().out


def test_no_times_are_told_where_the_features_of_featx_differ(
    bench: Callable[..., tuple[int, dict[str, Any]]],
) -> None:
    code, told = bench(wrong=("featx",))
    assert code == 1
    assert told["networks"][NETWORK]["runs"] == {}


def test_images_that_peers_would_treat_otherwise_are_left_out_and_counted(
    photographs: Path, tmp_path: Path
) -> None:
    from benchmarks.photographs import gather

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(photographs / "turned.jpg", exif=exif)
    Image.new("RGBA", (20, 10)).save(photographs / "clear.png")
    (photographs / "none.jpg").write_bytes(b"no image")
    gathered = gather(photographs, tmp_path / "gathered", n=3)
    assert gathered.left_out == {"of mode RGBA": 1, "no image": 1, "turned by EXIF": 1}
    taken = sorted(path.name for path in gathered.folder.rglob("*.jpg"))
    assert taken == ["000000.jpg", "000001.jpg", "000003.jpg"]


def test_differences_are_relative_to_the_largest_feature_of_each_row() -> None:
    from benchmarks.comparison import compare
    from benchmarks.runs import Run

    a = Run(np.array([[1, 100], [1, 2]], np.float32), ("a", "b"), 1.0, 1.0)
    b = replace(a, features=np.array([[2, 100], [1, 2]], np.float32))
    assert compare("b", b, a, 1e-2).largest == pytest.approx(0.01)
    assert not compare("b", replace(b, features=a.features * np.nan), a, 1e-2).ok
    assert not compare("b", replace(b, paths=("b", "a")), a, 1e-2).ok


def test_heads_are_compared_at_equal_objective(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import heads

    words = ["--scale", "0.01", "--repeats", "2", "--cs", "1.0", "--parts", "logistic", "--out"]
    heads.main([*words, str(tmp_path / "told.json")])
    row = json.loads((tmp_path / "told.json").read_text())["parts"]["logistic"]["rows"][0]
    assert row["reference_within"] < heads.GAP / 10
    assert {gap < heads.GAP for _, gap in row["tolerance_and_gap"].values()} == {True}
    assert len(row["seconds"]["featx"]) == len(row["seconds"]["scikit-learn"]) == 2
    assert " x  (featx " in capsys.readouterr().out
    # Whoever does not come near the minimum gets no times.
    monkeypatch.setattr(heads, "theirs", lambda data, C, dtype=None: lambda tol: (
        np.zeros((data.k, data.X.shape[1])), np.zeros(data.k)))  # fmt: skip
    heads.main([*words, str(tmp_path / "told.json")])
    row = json.loads((tmp_path / "told.json").read_text())["parts"]["logistic"]["rows"][0]
    assert "seconds" not in row
    assert "left out: the objectives are not equal" in capsys.readouterr().out


def test_the_judged_objective_is_scikit_learns() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    from benchmarks.features import draw_features, judge

    X, y = draw_features(120, 10, 3)
    scaler = StandardScaler().fit(X.astype(np.float64))
    model = LogisticRegression(C=0.1, tol=1e-10, max_iter=10_000).fit(
        scaler.transform(X.astype(np.float64)), y
    )
    found = scaler.mean_, scaler.scale_, model.coef_, model.intercept_
    best = judge(X, y, *found, 0.1)
    assert best.gradient_norm < 1e-7
    assert best.bound < 1e-10
    p = model.predict_proba(scaler.transform(X.astype(np.float64)))[np.arange(120), y]
    assert best.objective == pytest.approx(-np.log(p).mean() + (model.coef_**2).sum() / 24)
    assert best.accuracy == model.score(scaler.transform(X.astype(np.float64)), y)
    moved = judge(X, y, *found[:2], model.coef_ * 1.1, model.intercept_, 0.1)
    assert best.objective < moved.objective < best.objective + moved.bound


@pytest.mark.parametrize(
    ("change", "good"),
    [
        ({}, True),
        ({"train_loss": 9e-5}, True),  # either has learnt its rows by heart
        ({"train_loss": 2e-4}, False),
        ({"held_out_loss": 0.0505}, True),
        ({"held_out_loss": 0.0506}, False),
        ({"held_out_errors": 0.0149}, True),
        ({"held_out_errors": 0.0151}, False),
    ],
)
def test_a_network_that_comes_to_more_than_the_loop_gets_no_times(
    change: dict[str, float], good: bool
) -> None:
    from benchmarks.heads import comes_to_no_more

    loop = {"train_loss": 1e-7, "held_out_loss": 0.05, "held_out_errors": 0.01}
    assert comes_to_no_more(loop | change, loop, 400) is good
