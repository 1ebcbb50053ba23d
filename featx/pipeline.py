"""Backbone, cut, engine and loader put together: what turns image files into feature rows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from featx.backbones import Backbone, load_backbone
from featx.cut import Front, build_front
from featx.decoding import TOO_LARGE, DecodeOptions
from featx.devices import Device, Precision, check_precision, resolve_device, torch_threads
from featx.engines.base import Engine, Work
from featx.engines.choice import Running, check_engine, make_engine
from featx.errors import HeadError, ImageError, InputError, WeightsError
from featx.forward import Lane, Sink, StageTimes, run_lanes
from featx.isolation import IsolatedLoader
from featx.loading import Loader, ManyLoader, Picture
from featx.specs import ExtractOptions
from featx.transforms import Transform
from featx.weights import is_local_weights, sha256_file

# What a spec must say for the pipeline to be built again.
_RECORD: Final = {
    "backbone": str,
    "weights_sha256": str,
    "cut": str,
    "pool": str,
    "decode": str,
    "exif": bool,
    "max_pixels": int,
    "precision": str,
    "transform": dict,
}

MAX_SAMPLES: Final = 16  # files that are tried to find photographs to compare engines on
_N_CHECKED: Final = 4  # photographs that suffice


@dataclass(frozen=True)
class Pipeline:
    """Everything between a file and its features, on one device.

    Attributes
    ----------
    backbone : the network with its weights, transform and class names.
    front : the part of the network before the cut, pooled.
    engine : executes `front` on batches of one shape.
    loader : one file to pixels of the network's size.
    device, precision : where and in which arithmetic.
    threads : of the CPU that the engine computes with.
    """

    backbone: Backbone
    front: Front
    engine: Engine
    loader: Loader
    device: Device
    precision: Precision
    threads: int

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
    replay: Callable[[Backbone, Device], Running] | None = None,
    samples: Sequence[Path] = (),
    n_images: int | None = None,
) -> Pipeline:
    """The pipeline that `options` ask for.

    Parameters
    ----------
    options : what is asked.
    transform : replaces the preprocessing that comes with the weights.
    replay : what an earlier run chose where `options` leave it open; else fixed rules do.
    samples : image files that an engine other than PyTorch's own is checked on before it is used.
    n_images : that there are, where it is known: no batch need be larger.

    Raises
    ------
    InputError, WeightsError
        An unknown name, an impossible cut, an absent device, or weights that cannot be had.
    """
    device = resolve_device(options.device)
    check_engine(options.engine, device)
    precision = check_precision(device, options.precision)
    backbone = load_backbone(
        options.backbone,
        weights=options.weights,
        seed=options.seed,
        transform=dict(options.transform) or None,
    )
    if transform is not None:
        backbone = replace(backbone, transform=transform)
    front = build_front(backbone.network, cut=options.cut, pool=options.pool)
    _check_trained(backbone, front)
    decode = DecodeOptions(exif=options.exif, max_pixels=options.max_pixels)
    loader = Loader(backbone.transform, decode, mode=options.decode)  # type: ignore[arg-type]
    replayed = replay(backbone, device) if replay else Running(n_images=n_images)
    running = replace(_running(options, replayed), samples=samples)
    assert running.threads is not None
    work = Work(
        front,
        backbone.transform.normalise,
        device,
        precision,
        (backbone.transform.crop, backbone.transform.crop),
        _identity(backbone, front),
    )
    with torch_threads(running.threads):
        engine = make_engine(work, running, lambda: _pictures(samples, loader))
    return Pipeline(backbone, front, engine, loader, device, precision, running.threads)


def _running(options: ExtractOptions, replayed: Running) -> Running:
    """What is asked, and what an earlier run chose where nothing is."""
    import torch

    insists = options.engine != "auto"
    engine = options.engine if insists else replayed.engine
    same = engine == replayed.engine  # batches are as large as suits an engine
    return Running(
        engine=engine,
        batch_size=options.batch_size or (replayed.batch_size if same else None),
        threads=replayed.threads or torch.get_num_threads(),
        insists=insists,
        n_images=replayed.n_images,
        suits=None if options.batch_size else replayed.suits,
    )


def _identity(backbone: Backbone, front: Front) -> dict[str, Any]:
    """All that the features of a picture depend on."""
    return {
        "backbone": backbone.name,
        "weights_sha256": backbone.weights_sha256,
        "cut": front.cut,
        "pool": front.pool,
        "mean": list(backbone.transform.mean),
        "std": list(backbone.transform.std),
    }


def _pictures(samples: Sequence[Path], loader: Loader) -> np.ndarray:
    """(m, h, w, 3) uint8: the first of `samples` that can be used, and one of noise.

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


