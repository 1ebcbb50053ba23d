"""Made the files beside it, each once, by the featx that first wrote the format in its name.

They stand for the files that users have. They are never made again: a featx that cannot read them
has broken its promise, and this program makes only those that are missing. A new format gets new
files.

    python tests/golden/make.py
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from featx.cache import CacheWriter, Rows, Status
from featx.fitting import fit_head

FOLDER = Path(__file__).parent
CLASSES = (b"001.Caf\xe9".decode("utf-8", "surrogateescape"), "002.Grue_cendrée", "003.麻雀")
HEADS: dict[str, dict[str, Any]] = {
    "logistic": {"C": 0.5},
    "linear": {"epochs": 6, "lr": 0.05, "batch_size": 4},
    "mlp": {"epochs": 6, "lr": 0.05, "batch_size": 4, "hidden": (5,)},
}

SPEC: dict[str, Any] = {
    "schema": 1,
    "backbone": "squeezenet1_1",
    "weights_sha256": "b8a52dc0d1d4e6e5c0a1a1b3b0c8e1f6c5b8f0d1f7a3d2b0a9c8e7f6d5c4b3a2",
    "cut": "features.12.cat",
    "pool": "avg",
    "layout": "vector",
    "shape": [8],
    "transform": {
        "resize": 256,
        "crop": 224,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bilinear",
        "antialias": True,
    },
    "decode": "fast",
    "exif": True,
    "max_pixels": 100_000_000,
    "precision": "fp32",
    "dtype": "float32",
    "images": {"label_from": "first", "split_folders": "auto"},
}
PLAN: dict[str, Any] = {
    "engine": "torch-eager",
    "device": "cpu",
    "batch_size": 16,
    "workers": 2,
    "threads": 2,
    "weights": {"name": "IMAGENET1K_V1", "path": "/home/anna/.cache/squeezenet1_1.pth", "seed": 0},
    "machine": {"system": "Linux", "processor": "x86_64", "accelerator": ""},
    "versions": {"torch": "2.11.0", "torchvision": "0.26.0", "pillow": "11.0.0", "numpy": "1.26.4"},
}


def make_cache(
    path: Path, *, shape: tuple[int, ...], dtype: str, store_size: int | None = None
) -> None:
    """Twelve images, four a class, one of them damaged; labels, split and groups are given."""
    n, d = 12, int(np.prod(shape))
    numbers = np.arange(n)
    labels = numbers // 4
    names = [CLASSES[label].encode("utf-8", "surrogateescape") for label in labels]
    parts = np.array([1, 1, 2, 3] * 3)
    folders = {1: b"train", 2: b"val", 3: b"test"}
    paths = [
        b"%s/%s/%02d.jpg" % (folders[part], name, number)
        for number, part, name in zip(numbers, parts, names, strict=True)
    ]
    order = sorted(range(n), key=paths.__getitem__)
    rows = Rows(
        paths=[paths[i] for i in order],
        labels=labels[order],
        split=parts[order].astype(np.uint8),
        groups=(numbers // 2)[order],
        size_bytes=(10_000 + numbers)[order],
        mtime_ns=(1_700_000_000_000_000_000 + numbers)[order],
        classes=CLASSES,
    )
    # image i, value j: eighths, exact in both types; a class stands out in its own column
    features = (np.outer(numbers, np.arange(d)) % 7 - 3) / 8
    features[numbers, labels] += 2
    sha256 = np.repeat(numbers[:, None], 32, axis=1).astype(np.uint8)
    spec = {**SPEC, "shape": list(shape), "dtype": dtype}
    extent = None
    if dtype == "uint8":
        features = np.outer(numbers + 1, 7 * np.arange(1, d + 1)) % 251
        spec |= {"cut": "input", "pool": "none", "layout": "nhwc"}
        if store_size is not None:
            spec |= {"store_size": store_size}
            extent = np.stack([1 + numbers % store_size, np.full(n, store_size)], axis=1)
    elif len(shape) == 3:
        spec |= {"cut": "features", "pool": "none", "layout": "nchw"}
    writer = CacheWriter.create(
        path,
        rows,
        root="/home/anna/birds",
        spec=spec,
        plan=PLAN,
        feature_shape=shape,
        dtype=dtype,
    )
    damaged = 7
    good = np.array([row for row, i in enumerate(order) if i != damaged])
    writer.put(
        good,
        features.reshape(n, *shape)[order][good].astype(dtype),
        sha256[order][good],
        extent=None if extent is None else extent[order][good].astype(np.uint16),
    )
    writer.fail(
        order.index(damaged), Status.UNDECODABLE, "Truncated File Read", sha256[damaged].tobytes()
    )
    plans = [{"plan": PLAN, "rows": [[0, n - 1]]}]
    writer.finish(path, {"images": n, "done": n - 1, "failed": 1, "kept": 0, "plans": plans})


def main() -> None:
    caches = {
        "cache-1-float32.h5": {"shape": (8,), "dtype": "float32"},
        "cache-1-float16-map.h5": {"shape": (3, 2, 2), "dtype": "float16"},
        "cache-2-pixels.h5": {"shape": (4, 4, 3), "dtype": "uint8"},
        "cache-2-whole-pictures.h5": {"shape": (5, 5, 1), "dtype": "uint8", "store_size": 5},
    }
    heads = {f"{kind}-1.safetensors": kind for kind in HEADS}
    there = [name for name in (*caches, *heads) if (FOLDER / name).exists()]
    print(f"these stay as they are: {', '.join(there)}")
    caches = {name: features for name, features in caches.items() if name not in there}
    heads = {name: kind for name, kind in heads.items() if name not in there}
    work = Path(tempfile.gettempdir(), "featx-golden")  # its name is in the heads
    work.mkdir()
    for name, features in caches.items():
        make_cache(work / name, **features)
    for name, kind in heads.items():
        cache = work / "cache-1-float32.h5"
        fit_head(cache, head=kind, out=work / name, device="cpu", **HEADS[kind])
    for name in (*caches, *heads):
        shutil.move(work / name, FOLDER / name)
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
