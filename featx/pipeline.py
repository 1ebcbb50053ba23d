"""Backbone, cut, engine and loader put together: what turns image files into feature rows."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from featx.decoding import TOO_LARGE, DecodeOptions
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
from featx.errors import ImageError, InputError
from featx.forward import Lane, Sink, StageTimes, run_lanes
from featx.identity import BackboneIdentity, FrontIdentity
from featx.isolation import IsolatedLoader
from featx.loading import Loader, ManyLoader, Picture
from featx.own_network import code_sha256, is_own
from featx.quick_start import Known, is_possible, recall, remember
from featx.specs import ExtractOptions
from featx.transforms import Transform

if TYPE_CHECKING:
    from featx.backbones import Backbone
    from featx.cut import Front

MAX_SAMPLES: Final = 16  # files that are tried to find photographs to compare engines on
_N_CHECKED: Final = 4  # photographs that suffice


@dataclass(frozen=True)
class Pipeline:
    """Everything between a file and its features, on one device.

    Attributes
    ----------
    backbone, front : which network, where it is cut and what is pooled there.
    engine : executes the network up to there on batches of one shape.
    loader : one file to pixels of the network's size.
    device, precision : where and in which arithmetic.
    threads : of the CPU that the engine computes with.
    versions : of PyTorch and torchvision.
    network : what the engine executes; None where the start was quick and nothing was built.
    """

    backbone: BackboneIdentity
    front: FrontIdentity
    engine: Engine
    loader: Loader
    device: Device
    precision: Precision
    threads: int
    versions: Mapping[str, str]
    network: Front | None = None

    def run(
        self,
        files: Iterable[tuple[int, Path]],
        sink: Sink,
        *,
        dtype: str = "float32",
        **keywords: Any,
    ) -> StageTimes:
        """Send pairs of row number and file into `sink`; keywords as of `run_lanes`."""
        lane = Lane(self.engine, sink, dtype)
        (times,) = run_together([self], [lane], files, **keywords)
        return times


def run_together(
    pipelines: Sequence[Pipeline],
    lanes: Sequence[Lane],
    files: Iterable[tuple[int, Path]],
    **keywords: Any,
) -> tuple[StageTimes, ...]:
    """Send files through several pipelines at once; each is read and decoded once.

    Files are decoded in processes of their own: one that crashes or hangs its decoder fails.

    Parameters
    ----------
    pipelines : of the same decoding options and number of threads.
    lanes : of each pipeline's engine, where its rows go.
    files : pairs of row number and file.
    **keywords : as of `featx.forward.run_lanes`.
    """
    loaders = list(dict.fromkeys(pipeline.loader for pipeline in pipelines))
    places = [loaders.index(pipeline.loader) for pipeline in pipelines]
    with torch_threads(pipelines[0].threads), contextlib.ExitStack() as stack:
        alone = [stack.enter_context(IsolatedLoader(loader)) for loader in loaders]
        if len(loaders) == 1:
            return run_lanes(files, lambda path: (alone[0](path),) * len(lanes), lanes, **keywords)
        many = ManyLoader(tuple(loaders))
        together = stack.enter_context(IsolatedLoader(many))

        def load(path: Path) -> Sequence[Picture | ImageError]:
            made: Sequence[Picture | ImageError]
            try:
                made = many.parts(together(path))
            except ImageError as error:
                if error.status != TOO_LARGE:
                    raise
                made = [_one(load_one, path) for load_one in alone]  # not for every network, maybe
            return [made[place] for place in places]

        return run_lanes(files, load, lanes, **keywords)


def _one(load: Callable[[Path], Picture], path: Path) -> Picture | ImageError:
    try:
        return load(path)
    except ImageError as error:
        return error


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
    if quick and transform is None and is_possible(options, device):
        found = _quickly(options, device, precision, replay, samples)
        if found is not None:
            return found
    untouched = "torch" not in sys.modules
    from featx.backbones import load_backbone
    from featx.cut import build_front

    backbone = load_backbone(
        options.backbone,
        weights=options.weights,
        seed=options.seed,
        transform=dict(options.transform) or None,
    )
    if transform is not None:
        backbone = replace(backbone, transform=transform)
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


class MemorySink:
    """Feature rows gathered in memory, for a handful of images.

    Parameters
    ----------
    n : number of images.
    feature_shape : of one image's features.
    """

    def __init__(self, n: int, feature_shape: tuple[int, ...]) -> None:
        self.features = np.full((n, *feature_shape), np.nan, np.float32)
        self.sha256 = np.zeros((n, 32), np.uint8)
        self.failed: dict[int, tuple[int, str]] = {}

    def put(self, rows: np.ndarray, features: np.ndarray, sha256: np.ndarray) -> None:
        self.features[rows] = features
        self.sha256[rows] = sha256

    def fail(self, row: int, status: int, reason: str, sha256: bytes) -> None:
        self.failed[row] = (status, reason)
        self.sha256[row] = np.frombuffer(sha256, np.uint8)
