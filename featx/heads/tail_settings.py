"""How a tail is asked to be trained: the parameters of TailHead, and what is made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from torch import nn

from featx.augmentation import Augmentation
from featx.errors import InputError
from featx.heads.base import is_number, is_whole, require
from featx.heads.epochs import EpochsHead
from featx.transforms import Transform

if TYPE_CHECKING:
    from featx.heads.tail_network import BatchNormMode
    from featx.heads.tail_training import TailRecipe

# PyTorch's default for AdamW; for SGD with momentum ten times that, as in LinearHead.
_LR: Final = {"adamw": 1e-3, "sgd": 1e-2}

_LARGEST: Final = Transform(resize=None, crop=10_000, mean=(0.5,) * 3, std=(0.5,) * 3)


class TailSettings(EpochsHead):
    """The parameters of TailHead, which describes them."""

    batch_size: int

    def __init__(
        self,
        backbone: str | nn.Module = "densenet121",
        *,
        weights: str | None = None,
        weights_seed: int = 0,
        weights_sha256: str | None = None,
        cut: str = "penultimate",
        shape: Sequence[int] | None = None,
        transform: Mapping[str, Any] | None = None,
        batchnorm: BatchNormMode | None = None,
        augment: str | None = None,
        lr: float | None = None,
        lr_ratio: float | None = None,
        optimizer: Literal["adamw", "sgd"] = "adamw",
        momentum: float = 0.9,
        schedule: Literal["cosine", "constant"] = "cosine",
        warmup: float = 0.05,
        weight_decay: float = 1e-2,
        epochs: int = 20,
        batch_size: int = 32,
        label_smoothing: float = 0.0,
        patience: int | None = None,
        validation_fraction: float = 0.1,
        device: str = "auto",
        predict_device: str = "cpu",
        precision: str | None = None,
        random_state: int = 0,
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.weights_seed = weights_seed
        self.weights_sha256 = weights_sha256
        self.cut = cut
        self.shape = shape
        self.transform = transform
        self.batchnorm = batchnorm
        self.augment = augment
        self.lr = lr
        self.lr_ratio = lr_ratio
        self.optimizer = optimizer
        self.momentum = momentum
        self.schedule = schedule
        self.warmup = warmup
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.batch_size = batch_size
        self.label_smoothing = label_smoothing
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.device = device
        self.predict_device = predict_device
        self.precision = precision
        self.random_state = random_state

    def _candidate(self) -> tuple[str, dict[str, Any]]:
        # of a cosine fewer epochs would be another schedule
        return "", {"epochs": self.epochs} if self.schedule == "cosine" else {}

    def _batchnorm(self) -> BatchNormMode:
        if self.batchnorm is not None:
            return self.batchnorm
        return "learn" if self._is_from_scratch() else "frozen"

    def _is_from_scratch(self) -> bool:
        return isinstance(self.backbone, str) and self.weights == "random"

    def _recipe(self, precision: str) -> TailRecipe:
        from featx.heads.tail_training import TailRecipe

        ratio = self.lr_ratio or (1.0 if self._is_from_scratch() else 0.1)
        return TailRecipe(
            optimizer=self.optimizer,
            lr=self.lr or _LR[self.optimizer],
            lr_ratio=ratio,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            epochs=self.epochs,
            batch_size=self.batch_size,
            schedule=self.schedule,
            warmup=self.warmup,
            label_smoothing=self.label_smoothing,
            patience=self.patience,
            precision=precision,
            seed=self.random_state,
        )

    def _check_params(self) -> None:
        self._check_training_params()
        for name in ("cut", "predict_device"):
            require(name, getattr(self, name), lambda v: isinstance(v, str), "text")
        require("weights", self.weights, lambda v: v is None or isinstance(v, str), "text")
        require(
            "backbone",
            self.backbone,
            lambda v: isinstance(v, (str, nn.Module)),
            "the name of a network, or a Module",
        )
        require("weights_seed", self.weights_seed, lambda v: is_whole(v, 0), "0 or more")
        require(
            "shape",
            self.shape,
            lambda v: v is None or (len(v) > 0 and all(is_whole(size, 1) for size in v)),
            "sizes above 0, or None",
        )
        if self.transform is not None:
            require("transform", self.transform, lambda v: isinstance(v, Mapping), "a dict or None")
            Transform.from_dict(self.transform)
        words: tuple[tuple[str, tuple[str | None, ...]], ...] = (
            ("batchnorm", (None, "frozen", "learn")),
            ("optimizer", ("adamw", "sgd")),
            ("schedule", ("cosine", "constant")),
        )
        for name, allowed in words:
            value = getattr(self, name)
            if value not in allowed:
                shown = " or ".join(filter(None, allowed))
                raise InputError(f"{name} must be {shown}, got {value!r}")
        if self.augment is not None:
            require(
                "augment",
                self.augment,
                lambda v: isinstance(v, str) and bool(v.strip(" ,")),
                "words such as flip,crop",
            )
            Augmentation.parse(self.augment, _LARGEST)
        require("lr", self.lr, lambda v: v is None or (is_number(v) and v > 0), "a number above 0")
        require(
            "lr_ratio",
            self.lr_ratio,
            lambda v: v is None or (is_number(v) and 0 < v <= 1),
            "above 0, up to 1, or None",
        )
        for name in ("momentum", "label_smoothing", "warmup"):
            require(
                name, getattr(self, name), lambda v: is_number(v) and 0 <= v < 1, "0 to below 1"
            )
