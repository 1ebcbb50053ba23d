"""How fast featx takes features of a folder of photographs, beside others on the same work.

    pip install --group bench
    python -m benchmarks.extraction [--images FOLDER] [--n N] [--networks densenet121 resnet50] ...

Run it from the root of the repository. The work is that of users: a folder of photographs in class
folders becomes a file of features. Peers (see `benchmarks.peers`): `script`, the one that everyone
writes with ImageFolder, DataLoader, a hook and h5py; `loop`, the loop of the tutorials;
`img2vec`, which is img2vec_pytorch; `timm`, which is timm's way of inference. Every one gets the
same images, the same weights (a file of seeded random ones that the benchmark writes, or yours by
``--weights``), and as many threads as there are cores; featx runs with its defaults.

Every run is a fresh process; the images lie in memory; each network's runs take turns (A B A B), so
that whatever else the machine does falls on all. Before that each runs once on a few images,
untimed; there featx compiles its engine, which it keeps, if it has one to compile. Two rates are
kept: images over the seconds of the whole process, imports and all, and `steady` without imports
and the building of the network, by each one's own clock. Medians count, and ratios are medians of
the ratios of each turn.

No time is told before the features of every timed run were compared, image by image:

- featx ``--decode exact`` with the torch engine equals the script to 1e-5 of a row's largest
  feature (1e-4 on CUDA), with its own choice of engine to 1e-4;
- featx with its defaults, which are timed, equals ``--decode exact`` to 5e-3, and with weights that
  are not random, no image is of another class by the network's own last layer;
- every peer equals the script to 1e-4. img2vec, which squashes images and takes DenseNet's features
  before the last ReLU, is compared in a run of its own, on the weights' own pixels.

On CUDA the script in fp32 without TF32 is the reference; what computes in TF32 or fp16 is compared
with it by angle (1 minus the cosine at most 1e-3). Who disagrees gets no times (where it is featx,
nobody does), and the program ends with exit code 1.

Beside the rates stands a roof: the rate of large matrix products on this machine, the best of all
turns, over the operations of the network for each image. No program passes it that does not use
fewer operations; networks bound by memory stay well below it.

Temporary files go where `tempfile` puts them (TMPDIR); they take the size of the images once where
these lie on another file system, and 800 MB for the comparison of writing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from benchmarks import limits, machine, networks
from benchmarks.measurement import Result, measure, names_of, request_of
from benchmarks.peers import Request, unsupported
from benchmarks.photographs import Gathered, draw_photographs, gather
from benchmarks.runs import RunFailed, has_option, run
from featx.devices import resolve_device

DRAWN: Final = 600
NETWORKS: Final = ("densenet121", "resnet50", "mobilenet_v2")
PEERS: Final = {
    "cpu": ("script", "loop", "img2vec", "timm"),
    "cuda": ("script", "script-amp", "loop", "img2vec", "timm", "timm-amp"),
}
BATCH_SIZE: Final = {"cpu": 16, "cuda": 128}
PACKAGES: Final = {"img2vec": "img2vec_pytorch", "timm": "timm"}
PHOTOGRAPHS: Final = Path(os.environ.get("FEATX_REAL_DATA", "../shared"), "data", "birds")


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=Path, help=f"{PHOTOGRAPHS}, or {DRAWN} drawn here")
    parser.add_argument("--n", type=int, help="so many images, evenly spread over the folder")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--peers", nargs="+", help="all by default")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--engine", help="of featx, where it has several; its own choice if unset")
    parser.add_argument("--weights", action="append", default=[], metavar="NETWORK=FILE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="the results, benchmarks/results/… by default")
    asked = parser.parse_args(words)
    asked.device = resolve_device(asked.device).kind
    if asked.device not in PEERS:
        parser.error(f"--device must be cpu or cuda, got {asked.device}")
    asked.peers = asked.peers or list(PEERS[asked.device])
    for name in asked.peers:
        if name not in PEERS[asked.device]:
            parser.error(f"--peers must be of {', '.join(PEERS[asked.device])}, got {name}")
        package = PACKAGES.get(name.partition("-")[0])
        if package and importlib.util.find_spec(package) is None:
            parser.error(f"{package} is not installed: pip install --group bench, or name --peers")
    if asked.engine and not has_option("engine"):
        parser.error("this featx has one engine only; leave out --engine")
    asked.weights = dict(pair.split("=", 1) for pair in asked.weights)
    if asked.images is None and PHOTOGRAPHS.is_dir():
        asked.images = PHOTOGRAPHS
    return asked


def main(words: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    asked = parse(words)
    told = machine.circumstances("python -m benchmarks.extraction")
    with tempfile.TemporaryDirectory(prefix="featx-benchmark-") as folder:
        work = Path(folder)
        images = gather_images(asked, work)
        tell(f"{images.count} images, {images.size_bytes / images.count / 1e3:.0f} kB each")
        for reason, count in images.left_out.items():
            tell(f"left out: {count} {reason}")
        told["work"] = {**asdict(images), "folder": images.source, "device": asked.device}
        del told["work"]["source"]
        results, told["networks"] = {}, {}
        for network in asked.networks:
            try:
                result, warm_up = bench_network(network, asked, images, work)
            except RunFailed as failed:
                tell(f"{network}: {failed}")
                return 1
            results[network] = result
            told["networks"][network] = summary(network, result, images.count)
            told["networks"][network]["warm_up_wall_s"] = warm_up
        told["writing"] = limits.writing(
            work, n=limits.WRITTEN_ROWS, batch_size=BATCH_SIZE[asked.device], repeats=asked.repeats
        )
    out = asked.out or machine.results_path(told, "extraction")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    show(told)
    tell(f"results: {out}")
    return 0 if all(result.ok for result in results.values()) else 1


def gather_images(asked: argparse.Namespace, work: Path) -> Gathered:
    """The images of the benchmark, drawn where there are none."""
    if asked.images is not None:
        return gather(asked.images, work / "images", n=asked.n)
    drawn = work / f"drawn-with-seed-{asked.seed}"
    draw_photographs(drawn, asked.n or DRAWN, seed=asked.seed)
    return gather(drawn, work / "images")


def bench_network(
    network: str, asked: argparse.Namespace, images: Gathered, work: Path
) -> tuple[Result, dict[str, float]]:
    """Prepare the weights, run each once on a few images, then measure.

    Returns also the seconds of the first run of each, in which featx may compile an engine.
    """
    weights = Path(asked.weights.get(network, work / f"{network}-seed{asked.seed}.pth")).resolve()
    if network not in asked.weights:
        networks.write_weights(network, weights, seed=asked.seed)
    environment = {"TORCH_HOME": f"{work / 'torch'}", "XDG_CACHE_HOME": f"{work / 'cache'}"}
    if any(name.startswith("img2vec") for name in asked.peers):
        networks.publish(network, weights, work / "torch")
    request = Request(
        peer="featx",
        network=network,
        weights=f"{weights}",
        folder=f"{images.folder}",
        out=f"{work / 'features'}",
        device=asked.device,
        batch_size=BATCH_SIZE[asked.device],
        threads=machine.cores(),
        workers=machine.cores(),
        options=("--engine", asked.engine) if asked.engine else (),
    )
    tell(f"{network}: each runs once on a few images, untimed")
    few = gather(images.folder, work / network, n=min(images.count, 2 * request.batch_size))

    def runner(request: Request) -> Any:
        return run(request, environment=environment)

    warm_up = {}
    for name in names_of([name for name in asked.peers if not unsupported(name, network)]):
        first = runner(request_of(name, Request(**{**asdict(request), "folder": f"{few.folder}"})))
        warm_up[name] = round(first.wall_s, 3)
    trained = network in asked.weights
    result = measure(
        request, asked.peers, repeats=asked.repeats, runner=runner, trained=trained, tell=tell
    )
    for comparison in result.comparisons:
        tell(f"  {network}: {comparison}")
    return result, warm_up


def summary(network: str, result: Result, n: int) -> dict[str, Any]:
    """One network's results as JSON: comparisons, times, rates, ratios, and the roof."""
    flops = networks.flops_per_image(network)
    rows = {name: _row(name, result, n) for name in result.turns}
    roof = {name: round(rate / flops, 2) for name, rate in result.gemm.items()}
    if "featx" in rows:
        for name in ("featx", "featx-amp"):
            if name in rows:
                limit = roof["fp16" if name.endswith("-amp") else "fp32"]
                rows[name]["share_of_roof"] = {
                    key: round(rows[name][key] / limit, 3)
                    for key in ("images_per_s", "steady_images_per_s")
                }
    return {
        "agree": result.ok,
        "comparisons": [
            {**asdict(c), "largest": c.largest if math.isfinite(c.largest) else None, "ok": c.ok}
            for c in result.comparisons
        ],
        "left_out": result.left_out,
        "runs": rows,
        "gflop_per_image": round(flops / 1e9, 4),
        "gemm_gflop_per_s": {name: round(rate / 1e9, 1) for name, rate in result.gemm.items()},
        "roof_images_per_s": roof,
    }


