"""How fast heads are fitted, beside scikit-learn and a plain PyTorch loop, at equal objective.

    python -m benchmarks.heads [--parts logistic sweep wide ridge mlp] [--scale 1.0] [--repeats 3]
        [--prepared FILE]

Run it from the root of the repository. Features are drawn by seed (`benchmarks.features`). Parts:

- `logistic`: 9,430 x 1,024 features, 200 classes, one C after another, each from nothing;
- `sweep`: the same features, DINOv2's 45 values of C, the strongest penalty first, each from the
  one before; scikit-learn's with ``warm_start=True``;
- `wide`: 9,430 x 50,176 features, one C, and the memory that featx takes beside X;
- `ridge`: 13 values of alpha, one of the best leave-one-out accuracy (the same for both), beside
  RidgeClassifierCV in float64; at the alpha that this takes the coefficients are the same. featx
  fits its temperature as well;
- `mlp`: 100 epochs of one hidden layer with dropout of 0.5, in fp32 and with products in bf16,
  beside a plain DataLoader loop: AdamW, batches of 64, the last epoch kept. MLPHead takes larger
  batches of so many rows (`batch_size_of`), and the loop is timed with its batches and learning
  rate too; it leaves out the same units for a whole batch, the loop others for every row. First
  each is trained once, and no time is told of one that comes to more than the plain loop does: in
  training loss, without dropout (below 1e-4 both have learnt all rows by heart), or in the loss on
  a fifth of the rows, held out, or there by a standard error or more in wrong answers;
- `large`: 1,281,167 x 2,048 features, 1,000 classes, for a GPU: seconds only. Not run by default.

`--scale` multiplies rows, features and classes. Every fit takes float32 features and counts all
from there: standardising, whatever is prepared, solving.

Logistic fits are compared at equal objective. It is computed in float64 by the benchmark itself;
the reference is featx's solution to a gradient of 1e-10, and its distance from the minimum is
bounded by that gradient (`Judged.bound`), which does not rest on featx. Then each side gets the
loosest tolerance, by decades and for each C, at which its objective is within 1e-4 of the
reference, relatively; scikit-learn in float64 where it does not come so near in float32, which is
told. No time is told where one side reaches it at no tolerance. Only then fits are timed, in turns
(A B A B), and ratios are medians of the ratios of each turn. Finding references and tolerances
takes many times as long as a turn: `--prepared` keeps them in a file for later runs, and
``--repeats 0`` only finds them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeClassifierCV
from sklearn.metrics import log_loss as sk_log_loss
from sklearn.preprocessing import StandardScaler

from benchmarks import machine
from benchmarks.features import Floats, Judged, draw_features, judge
from featx.heads import DINOV2_C_GRID, LogisticHead, MLPHead, RidgeHead
from featx.heads.base import learn_standardisation
from featx.heads.solution import Solution
from featx.heads.solver import Problem
from featx.heads.standardised import FeatureRows
from featx.heads.training import batch_size_of, learning_rate_of

GAP: Final = 1e-4
REFERENCE_TOL: Final = 1e-10
TOLERANCES: Final = tuple(10.0**-i for i in range(2, 13))
ALPHAS: Final = tuple(10.0**i for i in range(-4, 9))  # 13
MAX_ITER: Final = 100_000
COEFFICIENTS: Final = 1e-6  # of the largest, at which two ridge fits are the same
IN_FLOAT64: Final = "in float64, as it does not come near enough in float32"
EPOCHS: Final = 100
HIDDEN: Final = 256
DROPOUT: Final = 0.5
LEEWAY: Final = 1.01  # in losses, of networks that draw other numbers
BY_HEART: Final = 1e-4

Fit = Callable[[float], tuple[Floats, Floats]]  # a tolerance -> weights (k, d), intercepts (k,)


class Data:
    """Features and labels, and what they are standardised by."""

    def __init__(self, n: int, d: int, k: int, scale: float) -> None:
        n, d, k = (max(least, round(v * scale)) for v, least in ((n, 60), (d, 8), (k, 3)))
        self.X, self.y = draw_features(n, d, k)
        self.k, self.mean, self.scale = k, *learn_standardisation(self.X)

    def __str__(self) -> str:
        return f"{self.X.shape[0]:,} x {self.X.shape[1]:,}, {self.k} classes"

    def judge(self, found: tuple[Floats, Floats], C: float) -> Judged:
        return judge(self.X, self.y, self.mean, self.scale, *found, C)


class Prepared:
    """What is found before fits are timed, by name, and kept in a file if there is one."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.known = json.loads(path.read_text("utf-8")) if path and path.exists() else {}

    def get(self, name: str, find: Callable[[], Any]) -> Any:
        """In JSON's types."""
        if name not in self.known:
            self.known[name] = find()
            if self.path is not None:
                self.path.write_text(json.dumps(self.known, indent=1) + "\n", "utf-8")
        return self.known[name]


