"""How alike copies of a picture are to a network, and how alike different pictures.

    python -m benchmarks.duplicates FOLDER... --weights FILE [--backbone mobilenet_v2] [--plain]

What the default threshold of `featx.duplicates` rests on. Images spread over each folder are stored
again as people do it: at other JPEG qualities, in another size, with the edges cut off, lighter and
darker, mirrored. The table tells which share of these copies lies above each threshold beside its
original (recall), and how many of all pairs of different images do, in one and in different classes
(false finds, unless the folder itself holds copies: `--show pairs.png` draws the likest of them).
Similarity is that of `featx.duplicates`; `--plain` takes the cosine of centred features instead, to
compare.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageEnhance

import featx
from featx.featureset import FeatureSet
from featx.likeness import Likeness
from featx.report.grid import image_grid

THRESHOLDS: Final = (0.60, 0.65, 0.70, 0.75, 0.80, 0.85, 0.90, 0.95)


def scaled(image: Image.Image, scale: float) -> Image.Image:
    w, h = (max(1, round(side * scale)) for side in image.size)
    return image.resize((w, h), Image.Resampling.LANCZOS)


def cropped(image: Image.Image, share: float) -> Image.Image:
    """Without `share` of width and height, half of it at each edge."""
    w, h = image.size
    x, y = round(w * share / 2), round(h * share / 2)
    return image.crop((x, y, w - x, h - y))


def lit(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(factor)


# name -> what is done to the picture, and the JPEG quality it is stored at
COPIES: Final[dict[str, tuple[Callable[[Image.Image], Image.Image], int]]] = {
    "JPEG quality 90": (lambda image: image, 90),
    "JPEG quality 70": (lambda image: image, 70),
    "JPEG quality 50": (lambda image: image, 50),
    "half the size": (lambda image: scaled(image, 0.5), 90),
    "5 % cut off": (lambda image: cropped(image, 0.05), 90),
    "10 % cut off": (lambda image: cropped(image, 0.10), 90),
    "20 % lighter": (lambda image: lit(image, 1.2), 90),
    "20 % darker": (lambda image: lit(image, 0.8), 90),
    "mirrored": (lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 90),
    "5 % off, half size, q 70": (lambda image: scaled(cropped(image, 0.05), 0.5), 70),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--copies", type=int, default=120, help="images copied of each folder")
    parser.add_argument("--plain", action="store_true", help="cosine of centred features")
    parser.add_argument("--show", type=Path, help="draw the likest pairs of different images")
    parser.add_argument("--keep", type=Path, help="a folder for the caches, to run again at once")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        work = arguments.keep or Path(made)
        for folder in arguments.folders:
            report(folder, work / f"{folder.name}-{Path(arguments.weights).stem}", arguments)


def report(folder: Path, work: Path, arguments: argparse.Namespace) -> None:
    options = {"backbone": arguments.backbone, "weights": arguments.weights}
    originals = featx.extract(folder, out=work / "originals.h5", **options)
    copies = copied(originals, work, arguments.copies, options)
    likeness = Likeness.learn(originals.X)
    if arguments.plain:
        likeness = replace(likeness, factors=np.ones(len(likeness.factors)))
    A, B = (likeness.vectors(of.X, np.arange(len(of))) for of in (originals, copies))
    of = np.array([int(Path(path).stem) for path in copies.paths])  # the original of each copy
    print(f"\n{folder.name}, {Path(arguments.weights).name}: {len(A)} images, {len(B)} copies")
    print("threshold".ljust(28), *(f"{t:8.3f}" for t in THRESHOLDS), "    least", "  5th %")
    for label, kind in enumerate(copies.classes):
        rows = np.flatnonzero(copies.y == label)
        alike = (A[of[rows]] * B[rows]).sum(axis=1)
        recall = (f"{(alike >= t).mean():8.3f}" for t in THRESHOLDS)
        low = np.percentile(alike, 5)
        print(f"recall, {kind}".ljust(28), *recall, f"{alike.min():9.3f}{low:8.3f}")
    S = np.triu(A @ A.T, 1)
    same = originals.y[:, None] == originals.y
    for name, pairs in (("one class", same), ("two classes", ~same)):
        of_kind = S[np.triu(pairs, 1)]
        counts = (f"{(of_kind >= t).sum():8,}" for t in THRESHOLDS)
        print(f"pairs of {name} ({len(of_kind):,})".ljust(28), *counts, f"most {of_kind.max():.3f}")
    if arguments.show:
        first, second = np.unravel_index(np.argsort(-S, axis=None)[:16], S.shape)
        rows = np.stack([first, second], axis=1).ravel()
        words = [f"{S[i, j]:.3f}" for i, j in zip(first, second, strict=True) for _ in range(2)]
        files = [originals.files[row] for row in rows]
        image_grid(files, words, columns=8).save(
            arguments.show.with_stem(f"{arguments.show.stem}-{work.name}")
        )


def copied(originals: FeatureSet, work: Path, n: int, options: dict[str, str]) -> FeatureSet:
    """Features of the copies: one class for each kind, files called after the original's row."""
    for row in np.linspace(0, len(originals) - 1, n).astype(int):
        image = Image.open(originals.files[row]).convert("RGB")
        for kind, (change, quality) in COPIES.items():
            path = work / "copies" / kind / f"{row:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                change(image).save(path, quality=quality)
    return featx.extract(work / "copies", out=work / "copies.h5", **options)


if __name__ == "__main__":
    main()