def _row(name: str, result: Result, n: int) -> dict[str, Any]:
    turns = result.turns[name]
    ours = result.turns.get("featx-amp" if name.endswith("-amp") else "featx", [])
    row: dict[str, Any] = {
        "wall_s": [round(turn.wall_s, 3) for turn in turns],
        "steady_s": [round(turn.steady_s, 3) for turn in turns],
        "images_per_s": round(n / statistics.median(turn.wall_s for turn in turns), 2),
        "steady_images_per_s": round(n / statistics.median(turn.steady_s for turn in turns), 2),
        "largest_difference": result.largest(name),
    }
    if name.startswith("featx"):
        return {**row, "plan": dict(turns[-1].plan)}
    for key in ("wall_s", "steady_s"):
        pairs = zip(turns, ours, strict=True) if ours else ()
        ratios = [getattr(theirs, key) / getattr(featx, key) for theirs, featx in pairs]
        if ratios:
            row[f"featx_over_this_{key[:-2]}"] = round(statistics.median(ratios), 3)
            row[f"range_{key[:-2]}"] = [round(min(ratios), 3), round(max(ratios), 3)]
    return row


def show(told: dict[str, Any]) -> None:
    """Print the table, and the limits below it."""
    head = ("network", "who", "images/s", "steady", "featx is", "steady", "difference")
    print(("{:14} {:11}" + "{:>10}" * 4 + "{:>12}").format(*head))
    for network, found in told["networks"].items():
        for name, row in found["runs"].items():
            ratios = [row.get(f"featx_over_this_{key}") for key in ("wall", "steady")]
            print(
                f"{network:14} {name:11}{row['images_per_s']:10.1f}"
                f"{row['steady_images_per_s']:10.1f}"
                + "".join(f"{f'{ratio:.2f} x' if ratio else '':>10}" for ratio in ratios)
                + f"{row['largest_difference']:12.1e}"
            )
        for name, reason in found["left_out"].items():
            print(f"{network:14} {name:11}left out: {reason}")
        for name in ("featx", "featx-amp"):
            if share := found["runs"].get(name, {}).get("share_of_roof"):
                precision = "fp16" if name.endswith("-amp") else "fp32"
                print(
                    f"{network:14} {name:11}{share['images_per_s']:.2f} of the {precision} roof, "
                    f"{found['roof_images_per_s'][precision]:.1f} images/s, "
                    f"{share['steady_images_per_s']:.2f} when steady"
                )
    writing = told["writing"]
    rates = ", ".join(f"{name} {rate:.0f} MB/s" for name, rate in writing["mb_per_s"].items())
    print(f"writing: {rates}; featx is {writing['featx_over_numpy']:.2f} x")


def tell(sentence: str) -> None:
    """Say how far it is, on standard error."""
    print(sentence, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