def in_turns(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every way, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            begun = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - begun)
    return seconds


def compared(seconds: dict[str, list[float]], ours: str, theirs: str) -> dict[str, Any]:
    """Medians, and the median of each turn's ratio."""
    if not seconds[ours]:
        return {"left_out": "only prepared"}
    ratios = [b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True)]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {"seconds": seconds, "median_s": medians, "ratio": statistics.median(ratios)}


def loosest(fit: Fit, data: Data, C: float, best: float) -> tuple[float, float] | None:
    """The first tolerance whose relative gap to the best objective is small, and that gap."""
    for tol in TOLERANCES:
        gap = data.judge(fit(tol), C).objective / best - 1
        if gap <= GAP:
            return tol, gap
    return None


def ours(data: Data, C: float, device: str) -> Fit:
    def fit(tol: float) -> tuple[Floats, Floats]:
        head = LogisticHead(C=C, tol=tol, max_iter=MAX_ITER, device=device).fit(data.X, data.y)
        return both(head.coef_, head.intercept_)

    return fit


def theirs(data: Data, C: float, dtype: type = np.float32) -> Fit:
    def fit(tol: float) -> tuple[Floats, Floats]:
        Z = StandardScaler().fit_transform(data.X.astype(dtype, copy=False))
        model = LogisticRegression(C=C, tol=tol, max_iter=MAX_ITER).fit(Z, data.y)
        return both(model.coef_, model.intercept_)

    return fit


def both(W: np.ndarray, b: np.ndarray) -> tuple[Floats, Floats]:
    return W.astype(np.float64), b.astype(np.float64)


