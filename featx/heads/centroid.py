"""Nearest class mean: the baseline of one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import numpy.typing as npt
import torch
from torch import Tensor

from featx.counting import counted
from featx.folds import cross_validation_folds, leave_out_units
from featx.heads.base import (
    Choice,
    FloatArray,
    Head,
    IntArray,
    TrainingRows,
    check_common,
    fitting_threads,
    float64_device,
    is_whole,
    require,
    standardised_blocks,
)
from featx.heads.neighbours import unit_rows
from featx.heads.temperature import smoothed_temperature


class CentroidHead(Head):
    """The class whose mean is nearest, on standardised features.

    There is nothing to choose. `predict_proba` is the softmax of minus half the squared distance to
    each class mean (as in Snell et al. 2017, equation 2), or of the cosine to it, over a
    temperature: the one of the smallest log-loss on `X_val, y_val` where given to `fit`, else on
    the training rows, each taken out of its class mean first, or, where rows share a group, on
    folds taken out that part none. The standardisation is that of all training rows.

    Parameters
    ----------
    metric : {"euclidean", "cosine"}
    cv : int
        Folds, where there are groups.
    standardise : bool
    device : {"auto", "cpu", "cuda", "cuda:N", "mps"}
        MPS has no float64, so there the CPU computes.
    random_state : int
        Seeds the folds.

    Attributes
    ----------
    means_ : (k, d) float64, of standardised features
    temperature_ : float; 1 where no row could be taken out of its class
    accuracy_ : float, on the rows that the temperature was fitted on, so measured; None without any
    chosen_on_ : "validation rows", "leave-one-out", "5-fold cross-validation" or "nothing"
    device_ : str

    Examples
    --------
    >>> import numpy as np
    >>> X = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> CentroidHead().fit(X, [0, 0, 1, 1]).predict([[0.4], [2.6]]).tolist()
    [0, 1]
    """

    FACTS: ClassVar[Mapping[str, str]] = {
        "temperature_": "positive number",
        "accuracy_": "number or null",
        "chosen_on_": "text",
        "device_": "text",
    }

    means_: FloatArray
    temperature_: float
    accuracy_: float | None
    chosen_on_: str

    def __init__(
        self,
        metric: str = "euclidean",
        *,
        cv: int = 5,
        standardise: bool = True,
        device: str = "auto",
        random_state: int = 0,
    ) -> None:
        self.metric = metric
        self.cv = cv
        self.standardise = standardise
        self.device = device
        self.random_state = random_state

    def fit(
        self, X: Any, y: Any, *, X_val: Any = None, y_val: Any = None, groups: Any = None
    ) -> Self:
        """Take the class means, and fit the temperature.

        Parameters
        ----------
        X : (n, d) float
        y : (n,) labels of any type scikit-learn takes
        X_val, y_val : (m, d), (m,), optional
            Rows to fit the temperature on; they are in no mean.
        groups : (n,) int, optional
            Rows of one group are never parted; -1 is its own group.

        Raises
        ------
        InputError
            A bad parameter, or one class only.
        """
        rows = self._validate_fit(X, y, X_val, y_val)
        self.device_ = float64_device(self.device)
        with fitting_threads(rows.X.size * len(self.classes_)):
            self._learn_standardisation(rows.X, self.standardise)
            sums, counts = self._sums(rows.X, rows.y, None)
            means = sums / counts[:, None]
            self._fit_temperature(list(self._tested(rows, sums, counts, groups)))
        self.means_ = means.cpu().numpy()
        return self

    def choice(self, n_val: int = 0) -> Choice:
        """The temperature, which only probabilities depend on."""
        on = counted(n_val, "val image") if n_val else self.chosen_on_
        return Choice(f"temperature {self.temperature_:.3g}", on, self.accuracy_, {})

    def _blocks(self, X: npt.NDArray[Any], rows: IntArray | None) -> Iterator[tuple[slice, Tensor]]:
        for part, Z in standardised_blocks(X, self.mean_, self.scale_, rows):
            yield part, torch.from_numpy(Z).to(self.device_)

    def _sums(
        self, X: npt.NDArray[Any], y: IntArray, rows: IntArray | None
    ) -> tuple[Tensor, Tensor]:
        """Of each class the sum (k, d) and the number (k,) of its rows."""
        k = len(self.classes_)
        numbers = torch.from_numpy(y if rows is None else y[rows]).to(self.device_)
        sums = torch.zeros((k, X.shape[1]), dtype=torch.float64, device=self.device_)
        for part, Z in self._blocks(X, rows):
            sums.addmm_(torch.nn.functional.one_hot(numbers[part], k).to(Z.dtype).T, Z)
        return sums, torch.bincount(numbers, minlength=k)

    def _tested(
        self, rows: TrainingRows, sums: Tensor, counts: Tensor, groups: Any
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Scores (b, k) and classes (b,) of rows that are in no mean; sets `chosen_on_`."""
        units, testable = leave_out_units(rows.y, groups=groups)
        numbers = torch.from_numpy(rows.y).to(self.device_)
        if rows.X_val is not None and rows.y_val is not None:
            self.chosen_on_ = "validation rows"
            for part, Z in self._blocks(rows.X_val, None):
                y = torch.from_numpy(rows.y_val[part]).to(self.device_)
                yield self._scores(Z, sums / counts[:, None]), y
        elif not testable.any():
            self.chosen_on_ = "nothing"
        elif units.max() + 1 == len(units):
            self.chosen_on_ = "leave-one-out"
            for part, Z in self._blocks(rows.X, None):
                y, keep = numbers[part], torch.from_numpy(testable[part]).to(self.device_)
                scores = self._scores(Z, sums / counts[:, None])
                others = (sums[y] - Z) / (counts[y] - 1).clamp(min=1)[:, None]  # (b, d)
                scores[torch.arange(len(y), device=y.device), y] = self._own_scores(Z, others)
                yield scores[keep], y[keep]
        else:
            self.chosen_on_ = f"{self.cv}-fold cross-validation"
            folds = cross_validation_folds(
                rows.y, n_folds=self.cv, groups=groups, seed=self.random_state
            )
            for train, val in folds:
                train_sums, left = self._sums(rows.X, rows.y, train)
                means = train_sums / left.clamp(min=1)[:, None]
                for part, Z in self._blocks(rows.X, val):
                    scores = self._scores(Z, means)
                    lowest = scores.min(dim=1, keepdim=True).values
                    # A class that has no other row has no mean.
                    yield torch.where(left > 0, scores, lowest), numbers[val][part]

    def _scores(self, Z: Tensor, means: Tensor) -> Tensor:
        """(b, d), (k, d) -> (b, k): higher is nearer."""
        if self.metric == "cosine":
            return unit_rows(Z) @ unit_rows(means).T
        return Z @ means.T - means.square().sum(dim=1) / 2  # |Z|^2 / 2 is the same for all classes

    def _own_scores(self, Z: Tensor, means: Tensor) -> Tensor:
        """(b, d), (b, d) -> (b,): of each row to a mean of its own."""
        if self.metric == "cosine":
            return (unit_rows(Z) * unit_rows(means)).sum(dim=1)
        return (Z * means).sum(dim=1) - means.square().sum(dim=1) / 2

    def _fit_temperature(self, tested: list[tuple[Tensor, Tensor]]) -> None:
        self.temperature_, self.accuracy_ = 1.0, None
        if tested:
            scores, y = (torch.cat(parts) for parts in zip(*tested, strict=True))
            self.temperature_ = smoothed_temperature(scores, y)
            self.accuracy_ = float((scores.argmax(dim=1) == y).to(torch.float64).mean())

    def _check_params(self) -> None:
        check_common(self)
        require(
            "metric",
            self.metric,
            lambda v: v in ("euclidean", "cosine"),
            "'euclidean' or 'cosine'",
        )
        require("cv", self.cv, lambda v: is_whole(v, 2), "a whole number of folds, 2 or more")

    def _logits(self, Z: FloatArray) -> FloatArray:
        scores = self._scores(torch.from_numpy(Z), torch.from_numpy(self.means_))
        return scores.numpy() / self.temperature_

    def _tensors(self) -> dict[str, npt.NDArray[Any]]:
        return {"means": self.means_}

    def _set_tensors(self, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
        self.means_ = tensors["means"]

    def _tensor_specs(self, d: int, k: int) -> dict[str, tuple[tuple[int, ...], str]]:
        return {"means": ((k, d), "F64")}
