"""A head and the network it was fitted behind, as one network: a plain state dict."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from featx.classics import CLASSICS
from featx.cut_graph import CutGraph
from featx.errors import HeadError, InputError
from featx.frozen import Backbone
from featx.heads.cached import load_recorded, temperature_of
from featx.heads.file import HeadFile
from featx.heads.tail import TailHead
from featx.keys import classifier_path, has_classifier, with_classifier
from featx.own_network import is_own, note_given, takes_classes
from featx.recorded import backbone_of_spec
from featx.tracing import facts
from featx.transforms import Transform
from featx.whole_files import check_other, write_whole

CLASS_INDICES: Final = "class_indices.json"
# Heads whose logits are a matrix times the features, plus a vector.
_AFFINE: Final = ("logistic", "linear", "ridge", "centroid")
_ANOTHER_FOLDER: Final = "give each export a folder of its own (--out folder/network.pth)"
_ROWS: Final = 256  # unit vectors that a head is asked about at once


@dataclass(frozen=True)
class ExportedNetwork:
    """What an export of a network did.

    Attributes
    ----------
    path : the file with the state dict.
    class_indices : the file beside it, from the number of each output to its class.
    classes : k names, in the order of the outputs.
    temperature : that the last layer contains; None where the head is not calibrated.
    standardised : whether standardisation of the features is in the last layer.
    layer : path of the last layer.
    make : Python that makes a network which takes the state dict.
    transform : how an image becomes the network's input, in words.
    written : False where the same files were there already.
    """

    path: Path
    class_indices: Path
    classes: tuple[str, ...]
    temperature: float | None
    standardised: bool
    layer: str
    make: str
    transform: str
    written: bool


def export_network(
    head: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    backbone: str | None = None,
    weights: str | None = None,
    force: bool = False,
) -> ExportedNetwork:
    """Write a network with a head as its last layer, for PyTorch without featx.

    The file is what `torch.save(network.state_dict(), PATH)` writes. Beside it
    ``class_indices.json`` tells the class of every output.

    Parameters
    ----------
    head : a head file, as `fit_head` writes it.
    out : the file; by default beside the head, called as it is, with the ending ``.pth``.
    backbone : ``package.module:factory`` again, where the user's own code made the network.
    weights : the backbone's weights file or entry; by default as recorded.
    force : replace files of other content.

    Raises
    ------
    HeadError
        No usable head, one that cannot be the network's last layer, or other weights.
    InputError
        `out` has another ending, or files of other content are there.
    WeightsError
        The backbone's weights cannot be found.

    Examples
    --------
    >>> export_network("cache/birds-densenet121.logistic.safetensors").make  # doctest: +SKIP
    'torchvision.models.densenet121(num_classes=10)'
    """
    if backbone is not None:
        note_given(backbone)  # a head of the rest of that network is built as it is read
    file = load_recorded(head)
    path = Path(out) if out is not None else file.path.with_suffix(".pth")
    if path.suffix != ".pth":
        raise InputError(f"--out names a file of weights, which ends in .pth, got {str(path)!r}")
    loaded = _backbone(file, backbone, weights)
    network = with_classifier(loaded.network, len(file.classes))
    state = _with_head(file, loaded, network)
    names = {str(i): name for i, name in enumerate(file.classes)}
    indices = path.with_name(CLASS_INDICES)

    named = json.dumps(names, indent=1).encode("ascii")
    if not force:
        check_other(indices, named, elsewhere=_ANOTHER_FOLDER)  # before the weights are written
    wrote = [
        write_whole(path, lambda stream: torch.save(state, stream), force=force),
        write_whole(indices, lambda stream: stream.write(named), force=force),
    ]
    return ExportedNetwork(
        path,
        indices,
        file.classes,
        temperature_of(file),
        not isinstance(file.head, TailHead),
        classifier_path(network),
        _maker(loaded, len(file.classes)),
        _in_words(Transform.from_dict(file.metadata["cache"]["spec"]["transform"])),
        any(wrote),
    )


def whole_network(
    file: HeadFile, *, backbone: str | None = None, weights: str | None = None
) -> dict[str, Tensor]:
    """The state dict of a head's network with the head as its last layer.

    Softmax of that network's output are the head's probabilities, at its temperature where it is
    calibrated: standardisation and temperature are folded into the last layer in float64.

    Parameters
    ----------
    file : a head with the record of what it was fitted on.
    backbone : ``package.module:factory`` again, where the user's own code made the network.
    weights : the backbone's weights file or entry; by default as recorded.

    Raises
    ------
    HeadError
        A head that cannot be the network's last layer, or other weights.
    WeightsError
        The backbone's weights cannot be found.
    """
    loaded = _backbone(file, backbone, weights)
    return _with_head(file, loaded, with_classifier(loaded.network, len(file.classes)))


def _backbone(file: HeadFile, backbone: str | None, weights: str | None) -> Backbone:
    if file.kind not in (*_AFFINE, "tail") or file.head.get_params().get("metric") == "cosine":
        what = f"{file.kind} head{' by cosine' if file.kind == 'centroid' else ''}"
        raise HeadError(
            f"{file.path} is a {what}, which is no layer that a network could end in; "
            f"export one of {', '.join(_AFFINE)} or tail"
        )
    recorded = file.metadata["cache"]
    return backbone_of_spec(recorded["spec"], recorded["plan"], backbone=backbone, weights=weights)


def _with_head(file: HeadFile, backbone: Backbone, network: nn.Module) -> dict[str, Tensor]:
    """The network's state dict, the values of its last layer replaced, or of all of a tail.

    `network` is the backbone's, with a classifier in any case.
    """
    if isinstance(file.head, TailHead):
        return _with_tail(file, file.head, network)
    layer = _last_layer(file, backbone, network)
    W, b = _folded(file)
    state: dict[str, Tensor] = network.state_dict()  # with the versions of its modules
    state[f"{layer}.weight"] = torch.from_numpy(W.astype(np.float32))
    state[f"{layer}.bias"] = torch.from_numpy(b.astype(np.float32))
    return state


def _with_tail(file: HeadFile, head: TailHead, network: nn.Module) -> dict[str, Tensor]:
    state: dict[str, Tensor] = network.state_dict()
    trained = head.tail_.values()
    # other values are no part of a state dict: a network makes them as it is built
    state.update({name: value.clone() for name, value in trained.items() if name in state})
    temperature = temperature_of(file) or 1.0
    for name in (f"{head.tail_.classifier}.weight", f"{head.tail_.classifier}.bias"):
        if name in trained:
            state[name] /= temperature
    return state


def _last_layer(file: HeadFile, backbone: Backbone, network: nn.Module) -> str:
    """Path of the Linear that ends the network, where its input is what the head was fitted on."""
    spec = file.metadata["cache"]["spec"]
    graph = CutGraph(backbone.network, backbone.traced_at, shapes_required=False)
    penultimate, logits = (graph.alias(name) for name in ("penultimate", "logits"))
    path = classifier_path(network)
    layer = network.get_submodule(path)
    ends_in_it = not has_classifier(backbone.network) or (
        logits is not None and facts(logits).path == path
    )
    if penultimate is None or not ends_in_it:
        raise HeadError(
            f"{backbone.name} does not end in its classifier ({path}): a head cannot replace it"
        )
    if spec["cut"] != facts(penultimate).path or spec["pool"] != "none":
        raise HeadError(
            f"{file.path} was fitted on features at {spec['cut']}, pool {spec['pool']}; a head "
            f"replaces the last layer of {backbone.name} only where it was fitted on what enters "
            "that: --cut penultimate --pool auto"
        )
    if not isinstance(layer, nn.Linear) or layer.bias is None:
        raise HeadError(f"{backbone.name} ends in no Linear with a bias: a head cannot replace it")
    return path


def _folded(file: HeadFile) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Matrix (k, d) and vector (k,) that make the head's logits of the features themselves."""
    head, d = file.head, file.head.n_features_in_
    b = head._logits(np.zeros((1, d)))[0]  # (k,)
    W = np.empty((len(b), d))
    for start in range(0, d, _ROWS):
        units = np.eye(min(_ROWS, d - start), d, k=start)
        W[:, start : start + _ROWS] = (head._logits(units) - b).T
    W /= head.scale_
    b = b - W @ head.mean_
    temperature = temperature_of(file) or 1.0
    return W / temperature, b / temperature


def _maker(backbone: Backbone, k: int) -> str:
    """Python that makes a network of this form with k outputs."""
    network = backbone.network
    library, _, name = backbone.name.rpartition(":")
    if is_own(backbone.name):
        if takes_classes(backbone.name):
            return f"{library}.{name}(num_classes={k})"
        return f"{library}.{name}()  # with {k} outputs"
    if name in CLASSICS:
        return f"featx.classics.{type(network).__name__}(num_classes={k})"
    if library:
        return f"{library}.create_model({name!r}, num_classes={k})"
    options = [f"num_classes={k}"]
    if hasattr(network, "aux_logits"):
        options += ["aux_logits=False", "init_weights=False"]
        options += [f"transform_input={bool(network.transform_input)}"]
    if getattr(network, "image_size", 224) != 224:
        options.append(f"image_size={network.image_size}")
    return f"torchvision.models.{name}({', '.join(options)})"


def _in_words(transform: Transform) -> str:
    grey = "grey, " if transform.channels == 1 else ""
    return (
        f"{grey}short side to {transform.resize} ({transform.interpolation}), centre of "
        f"{transform.crop} x {transform.crop}, values 0 to 1, less {list(transform.mean)}, over "
        f"{list(transform.std)}"
    )