def one_c(data: Data, C: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """featx and scikit-learn at one C."""
    fits = {"featx": ours(data, C, arguments.device), "scikit-learn": theirs(data, C)}
    prepared, place = arguments.prepared, f"{data}, C {C:g}"
    reference = Judged(
        **prepared.get(
            f"{place}: reference", lambda: asdict(data.judge(fits["featx"](REFERENCE_TOL), C))
        )
    )
    told: dict[str, Any] = {
        "C": C,
        "objective": reference.objective,
        "reference_within": reference.bound / reference.objective,
        "accuracy_in_training": reference.accuracy,
    }
    best = reference.objective
    found = {
        name: prepared.get(f"{place}: {name}", lambda fit=fit: loosest(fit, data, C, best))
        for name, fit in fits.items()
    }
    if found["scikit-learn"] is None:
        fits["scikit-learn"] = in_float64 = theirs(data, C, np.float64)
        found["scikit-learn"] = prepared.get(
            f"{place}: scikit-learn in float64", lambda: loosest(in_float64, data, C, best)
        )
        told["scikit-learn"] = IN_FLOAT64
    told["tolerance_and_gap"] = found
    if reference.bound > GAP / 10 * reference.objective or None in found.values():
        return told | {"left_out": "the objectives are not equal"}
    ways = {name: (lambda fit=fit, tol=found[name][0]: fit(tol)) for name, fit in fits.items()}
    ways["featx, its default tolerance"] = lambda: fits["featx"](1e-6)
    return told | compared(in_turns(ways, arguments.repeats), "featx", "scikit-learn")


def logistic(arguments: argparse.Namespace) -> dict[str, Any]:
    data = Data(9430, 1024, 200, arguments.scale)
    return {"data": str(data), "rows": [one_c(data, C, arguments) for C in arguments.cs]}


class OurPath:
    """featx's fits of one C after another."""

    def __init__(self, data: Data, device: str) -> None:
        rows = FeatureRows(data.X, None, *learn_standardisation(data.X))
        weight = np.ones(len(data.y))
        self.problem = Problem(
            rows, data.y, weight, n_classes=data.k, intercept=True, device=device
        )
        self.last: list[Solution] = []

    def step(self, C: float, tol: float) -> None:
        found = self.problem.solve([C], tol, MAX_ITER, path=self.last)
        self.last = [*self.last, *found][-2:]

    def found(self) -> tuple[Floats, Floats]:
        W, b = self.problem.space.weights(self.last[-1].x)
        return W.cpu().numpy(), b.cpu().numpy()


class TheirPath:
    """scikit-learn's, warm-started."""

    def __init__(self, data: Data, dtype: type = np.float32) -> None:
        self.Z = StandardScaler().fit_transform(data.X.astype(dtype, copy=False))
        self.y = data.y
        self.model = LogisticRegression(max_iter=MAX_ITER, warm_start=True)

    def step(self, C: float, tol: float) -> None:
        self.model.set_params(C=C, tol=tol).fit(self.Z, self.y)

    def found(self) -> tuple[Floats, Floats]:
        return both(self.model.coef_, self.model.intercept_)


def sweep(arguments: argparse.Namespace) -> dict[str, Any]:
    data = Data(9430, 1024, 200, arguments.scale)
    paths: dict[str, Callable[[], Any]] = {
        "featx": lambda: OurPath(data, arguments.device),
        "scikit-learn": lambda: TheirPath(data),
    }
    prepared, best = arguments.prepared, []
    for C in DINOV2_C_GRID:
        found = prepared.get(f"{data}, C {C:g}: objective", lambda C=C: path_reference(data, C))
        if found["bound"] > GAP / 10 * found["objective"]:
            return {"data": str(data), "rows": [{"left_out": f"no reference for C = {C:g}"}]}
        best.append(found["objective"])

    def tolerances_of(kind: str, path: Callable[[], Any]) -> list[float] | None:
        return prepared.get(f"{data}, path: {kind}", lambda: path_tolerances(path, data, best))

    tolerances = {name: tolerances_of(name, path) for name, path in paths.items()}
    told: dict[str, Any] = {"data": str(data), "tolerances": tolerances}
    if tolerances["scikit-learn"] is None:
        paths["scikit-learn"] = lambda: TheirPath(data, np.float64)
        in_float64 = "scikit-learn in float64"
        tolerances["scikit-learn"] = tolerances_of(in_float64, paths["scikit-learn"])
        told["scikit-learn"] = IN_FLOAT64
    if None in tolerances.values():
        return told | {"rows": [{"left_out": "the objectives are not equal"}]}

    def run(name: str) -> None:
        path = paths[name]()
        for C, tol in zip(DINOV2_C_GRID, tolerances[name] or (), strict=True):
            path.step(C, tol)

    ways = {name: (lambda name=name: run(name)) for name in paths}  # type: ignore[misc]
    row = compared(in_turns(ways, arguments.repeats), "featx", "scikit-learn")
    return told | {"rows": [{"C": "45 values"} | row]}


def path_reference(data: Data, C: float) -> dict[str, float]:
    found = data.judge(ours(data, C, "cpu")(REFERENCE_TOL), C)
    return {"objective": found.objective, "bound": found.bound}


def path_tolerances(
    make: Callable[[], Any], data: Data, best: Sequence[float]
) -> list[float] | None:
    """For each C the loosest tolerance with which a whole path has small gaps everywhere."""
    chosen = [0] * len(best)
    while True:
        path, ok = make(), True
        for i, C in enumerate(DINOV2_C_GRID):
            while True:
                path.step(C, TOLERANCES[chosen[i]])
                if data.judge(path.found(), C).objective / best[i] - 1 <= GAP:
                    break
                chosen[i], ok = chosen[i] + 1, False
                if chosen[i] == len(TOLERANCES):
                    return None
        if ok:  # from its start on with these tolerances
            return [TOLERANCES[i] for i in chosen]


def wide(arguments: argparse.Namespace) -> dict[str, Any]:
    data = Data(9430, 50_176, 200, arguments.scale)
    C = arguments.wide_c
    row = one_c(data, C, arguments)
    if row["tolerance_and_gap"]["featx"] is not None:
        row["memory"] = memory(data, C, row["tolerance_and_gap"]["featx"][0])
    return {"data": str(data), "rows": [row]}


CHILD: Final = """
import sys
import numpy as np
from featx.heads import LogisticHead
from featx.memory import peak_memory_bytes

X, y = np.load(sys.argv[1]), np.load(sys.argv[2])
LogisticHead(C=1.0, device="cpu").fit(X[:100, :50], y[:100] % 2)  # what the libraries take
before = peak_memory_bytes()
LogisticHead(C=float(sys.argv[3]), tol=float(sys.argv[4]), device="cpu").fit(X, y)
print(1 + (peak_memory_bytes() - before) / X.nbytes)
"""


def memory(data: Data, C: float, tol: float) -> float | None:
    """Peak memory of a fit in a fresh process, X included, over the size of X."""
    if sys.platform != "linux":
        return None
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("X.npy", "y.npy")]
        for path, array in zip(files, (data.X, data.y), strict=True):
            np.save(path, array)
        words = [sys.executable, "-c", CHILD, *map(str, files), str(C), str(tol)]
        ended = subprocess.run(words, capture_output=True, text=True, check=True)
    return float(ended.stdout)


