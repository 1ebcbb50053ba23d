"""Backbone, cut, engine and loader put together: what turns image files into feature rows."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from featx.decoding import DecodeOptions
from featx.devices import (
    Device,
    Precision,
    check_precision,
    resolve_device,
    torch_default_threads,
    torch_threads,
)
from featx.engines.base import Engine, Work
from featx.engines.choice import (
    OPENVINO,
    Running,
    check_engine,
    default_engine,
    make_engine,
    openvino_batch_size,
    prepared_already,
)
from featx.engines.pixels import PixelEngine
from featx.errors import ImageError, InputError
from featx.identity import INPUT, PIXELS, BackboneIdentity, FrontIdentity
from featx.isolation import IsolatedLoader
from featx.loading import Loader
from featx.own_network import code_sha256, is_own
from featx.passes import Pipeline
from featx.quick_start import Known, is_possible, recall, remember
from featx.specs import ExtractOptions
from featx.transforms import Transform

if TYPE_CHECKING:
    from featx.backbones import Backbone
    from featx.cut import Front

MAX_SAMPLES: Final = 16  # files that are tried to find photographs to compare engines on
_N_CHECKED: Final = 4  # photographs that suffice


def build_pipeline(
    options: ExtractOptions,
    *,
    transform: Transform | None = None,
    replay: Callable[[BackboneIdentity, Device], Running] | None = None,
    samples: Sequence[Path] = (),
    n_images: int | None = None,
    quick: bool = False,
) -> Pipeline:
    """The pipeline that `options` ask for.

    Parameters
    ----------
    options : what is asked.
    transform : replaces the preprocessing that comes with the weights.
    replay : what an earlier run chose where `options` leave it open; else fixed rules do.
    samples : image files that an engine other than PyTorch's own is checked on before it is used.
    n_images : that there are, where it is known: no batch need be larger.
    quick : do without PyTorch where an earlier run has prepared this network; then
        `Pipeline.network` is None.

    Raises
    ------
    InputError, WeightsError
        An unknown name, an impossible cut, an absent device, or weights that cannot be had.
    """
    device = resolve_device(options.device)
    check_engine(options.engine, device)
    precision = check_precision(device, options.precision)
    if options.cut == INPUT:
        return _pixel_pipeline(options, transform, quick=quick)
    if quick and transform is None and is_possible(options, device):
        found = _quickly(options, device, precision, replay, samples)
        if found is not None:
            return found
    untouched = "torch" not in sys.modules
    from featx.cut import build_front

    backbone = _backbone(options, transform)
    front = build_front(
        backbone.network, cut=options.cut, pool=options.pool, input_shape=backbone.traced_at
    )
    identity = front.identity
    if is_own(backbone.name):
        identity = replace(identity, code_sha256=code_sha256(front.body))
    _check_trained(backbone, front)
    loader = _loader(options, backbone.transform)
    replayed = replay(backbone, device) if replay else Running(n_images=n_images)
    running = replace(_running(options, replayed), samples=samples)
    default_threads = torch_default_threads()
    running = replace(running, threads=running.threads or default_threads)
    assert running.threads is not None
    work = Work(
        front,
        backbone.transform.normalise,
        device,
        precision,
        (backbone.transform.crop, backbone.transform.crop),
        _identity(backbone, identity),
        backbone.transform.channels,
    )
    with torch_threads(running.threads):
        engine = make_engine(work, running, lambda: _pictures(samples, loader))
    loader = _without_resizing(loader, engine, device)
    versions = _versions()
    if engine.name == OPENVINO and untouched and transform is None:
        default = openvino_batch_size(work)
        known = Known(backbone, identity, work.identity, default, default_threads, versions)
        remember(options, precision, known)
    return Pipeline(
        backbone,
        identity,
        engine,
        loader,
        device,
        precision,
        running.threads,
        versions,
        front,
    )


def _quickly(
    options: ExtractOptions,
    device: Device,
    precision: Precision,
    replay: Callable[[BackboneIdentity, Device], Running] | None,
    samples: Sequence[Path],
) -> Pipeline | None:
    """The pipeline without PyTorch, if an earlier run has left all that it takes."""
    known = recall(options, precision)
    if known is None:
        return None
    running = _running(options, replay(known.backbone, device) if replay else Running())
    if (running.engine or default_engine(device, precision)) != OPENVINO:
        return None
    running = replace(running, threads=running.threads or known.threads, samples=samples)
    assert running.threads is not None
    side = known.backbone.transform.crop
    engine = prepared_already(
        known.identity, (side, side), precision, running.batch_size or known.batch_size, running
    )
    if engine is None:
        return None
    loader = _loader(options, known.backbone.transform)
    return Pipeline(
        known.backbone,
        known.front,
        engine,
        loader,
        device,
        precision,
        running.threads,
        known.versions,
    )


def pixel_pipeline(
    backbone: BackboneIdentity, options: ExtractOptions, *, threads: int = 1
) -> Pipeline:
    """The pipeline of the cut `input`, for which no network is needed.

    Parameters
    ----------
    backbone : whose preprocessing gives the pixels.
    options : how images are decoded.
    threads : of the CPU that others, which share the pass over the images, compute with.
    """
    if options.store_size is not None:
        _check_store_size(options.store_size, backbone.transform)
    loader = replace(_loader(options, backbone.transform), store_size=options.store_size)
    engine = PixelEngine(loader.shape)
    return Pipeline(backbone, PIXELS, engine, loader, resolve_device("cpu"), "fp32", threads, {})


def _pixel_pipeline(
    options: ExtractOptions, transform: Transform | None, *, quick: bool
) -> Pipeline:
    """The same, of the backbone that is asked for; its weights are what a tail starts from."""
    device = resolve_device("cpu")
    may_remember = quick and transform is None and is_possible(options, device)
    known = recall(options, "fp32") if may_remember else None
    if known is None or known.front != PIXELS:
        backbone, threads = _backbone(options, transform), torch_default_threads()
        known = Known(backbone, PIXELS, {}, 1, threads, {})
        if may_remember:
            remember(options, "fp32", known)
    return pixel_pipeline(known.backbone, options, threads=known.threads)


def _check_store_size(store_size: int, transform: Transform) -> None:
    """Refuse whole pictures of which the network's own input could not be made."""
    if transform.resize is None:
        raise InputError(
            "store_size makes large pictures smaller, but this transform crops them as they are; "
            "leave it out, or say --resize"
        )
    if store_size < transform.crop:
        raise InputError(
            f"store_size must be at least the crop of the network, {transform.crop} pixels, got "
            f"{store_size}: pictures would be enlarged again"
        )


