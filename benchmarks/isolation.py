"""What decoding in processes of their own costs, against threads of this process.

    python benchmarks/isolation.py FOLDER [--workers 2] [--rounds 5]

FOLDER holds photographs. Features are compared first: both ways must give the same bits. Then each
way is timed in turn, round by round, so that whatever else the machine does falls on both; what
counts is the ratio. Three things are timed: decoding alone, an extraction with mobilenet_v2, and
the command `featx extract` on 20 small images from start to end, where starting the processes
weighs most.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from featx.images import list_images
from featx.isolation import IsolatedLoader
from featx.loading import Loader
from featx.passes import MemorySink, Pipeline
from featx.pipeline import build_pipeline
from featx.specs import ExtractOptions

N_SMALL = 20
_COMMAND = """
import sys
from contextlib import nullcontext
if sys.argv.pop(1) == "threads":
    import featx.pipeline
    featx.pipeline.IsolatedLoader = nullcontext
from featx.cli import main
main()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=400, help="at most so many of the folder")
    arguments = parser.parse_args()
    table = list_images(arguments.folder)
    files = [table.file(i) for i in range(len(table))][: arguments.images]
    pipeline = build_pipeline(ExtractOptions(backbone="mobilenet_v2", weights="random"))
    compare_bits(pipeline, files, arguments.workers)
    ways: dict[str, Callable[[str], float]] = {
        f"decoding alone, {len(files)} files": lambda way: time_decoding(
            way, pipeline.loader, files, arguments.workers
        ),
        f"extraction, {len(files)} files": lambda way: time_extraction(
            way, pipeline, files, arguments.workers
        ),
        f"the command on {N_SMALL} small files": time_command,
    }
    for name, timed in ways.items():
        seconds: dict[str, list[float]] = {"threads": [], "processes": []}
        for i in range(arguments.rounds):
            for way in list(seconds) if i % 2 else reversed(list(seconds)):
                seconds[way].append(timed(way))
        ratios = [a / b for a, b in zip(seconds["processes"], seconds["threads"], strict=True)]
        medians = ", ".join(f"{way} {statistics.median(s):.2f} s" for way, s in seconds.items())
        print(
            f"{name}: {medians}; processes take {statistics.median(ratios):.2f} of the time "
            f"({min(ratios):.2f} to {max(ratios):.2f} in {arguments.rounds} rounds)"
        )


def run(way: str, pipeline: Pipeline, files: list[Path], workers: int) -> MemorySink:
    """Extract the features of `files` in one of the two ways."""
    sink = MemorySink(len(files), pipeline.engine.feature_shape)
    with (
        mock.patch("featx.pipeline.IsolatedLoader", nullcontext)
        if way == "threads"
        else (nullcontext())
    ):
        pipeline.run(enumerate(files), sink, workers=workers)
    return sink


def compare_bits(pipeline: Pipeline, files: list[Path], workers: int) -> None:
    """Stop unless both ways give the same features, digests and failures."""
    one, other = (run(way, pipeline, files, workers) for way in ("threads", "processes"))
    assert one.features.tobytes() == other.features.tobytes()
    assert one.sha256.tobytes() == other.sha256.tobytes()
    assert one.failed == other.failed
    print(f"same bits of {len(files)} files ({len(one.failed)} of them failed) either way")


def time_decoding(way: str, loader: Loader, files: list[Path], workers: int) -> float:
    """Seconds to decode, with the processes started before."""
    context: Any = nullcontext(loader) if way == "threads" else IsolatedLoader(loader)
    with context as load, ThreadPoolExecutor(workers) as pool:
        list(pool.map(load, files[: 4 * workers]))
        begun = time.perf_counter()
        list(pool.map(load, files))
        return time.perf_counter() - begun


def time_extraction(way: str, pipeline: Pipeline, files: list[Path], workers: int) -> float:
    begun = time.perf_counter()
    run(way, pipeline, files, workers)
    return time.perf_counter() - begun


def time_command(way: str) -> float:
    """Seconds of a whole `featx extract` on small images, which are drawn here."""
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        for i in range(N_SMALL):
            path = Path(folder, "images", "ab"[i % 2], f"{i}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (160, 160, 3), np.uint8)).save(path)
        command = [sys.executable, "-c", _COMMAND, way, "extract", str(path.parents[1])]
        command += ["--backbone", "mobilenet_v2", "--weights", "random", "--cache-dir", folder]
        begun = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - begun


if __name__ == "__main__":
    main()
