"""Which engine runs a network: a fixed rule, never a timing; and a check before it is believed."""

from __future__ import annotations

import math
import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from featx.devices import Device, Precision, default_batch_size
from featx.engines.base import CannotRunError, Engine, Work
from featx.engines.openvino import OpenVinoEngine, is_installed, prepare, processor
from featx.engines.openvino import version as openvino_version
from featx.engines.store import FOLDER_VARIABLE, Prepared, load_prepared, save_prepared
from featx.errors import InputError, MissingExtraError
from featx.resampling import MAX_SHRINKING, MAX_WINDOW_BYTES, Axis, Window, Windows
from featx.versions import versions_of

EAGER: Final = "torch-eager"
OPENVINO: Final = OpenVinoEngine.name
ENGINES: Final = (EAGER, "torch-compiled", "torch-cudagraph", OPENVINO)

_ACCELERATORS: Final = ("cuda", "mps")

# Largest difference max|a - b| / max|b| of any checked row from PyTorch in fp32, where the engine
# computes in fp32; where it computes in less, least ratio of two lengths and least cosine.
MAX_DIFFERENCE: Final = 1e-4
_LARGE_LINEAR: Final = 16_000_000  # VGG's first has 103 million, AlexNet's 38, a ViT's largest 5
MIN_LENGTH: Final = 0.95
MIN_COSINE: Final = {"tf32": 0.9999, "bf16": 0.999, "fp16": 0.9999}


@dataclass(frozen=True)
class Running:
    """How a network is to run; None where a fixed rule decides.

    Attributes
    ----------
    engine : one of `ENGINES`.
    batch_size : images per call.
    threads : of the CPU.
    insists : whether no other engine will do.
    n_images : that there are, where it is known: no batch need be larger.
    suits : the engine that `batch_size` was chosen for by an earlier run; None where it was given.
    samples : the image files that engines can be compared on.
    """

    engine: str | None = None
    batch_size: int | None = None
    threads: int | None = None
    insists: bool = False
    n_images: int | None = None
    suits: str | None = None
    samples: Sequence[Path] = ()


def default_engine(device: Device, precision: Precision) -> str:
    """The engine of ``auto``: OpenVINO for fp32 on the CPU where it is installed, else PyTorch."""
    if device.kind == "cpu" and precision == "fp32" and is_installed():
        return OPENVINO
    return EAGER


def check_engine(engine: str, device: Device) -> None:
    """Refuse an engine that is none, is not installed or does not run on `device`.

    Raises
    ------
    InputError, MissingExtraError
        With what there is.
    """
    if engine not in ("auto", *ENGINES):
        raise InputError(f"engine must be auto, {' or '.join(ENGINES)}, got {engine!r}")
    if engine == OPENVINO and device.kind != "cpu":
        raise InputError(f"engine openvino runs on the CPU, not on {device.name}; say --device cpu")
    if engine == OPENVINO and not is_installed():
        raise MissingExtraError(
            "engine openvino was asked for, but the package is not installed: "
            "pip install openvino, or leave the engine to auto"
        )
    if engine == "torch-cudagraph" and device.kind != "cuda":
        raise InputError(f"engine torch-cudagraph runs on CUDA, not on {device.name}")


def make_engine(work: Work, running: Running, pictures: Callable[[], np.ndarray]) -> Engine:
    """The engine that `running` names, else the fixed rule's; where that fails, PyTorch's.

    An engine other than `EagerEngine` is compared with it before it is used. Where memory on an
    accelerator runs out, and no batch size was given, smaller batches are tried.

    Parameters
    ----------
    work : what it is to do.
    running : what is asked; `threads` is given.
    pictures : gives (m, h, w, c) uint8, what it is compared on: photographs, the last is noise.

    Raises
    ------
    InputError
        The engine that is insisted on cannot do this work.
    """
    name = running.engine or default_engine(work.device, work.precision)
    if name != EAGER:
        try:
            return _MAKERS[name](work, running, pictures)
        except CannotRunError as error:
            if running.insists:
                raise InputError(
                    f"engine {name} cannot be used here: {error}; leave the engine to auto"
                ) from error
            warnings.warn(
                f"{name} is not used: {error}. {EAGER} computes the same features, more slowly",
                RuntimeWarning,
                stacklevel=2,
            )
            if running.suits not in (None, EAGER):
                running = replace(running, batch_size=None)
    from featx.engines.eager import EagerEngine  # here: OpenVINO does without PyTorch

    return _with_room(lambda size: EagerEngine(work, batch_size=size), work, running)