def _backbone(options: ExtractOptions, transform: Transform | None) -> Backbone:
    """The network, its weights loaded and hashed; `transform` replaces its own preprocessing."""
    from featx.backbones import load_backbone

    backbone = load_backbone(
        options.backbone,
        weights=options.weights,
        seed=options.seed,
        transform=dict(options.transform) or None,
    )
    return backbone if transform is None else replace(backbone, transform=transform)


def _loader(options: ExtractOptions, transform: Transform) -> Loader:
    decode = DecodeOptions(exif=options.exif, max_pixels=options.max_pixels)
    return Loader(transform, decode, mode=options.decode)  # type: ignore[arg-type]


def _versions() -> dict[str, str]:
    import torch
    import torchvision

    return {"torch": torch.__version__, "torchvision": torchvision.__version__}


def _without_resizing(loader: Loader, engine: Engine, device: Device) -> Loader:
    """The loader, but leaving resizing to the device where that can do it."""
    if not engine.resizes:
        return loader
    import torch

    from featx.device_resize import why_not

    reason = why_not(torch.device(device.name))
    if reason is None:
        return replace(loader, windows=True)
    warnings.warn(
        f"pictures are not resized on {device.name}, because {reason}; the decoding processes do "
        "it, with the same result",
        RuntimeWarning,
        stacklevel=2,
    )
    return loader


def _running(options: ExtractOptions, replayed: Running) -> Running:
    """What is asked, and what an earlier run chose where nothing is."""
    insists = options.engine != "auto"
    engine = options.engine if insists else replayed.engine
    same = engine == replayed.engine  # batches are as large as suits an engine
    return Running(
        engine=engine,
        batch_size=options.batch_size or (replayed.batch_size if same else None),
        threads=replayed.threads,
        insists=insists,
        n_images=replayed.n_images,
        suits=None if options.batch_size else replayed.suits,
    )


def _identity(backbone: Backbone, front: FrontIdentity) -> dict[str, Any]:
    """All that the features of a picture depend on."""
    return {
        "backbone": backbone.name,
        "weights_sha256": backbone.weights_sha256,
        "cut": front.cut,
        "pool": front.pool,
        "mean": list(backbone.transform.mean),
        "std": list(backbone.transform.std),
        **({"code_sha256": front.code_sha256} if front.code_sha256 else {}),
    }


def _pictures(samples: Sequence[Path], loader: Loader) -> np.ndarray:
    """(m, h, w, c) uint8: the first of `samples` that can be used, and one of noise.

    They are decoded in another process: the first image of a folder may be one that crashes it.
    """
    found = []
    with IsolatedLoader(loader) as load:
        for path in samples:
            with contextlib.suppress(ImageError):
                found.append(load(path).pixels)
            if len(found) == _N_CHECKED:
                break
    noise = np.random.default_rng(0).integers(0, 256, loader.shape, dtype=np.uint8)
    return np.stack([*found, noise])


def _check_trained(backbone: Backbone, front: Front) -> None:
    """Refuse a cut behind parameters that the weights' file has no values for."""
    used = {id(tensor) for tensor in (*front.parameters(), *front.buffers())}
    network = backbone.network
    named = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    random = [name for name in backbone.untrained if id(named.get(name)) in used]
    if random:
        raise InputError(
            f"the cut {front.cut} lies behind {', '.join(random[:3])}, which {backbone.weights} "
            "has no values for: the features would be random. Cut before it (--cut penultimate)"
        )
