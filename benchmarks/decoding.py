"""How fast a file becomes the network's pixels, against the script that everyone writes.

    python benchmarks/decoding.py [FOLDER] [--images 120] [--rounds 7]

FOLDER holds photographs; without one, some are made. The reference is what a script does for every
image on one core: torchvision's default loader and densenet121's `weights.transforms()`. Beside it
stands the same without its last steps (to a tensor, to floats, normalised), which featx does on
whole batches. featx's own way is `Loader` in `fast` mode, in this process and in one of the
processes that extraction decodes in, with the way back through the pipe; last as it is on a GPU,
which resizes: the process decodes and sends what there is to resize.

Pixels are compared first: all must be within 1 of 255. Then the ways take turns at every ten
images, so that whatever else the machine does falls on all. Ratios are of the least time that each
image took, and in parentheses the median of the ratios of whole rounds. Last comes the time on the
processor, of both processes together where there are two (Linux only): what a core gets done when
it always has a next file. One file at a time, as here, either process waits for the other.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from threadpoolctl import threadpool_limits
from torchvision.models import DenseNet121_Weights
from torchvision.transforms import functional

from featx.child import Child
from featx.device_resize import resized
from featx.images import list_images
from featx.loading import Loader, batch_of
from featx.resampling import Windows
from featx.transforms import Transform

PRESET = DenseNet121_Weights.IMAGENET1K_V1.transforms()
N_AT_A_TIME = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--images", type=int, default=120, help="so many, spread over the folder")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made, threadpool_limits(1):
        table = list_images(arguments.folder or make_photographs(Path(made), arguments.images))
        step = max(1, len(table) // arguments.images)
        files = [table.file(i) for i in range(0, len(table), step)][: arguments.images]
        loader = Loader(Transform.from_preset(PRESET))
        child = Child(loader, timeout_s=30)
        leaving = Child(replace(loader, windows=True), timeout_s=30)
        try:
            child.wait_until_ready()
            leaving.wait_until_ready()
            compare_pixels(files, loader, child, leaving)
            ways: dict[str, Callable[[Path], Any]] = {
                "reference": lambda path: PRESET(opened(path)),
                "reference, to 8-bit pixels only": pixels_of_reference,
                "featx, in this process": loader,
                "featx, in another process": child.load,
                "featx, in another process, not resized": leaving.load,
            }
            report(*time_in_turn(ways, files, arguments.rounds, (child, leaving)))
        finally:
            child.end()
            leaving.end()


def opened(path: Path) -> Image.Image:
    """As torchvision.datasets.folder.pil_loader."""
    with path.open("rb") as file:
        return Image.open(file).convert("RGB")


def pixels_of_reference(path: Path) -> Image.Image:
    resized = functional.resize(opened(path), PRESET.resize_size)
    return functional.center_crop(resized, PRESET.crop_size)


def compare_pixels(files: list[Path], loader: Loader, child: Child, leaving: Child) -> None:
    """Stop unless all of featx's ways give the same pixels, within 1 of the reference's."""
    n_other = 0
    for path in files:
        expected = np.asarray(pixels_of_reference(path)).astype(int)
        here, there = loader(path), child.load(path)
        assert np.array_equal(here.pixels, there.pixels), path
        batch = batch_of([leaving.load(path)], 1)
        if isinstance(batch, Windows):
            batch = resized(batch, torch.device("cpu")).numpy()
        assert np.array_equal(here.pixels, batch[0]), path
        assert here.sha256 == there.sha256, path
        difference = np.abs(here.pixels - expected)
        assert difference.max() <= 1, f"{path}: {difference.max()} of 255 off"
        n_other += int(np.count_nonzero(difference))
    print(f"{len(files)} files: all pixels within 1 of 255, {n_other} of them not the same")


def time_in_turn(
    ways: dict[str, Callable[[Path], Any]],
    files: list[Path],
    rounds: int,
    children: Sequence[Child],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Seconds of every way: (rounds, files) by the clock, (rounds) a file on the processor."""
    seconds = {way: np.zeros((rounds, len(files))) for way in ways}
    on_processor = {way: np.zeros(rounds) for way in ways}
    for r in range(rounds):
        for first in range(0, len(files), N_AT_A_TIME):
            for way, load in ways.items():
                used = processor_time(children)
                for i in range(first, min(first + N_AT_A_TIME, len(files))):
                    begun = time.perf_counter()
                    load(files[i])
                    seconds[way][r, i] = time.perf_counter() - begun
                on_processor[way][r] += processor_time(children) - used
    return seconds, {way: s / len(files) for way, s in on_processor.items()}


def processor_time(children: Sequence[Child]) -> float:
    """Seconds this process has run, and on Linux the others."""
    told = [Path(f"/proc/{child._process.pid}/schedstat") for child in children]
    others_ns = [int(path.read_text().split()[0]) for path in told if path.is_file()]
    return time.process_time() + sum(others_ns) / 1e9  # the first number is time on a processor


def report(seconds: dict[str, np.ndarray], on_processor: dict[str, np.ndarray]) -> None:
    references = list(seconds)[:2]
    for way, times in seconds.items():
        least_s = times.min(axis=0).mean()
        print(f"{way}: {1000 * least_s:.2f} ms, {1 / least_s:.0f} images/s")
        for reference in references:
            if way in references:
                continue
            least = seconds[reference].min(axis=0).mean() / least_s
            rounds = seconds[reference].sum(axis=1) / times.sum(axis=1)
            used = on_processor[reference] / on_processor[way]
            print(
                f"    {least:.2f} ({statistics.median(rounds):.2f}) times as fast as the "
                f"{reference}; on the processor {statistics.median(used):.2f}"
            )


def make_photographs(folder: Path, n: int) -> Path:
    """Write n JPEG files of 500 x 375 and 375 x 500 pixels, smooth with some texture."""
    rng = np.random.default_rng(0)
    for i in range(n):
        w, h = (500, 375) if i % 4 else (375, 500)
        coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((w, h), Image.Resampling.BICUBIC)
        pixels = np.clip(np.asarray(smooth) + rng.normal(0, 12, (h, w, 3)), 0, 255)
        (folder / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "ab"[i % 2] / f"{i}.jpg", quality=90)
    return folder


if __name__ == "__main__":
    main()
