"""A network with its weights, frozen, and what is found out about the two."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from featx import architectures
from featx.errors import InputError
from featx.identity import BackboneIdentity
from featx.keys import classifier_path, load_into, other_outputs
from featx.weights import read_state_dict, with_own_prefix

_GENERATOR = threading.Lock()  # held while weights are drawn from it


@dataclass(frozen=True, eq=False)
class Backbone(BackboneIdentity):
    """A network with its weights, its own preprocessing and its class names.

    Attributes
    ----------
    network
        In evaluation mode, no parameter requires a gradient; on the CPU, float32.
    untrained
        Parameters of `network` that the weights' file has no values for, such as a dropped
        classifier's: they are random, and no features may be taken behind them.
    sized_by_transform
        Whether it takes only what its transform gives, and is traced with that; else with the size
        that it says it was built for, or 224 x 224.
    """

    network: nn.Module
    untrained: tuple[str, ...] = ()
    sized_by_transform: bool = False

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """(1, c, h, w): one picture, as its transform gives it."""
        return 1, self.transform.channels, self.transform.crop, self.transform.crop

    @property
    def traced_at(self) -> tuple[int, int, int, int] | None:
        """The `input_shape` it is to be traced with; None where its own default will do."""
        return self.input_shape if self.sized_by_transform else None


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within, PyTorch's one generator starts from `seed`, for one thread at a time."""
    # devices=[]: the networks are built on the CPU, so only its generator is forked.
    with _GENERATOR, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed sets those of GPUs too
        yield


def freeze(network: nn.Module) -> None:
    """Evaluation mode and no gradients, in place."""
    network.eval()
    network.requires_grad_(False)


def random_note(seed: int) -> str:
    """What the user must be told of random weights."""
    return f"weights are random (seed {seed}): features of an untrained network"


def untrained_keys(network: nn.Module, state: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """Names whose values are not the file's; counters of BatchNorm's batches aside."""
    return tuple(
        key
        for key, tensor in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
        and (
            key not in state
            or state[key].shape != tensor.shape
            or not torch.equal(state[key].to(tensor.dtype), tensor)
        )
    )


def non_finite(network: nn.Module) -> tuple[str, ...]:
    """A sentence where values of a network are NaN or infinite."""
    bad = [
        key
        for key, tensor in network.state_dict().items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    if not bad:
        return ()
    return (f"{len(bad)} of the weights' tensors hold values that are not finite ({bad[0]}, ...)",)


def with_weights(
    make: Callable[[int | None], nn.Module], path: Path | None, seed: int
) -> tuple[nn.Module, tuple[str, ...], tuple[str, ...]]:
    """A network with random weights, or with a file's and as many outputs; notes; untrained keys.

    Parameters
    ----------
    make : number of outputs, or None for its own, to the network.
    """
    with seeded(seed):
        network = make(None)
    if path is None:
        return network, (random_note(seed),), ()
    state = with_own_prefix(read_state_dict(path), network)
    classifier = classifier_path(network)
    n_outputs = other_outputs(state, network, classifier)
    if n_outputs is not None:
        with seeded(seed):
            network = make(n_outputs)
    notes = load_into(
        network,
        state,
        classifier=classifier,
        source=str(path),
        looks_like=architectures.guess(state),
    )
    return network, notes, untrained_keys(network, state)


def wrong_size(name: str, takes: str, crop: int) -> InputError:
    """That a network does not take images of a crop; `takes` as ``at least 32``."""
    return InputError(f"{name} takes images of {takes} pixels a side, got a crop of {crop}")
