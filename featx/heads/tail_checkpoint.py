"""A checkpoint of a training that goes on where it was left: tensors and JSON, never a pickle."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from featx.errors import DiskError
from featx.whole_files import replace_whole

_FORMAT: Final = 1


@dataclass(frozen=True)
class Checkpoint:
    """Where a training is kept after each epoch.

    Attributes
    ----------
    path : the file; replaced by rename, so that it is always whole.
    digest : of all that decides the training's bits; a checkpoint of another is not gone on with.
    """

    path: Path
    digest: str

    def write(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Keep JSON and tensors; DiskError where they cannot be written."""
        header = json.dumps({"format": _FORMAT, "digest": self.digest, **state})
        whole = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        replace_whole(self.path, save(whole, {"featx-checkpoint": header}))

    def read(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """What was kept last, or None: there is no file, or it is of something else, which is told.

        Such a file gets another name, so that the next epoch does not replace it. Nothing in it is
        executed.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                state = json.loads((file.metadata() or {}).get("featx-checkpoint", "null"))
                if not isinstance(state, dict) or state.get("format") != _FORMAT:
                    raise ValueError("it is no checkpoint of a head")
                if state.get("digest") != self.digest:
                    raise ValueError(
                        "it is of another training: settings, images, threads or versions differ"
                    )
                return state, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, RecursionError) as why:
            aside, number = self.path.with_name(f"{self.path.name}.old"), 1
            while aside.exists():
                number += 1
                aside = self.path.with_name(f"{self.path.name}.old{number}")
            try:
                self.path.replace(aside)
            except OSError as error:
                raise DiskError(
                    f"{self.path} is not gone on with ({why}), and cannot be kept as {aside.name}: "
                    f"{error.strerror or error}"
                ) from error
            warnings.warn(
                f"{self.path} is not gone on with ({why}) and is now called {aside.name}; "
                "training starts from the first epoch",
                stacklevel=2,
            )
            return None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer's parameters, by their numbers."""
    return {
        f"optimizer.{number}.{name}": value
        for number, of_parameter in optimizer.state_dict()["state"].items()
        for name, value in of_parameter.items()
        if value is not None
    }


def set_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse, for an optimizer of the same parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            number, _, entry = rest.partition(".")
            state.setdefault(int(number), {})[entry] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
