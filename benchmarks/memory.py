"""How much memory a large cache takes, stage by stage, without a network or images.

    python benchmarks/memory.py [--rows 1000000] [--features 1024] [--folder FOLDER] [--json]

Each stage runs in a process of its own: rows are written through the pipeline, the finished file
is loaded, looked over, verified, and extended by one row in a hundred. Printed is the peak of the
process's memory above its size at start-up, and what one row adds if all of it were due to rows.
FOLDER needs room for two caches (8.6 GB at the defaults); what is written there is removed.
Linux only: the peak is VmHWM of /proc/self/status.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import featx
from featx.cache import CacheWriter, Rows, decide, open_cache, verify
from featx.forward import run
from featx.loading import Picture

BATCH = 256
LIMIT_BYTES = 2**30
NEW_SHARE = 0.01
SPEC = {"backbone": "none", "cut": "none"}


class FakeEngine:
    """Gives every image of a batch the same random features, as fast as memory goes."""

    name = "fake"
    concurrency = 1
    batch_size = BATCH

    def __init__(self, d: int) -> None:
        self.feature_shape: tuple[int, ...] = (d,)
        self._features = np.random.default_rng(0).normal(size=(BATCH, d)).astype(np.float32)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        return self._features.copy()


def fake_load(row: int) -> Picture:
    return Picture(np.zeros((1, 1, 3), np.uint8), row.to_bytes(32, "little"))


def rows_of(n: int) -> Rows:
    numbers = np.arange(n)
    return Rows(
        paths=[b"class_%03d/image_%09d.jpg" % (i // 10_000, i) for i in range(n)],
        labels=numbers // 10_000,
        split=np.zeros(n, np.uint8),
        groups=np.full(n, -1),
        size_bytes=numbers + 10_000,
        mtime_ns=numbers + 10**18,
        classes=[f"class_{i:03d}" for i in range(n // 10_000 + 1)],
    )


def write(path: Path, n: int, d: int) -> None:
    """Decide, create or extend, send all pending rows through the pipeline, finish."""
    rows = rows_of(n)
    decision = decide(
        rows,
        SPEC,
        root="/none",
        complete=open_cache(path) if path.exists() else None,
        partial=None,
        hashes=lambda images: [None for _ in images],
    )
    writer = CacheWriter.create(
        path,
        rows,
        root="/none",
        spec=SPEC,
        plan={},
        feature_shape=(d,),
        source=decision.source,
        source_rows=decision.source_rows,
    )
    items = ((row, row) for row in writer.pending.tolist())
    run(items, fake_load, engine=FakeEngine(d), sink=writer)
    writer.finish(path, {"images": n})


def stage_write(path: Path, n: int, d: int) -> None:
    write(path, n, d)


def stage_load(path: Path, n: int, d: int) -> None:
    features = featx.load(path)
    assert features.X.shape == (n, d)
    assert len(features.y) == n


def stage_decide(path: Path, n: int, d: int) -> None:
    cache = open_cache(path)
    made = decide(
        rows_of(n),
        SPEC,
        root="/none",
        complete=cache,
        partial=None,
        hashes=lambda images: [None for _ in images],
    )
    assert made.action == "reuse"


def stage_verify(path: Path, n: int, d: int) -> None:
    assert verify(path).ok


def stage_extend(path: Path, n: int, d: int) -> None:
    write(path, n + max(1, int(n * NEW_SHARE)), d)


STAGES: dict[str, Callable[[Path, int, int], None]] = {
    "write": stage_write,
    "load": stage_load,
    "decide": stage_decide,
    "verify": stage_verify,
    "extend": stage_extend,
}


def memory_bytes(field: str) -> int:
    """A field of /proc/self/status, such as VmRSS or VmHWM."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"no {field} in /proc/self/status: this benchmark needs Linux")


def measure(stage: str, path: Path, n: int, d: int) -> dict[str, float]:
    """Run one stage in this process; its peak above start-up, and its seconds."""
    start = memory_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # the peak counts from here
    begun = time.perf_counter()
    STAGES[stage](path, n, d)
    seconds = time.perf_counter() - begun
    return {"peak_bytes": memory_bytes("VmHWM") - start, "start_bytes": start, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=1_024)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        found = measure(arguments.stage, arguments.cache, arguments.rows, arguments.features)
        print(json.dumps(found))
        return
    figures = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="featx-memory-") as folder:
        for stage in STAGES:
            command = [
                *(sys.executable, __file__, "--stage", stage),
                *("--cache", os.fspath(Path(folder) / "a.h5")),
                *("--rows", str(arguments.rows), "--features", str(arguments.features)),
            ]
            made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            figures[stage] = found = json.loads(made.stdout)
            if not arguments.json:
                print(
                    f"{stage:8} {found['peak_bytes'] / 2**20:7.0f} MiB above start-up "
                    f"({found['start_bytes'] / 2**20:.0f} MiB), "
                    f"{found['peak_bytes'] / arguments.rows:.0f} bytes a row, "
                    f"{found['seconds']:.1f} s",
                    flush=True,
                )
    if arguments.json:
        print(json.dumps(figures))
    if max(found["peak_bytes"] for found in figures.values()) > LIMIT_BYTES:
        raise SystemExit("a stage took more than 1 GiB above its start-up size")


if __name__ == "__main__":
    main()