def ridge(arguments: argparse.Namespace) -> dict[str, Any]:
    data = Data(9430, 1024, 200, arguments.scale)
    fits: dict[str, Callable[[], Any]] = {
        "featx": lambda: RidgeHead(alphas=ALPHAS, device=arguments.device).fit(data.X, data.y),
        "scikit-learn": lambda: RidgeClassifierCV(alphas=ALPHAS, scoring="accuracy").fit(
            StandardScaler().fit_transform(data.X.astype(np.float64)), data.y
        ),
    }
    fitted = {name: fit() for name, fit in fits.items()}
    ours, theirs = fitted["featx"], fitted["scikit-learn"]
    same = RidgeHead(alpha=float(theirs.alpha_), device=arguments.device).fit(data.X, data.y)
    difference = float(np.abs(same.coef_ - theirs.coef_).max() / np.abs(theirs.coef_).max())
    told: dict[str, Any] = {
        "data": str(data),
        "alpha": {name: float(head.alpha_) for name, head in fitted.items()},
        "accuracy": {
            "featx": max(ours.cv_results_["accuracy"]),
            "scikit-learn": float(theirs.best_score_),
        },
        "largest_difference": difference,
    }
    apart = abs(told["accuracy"]["featx"] - told["accuracy"]["scikit-learn"])
    if apart > 1e-9 or difference > COEFFICIENTS:
        return told | {"rows": [{"left_out": f"the fits are not the same: {told}"}]}
    return told | {"rows": [compared(in_turns(fits, arguments.repeats), "featx", "scikit-learn")]}


def mlp(arguments: argparse.Namespace) -> dict[str, Any]:
    data = Data(11_788, 1024, 200, arguments.scale)
    n = round(0.8 * len(data.y))
    X, y = data.X[:n], data.y[:n]  # the others are held out

    def head(precision: str) -> MLPHead:
        return MLPHead(
            (HIDDEN,),
            dropout=DROPOUT,
            epochs=EPOCHS,
            patience=None,
            validation_fraction=0.0,  # as the loop: all rows, and the last epoch
            device=arguments.device,
            precision=precision,
        ).fit(X, y)

    batch_size, lr = batch_size_of(n), learning_rate_of(batch_size_of(n))
    plain, larger = "DataLoader loop", f"DataLoader loop in batches of {batch_size}"
    ways: dict[str, Callable[[], Any]] = {
        "featx": lambda: head("fp32"),
        "featx, bf16": lambda: head("bf16"),
        plain: lambda: PlainLoop(X, y, batch_size=64, lr=1e-3),
        larger: lambda: PlainLoop(X, y, batch_size=batch_size, lr=lr),
    }

    def judged() -> dict[str, dict[str, float]]:
        return {name: as_trained(way(), data, n) for name, way in ways.items()}

    came_to = arguments.prepared.get(f"{data}, mlp: {EPOCHS} epochs", judged)
    seconds = in_turns(ways, arguments.repeats)
    rows = []
    for name, precision in (("featx", "fp32"), ("featx, bf16", "bf16")):
        row = {
            "precision": precision,
            "epochs": EPOCHS,
            "came_to": came_to,
        }
        if not comes_to_no_more(came_to[name], came_to[plain], len(data.y) - n):
            rows.append(row | {"left_out": f"it comes to more than the loop: {came_to}"})
            continue
        row |= compared({way: seconds[way] for way in (name, plain, larger)}, name, plain)
        rows.append(row)
    return {"data": f"{data}, of which {n:,} are trained on", "rows": rows}


def comes_to_no_more(one: dict[str, float], other: dict[str, float], n_held_out: int) -> bool:
    """Whether a network is as good as another, by what `as_trained` says of them."""
    wrong = other["held_out_errors"]
    return (
        one["train_loss"] <= max(LEEWAY * other["train_loss"], BY_HEART)
        and one["held_out_loss"] <= LEEWAY * other["held_out_loss"]
        and one["held_out_errors"] < wrong + (wrong * (1 - wrong) / n_held_out) ** 0.5
    )


