"""The keys of a state dict and of a network: which fit, which may differ, and loading those."""

from __future__ import annotations

import copy
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn

from featx.counting import first_few
from featx.errors import InputError, WeightsError

# Names that today's modules no longer have; published files still carry some of them
# (torchvision/models/densenet.py `_load_state_dict`, vision_transformer.py `MLPBlock`).
_OLD_NAMES = {
    "densenet": ((re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)$"), r"\1\2"),),
    "vit": (
        (re.compile(r"^(.*\.mlp)\.linear_1\.(\w+)$"), r"\1.0.\2"),
        (re.compile(r"^(.*\.mlp)\.linear_2\.(\w+)$"), r"\1.3.\2"),
    ),
}
_LISTED = 4  # keys named in a message; the rest is counted


def rename_old_keys(state: Mapping[str, torch.Tensor], family: str) -> dict[str, torch.Tensor]:
    """The state dict under today's key names; a new dict.

    Examples
    --------
    >>> old = {"features.denseblock1.denselayer1.norm.1.weight": torch.ones(1)}
    >>> list(rename_old_keys(old, "densenet"))
    ['features.denseblock1.denselayer1.norm1.weight']
    """
    renamed: OrderedDict[str, torch.Tensor] = OrderedDict()
    for key, tensor in state.items():
        for pattern, replacement in _OLD_NAMES.get(family, ()):
            key = pattern.sub(replacement, key)
        renamed[key] = tensor
    if metadata := getattr(state, "_metadata", None):
        renamed._metadata = metadata  # type: ignore[attr-defined]
    return renamed


def has_classifier(network: nn.Module) -> bool:
    """Whether a network turns features into class scores, as far as it says.

    timm's models say so in ``num_classes``, which is 0 of those that were trained without classes
    (DINOv2 and the like) or had their classifier taken off.
    """
    n_classes = getattr(network, "num_classes", None)
    return not (isinstance(n_classes, int) and n_classes == 0)


def with_classifier(network: nn.Module, n_outputs: int) -> nn.Module:
    """The network itself, or where it has no classifier a copy to which timm added one.

    Raises
    ------
    InputError
        It has none, and is no model of timm's, which can add one.

    Examples
    --------
    >>> network = nn.Linear(2, 2)
    >>> with_classifier(network, 3) is network
    True
    """
    if has_classifier(network):
        return network
    network = copy.deepcopy(network)
    add = getattr(network, "reset_classifier", None)
    if not callable(add):
        raise InputError(
            f"{type(network).__name__} has no classifier (its num_classes is 0) and no method "
            "reset_classifier, by which timm's models get one"
        )
    with torch.random.fork_rng([]):
        add(n_outputs)
    return network


def classifier_path(network: nn.Module, *, auxiliary: Iterable[str] = ()) -> str:
    """Path of the module that turns the last features into class scores: the last Linear or Conv2d.

    Empty where there is none (`has_classifier`).

    Examples
    --------
    >>> classifier_path(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    '2'
    """
    if not has_classifier(network):
        return ""
    paths = [
        path
        for path, module in network.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and path.split(".")[0] not in set(auxiliary)
    ]
    assert paths, "a classification network has a Linear or Conv2d"
    return paths[-1]


def other_outputs(
    state: Mapping[str, torch.Tensor], network: nn.Module, classifier: str
) -> int | None:
    """How many outputs a file's classifier has, where that is all in which it differs.

    Parameters
    ----------
    classifier
        Path of the network's, as of `classifier_path`.

    Returns
    -------
    None where it fits, has missing values, or differs in more; where there is none.

    Examples
    --------
    >>> file = {"fc.weight": torch.ones(5, 4), "fc.bias": torch.ones(5)}
    >>> other_outputs(file, nn.Sequential(OrderedDict(fc=nn.Linear(4, 1000))), "fc")
    5
    """
    module = network.get_submodule(classifier)
    found = set()
    for key, wanted in module.state_dict().items():
        values = state.get(f"{classifier}.{key}")
        if values is None or values.ndim != wanted.ndim or values.shape[1:] != wanted.shape[1:]:
            return None
        found.add(len(values))
    n_outputs = found.pop()
    differs = not found and n_outputs not in (0, len(module.get_parameter("weight")))
    return n_outputs if differs else None


def load_into(
    network: nn.Module,
    state: Mapping[str, torch.Tensor],
    *,
    classifier: str,
    auxiliary: Iterable[str] = (),
    source: str,
    looks_like: str | None = None,
) -> tuple[str, ...]:
    """Load `state` into `network`, in place; only the classifier may differ.

    Parameters
    ----------
    classifier
        Path of the classifier; where its values are missing or of another shape, the network's
        own (random) ones stay. Empty: all must fit.
    auxiliary
        Attributes that are auxiliary heads; they may be missing from the file.
    source
        What the weights are, for messages.
    looks_like
        The architecture the file looks like, for the message that refuses it.

    Returns
    -------
    tuple
        Sentences for the user: what was dropped or missing; empty when every key fitted.

    Raises
    ------
    WeightsError
        Keys outside the classifier are missing, unexpected or of another shape.
    """
    wanted = network.state_dict()
    is_classifier = _classifier_test(network, classifier)
    heads = tuple(f"{attribute}." for attribute in auxiliary)

    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    reshaped = [k for k in wanted if k in state and wanted[k].shape != state[k].shape]
    needed = [
        key
        for key in wanted
        if not (key.startswith(heads) or key.endswith("num_batches_tracked") or is_classifier(key))
    ]
    bad_missing = [key for key in needed if key not in state]
    bad_unexpected = [k for k in unexpected if not is_classifier(k) and not k.startswith(heads)]
    bad_shapes = [k for k in reshaped if not is_classifier(k) and not k.startswith(heads)]
    if bad_missing or bad_unexpected or bad_shapes:
        raise WeightsError(
            f"{source} is a file of another network: "
            + _refusal(wanted, state, needed, bad_missing, bad_unexpected, bad_shapes)
            + _hint(bad_missing, bad_unexpected, looks_like)
        )

    # A classifier is dropped whole: a bias that happens to fit is not another matrix's bias.
    drops_classifier = any(is_classifier(k) for k in (*missing, *unexpected, *reshaped))
    kept: OrderedDict[str, torch.Tensor] = OrderedDict(
        (key, tensor)
        for key, tensor in state.items()
        if key in wanted and key not in reshaped and not (drops_classifier and is_classifier(key))
    )
    metadata = getattr(state, "_metadata", None) or getattr(wanted, "_metadata", None)
    kept._metadata = metadata  # type: ignore[attr-defined]
    network.load_state_dict(kept, strict=False)

    notes = []
    if drops_classifier:
        notes.append(_dropped(source, wanted, state, classifier, is_classifier))
    if head_keys := [k for k in (*missing, *unexpected, *reshaped) if k.startswith(heads)]:
        notes.append(f"auxiliary heads of {source} do not fit or are missing: {_some(head_keys)}")
    return tuple(notes)


def _classifier_test(network: nn.Module, classifier: str) -> Callable[[str], bool]:
    """Tells whether a key belongs to the classifier, whatever replaced it in the file.

    Where the classifier is all that has parameters in its container (MobileNetV2's `classifier`,
    ViT's `heads`), any key in the container is the classifier's: people replace it by several
    layers. In VGG the container holds layers that are features, so only the last one counts.
    """
    container = classifier.rpartition(".")[0]
    path = classifier
    if container:
        others = [
            key
            for key in network.get_submodule(container).state_dict()
            if not f"{container}.{key}".startswith(f"{classifier}.")
        ]
        path = classifier if others else container
    return lambda key: key.startswith(f"{path}.")


def _dropped(
    source: str,
    wanted: Mapping[str, torch.Tensor],
    state: Mapping[str, torch.Tensor],
    classifier: str,
    is_classifier: Callable[[str], bool],
) -> str:
    in_file = {k: tuple(t.shape) for k, t in state.items() if is_classifier(k)}
    in_network = {k: tuple(t.shape) for k, t in wanted.items() if is_classifier(k)}
    missing = [k for k in in_network if k not in in_file]
    unexpected = [k for k in in_file if k not in in_network]
    parts = [
        f"{k} is {in_file[k]} in the file and {in_network[k]} in the network"
        for k in in_network
        if k in in_file and in_file[k] != in_network[k]
    ]
    parts += [f"missing: {_some(missing)}"] if missing else []
    parts += [f"unexpected: {_some(unexpected)}"] if unexpected else []
    return (
        f"the classifier ({classifier}) of {source} was dropped, for it does not fit "
        f"({'; '.join(parts)}); everything before it was loaded"
    )


def _refusal(
    wanted: Mapping[str, torch.Tensor],
    state: Mapping[str, torch.Tensor],
    needed: list[str],
    missing: list[str],
    unexpected: list[str],
    reshaped: list[str],
) -> str:
    parts = []
    if missing:
        parts.append(f"{len(missing)} of {len(needed)} keys are missing ({_some(missing)})")
    if unexpected:
        parts.append(f"{len(unexpected)} are not the network's ({_some(unexpected)})")
    if reshaped:
        key = reshaped[0]
        parts.append(
            f"{len(reshaped)} have another shape ({key} is {tuple(state[key].shape)} in the file "
            f"and {tuple(wanted[key].shape)} in the network)"
        )
    return "; ".join(parts)


def _hint(missing: list[str], unexpected: list[str], looks_like: str | None) -> str:
    """What may help: another backbone, or another beginning of the keys."""
    if looks_like:
        return f"; it looks like {looks_like}: give --backbone {looks_like}"
    sought = set(missing)
    fronts = Counter(
        key[: dot.end()]
        for key in unexpected
        for dot in re.finditer(r"\.", key)
        if key[dot.end() :] in sought
    )
    for front, n in fronts.most_common(1):
        if 2 * n > len(missing):
            return (
                f"; {n} keys have {front!r} in front of the network's own: featx convert-weights "
                f"--rename-keys {front}= takes it off"
            )
    return ""


def _some(keys: list[str]) -> str:
    return first_few(keys, _LISTED)