def _with_room(make: Callable[[int], Engine], work: Work, running: Running) -> Engine:
    """An engine of the batch size that is asked for; else of the largest that memory allows.

    That is tried out on accelerators only: there too large a batch is refused, while a computer
    that runs out of memory ends programs.
    """
    import torch

    size = running.batch_size or default_batch_size(work.device)
    if running.batch_size is None and running.n_images is not None:
        size = max(1, min(size, running.n_images))
    one_by_one = False
    while True:
        try:
            engine = make(size)
            if one_by_one:
                engine.concurrency = 1
            if work.device.kind in _ACCELERATORS:
                _try_out(engine, work)
            return engine
        except torch.OutOfMemoryError:
            if work.device.kind == "cuda":
                torch.cuda.empty_cache()
            if not one_by_one:  # the same bits in less memory
                one_by_one = True
                continue
            if running.batch_size is not None or size == 1:
                raise
            size = (size + 1) // 2


def _try_out(engine: Engine, work: Work) -> None:
    """Run as many full batches at the same time as there may be."""
    c = work.channels
    blank: np.ndarray | Windows = np.zeros((engine.batch_size, *work.input_size, c), np.uint8)
    if engine.resizes:
        crop = work.input_size[0]
        side = min(math.isqrt(MAX_WINDOW_BYTES // c), int(MAX_SHRINKING * crop))  # the most it gets
        axis = Axis(side, crop, 0, crop)
        part = np.zeros((side, side, c), np.uint8), Window(axis, axis, crop, c)
        blank = Windows((part,) * engine.batch_size, engine.batch_size)
    with ThreadPoolExecutor(engine.concurrency) as pool:
        for _ in pool.map(engine, [blank] * engine.concurrency):
            pass


def _make_openvino(
    work: Work, running: Running, pictures: Callable[[], np.ndarray]
) -> OpenVinoEngine:
    assert running.threads is not None
    batch_size = running.batch_size or openvino_batch_size(work)
    key = openvino_key(work.identity, work.input_size, work.precision, batch_size)
    prepared = load_prepared(key)
    if prepared is not None:
        if "refused" in prepared.facts:
            raise CannotRunError(str(prepared.facts["refused"]))
        engine = _openvino(prepared, batch_size, running, work)
        if prepared.facts.get("photographs") or not running.samples:
            return engine
    else:
        try:
            prepared = prepare(work, batch_size)
        except CannotRunError as error:
            if error.lasting:
                keep(key, Prepared(b"", b"", {"refused": str(error)}))
            raise
        engine = _openvino(prepared, batch_size, running, work)
    shown = pictures()
    # where it was noise alone, the next run that has photographs compares again
    facts = {**check_agreement(engine, work, shown), "photographs": len(shown) - 1}
    keep(key, Prepared(prepared.graph, prepared.weights, facts))
    return engine


def _openvino(prepared: Prepared, batch_size: int, running: Running, work: Work) -> OpenVinoEngine:
    assert running.threads is not None
    return OpenVinoEngine(
        prepared, batch_size=batch_size, threads=running.threads, precision=work.precision
    )


def openvino_batch_size(work: Work) -> int:
    """Images per call of the OpenVINO engine when none is asked for.

    One: its activations stay in the cache of one core. More where much of the time would go into
    fetching weights that serve one image only: those of a very large linear layer, as VGG's.
    """
    from torch import nn

    linear = [m.weight.numel() for m in work.front.modules() if isinstance(m, nn.Linear)]
    return 8 if max(linear, default=0) > _LARGE_LINEAR else 1


def _make_compiled(work: Work, running: Running, pictures: Callable[[], np.ndarray]) -> Engine:
    from featx.engines.compiled import CompiledEngine

    engine = _with_room(lambda size: CompiledEngine(work, batch_size=size), work, running)
    return _checked(engine, work, pictures)


def _make_cuda_graph(work: Work, running: Running, pictures: Callable[[], np.ndarray]) -> Engine:
    from featx.engines.cuda_graph import CudaGraphEngine

    engine = _with_room(lambda size: CudaGraphEngine(work, batch_size=size), work, running)
    return _checked(engine, work, pictures)


_MAKERS: Final[Mapping[str, Callable[..., Engine]]] = {
    OPENVINO: _make_openvino,
    "torch-compiled": _make_compiled,
    "torch-cudagraph": _make_cuda_graph,
}


def _checked(engine: Engine, work: Work, pictures: Callable[[], np.ndarray]) -> Engine:
    check_agreement(engine, work, pictures())
    return engine


def check_agreement(engine: Engine, work: Work, pictures: np.ndarray) -> dict[str, Any]:
    """Compare an engine with PyTorch in fp32.

    Parameters
    ----------
    engine, work : what was made, and of what.
    pictures : (m, h, w, c) uint8, at least one.

    Returns
    -------
    How many pictures were compared, and the largest relative difference or the least cosine.

    Raises
    ------
    CannotRunError
        The engine's features differ by more than `MAX_DIFFERENCE`, or, where it computes in less
        than fp32, are less alike than `MIN_COSINE`.
    """
    from featx.engines.eager import EagerEngine

    reference = EagerEngine(
        replace(work, precision="fp32"), batch_size=engine.batch_size, fold=False
    )
    pairs = [
        (engine(batch).reshape(len(batch), -1), reference(batch).reshape(len(batch), -1))
        for batch in _batches(pictures, engine.batch_size)
    ]
    ours = np.concatenate([a for a, _ in pairs]).astype(np.float64)
    theirs = np.concatenate([b for _, b in pairs]).astype(np.float64)
    finite = np.asarray(np.isfinite(theirs).all(axis=1))  # what overflows in fp32 proves nothing
    if not np.isfinite(ours[finite]).all():
        raise CannotRunError("its features are not all finite where PyTorch's are")
    ours, theirs = ours[finite], theirs[finite]
    if engine.feature_shape != reference.feature_shape:
        raise CannotRunError(
            f"its features are {engine.feature_shape}, PyTorch's {reference.feature_shape}"
        )
    if not finite.any():
        raise CannotRunError("PyTorch's features are not finite, so it cannot be compared")
    facts: dict[str, Any] = {"checked_on": int(finite[: len(pictures)].sum())}
    tiny = np.finfo(np.float64).tiny
    if work.precision == "fp32":
        scale = np.maximum(np.abs(theirs).max(axis=1, initial=0), tiny)
        worst = float((np.abs(ours - theirs).max(axis=1, initial=0) / scale).max(initial=0))
        if worst > MAX_DIFFERENCE:
            raise CannotRunError(
                f"its features differ from PyTorch's by {worst:.1e} of the largest, more than "
                f"{MAX_DIFFERENCE:.0e}"
            )
        return {**facts, "largest_difference": worst}
    norms, expected = np.linalg.norm(ours, axis=1), np.linalg.norm(theirs, axis=1)
    both = (norms > 0) | (expected > 0)  # two vectors of zeros agree
    ours, theirs, norms, expected = (values[both] for values in (ours, theirs, norms, expected))
    ratio = float((np.minimum(norms, expected) / np.maximum(norms, expected)).min(initial=1))
    if ratio < MIN_LENGTH:
        raise CannotRunError(
            f"its features in {work.precision} are {ratio:.3f} as long as PyTorch's in fp32, or "
            f"longer by as much, less than {MIN_LENGTH}"
        )
    lengths = np.maximum(norms * expected, tiny)
    cosine = float(((ours * theirs).sum(axis=1) / lengths).min(initial=1))
    if cosine < MIN_COSINE[work.precision]:
        raise CannotRunError(
            f"its features in {work.precision} have a cosine of {cosine:.4f} with PyTorch's in "
            f"fp32, less than {MIN_COSINE[work.precision]}"
        )
    return {**facts, "least_cosine": cosine}


def _batches(pictures: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """All pictures in batches of one size; the first ones again where the last has room."""
    n = -(-len(pictures) // batch_size) * batch_size
    return np.split(np.resize(pictures, (n, *pictures.shape[1:])), n // batch_size)


def prepared_already(
    identity: Mapping[str, Any],
    input_size: tuple[int, int],
    precision: Precision,
    batch_size: int,
    running: Running,
) -> OpenVinoEngine | None:
    """The OpenVINO engine, if it was prepared and checked before; PyTorch is not imported.

    Parameters
    ----------
    identity, input_size, precision : as in `Work`.
    batch_size, running : as `make_engine` would take them.
    """
    try:
        prepared = load_prepared(openvino_key(identity, input_size, precision, batch_size))
        if prepared is None or "refused" in prepared.facts:
            return None
        if not prepared.facts.get("photographs") and running.samples:
            return None
        assert running.threads is not None
        return OpenVinoEngine(
            prepared, batch_size=batch_size, threads=running.threads, precision=precision
        )
    except CannotRunError:
        return None


def openvino_key(
    identity: Mapping[str, Any],
    input_size: tuple[int, int],
    precision: Precision,
    batch_size: int,
) -> dict[str, Any]:
    """All that a prepared network, and its check on this machine, depend on."""
    return {
        "engine": OPENVINO,
        "batch_size": batch_size,
        "precision": precision,
        "input_size": list(input_size),
        "identity": dict(identity),
        "processor": [platform.machine(), processor()],
        "versions": package_versions(str(identity.get("backbone"))),
    }


def package_versions(backbone: str) -> dict[str, str]:
    """Versions of the packages that a network prepared for OpenVINO depends on."""
    packages = ["featx", "torch", "torchvision", *["timm"] * backbone.startswith("timm:")]
    return {
        OPENVINO: openvino_version(),
        **dict.fromkeys(packages, ""),  # as of one that runs without being installed
        **versions_of(packages),
    }


def keep(key: Mapping[str, Any], prepared: Prepared) -> None:
    """`save_prepared`, with a warning where nothing can be kept."""
    try:
        save_prepared(key, prepared)
    except OSError as error:
        warnings.warn(
            f"the prepared network cannot be kept for the next run ({error}); "
            f"{FOLDER_VARIABLE} names another folder",
            RuntimeWarning,
            stacklevel=2,
        )
