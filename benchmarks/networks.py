"""The benchmark's networks: torchvision's, with one weights file that every peer loads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import get_model, get_model_weights

_BATCHES: Final = 2  # of drawn photographs, for BatchNorm's statistics
_BATCH_SIZE: Final = 16


def build(network: str, weights: Path | str) -> nn.Module:
    """The network with the weights of the file, in eval mode."""
    model = get_model(network, weights=None)
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model.eval()


def transform(network: str) -> Any:
    """The preprocessing of the architecture's first published weights, which featx assumes too."""
    return next(iter(get_model_weights(network))).transforms()


def last_linear(model: nn.Module) -> nn.Linear:
    """The layer whose input is the penultimate features.

    Raises
    ------
    ValueError
        The network has none (SqueezeNet ends in a convolution).
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(f"{type(model).__name__} has no linear layer to take features before")
    return linear[-1]


def write_weights(network: str, path: Path, *, seed: int = 0) -> None:
    """Write seeded random weights that treat rounding errors as a trained network does.

    As torchvision initialises them, activations vanish on their way (MobileNetV2's features are of
    the size 1e-8). So BatchNorm's statistics are those of drawn photographs. With its initial bias,
    0, half of all units are then cut off at every layer, and such a network multiplies errors: the
    fp32 features of resnet50 are 2e-5 off those in float64. With a bias of 1 they are 1e-6 off, as
    those of a MobileNetV2 trained on ImageNet (1.5e-6), and a pixel that is 1 of 255 off in each
    500 changes features by 0.1 to 0.3 %, as there (0.3 %).
    """
    from benchmarks.photographs import photograph

    torch.manual_seed(seed)
    model = get_model(network, weights=None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean over all batches
            module.reset_running_stats()
            nn.init.ones_(module.bias)
    preset = transform(network)
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for _ in range(_BATCHES):
            drawn = np.stack([photograph(rng, 256, 256) for _ in range(_BATCH_SIZE)])
            model(preset(torch.from_numpy(drawn).permute(0, 3, 1, 2)))
    torch.save(model.state_dict(), path)


def renamed(model: nn.Module, other: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters and buffers of `model` under the names of `other`, the same network.

    Both list them in the order of their layers; `other` may leave out the classifier at the end.

    Raises
    ------
    ValueError
        A shape differs, so they are not the same network.
    """
    pairs = zip(model.state_dict().values(), other.state_dict().items(), strict=False)
    state = {}
    for tensor, (name, target) in pairs:
        if tensor.shape != target.shape:
            raise ValueError(f"{name} has shape {tuple(target.shape)}, not {tuple(tensor.shape)}")
        state[name] = tensor
    return state


def top_1(features: np.ndarray, network: str, weights: Path | str) -> np.ndarray:
    """The class of every row of penultimate features, (n,), by the network's own last layer."""
    last = last_linear(build(network, weights))
    logits = features.astype(np.float64) @ last.weight.detach().double().numpy().T
    return np.asarray((logits + last.bias.detach().double().numpy()).argmax(axis=1))


def flops_per_image(network: str) -> int:
    """Floating-point operations up to the penultimate features; a multiply-add counts as two.

    Convolutions and matrix products only, as `torch.utils.flop_counter` counts them.
    """
    size = transform(network).crop_size[0]
    with torch.device("meta"):
        model = get_model(network, weights=None).eval()
        images = torch.empty(1, 3, size, size)
    last = last_linear(model)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    return int(counter.get_total_flops()) - 2 * last.in_features * last.out_features


def publish(network: str, weights: Path, torch_home: Path) -> None:
    """Put the weights where `torch.hub` finds the newest published ones without a download."""
    name = get_model_weights(network).DEFAULT.url.rpartition("/")[2]
    folder = torch_home / "hub" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(weights, folder / name)
