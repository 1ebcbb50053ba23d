"""How fast rows are written, beside the plainest way to write them.

    python -m benchmarks.limits [--repeats 15] [--batch-size 16] [--folder FOLDER]

FOLDER lies on the disk that is to be measured: by default the current one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks import machine
from featx.cache import CacheWriter, Rows

WRITTEN_ROWS: Final = 100_000
_WIDTH: Final = 1024  # floats of a row, as of densenet121


def writing(folder: Path, *, n: int, batch_size: int, repeats: int) -> dict[str, Any]:
    """Compare featx's cache with numpy.save: n rows of 1,024 floats, both synced to the disk.

    featx gets its rows batch by batch with each image's SHA-256, and checks and commits them as it
    goes; numpy.save gets all at once. What they get is there before their time begins. What both
    hold at the end is compared first.
    """
    features = np.random.default_rng(0).random((n, _WIDTH), np.float32)
    seconds: dict[str, list[float]] = {"featx": [], "numpy.save": []}
    cache, array = folder / "rows.h5", folder / "rows.npy"
    for i in range(repeats):
        seconds["featx"].append(_write_cache(cache, features, batch_size))
        seconds["numpy.save"].append(_save(array, features))
        if i == 0:
            import featx

            assert np.array_equal(featx.load(cache).features, features)
            assert np.array_equal(np.load(array, mmap_mode="r"), features)
        cache.unlink()
        array.unlink()
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    return {
        "rows": n,
        "row_bytes": features.nbytes // n,
        "batch_size": batch_size,
        "seconds": {name: [round(s, 4) for s in values] for name, values in seconds.items()},
        "mb_per_s": {
            name: round(features.nbytes / 1e6 / statistics.median(values), 1)
            for name, values in seconds.items()
        },
        "featx_over_numpy": round(statistics.median(ratios), 3),
        "featx_over_numpy_range": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def _write_cache(path: Path, features: np.ndarray, batch_size: int) -> float:
    n = len(features)
    rows = Rows(
        paths=[b"%08d.jpg" % i for i in range(n)],
        labels=np.zeros(n, np.int64),
        split=np.zeros(n, np.uint8),
        groups=np.full(n, -1, np.int64),
        size_bytes=np.ones(n, np.int64),
        mtime_ns=np.ones(n, np.int64),
        classes=("none",),
    )
    sha256 = np.random.default_rng(1).integers(0, 256, (n, 32), np.uint8)
    numbers = np.arange(n)
    parts = [slice(start, min(n, start + batch_size)) for start in range(0, n, batch_size)]
    batches = [(numbers[part], features[part], sha256[part]) for part in parts]
    begun = time.perf_counter()
    writer = CacheWriter.create(
        path, rows, root="/", spec={"backbone": "none"}, plan={}, feature_shape=(_WIDTH,)
    )
    for batch in batches:
        writer.put(*batch)
    writer.finish(path, {})
    return time.perf_counter() - begun


def _save(path: Path, features: np.ndarray) -> float:
    begun = time.perf_counter()
    with path.open("wb") as file:
        np.save(file, features)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/")
    asked = parser.parse_args()
    told = machine.circumstances("python -m benchmarks.limits")
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        told["writing"] = writing(
            Path(folder), n=WRITTEN_ROWS, batch_size=asked.batch_size, repeats=asked.repeats
        )
    out = asked.out or machine.results_path(told, "writing")
    out.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    rates = ", ".join(
        f"{name} {rate:,.0f} MB/s" for name, rate in told["writing"]["mb_per_s"].items()
    )
    print(f"{told['writing']['featx_over_numpy']} of numpy.save's rate ({rates}); wrote {out}")


if __name__ == "__main__":
    main()
