"""How fast a folder of which nothing has changed is recognised: listing, then the decision.

    python benchmarks/unchanged.py [--images 100000]

Makes that many small files and a finished cache of them, without a network, and times what a second
`featx extract` does before it says that nothing is to do, beside the bare walk with `os.scandir`
and `stat` that no program can do without. What both found is compared first.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from featx.cache import CacheWriter, Decision, Rows, decide, open_cache
from featx.images import ImageTable, list_images

SPEC = {"backbone": "none"}
PER_FOLDER = 1_000


def make_folder(root: Path, n: int) -> None:
    for start in range(0, n, PER_FOLDER):
        folder = root / f"class{start // PER_FOLDER:04d}"
        folder.mkdir(parents=True)
        for i in range(start, min(n, start + PER_FOLDER)):
            (folder / f"{i:07d}.jpg").write_bytes(b"\xff\xd8")


def rows_of(table: ImageTable) -> Rows:
    names = ("paths", "labels", "split", "groups", "size_bytes", "mtime_ns", "classes")
    return Rows(**{name: getattr(table, name) for name in names})


def make_cache(path: Path, table: ImageTable) -> None:
    n = len(table)
    writer = CacheWriter.create(
        path, rows_of(table), root=os.fspath(table.root), spec=SPEC, plan={}, feature_shape=(4,)
    )
    sha256 = np.random.default_rng(0).integers(0, 256, (n, 32), np.uint8)
    writer.put(np.arange(n), np.zeros((n, 4), np.float32), sha256)
    writer.finish(path, {})


def bare_walk(root: Path) -> int:
    n = 0
    for folder in os.scandir(root):
        for entry in os.scandir(folder.path):
            entry.stat()
            n += 1
    return n


def featx_look(root: Path, cache: Path) -> Decision:
    table = list_images(root)
    return decide(
        rows_of(table),
        SPEC,
        root=os.fspath(table.root),
        complete=open_cache(cache),
        partial=None,
        hashes=lambda images: [None for _ in images],
    )


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    begun = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, cache = Path(folder) / "images", Path(folder) / "images.h5"
        make_folder(root, asked.images)
        make_cache(cache, list_images(root))
        assert bare_walk(root) == asked.images
        assert featx_look(root, cache).action == "reuse"
        walks, looks = [], []
        for _ in range(asked.rounds):
            walks.append(timed(bare_walk, root)[1])
            looks.append(timed(featx_look, root, cache)[1])
    walk, look = min(walks), min(looks)
    print(f"bare walk  {asked.images / walk:12,.0f} files/s")
    print(f"featx      {asked.images / look:12,.0f} files/s  ({look / walk:.1f} times the walk)")


if __name__ == "__main__":
    main()