def pipeline_of_spec(
    spec: Mapping[str, Any],
    plan: Mapping[str, Any],
    *,
    weights: str | None = None,
    engine: str = "auto",
    device: str = "auto",
    precision: str | None = None,
    batch_size: int | None = None,
    files: Sequence[Path] = (),
) -> Pipeline:
    """The pipeline that made a cache, from its recorded spec.

    Weights are looked for at `weights`, else where they lay then, else by their published name.
    `files` are those it is for.

    Raises
    ------
    HeadError
        The weights found are not the ones recorded: their SHA-256 differs.
    WeightsError
        No weights can be found.
    """
    _check_record(spec, plan)
    recorded = plan["weights"]
    options = options_of_spec(spec, plan, weights=weights, device=device, batch_size=batch_size)
    options = replace(options, engine=engine, precision=precision or options.precision)
    _check_recorded_file(recorded, weights, spec)
    pipeline = build_pipeline(
        options,
        transform=Transform.from_dict(spec["transform"]),
        samples=files[:MAX_SAMPLES],
        n_images=len(files) or None,
    )
    found = pipeline.backbone.weights_sha256
    if found != spec["weights_sha256"]:
        raise HeadError(
            f"the features were made with {spec['backbone']} weights of SHA-256 "
            f"{spec['weights_sha256'][:16]}…, but {options.weights!r} has {found[:16]}…; "
            "give the right file with --weights"
        )
    return pipeline


def options_of_spec(
    spec: Mapping[str, Any],
    plan: Mapping[str, Any],
    *,
    weights: str | None = None,
    device: str = "auto",
    batch_size: int | None = None,
) -> ExtractOptions:
    """What was asked when a cache was made, but for the preprocessing, which the spec holds whole.

    Weights are those at `weights`, else where they lay then, else of their published name.
    """
    recorded = plan.get("weights", {})
    rules = spec.get("images", {})
    split_folders = rules.get("split_folders")
    return ExtractOptions(
        backbone=spec["backbone"],
        weights=weights or _recorded_weights(recorded, spec["backbone"]),
        seed=int(recorded.get("seed", 0)),
        cut=spec["cut"],
        pool=spec["pool"],
        decode=spec["decode"],
        exif=spec["exif"],
        max_pixels=spec["max_pixels"],
        precision=spec["precision"],
        dtype=spec.get("dtype", "float32"),
        device=device,
        batch_size=batch_size,
        label_from=rules.get("label_from", "first"),
        split_folders=split_folders if isinstance(split_folders, bool) else None,
    )


def _check_record(spec: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
    """Refuse a spec or plan that lacks what it takes to build the pipeline again."""
    weights = plan.get("weights")
    parts = [(spec, name, kind) for name, kind in _RECORD.items()]
    parts.append((plan, "weights", dict))
    if isinstance(weights, dict):
        parts += [({"seed": 0, "path": "", "name": "", **weights}, "seed", int)]
        parts += [({"path": "", "name": "", **weights}, name, str) for name in ("path", "name")]
    wrong = [name for values, name, kind in parts if type(values.get(name)) is not kind]
    if wrong:
        raise HeadError(
            f"it does not say how its features were made ({', '.join(wrong)} missing or garbled); "
            "extract the features and fit the head again"
        )


def _check_recorded_file(
    recorded: Mapping[str, Any], weights: str | None, spec: Mapping[str, Any]
) -> None:
    """Refuse a recorded weights file that is not the one, before anything in it is read.

    The record may come from a stranger: it must not make featx parse a file of its choosing.
    """
    path, wanted = recorded.get("path") or "", f"SHA-256 {spec['weights_sha256'][:16]}…"
    if weights is not None or not path:
        return
    if is_local_weights(path):
        found = sha256_file(path)
        if found != spec["weights_sha256"]:
            raise HeadError(
                f"the features were made with {spec['backbone']} weights of {wanted}, but {path} "
                f"has {found[:16]}…; give the right file with --weights"
            )
    elif Path(path).name == recorded["name"]:
        gone = "is no plain file of weights" if Path(path).exists() else "is no longer there"
        raise WeightsError(
            f"the features were made with {spec['backbone']} weights from {path} ({wanted}), "
            f"which {gone}; give the file with --weights"
        )


def _recorded_weights(recorded: Mapping[str, Any], backbone: str) -> str:
    path, name = recorded.get("path"), str(recorded.get("name") or "default")
    if path and is_local_weights(path):
        return str(path)
    if Path(name).name != name:
        raise HeadError(f"it records {name[:80]!r} as the name of its weights; give --weights")
    # timm's own weights have no file that featx knows of; their hash is checked all the same
    return "default" if backbone.startswith("timm:") and name != "random" else name


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