def as_trained(network: Any, data: Data, n: int) -> dict[str, float]:
    """Loss on the first n rows, which it was trained on; loss and share of errors on the others."""
    told, held_out = network.predict_proba(data.X[:n]), network.predict_proba(data.X[n:])
    return {
        "train_loss": float(sk_log_loss(data.y[:n], told, labels=range(data.k))),
        "held_out_loss": float(sk_log_loss(data.y[n:], held_out, labels=range(data.k))),
        "held_out_errors": float((held_out.argmax(axis=1) != data.y[n:]).mean()),
    }


class PlainLoop:
    """MLPHead's network and optimizer as a script trains them."""

    def __init__(self, X: np.ndarray, y: np.ndarray, *, batch_size: int, lr: float) -> None:
        torch.manual_seed(0)
        self.scaler = StandardScaler().fit(X)
        Z = torch.from_numpy(self.scaler.transform(X))
        loader = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(Z, torch.from_numpy(y)),
            batch_size=batch_size,
            shuffle=True,
        )
        self.network = torch.nn.Sequential(
            torch.nn.Linear(Z.shape[1], HIDDEN),
            torch.nn.ReLU(),
            torch.nn.Dropout(DROPOUT),
            torch.nn.Linear(HIDDEN, int(y.max()) + 1),
        )
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=lr, weight_decay=1e-2)
        cross_entropy = torch.nn.CrossEntropyLoss()
        for _ in range(EPOCHS):
            for x, labels in loader:
                optimizer.zero_grad()
                cross_entropy(self.network(x), labels).backward()
                optimizer.step()
        self.network.eval()

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            Z = torch.from_numpy(self.scaler.transform(X))
            return self.network(Z).double().softmax(dim=1).numpy()


def large(arguments: argparse.Namespace) -> dict[str, Any]:
    data = Data(1_281_167, 2048, 1000, arguments.scale)
    told = {}

    def fit() -> None:
        head = LogisticHead(C=1e-4, tol=1e-4, device=arguments.device).fit(data.X, data.y)
        told.update(n_iter=head.n_iter_, gradient_norm=head.gradient_norm_)

    seconds = in_turns({"featx": fit}, arguments.repeats)
    row = {
        "C": 1e-4,
        "seconds": seconds,
        "median_s": {"featx": statistics.median(seconds["featx"])},
    }
    return {"data": str(data), "rows": [row | told]}


PARTS: Final[dict[str, Callable[[argparse.Namespace], dict[str, Any]]]] = {
    "logistic": logistic,
    "sweep": sweep,
    "wide": wide,
    "ridge": ridge,
    "mlp": mlp,
    "large": large,
}


def row_in_words(part: str, row: dict[str, Any]) -> str:
    what = f"{part} C {row['C']}" if "C" in row else part
    what += f" {row['precision']}" if "precision" in row else ""
    if "left_out" in row:
        return f"{what:22} left out: {row['left_out']}"
    times = ", ".join(f"{name} {median:.2f} s" for name, median in row["median_s"].items())
    ratio = f"  {row['ratio']:.1f} x" if "ratio" in row else ""
    used = f", peak memory {row['memory']:.2f} of X" if row.get("memory") else ""
    return f"{what:22}{ratio}  ({times}{used})"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS)[:-1])
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cs", type=float, nargs="+", default=[0.01, 1.0, 100.0])
    parser.add_argument("--wide-c", type=float, default=0.01)
    parser.add_argument("--device", default="cpu", help="of featx; the others use the CPU")
    parser.add_argument("--prepared", type=Path, help="a file of references and tolerances found")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/, if not scaled")
    arguments = parser.parse_args(words)
    arguments.prepared = Prepared(arguments.prepared)
    told = machine.circumstances("python -m benchmarks.heads")
    told["parts"] = {}
    with warnings.catch_warnings():
        # A tolerance too small to be reached shows in the objective.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for part in arguments.parts:
            found = PARTS[part](arguments)
            told["parts"][part] = found
            for row in found["rows"]:
                print(row_in_words(part, row), flush=True)
    out = arguments.out
    if out is None and arguments.scale == 1:
        out = machine.results_path(told, "heads")
    if out is not None:
        out.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
        print(f"wrote {out}")


if __name__ == "__main__":
    main()
