"""One run of featx or of a peer, in a fresh process, with its time and its features."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.peers import Request
from featx.specs import ExtractOptions

ROOT: Final = Path(__file__).parents[1]


class RunFailed(Exception):
    """A process ended with an error; the message holds the end of what it said."""


@dataclass(frozen=True, eq=False)
class Run:
    """What one run gave.

    Attributes
    ----------
    features : (n, d) float32, in the order of `paths`.
    paths : of the images, relative to their folder, sorted.
    wall_s : seconds of the whole process.
    steady_s : seconds without imports and the building of the network, by the run's own clock.
    plan : how featx ran it; empty for the others.
    """

    features: np.ndarray
    paths: tuple[str, ...]
    wall_s: float
    steady_s: float
    plan: Mapping[str, Any] = field(default_factory=dict)


def has_option(name: str) -> bool:
    """Whether this featx can be asked for `name`."""
    return name in {option.name for option in fields(ExtractOptions)}


def run(request: Request, *, environment: Mapping[str, str]) -> Run:
    """Do what is asked in a fresh process.

    Parameters
    ----------
    environment : variables set besides those of this process.

    Raises
    ------
    RunFailed
        The process ended with an error.
    """
    command = featx_command(request) if request.peer == "featx" else peer_command(request)
    variables = {**os.environ, **environment, "OMP_NUM_THREADS": str(request.threads)}
    begun = time.perf_counter()
    ended = subprocess.run(
        command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False
    )
    wall_s = time.perf_counter() - begun
    if ended.returncode:
        said = "\n".join(ended.stderr.strip().splitlines()[-15:])
        raise RunFailed(f"{request.peer} ended with {ended.returncode}:\n{said}")
    if request.peer == "featx":
        return _featx_run(request, json.loads(ended.stdout), wall_s)
    return _peer_run(request, wall_s)


def featx_command(request: Request) -> list[str]:
    """The command line of featx for `request`."""
    command = [sys.executable, "-m", "featx", "extract", request.folder, "--json"]
    command += ["--backbone", request.network, "--weights", request.weights]
    command += ["--out", f"{request.out}.h5", "--device", request.device]
    if request.precision == "amp":
        command += ["--precision", "fp16"]
    return [*command, *request.options]


def peer_command(request: Request) -> list[str]:
    """The command line of a peer for `request`."""
    return [sys.executable, "-m", "benchmarks.peers", request.to_json()]


def _featx_run(request: Request, said: Mapping[str, Any], wall_s: float) -> Run:
    import featx

    features = featx.load(f"{request.out}.h5")
    rows = np.array(features.X, np.float32)
    paths, plan = list(features.paths), dict(features.plan)
    steady_s = said["run"]["seconds"]["wall"]
    _remove(request)
    return _sorted(rows, paths, wall_s, steady_s, plan)


def _peer_run(request: Request, wall_s: float) -> Run:
    answer = json.loads(Path(f"{request.out}.json").read_text("utf-8"))
    rows = read_features(answer["features"])
    paths = [Path(path).relative_to(request.folder).as_posix() for path in answer["paths"]]
    _remove(request)
    return _sorted(rows, paths, wall_s, answer["seconds"], {})


def read_features(path: str) -> np.ndarray:
    """A peer's features, (n, d), from its HDF5 or NumPy file."""
    if path.endswith(".npy"):
        return np.asarray(np.load(path))
    import h5py

    with h5py.File(path) as file:
        return np.asarray(file["features"])


def _sorted(
    rows: np.ndarray, paths: list[str], wall_s: float, steady_s: float, plan: Mapping[str, Any]
) -> Run:
    if len(rows) != len(paths) or len(set(paths)) != len(paths):
        raise RunFailed(f"{len(rows)} rows of features for {len(set(paths))} different images")
    order = sorted(range(len(paths)), key=paths.__getitem__)
    return Run(rows[order], tuple(paths[i] for i in order), wall_s, steady_s, plan)


def _remove(request: Request) -> None:
    out = Path(request.out)
    for path in out.parent.glob(f"{out.name}.*"):
        path.unlink()
