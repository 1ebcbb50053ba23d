"""One pass over image files: through a pipeline, or several at once, into sinks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featx.decoding import TOO_LARGE
from featx.devices import Device, Precision, torch_threads
from featx.engines.base import Engine
from featx.errors import ImageError
from featx.forward import Lane, Sink, StageTimes, run_lanes
from featx.identity import BackboneIdentity, FrontIdentity
from featx.isolation import IsolatedLoader
from featx.loading import Loader, ManyLoader, Picture
from featx.specs import PIXEL_TYPE

if TYPE_CHECKING:
    from featx.cut import Front


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
    versions : of PyTorch and torchvision; empty where they change nothing, since no network runs.
    network : what the engine executes; None where there is none, or the start was quick and
        nothing was built.
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

    @property
    def dtype(self) -> str:
        """What its rows are by nature."""
        return PIXEL_TYPE if self.front.is_pixels else "float32"

    def run(self, files: Iterable[tuple[int, Path]], sink: Sink, **keywords: Any) -> StageTimes:
        """Send pairs of row number and file into `sink`; keywords as of `run_lanes`."""
        lane = Lane(self.engine, sink, self.dtype)
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


class MemorySink:
    """Feature rows gathered in memory, for a handful of images.

    Parameters
    ----------
    n : number of images.
    feature_shape, dtype : of one image's features.
    """

    def __init__(
        self, n: int, feature_shape: tuple[int, ...], dtype: npt.DTypeLike = "float32"
    ) -> None:
        filler = 0 if np.dtype(dtype).kind == "u" else np.nan
        self.features = np.full((n, *feature_shape), filler, dtype)
        self.sha256 = np.zeros((n, 32), np.uint8)
        self.failed: dict[int, tuple[int, str]] = {}

    def put(
        self,
        rows: np.ndarray,
        features: np.ndarray,
        sha256: np.ndarray,
        extent: np.ndarray | None = None,
    ) -> None:
        self.features[rows] = features
        self.sha256[rows] = sha256

    def fail(self, row: int, status: int, reason: str, sha256: bytes) -> None:
        self.failed[row] = (status, reason)
        self.sha256[row] = np.frombuffer(sha256, np.uint8)
