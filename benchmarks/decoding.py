"""How fast a file becomes the network's pixels, against the script that everyone writes.

    python -m benchmarks.decoding [FOLDER] [--images 120] [--rounds 7]

FOLDER holds photographs; without one, some are drawn. The reference is what a script does for every
image on one core: torchvision's default loader and densenet121's `weights.transforms()`. Beside it
stands the same without its last steps (to a tensor, to floats, normalised), which featx does on
whole batches, and then the decoder alone. featx's own way is `Loader` in `fast` mode, in this
process and in one of the processes that extraction decodes in, with the way back; last as it is on
a GPU, which resizes: the process decodes and sends what there is to resize.

Pixels are compared first: all must be within 1 of 255. Then the ways take turns at every ten
images, so that whatever else the machine does falls on all. Ratios are of the least time that each
image took, and in parentheses the median of the ratios of whole rounds. Last comes the time on the
processor, of both processes together where there are two (Linux only): what a core gets done when
it always has a next file. One file at a time, as here, either process waits for the other.
Figures, machine and versions are written to a file.
"""

from __future__ import annotations

import argparse
import json
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

from benchmarks import machine
from benchmarks.photographs import draw_photographs
from featx.child import Child
from featx.decoding import read_image
from featx.device_resize import resized
from featx.images import list_images
from featx.limits import bare_decoder, decode_bare
from featx.loading import Loader, batch_of
from featx.resampling import Windows, why_pillow
from featx.transforms import Transform

PRESET = DenseNet121_Weights.IMAGENET1K_V1.transforms()
N_AT_A_TIME = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--images", type=int, default=120, help="so many, spread over the folder")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/")
    arguments = parser.parse_args()
    told = machine.circumstances("python -m benchmarks.decoding")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as drawn, threadpool_limits(1):
        if not arguments.folder:
            draw_photographs(Path(drawn), arguments.images)
        table = list_images(arguments.folder or drawn)
        step = max(1, len(table) // arguments.images)
        files = [table.file(i) for i in range(0, len(table), step)][: arguments.images]
        loader = Loader(Transform.from_preset(PRESET))
        child = Child(loader, timeout_s=30)
        leaving = Child(replace(loader, windows=True), timeout_s=30)
        try:
            child.wait_until_ready()
            leaving.wait_until_ready()
            told["decoding"] = {
                "images": len(files),
                "mean_file_bytes": round(sum(path.stat().st_size for path in files) / len(files)),
                "resizing": "Pillow" if why_pillow("bilinear") else "compiled",
                "pixels_not_equal": compare_pixels(files, loader, child, leaving),
            }
            ways: dict[str, Callable[[Path], Any]] = {
                "reference": lambda path: PRESET(opened(path)),
                "reference, to 8-bit pixels only": pixels_of_reference,
                f"{bare_decoder()} alone": lambda path: decode_bare(read_image(path)),
                "featx, in this process": loader,
                "featx, in another process": child.load,
                "featx, in another process, not resized": leaving.load,
            }
            times = time_in_turn(ways, files, arguments.rounds, (child, leaving))
        finally:
            child.end()
            leaving.end()
    if why_pillow("bilinear"):
        print(f"resized by Pillow: {why_pillow('bilinear')}")
    told["decoding"]["ways"] = report(*times)
    out = arguments.out or machine.results_path(told, "decoding")
    out.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    print(f"wrote {out}")


def opened(path: Path) -> Image.Image:
    """As torchvision.datasets.folder.pil_loader."""
    with path.open("rb") as file:
        return Image.open(file).convert("RGB")


def pixels_of_reference(path: Path) -> Image.Image:
    resized = functional.resize(opened(path), PRESET.resize_size)
    return functional.center_crop(resized, PRESET.crop_size)


def compare_pixels(files: list[Path], loader: Loader, child: Child, leaving: Child) -> int:
    """Stop unless all of featx's ways give the same pixels, within 1 of the reference's.

    Returns how many values of all pixels are not the same.
    """
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
    return n_other


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


def report(
    seconds: dict[str, np.ndarray], on_processor: dict[str, np.ndarray]
) -> dict[str, dict[str, Any]]:
    """Print milliseconds and ratios of every way, and return them."""
    references = list(seconds)[:2]
    told: dict[str, dict[str, Any]] = {}
    for way, times in seconds.items():
        least_s = times.min(axis=0).mean()
        print(f"{way}: {1000 * least_s:.2f} ms, {1 / least_s:.0f} images/s")
        told[way] = {"ms": round(1000 * least_s, 3)}
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
            told[way][f"times as fast as the {reference}"] = {
                "least": round(least, 3),
                "rounds": [round(ratio, 3) for ratio in rounds],
                "on_processor": [round(ratio, 3) for ratio in used],
            }
    return told


if __name__ == "__main__":
    main()
