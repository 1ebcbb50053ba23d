"""The rest of a network as a head: what follows the cut, with a new classifier, trained on."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import softmax
from sklearn.utils import column_or_1d
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from featx.augmentation import Augmentation
from featx.devices import check_precision, resolve_device
from featx.errors import HeadError, InputError
from featx.heads.base import FloatArray
from featx.heads.tail_checkpoint import Checkpoint
from featx.heads.tail_rows import TailRows, checked_matrix
from featx.heads.tail_settings import TailSettings
from featx.own_network import is_own
from featx.transforms import Transform
from featx.weight_files import check_made_with

if TYPE_CHECKING:
    from featx.heads.tail_network import Tail
    from featx.heads.tail_training import Told

_PREFIX: Final = "tail."
BATCH_ROWS: Final = 16  # predicted at once
_DTYPES: Final = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}


class TailHead(TailSettings):
    """What follows a cut of a network, its classifier replaced, trained from its weights on.

    Cut at a block: the last layers are trained, and the images went through those before it once.
    Cut at ``input``: all of the network is trained, on uint8 pixels; with ``weights="random"``
    from scratch. The front's values have no part in it and never change.

    Rows are read a batch at a time, shuffled by seed, and never held: X may be a memory map that
    is larger than memory. The epoch is kept that is most accurate on validation rows (among
    equals, of the smallest loss). Training is repeated to the bit by the same seed, on the CPU
    with the same number of threads. Prediction is in fp32, in batches of one shape: what a row
    gets does not depend on the rows beside it.

    Parameters
    ----------
    backbone : str or Module
        The network, as `featx.extract` takes it; a Module is copied, and makes a head that cannot
        be saved.
    weights, weights_seed
        Its weights, and the seed of ``"random"`` ones. Must be those that made the features, which
        `fit-head` takes where it is told none; elsewhere None is ``"default"``.
    weights_sha256 : str, optional
        What these must have; checked where given.
    cut : str
        Where the features were taken, not pooled.
    shape : sequence of int, optional
        Of one row, where X is (n, d) and images were not of the network's own size.
    transform : dict, optional
        `Transform.to_dict()` of the images; by default the network's own. Pixels are normalised
        by its mean and std.
    batchnorm : {None, "frozen", "learn"}
        Whether BatchNorm's running statistics stay as they are or learn; None: they learn where
        weights are random. Scales and shifts are trained in any case.
    augment : str, optional
        What is changed at random in the pixels of each step, in words: ``"flip,crop"``; see
        `featx.augmentation.Augmentation`. Rows that are chosen on or predicted stay as they are.
    lr : float, optional
        Of the new classifier; None: 0.001 for adamw, 0.01 for sgd.
    lr_ratio : float, optional
        The first layer's rate over the classifier's; between them it falls by one factor from a
        layer to the one before it. None: 0.1, and 1 where weights are random.
    optimizer : {"adamw", "sgd"}
    momentum : float
        Of sgd.
    schedule : {"cosine", "constant"}
        Of the rates after `warmup`: cosine lowers them to 0, step by step.
    warmup : float
        Share of all steps in which the rates rise from 0.
    weight_decay : float
        Decoupled for adamw; not on biases, nor on the scales of norms.
    epochs, batch_size : int
    label_smoothing : float
        0 to 1, exclusive; in training only, the history holds the plain loss.
    patience : int, optional
        Stop after so many epochs without a better one; None: run all.
    validation_fraction : float
        Share of the training rows set aside to choose the epoch, where `fit` gets no X_val. 0:
        none, and the last epoch is kept.
    device : {"auto", "cpu", "cuda", "cuda:N", "mps"}
        Where to train.
    predict_device : str
        Where to predict; on others than the CPU the last digits differ.
    precision : {None, "fp32", "tf32", "bf16", "fp16"}
        Of the training steps (automatic mixed precision; fp16 with a scaled loss); None is fp32.
    random_state : int
        Of the new classifier, the order of rows, what is set aside and dropped.

    Attributes
    ----------
    tail_ : featx.heads.tail_network.Tail
        The trained module, on the CPU.
    shape_ : list of int
        Of one row as given.
    history_, best_epoch_, n_set_aside_, device_
        As in LinearHead.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    >>> X = np.repeat(np.float32([[0, 0, 1], [1, 0, 0]]), 20, axis=0)  # as the front gives
    >>> head = TailHead(net, cut="1", lr=0.1, device="cpu").fit(X, np.repeat([3, 7], 20))
    >>> head.predict(X[[0, 39]]).tolist()
    [3, 7]
    """

    FACTS: ClassVar[Mapping[str, str]] = {
        **TailSettings.FACTS,
        "shape_": "counts",
        "crop_": "count",
        "pixels_": "bool",
        "code_sha256_": "text",
        "whole_": "bool",
    }
    OF_FEATURES: ClassVar[frozenset[str]] = frozenset(
        {"backbone", "weights", "weights_seed", "weights_sha256", "cut", "shape", "transform"}
    )

    tail_: Tail
    shape_: list[int]
    crop_: int  # side of the images, pixels; 0 where it is not known
    pixels_: bool  # whether X is uint8
    code_sha256_: str  # of what the user's own code computes after the cut; empty of others
    whole_: bool  # whether these are whole pictures, which have an extent

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        X_val: Any = None,
        y_val: Any = None,
        groups: Any = None,
        rows: Any = None,
        val_rows: Any = None,
        extent: Any = None,
        checkpoint: str | os.PathLike[str] | None = None,
        told: Told | None = None,
    ) -> Self:
        """Train, and keep the epoch that does best on validation rows.

        Parameters
        ----------
        X : (n, d) or (n, *shape), float16, float32 or uint8
            Unpooled features of the cut; or pixels (n, h, w, c) of the cut ``input``.
        y : (n,) labels of any type scikit-learn takes
        X_val, y_val, groups, rows, val_rows
            As of LinearHead.
        extent : (n, 2) int, optional
            Of whole pictures (a cache of --store-size): height and width of what is picture. The
            rows to choose on are then `val_rows` of X.
        checkpoint : path, optional
            A file that is replaced after each epoch; where it is there, of the same settings and
            rows, training goes on from it, and ends with the bits of one that was never
            interrupted. It is left there: remove it once the head is saved.
        told : callable, optional
            Called after each epoch with its row of `history_`.

        Raises
        ------
        InputError
            A bad parameter, one class only, rows that do not enter the network there, or a loss
            that is not finite.
        WeightsError, HeadError
            The weights cannot be had, or are not those of `weights_sha256`.
        DiskError
            The checkpoint cannot be written.
        """
        from featx.heads.tail_network import Tail
        from featx.heads.tail_training import Training

        self._check_params()
        device = resolve_device(self.device)
        recipe = self._recipe(check_precision(device, self.precision))
        X, y = checked_matrix(X), column_or_1d(y)
        if len(y) != len(X):
            raise InputError(f"X has {len(X)} rows, y {len(y)} labels")
        rows = np.arange(len(y)) if rows is None else np.asarray(rows)
        numbers = self._number_labels(y[rows])
        if X_val is not None and y_val is not None:
            if extent is not None:
                raise InputError("with extent, rows to choose on are val_rows of X, not X_val")
            X_val, y_val = checked_matrix(X_val), column_or_1d(y_val)
            val_rows = np.arange(len(y_val))
        else:
            X_val, y_val = X, y
        network, augment = self._read_network(X, extent)
        self.device_, self.n_set_aside_ = device.name, 0
        if val_rows is None:
            kept, aside = self._set_aside(numbers, groups, n_networks=1)
            rows, val_rows, self.n_set_aside_ = rows[kept], rows[aside], len(aside)
            numbers = numbers[kept]
        elif len(val_rows):
            val_rows = val_rows[self._known(y_val[val_rows])]
        tail = Tail(
            network,
            self.cut,
            len(self.classes_),
            batchnorm=self._batchnorm(),
            seed=self.random_state,
            device=device.name,
        )
        training = Training(
            tail,
            replace(self._rows(X, rows, device.name, extent), augment=augment),
            numbers,
            self._rows(X_val, val_rows, device.name, extent) if len(val_rows) else None,
            np.searchsorted(self.classes_, y_val[val_rows]),
            recipe,
        )
        self._check_enters(tail, training.rows)
        kept_in = None
        if checkpoint is not None:
            settings = {k: repr(v) for k, v in self.get_params().items() if k != "backbone"}
            kept_in = Checkpoint(Path(checkpoint), training.digest(settings))
        training.run(kept_in, told)
        self.best_epoch_, self.history_ = training.course.best_epoch, training.course.history
        self.tail_ = tail.to("cpu")
        self.tail_.set_values(training.best)
        self.code_sha256_ = ""
        if isinstance(self.backbone, str) and is_own(self.backbone):
            self.code_sha256_ = self._bare_tail(len(self.classes_)).code_sha256
        return self

    def _read_network(self, X: Any, extent: Any) -> tuple[nn.Module, Augmentation | None]:
        """The network with its weights, and how its pixels are changed; sets what X is to it."""
        given = None if self.transform is None else Transform.from_dict(self.transform)
        if isinstance(self.backbone, nn.Module):
            network, transform = self.backbone, given
        else:
            from featx.backbones import load_backbone

            weights = self.weights or "default"
            backbone = load_backbone(self.backbone, weights=weights, seed=self.weights_seed)
            network, transform = backbone.network, given or backbone.transform
            self.started_from_ = backbone.weights_sha256
            if self.weights_sha256 is not None:
                check_made_with(
                    self.weights_sha256,
                    backbone.weights_sha256,
                    backbone=self.backbone,
                    weights=weights,
                )
        self.crop_ = 0 if transform is None else transform.crop
        self.pixels_, self.whole_ = X.dtype == np.uint8, extent is not None
        if self.pixels_ and self.cut != "input":
            raise InputError(
                f"uint8 rows are pixels, which enter at the cut 'input', not {self.cut!r}"
            )
        if self.pixels_ and transform is None:
            raise InputError("pixels need a transform, whose mean and std they are normalised by")
        if self.augment is not None and not self.pixels_:
            raise InputError(
                f"augment changes pixels, and these are features of the cut {self.cut!r}: extract "
                "with --cut input"
            )
        self.shape_ = [int(size) for size in self._shape(X, network)]
        d = math.prod(self.shape_)
        if math.prod(X.shape[1:]) != d:
            raise InputError(
                f"rows of X hold {math.prod(X.shape[1:]):,} values, but at {self.cut} an image has "
                f"{d:,} ({'x'.join(map(str, self.shape_))}): the features must not be pooled "
                "(extract with --pool none), and of images of another size `shape` must be given"
            )
        self.n_features_in_ = d
        self.mean_, self.scale_ = np.zeros(1), np.ones(1)
        if self.pixels_:
            assert transform is not None
            self.mean_, self.scale_ = np.array(transform.mean), np.array(transform.std)
            if not self.whole_ and self.shape_[:2] != [transform.crop] * 2:
                raise InputError(
                    f"pixels of shape {tuple(self.shape_)} are not cropped to {transform.crop}: "
                    "whole pictures need their extent"
                )
            if self.augment is not None:
                return network, Augmentation.parse(self.augment, transform)
        return network, None

    def _shape(self, X: Any, network: nn.Module) -> Sequence[int]:
        if len(X.shape) > 2:
            return X.shape[1:]
        if self.shape is not None:
            return self.shape
        channels = next(p for p in network.parameters() if p.ndim > 1).shape[1]
        crop = self.crop_ or 224
        if self.pixels_:
            return crop, crop, channels
        if isinstance(self.backbone, nn.Module):
            return X.shape[1:]
        from featx.heads.tail_network import shape_at

        return shape_at(network, self.cut, (2, channels, crop, crop))

    def _rows(
        self, X: Any, rows: npt.NDArray[np.int64], device: str, extent: Any = None
    ) -> TailRows:
        """Rows as they enter the tail; refuses whole pictures without an extent."""
        if (extent is not None) != self.whole_:
            told = ("takes no extent", "was fitted on whole pictures: give the extent of each")
            raise InputError(f"this head {told[self.whole_]}")
        transform = None
        if extent is not None:
            if self.transform is None:
                raise InputError("whole pictures need a transform, which says how they are cropped")
            extent, transform = np.asarray(extent), Transform.from_dict(self.transform)
            if extent.shape != (len(X), 2) or not self.pixels_:
                raise InputError(f"extent must be ({len(X)}, 2) of pixels, got {extent.shape}")
        shape = tuple(self.shape_)
        return TailRows(X, rows, shape, self.mean_, self.scale_, device, transform, extent)

    def _check_enters(self, tail: Tail, rows: TailRows) -> None:
        """Refuse rows that the tail cannot compute with."""
        first = rows.batch(np.arange(1))
        try:
            with torch.inference_mode():
                out = tail(first)
        except (RuntimeError, TypeError, ValueError, AssertionError, LookupError) as why:
            told = (str(why).strip().splitlines() or [type(why).__name__])[0]
            raise InputError(
                f"rows of shape {tuple(self.shape_)} do not enter the network at {self.cut} "
                f"({told}): are they the features of this network and cut, not pooled?"
            ) from why
        if out.shape != (1, len(self.classes_)):
            raise InputError(
                f"the network gives {tuple(out.shape[1:])} values for an image, not one for each "
                f"of {len(self.classes_)} classes"
            )
        if not tail.gives_scores_in_training(first):
            raise InputError(
                "in training mode the network gives something else than the scores of its last "
                "layer, as those with auxiliary classifiers do: take these off before (GoogLeNet "
                "and Inception of torchvision: aux_logits=False; by their names that is done)"
            )

    def predict_proba(self, X: Any, extent: Any = None) -> FloatArray:
        """Class probabilities: (n, d) -> (n, k) float64, each row sums to 1.

        Of whole pictures `extent` (n, 2) is the height and width of each.
        """
        logits = self._all_logits(X, extent)
        return softmax(logits, axis=1)

    def _all_logits(self, X: Any, extent: Any = None) -> FloatArray:
        from featx.heads.tail_training import logits_of

        check_is_fitted(self)
        X = checked_matrix(X)
        if math.prod(X.shape[1:]) != self.n_features_in_:
            raise InputError(
                f"rows of X hold {math.prod(X.shape[1:]):,} values, but this head was fitted on "
                f"{self.n_features_in_:,}"
            )
        if (X.dtype == np.uint8) != self.pixels_:
            kinds = ("features", "uint8 pixels")
            raise InputError(f"this head takes {kinds[self.pixels_]}, got {X.dtype}")
        device = resolve_device(self.predict_device).name
        tail = self.tail_ if device == "cpu" else copy.deepcopy(self.tail_).to(device)
        rows = self._rows(X, np.arange(len(X)), device, extent)
        logits = np.empty((len(X), len(self.classes_)))
        for part, of_part in logits_of(tail, rows, BATCH_ROWS):
            logits[part] = of_part.cpu().numpy()
        if not np.isfinite(logits).all():
            raise HeadError("the values of this head give no numbers as logits: fit it again")
        return logits

    def _logits(self, Z: FloatArray) -> FloatArray:
        return self._all_logits(Z)

    def _check_savable(self) -> None:
        if not isinstance(self.backbone, str):
            raise InputError("a head of a network that has no name cannot be saved")

    def _tensors(self) -> dict[str, npt.NDArray[Any]]:
        return {f"{_PREFIX}{name}": v.numpy() for name, v in self.tail_.values().items()}

    def _set_tensors(self, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
        self.tail_ = self._bare_tail(len(self.classes_))
        self.tail_.fill(
            {name: torch.from_numpy(tensors[f"{_PREFIX}{name}"]) for name in self.tail_.values()}
        )

    def _tensor_specs(self, d: int, k: int) -> dict[str, tuple[tuple[int, ...], str]]:
        if math.prod(self.shape_) != d:
            raise InputError(f"its rows are said to hold {d} values of shape {self.shape_}")
        return {
            f"{_PREFIX}{name}": (tuple(value.shape), _dtype(name, value))
            for name, value in self._bare_tail(k).values().items()
        }

    def _mean_size(self, d: int) -> int:
        return self.shape_[-1] if self.pixels_ else 1

    def _bare_tail(self, k: int) -> Tail:
        """The tail without values; only a name that is known is built, nothing is imported."""
        from featx.backbones import bare_network
        from featx.heads.tail_network import Tail

        assert isinstance(self.backbone, str)
        network = bare_network(
            self.backbone, crop=self.crop_, for_weights=not self._is_from_scratch()
        )
        tail = Tail(network, self.cut, k, batchnorm=self._batchnorm(), device="meta")
        if self.code_sha256_ not in ("", tail.code_sha256):
            raise InputError(
                f"{self.backbone} computes something else after {self.cut} than when the head was "
                "fitted: its layers or its code have changed (or PyTorch, which tells of them); "
                "restore the code, or fit the head again"
            )
        return tail


def _dtype(name: str, value: Tensor) -> str:
    if value.dtype not in _DTYPES:
        raise InputError(f"the network holds {name} of {value.dtype}, which no head file keeps")
    return _DTYPES[value.dtype]
