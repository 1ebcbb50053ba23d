"""`featx export` and `featx import`: features and networks for other programs, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from featx.cli.options import CacheDir, Json, OwnBackbone, Seed
from featx.cli.output import (
    command,
    exit_if_failed,
    out,
    print_json,
    table,
    tell,
    tell_failures,
)
from featx.errors import InputError


@command
def export(
    cache: Annotated[
        Path | None,
        typer.Argument(
            help="A cache, the newest in --cache-dir if none is named; a head for a state-dict."
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            help="parquet, npz or csv, or what the ending of --out says; state-dict for a whole "
            "network: a head as the last layer of its backbone."
        ),
    ] = None,
    out_file: Annotated[
        Path | None, typer.Option("--out", help="The file, instead of the cache's name beside it.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Only these rows: train, val or held-out.")
    ] = None,
    force: Annotated[
        bool, typer.Option(help="Replace a file of other content that has this name.")
    ] = False,
    test_fraction: Annotated[
        float, typer.Option(help="Held out, where the images have no split of their own.")
    ] = 0.2,
    seed: Seed = 0,
    weights: Annotated[
        str | None,
        typer.Option(help="Of a head: the backbone's weights file; as recorded if not given."),
    ] = None,
    backbone: OwnBackbone = None,
    cache_dir: CacheDir = Path("cache"),
    json_output: Json = False,
) -> None:
    """Write features, labels, split and hashes of a cache to one file for other programs.

    Images without features have no row there; they are named, and the exit code is 3. Of a head
    (--to state-dict) the whole network is written, as torchvision's own, and class_indices.json.
    """
    from featx.exporting import export as run

    if to == "state-dict" or (cache is not None and cache.suffix == ".safetensors"):
        if split is not None or (test_fraction, seed) != (0.2, 0):
            raise InputError("--split, --test-fraction and --seed choose rows; a head has none")
        network = {"backbone": backbone, "weights": weights, "force": force}
        _export_network(cache, out_file, to, json_output=json_output, **network)
        return
    if weights is not None or backbone is not None:
        raise InputError("--weights and --backbone are of a head's network; a cache needs none")
    done = run(
        cache,
        out_file,
        to=to,
        split=split,
        seed=seed,
        test_fraction=test_fraction,
        force=force,
        cache_dir=cache_dir,
    )
    if json_output:
        print_json(
            {
                "file": str(done.path),
                "cache": str(done.cache),
                "rows": done.n,
                "failed": len(done.failed),
                "written": done.written,
                "size_bytes": done.path.stat().st_size,
            }
        )
    else:
        size = f"{done.path.stat().st_size / 1e6:,.1f} MB"
        out().print(f"{done.path}: {done.n:,} rows of {done.cache}, {size}")
    if not done.written:
        tell("nothing to do: the file is there already, with this very content")
    tell_failures(done.failed)
    exit_if_failed(done.failed)


def _export_network(
    head: Path | None,
    out_file: Path | None,
    to: str | None,
    *,
    json_output: bool,
    **network: Any,
) -> None:
    if to != "state-dict" or head is None:
        raise InputError(
            "a head becomes the last layer of its network: featx export HEAD.safetensors --to "
            "state-dict"
        )
    from featx.whole_network import export_network

    done = export_network(head, out_file, **network)
    if json_output:
        paths = {"file": str(done.path), "class_indices": str(done.class_indices)}
        print_json({key: value for key, value in vars(done).items() if key != "path"} | paths)
        return
    size = f"{done.path.stat().st_size / 1e6:,.1f} MB"
    out().print(f"{done.path}: a network of {len(done.classes)} classes, {size}")
    if not done.written:
        tell("nothing to do: the files are there already, with this very content")
    folded = ["standardisation"] if done.standardised else []
    folded += [f"the temperature {done.temperature:.3g}"] if done.temperature else []
    also = f", {' and '.join(folded)} folded in" if folded else ""
    tell(f"the head {'is' if done.standardised else 'ends in'} its last layer ({done.layer}){also}")
    tell(f"images: {done.transform}; classes: {done.class_indices}")
    tell(f"network = {done.make}")
    tell(f"network.load_state_dict(torch.load({str(done.path)!r}, weights_only=True))")


@command
def import_features(
    features: Annotated[
        Path, typer.Argument(metavar="FEATURES.npy", help="(n, d) or maps (n, c, h, w), floats.")
    ],
    images: Annotated[
        Path,
        typer.Argument(
            metavar="TABLE.csv",
            help="path[,label][,split][,group], one row for each of the features, in their order.",
        ),
    ],
    out_file: Annotated[
        Path | None, typer.Option("--out", help="The cache file, instead of --name's.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="What computed the features; the name of the NPY file if not given."),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="Folder that paths are relative to; the CSV's.")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="The file that computed the features, as the network's weights; it is only "
            "hashed. Caches of one --name and one such file fit the same heads."
        ),
    ] = None,
    max_failed: Annotated[
        float, typer.Option(help="Share of rows, 0 to 1, that may hold values that are not finite.")
    ] = 0.1,
    force: Annotated[bool, typer.Option(help="Replace another cache of this name.")] = False,
    cache_dir: CacheDir = Path("cache"),
    json_output: Json = False,
) -> None:
    """Make a cache of features that were computed elsewhere: fit-head, evaluate, export take it.

    Rows with values that are not finite are recorded as failed, named and left out (exit code 3).
    """
    from featx.importing import import_features as run

    done = run(
        features,
        images,
        out=out_file,
        name=name,
        root=root,
        weights=weights,
        max_failed=max_failed,
        force=force,
        cache_dir=cache_dir,
        tell=tell,
    )
    made = done.features
    n, shape = len(made) + len(made.failed), "x".join(map(str, made.features.shape[1:]))
    facts = {
        "cache": str(made.path),
        "images": n,
        "failed": len(made.failed),
        "features": f"{shape} {made.features.dtype}",
        "classes": len(made.classes),
        "hashed": done.hashed,
        "written": done.written,
        "fingerprint": made.fingerprint,
    }
    if json_output:
        print_json(facts)
    else:
        columns = ("cache", "images", "failed", "features", "classes")
        shown = table(None, *columns)
        shown.add_row(*(f"{facts[column]}" for column in columns))
        out().print(shown)
    if not done.written:
        tell("nothing to do: the cache is there already, with this very content")
    tell(
        f"{done.hashed:,} of {n:,} images are there and known by the SHA-256 of their files"
        + (", the others by their path and features" if done.hashed < n else "")
    )
    tell_failures(made.failed)
    exit_if_failed(made.failed)


@command
def convert_weights(
    weights: Annotated[
        Path, typer.Argument(metavar="WEIGHTS", help="A .pth or .safetensors file.")
    ],
    backbone: Annotated[str, typer.Option(help="The network that the weights are for.")],
    out_file: Annotated[Path, typer.Option("--out", help="The new file, .pth.")],
    drop_keys: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Keys to leave out: 'projector.*'. May be repeated."),
    ] = None,
    rename_keys: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OLD=NEW",
            help="What keys begin with, and what is to stand there instead: encoder.= takes it "
            "off. Wrappers (state_dict), and module., model., net. and the like where all keys "
            "have them, are off already. May be repeated; after --drop-keys, in order.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option(help="Replace a file of other content that has this name.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Write weights of other key names as a file that fits a network, for --weights.

    Keys that are missing or unexpected all the same are counted, the first named, and nothing is
    written; only the classifier may be missing.
    """
    wrong = [pair for pair in rename_keys or () if "=" not in pair]
    if wrong:
        raise InputError(f"--rename-keys takes OLD=NEW, got {wrong[0]!r}")
    from featx.converting import convert_weights as run

    pairs = [pair.partition("=") for pair in rename_keys or ()]
    done = run(
        weights,
        out_file,
        backbone=backbone,
        drop_keys=drop_keys or (),
        rename_keys=[(old, new) for old, _, new in pairs],
        force=force,
    )
    for note in done.notes:
        tell(note)
    if not done.written:
        tell("nothing to do: the file is there already, with this very content")
    if json_output:
        print_json(vars(done) | {"path": str(done.path)})
        return
    dropped = f" ({', '.join(done.dropped[:4])}{', …' * (len(done.dropped) > 4)})"
    out().print(
        f"{done.path}: {done.n_keys:,} keys, {len(done.renamed):,} renamed, "
        f"{len(done.dropped):,} dropped{dropped if done.dropped else ''}"
    )
