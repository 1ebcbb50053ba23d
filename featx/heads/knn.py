"""Nearest neighbours: nothing is fitted, the training rows themselves are the head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Final, Self

import numpy as np
import numpy.typing as npt
import torch

from featx.counting import counted
from featx.errors import HeadError, InputError
from featx.folds import leave_out_units
from featx.heads.base import (
    Choice,
    FloatArray,
    Head,
    IntArray,
    TrainingRows,
    check_common,
    fitting_threads,
    float64_device,
    is_number,
    is_whole,
    require,
    standardised_blocks,
)
from featx.heads.neighbours import Neighbours, nearest, unit_rows, votes

# DINOv2's evaluation tries 10, 20, 100 and 200 (eval/knn.py, nb_knn); 1, 3 and 5 are for classes
# of a few dozen images, and 50 lies between.
NEIGHBOURS_GRID: Final = (1, 3, 5, 10, 20, 50, 100, 200)


class KNNHead(Head):
    """A vote of the nearest training rows by cosine similarity.

    DINOv2's protocol (Oquab et al. 2023, eval/knn.py, after Wu et al. 2018): features as they are,
    at length 1, votes weighted by ``exp(similarity / temperature)``. The search is exact and in
    float64. Similarities are rounded to 2^-24; among equals the earlier training row is nearer, and
    of classes with the same votes the first wins.

    The head holds the training rows, at length 1, in float32: 4 * n * d bytes, and so does its
    file; whoever has the file has the features of the training images.

    Parameters
    ----------
    n_neighbors : int, optional
        At most the number of training rows are used. None: chosen from `NEIGHBOURS_GRID`, as far as
        there are rows, by accuracy, among equals by log-loss, then the smaller; on `X_val, y_val`
        where given to `fit`, else by leaving out each row, or, where rows share a group, its group.
    weights : {"exponential", "uniform"}
    temperature : float
        Of the exponential weights.
    standardise : bool
    device : {"auto", "cpu", "cuda", "cuda:N", "mps"}
        Where neighbours are searched to choose their number; MPS has no float64, so there the CPU
        does it. Prediction is on the CPU.
    random_state : int
        Nothing is drawn; here because every head has it.

    Attributes
    ----------
    rows_ : (n, d) float32, of length 1
    labels_ : (n,) int64, numbers into `classes_`
    n_neighbors_ : int, the number used
    chosen_on_ : "validation rows", "leave-one-out", "leave-one-group-out" or "nothing"
    cv_results_ : dict of lists "n_neighbors", "accuracy", "log_loss", or None with the number given
    device_ : str

    Notes
    -----
    Probabilities are the classes' shares of the votes, with one neighbour more imagined that is of
    every class alike: ``(q * share + 1 / k) / (q + 1)`` of q neighbours and k classes, so that
    three neighbours do not make a certainty.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    >>> KNNHead(n_neighbors=1).fit(X, [0, 0, 1, 1]).predict([[2.0, 0.3], [0.3, 2.0]]).tolist()
    [0, 1]
    """

    FACTS: ClassVar[Mapping[str, str]] = {
        "n_neighbors_": "positive count",
        "chosen_on_": "text",
        "cv_results_": "columns or null",
        "device_": "text",
    }
    UNCHOSEN: ClassVar[Mapping[str, Any]] = {"n_neighbors": 1}

    rows_: npt.NDArray[np.float32]
    labels_: IntArray
    n_neighbors_: int
    chosen_on_: str
    cv_results_: dict[str, list[Any]] | None

    def __init__(
        self,
        n_neighbors: int | None = None,
        *,
        weights: str = "exponential",
        temperature: float = 0.07,
        standardise: bool = False,
        device: str = "auto",
        random_state: int = 0,
    ) -> None:
        self.n_neighbors = n_neighbors
        self.weights = weights
        self.temperature = temperature
        self.standardise = standardise
        self.device = device
        self.random_state = random_state

    def fit(
        self, X: Any, y: Any, *, X_val: Any = None, y_val: Any = None, groups: Any = None
    ) -> Self:
        """Keep X, y, and choose the number of neighbours if none is given.

        Parameters
        ----------
        X : (n, d) float
        y : (n,) labels of any type scikit-learn takes
        X_val, y_val : (m, d), (m,), optional
            Rows to choose on; they are not kept.
        groups : (n,) int, optional
            Rows of one group do not vote for each other in the choice; -1 is its own group.

        Raises
        ------
        InputError
            A bad parameter, one class only, or nothing to choose on.
        """
        rows = self._validate_fit(X, y, X_val, y_val)
        n, d = rows.X.shape
        self.device_ = float64_device(self.device)
        with fitting_threads(n * n * d):
            self._learn_standardisation(rows.X, self.standardise)
            self.rows_, self.labels_ = np.empty((n, d), np.float32), rows.y
            for part, Z in standardised_blocks(rows.X, self.mean_, self.scale_):
                self.rows_[part] = unit_rows(torch.from_numpy(Z)).numpy()
            if self.n_neighbors is not None:
                self.n_neighbors_ = min(int(self.n_neighbors), n)
                self.chosen_on_, self.cv_results_ = "nothing", None
            else:
                self._choose(rows, groups)
        return self

    def choice(self, n_val: int = 0) -> Choice:
        """The number of neighbours: given, or chosen on `n_val` validation rows or without them."""
        what, params = f"{self.n_neighbors_} neighbours", {"n_neighbors": self.n_neighbors_}
        if self.cv_results_ is None:
            return Choice(what, "nothing: n_neighbors was given", None, params)
        on = counted(n_val, "val image") if n_val else self.chosen_on_
        tried = self.cv_results_["n_neighbors"].index(self.n_neighbors_)
        return Choice(what, on, self.cv_results_["accuracy"][tried], params)

    def _choose(self, rows: TrainingRows, groups: Any) -> None:
        """Take the most accurate number of neighbours, each tested row voted on by others."""
        units, testable = leave_out_units(rows.y, groups=groups)
        if rows.X_val is not None:
            self.chosen_on_, most = "validation rows", len(rows.y)
        elif not testable.any():
            raise InputError(
                "n_neighbors cannot be chosen: no class has two rows (where rows share a group, "
                "two groups); give n_neighbors, or validation rows"
            )
        else:
            grouped = units.max() + 1 < len(units)
            self.chosen_on_ = "leave-one-group-out" if grouped else "leave-one-out"
            most = len(rows.y) - int(np.bincount(units).min())
        grid = [q for q in NEIGHBOURS_GRID if q <= most]
        right, loss, n = np.zeros(len(grid)), np.zeros(len(grid)), 0
        for near, y in self._tested(rows, units, testable, max(grid)):
            n += len(y)
            for i, q in enumerate(grid):
                p = self._probabilities(Neighbours(near.rows[:, :q], near.similarity[:, :q]))
                right[i] += (p.argmax(axis=1) == y).sum()
                loss[i] -= np.log(p[np.arange(len(y)), y]).sum()
        self.n_neighbors_ = grid[int(np.lexsort((loss, -right))[0])]
        self.cv_results_ = {
            "n_neighbors": grid,
            "accuracy": (right / n).tolist(),
            "log_loss": (loss / n).tolist(),
        }

    def _tested(
        self, rows: TrainingRows, units: IntArray, testable: npt.NDArray[np.bool_], most: int
    ) -> Iterator[tuple[Neighbours, IntArray]]:
        """Neighbours and classes of the rows that are chosen on, by blocks."""
        kept = torch.from_numpy(self.rows_).to(self.device_)
        if rows.X_val is not None and rows.y_val is not None:
            for part, Z in standardised_blocks(rows.X_val, self.mean_, self.scale_):
                queries = unit_rows(torch.from_numpy(Z)).to(self.device_)
                yield nearest(queries, kept, most), rows.y_val[part]
            return
        tested = torch.from_numpy(np.flatnonzero(testable)).to(self.device_)
        units_ = torch.from_numpy(units).to(self.device_)
        near = nearest(kept[tested], kept, most, query_units=units_[tested], units=units_)
        yield near, rows.y[testable]

    def _probabilities(self, near: Neighbours) -> FloatArray:
        k = len(self.classes_)
        temperature = float(self.temperature) if self.weights == "exponential" else None
        shares = votes(near, self.labels_, k, temperature=temperature)
        q = (near.rows >= 0).sum(axis=1, keepdims=True)
        return (q * shares + 1 / k) / (q + 1)

    def _logits(self, Z: FloatArray) -> FloatArray:
        q = min(self.n_neighbors_, len(self.rows_))
        queries, kept = unit_rows(torch.from_numpy(Z)), torch.from_numpy(self.rows_)
        return np.log(self._probabilities(nearest(queries, kept, q)))

    def _check_params(self) -> None:
        check_common(self)
        require(
            "n_neighbors",
            self.n_neighbors,
            lambda v: v is None or is_whole(v, 1),
            "a whole number, 1 or more, or None",
        )
        require(
            "weights",
            self.weights,
            lambda v: v in ("exponential", "uniform"),
            "'exponential' or 'uniform'",
        )
        require(
            "temperature",
            self.temperature,
            lambda v: is_number(v) and v >= 1e-6,
            "a number, 0.000001 or more",
        )

    def _tensors(self) -> dict[str, npt.NDArray[Any]]:
        return {"rows": self.rows_, "labels": self.labels_}

    def _set_tensors(self, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
        rows, labels = tensors["rows"], tensors["labels"]
        if not len(rows) or len(rows) != len(labels):
            raise HeadError(f"it has {len(rows)} training rows and {len(labels)} labels of them")
        if labels.min() < 0 or labels.max() >= len(self.classes_):
            raise HeadError("the labels of its training rows are no classes of it")
        if (np.square(rows, dtype=np.float64).sum(axis=1) > 1 + 1e-3).any():
            raise HeadError("its training rows are longer than 1")
        self.rows_, self.labels_ = rows, labels

    def _tensor_specs(self, d: int, k: int) -> dict[str, tuple[tuple[int | None, ...], str]]:
        return {"rows": ((None, d), "F32"), "labels": ((None,), "I64")}
