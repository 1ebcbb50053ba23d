"""Commands that only look: `info`, `verify`, `backbones`, `cuts`, `doctor`."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featx.cli.options import CacheDir, Device, Json, MixPlans, OwnBackbone, OwnBackbones
from featx.cli.output import (
    command,
    exit_if_failed,
    out,
    print_json,
    table,
    tell,
    tell_failures,
)
from featx.cli.stopping import listening
from featx.counting import first_few
from featx.errors import EXIT_UNUSABLE, InputError
from featx.image_sources import shown
from featx.spelling import did_you_mean
from featx.versions import versions_of

if TYPE_CHECKING:
    from featx.cut import Cut


@command
def info(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="A cache (.h5, .h5.partial) or head; the newest cache if none is named."
        ),
    ] = None,
    _backbone: OwnBackbones = None,
    cache_dir: CacheDir = Path("cache"),
    json_output: Json = False,
) -> None:
    """What is in a cache or a head: spec, plan, counts, classes, run report."""
    from featx.workspace import newest_cache

    path = file or newest_cache(cache_dir)
    if path.suffix not in (".h5", ".partial", ".safetensors"):
        raise InputError(
            f"info takes a cache (.h5, .h5.partial) or a head (.safetensors), got {path}"
        )
    facts = _head_facts(path) if path.suffix == ".safetensors" else _cache_facts(path)
    if json_output:
        print_json(facts)
        return
    shown = table(None, "field", "value")
    for name, value in _flat(_in_short(facts)):
        shown.add_row(name, value)
    out().print(shown)


def _cache_facts(path: Path) -> dict[str, Any]:
    from featx.cache import open_cache, split_counts

    cache = open_cache(path, partial=True)
    labels = cache.read("labels")
    return {
        "cache": str(path),
        "complete": not cache.is_partial,
        "images": len(cache),
        "status": {s.words: count for s, count in cache.counts().items() if count},
        "features": f"{'x'.join(map(str, cache.feature_shape))} {cache.columns['features'].dtype}",
        "size_bytes": cache.size_bytes,
        "root": cache.root,
        "classes": {name: int((labels == i).sum()) for i, name in enumerate(cache.classes)},
        "unlabelled": int((labels < 0).sum()),
        "split": split_counts(cache.read("split")),
        "fingerprint": cache.fingerprint,
        "spec": cache.spec,
        "plan": cache.plan,
        "run": {key: value for key, value in cache.run.items() if key != "plans"},
    }


def _head_facts(path: Path) -> dict[str, Any]:
    from featx.heads.file import load_head

    file = load_head(path)
    return {"head": str(path), "kind": file.kind, "classes": list(file.classes), **file.metadata}


def _in_short(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts for a person: of the report that a final head keeps, what to say of the head."""
    final = facts.get("final")
    report = final.get("report") if isinstance(final, dict) else None
    if not isinstance(final, dict) or not isinstance(report, dict):
        return facts
    before = {name: value for name, value in final.items() if name != "report"}
    told = {name: report[name] for name in ("accuracy", "n", "tested_on") if name in report}
    return {**facts, "final": before | told}


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, item in value.items():
        if isinstance(item, dict):
            rows += _flat(item, f"{prefix}{key}.")
        else:
            text = ", ".join(map(str, item)) if isinstance(item, (list, tuple)) else str(item)
            rows.append((f"{prefix}{key}", text if len(text) <= 200 else f"{text[:197]}…"))
    return rows


@command
def verify(
    cache: Annotated[
        Path | None, typer.Argument(help="A cache; the newest in --cache-dir if none is named.")
    ] = None,
    cache_dir: CacheDir = Path("cache"),
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Copy the good rows to a new file, compute the others, replace it."
        ),
    ] = False,
    images: Annotated[
        str | None, typer.Option(help="Where the images are now; as recorded if not given.")
    ] = None,
    backbone: OwnBackbone = None,
    weights: Annotated[
        str | None, typer.Option(help="The backbone's weights file; as recorded if not given.")
    ] = None,
    device: Device = "auto",
    prune: Annotated[
        bool, typer.Option(help="Accept that the images have moved or that over a tenth are gone.")
    ] = False,
    mix_plans: MixPlans = False,
    json_output: Json = False,
) -> None:
    """Check every byte of a cache against its checksums; exit code 4 where one differs.

    With --repair a damaged cache is replaced by a whole one, made of its good rows and of new
    features for the others; the images and weights have to be there.
    """
    from featx.cache import verify as check
    from featx.workspace import newest_cache

    found = check(cache or newest_cache(cache_dir))
    mended = None
    if repair and not found.ok:
        from featx.repairing import repair as mend

        _tell_damage(found, tell)
        with listening("repair") as listener:
            mended = mend(
                found.path,
                images=images,
                backbone=backbone,
                weights=weights,
                device=device,
                prune=prune,
                mix_plans=mix_plans,
                listener=listener,
            )
    facts = {
        "cache": str(found.path),
        "ok": found.ok,
        "rows": found.n,
        "bad_rows": list(found.bad_rows),
        "bad_paths": list(found.bad_paths),
        "digest_matches": found.digest_matches,
        "bad_columns": list(found.bad_columns),
        "repaired": mended is not None,
    }
    if json_output:
        print_json(facts | ({"kept": mended.decision.kept} if mended is not None else {}))
    elif mended is not None:
        again, lost = mended.report.get("done", 0), mended.report.get("failed", 0)
        unusable = f"; {lost:,} could not be" if lost else ""
        out().print(
            f"{found.path}: repaired; {mended.decision.kept:,} rows copied, "
            f"{again:,} computed again{unusable}"
        )
    elif found.ok:
        out().print(f"{found.path}: all {found.n:,} rows and all metadata are as they were written")
    else:
        _tell_damage(found, out().print)
        tell(f"featx: {found.path} is damaged; mend it with `featx verify --repair {found.path}`")
    if mended is not None:
        tell_failures(mended.features.failed)
        exit_if_failed(mended.features.failed)
    elif not found.ok:
        raise typer.Exit(EXIT_UNUSABLE)


def _tell_damage(found: Any, say: Callable[[str], Any]) -> None:
    for row, path in zip(found.bad_rows, found.bad_paths, strict=True):
        say(f"row {row:,} is damaged: {shown(path)}")
    if not found.digest_matches:
        columns = ", ".join(found.bad_columns) or "bytes outside the features"
        say(f"damaged outside the features: {columns}")


@command
def backbones(
    pattern: Annotated[
        str, typer.Argument(help="Only names that hold this text.", show_default=False)
    ] = "",
    json_output: Json = False,
) -> None:
    """All networks that can be named as --backbone, with their published weights."""
    from featx.backbones import list_backbones

    infos = [info for info in list_backbones() if pattern.lower() in info.name]
    if json_output:
        print_json([{**vars(info)} for info in infos])
        return
    shown = table(
        None, "backbone", "family", "parameters", "input", "weights (* on this disk)",
        right=("parameters", "input"),
    )  # fmt: skip
    for info in infos:
        names = (f"{name}*" if name in info.downloaded else name for name in info.weights)
        shown.add_row(
            info.name,
            info.family,
            f"{info.params_millions:,.1f} M",
            f"{info.input_size}",
            ", ".join(names),
        )
    out().print(shown)
    tell(
        f"{len(infos)} backbones. timm's models too, as timm:NAME, with pip install 'featx[timm]'; "
        "your own as package.module:factory"
    )


@command
def cuts(
    backbone: Annotated[str, typer.Argument(help="Name of the network.")],
    patterns: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CUT]...",
            help="Only these: names, or quoted patterns such as 'features.denseblock*'.",
            show_default=False,
        ),
    ] = None,
    legal_only: Annotated[
        bool, typer.Option("--legal/--all", help="Only where nothing else crosses, or everything.")
    ] = True,
    json_output: Json = False,
) -> None:
    """Where a network can be cut: names for --cut, and what lies before and after each.

    Saved is the share of the network's multiply-adds that then run once for an image.
    """
    from featx.backbones import load_backbone
    from featx.cut import list_cuts

    loaded = load_backbone(backbone, weights="random")
    found = list_cuts(loaded.network, input_shape=loaded.input_shape)
    rows = [
        cut
        for cut in found
        if (cut.is_legal or not legal_only) and (not patterns or any(map(cut.matches, patterns)))
    ]
    if not rows:
        raise InputError(_no_cut(backbone, patterns or [], found))
    if json_output:
        print_json([{**vars(cut)} for cut in rows])
        return
    columns = ("bytes an image", "parameters before", "after", "saved")
    shown = table(None, "cut", "shape", "layout", *columns, "also", right=columns)
    for cut in rows:
        crossing = () if cut.is_legal else (f"crossed by {first_few(cut.crossing, _CROSSING)}",)
        shown.add_row(
            cut.name,
            "x".join(map(str, cut.shape)),
            cut.layout,
            f"{cut.size_bytes:,}",
            f"{cut.parameters_before:,}",
            f"{cut.parameters_after:,}",
            f"{cut.saved:.1%}",
            "; ".join((*cut.aliases, *cut.modules[:1], *crossing)),
        )
    out().print(shown)


def _no_cut(backbone: str, patterns: list[str], found: Sequence[Cut]) -> str:
    """What is wrong with patterns that none of the listed cuts fits."""
    lacks = f"{backbone} has no cut {' or '.join(patterns)}"
    for cut in found:
        if any(map(cut.matches, patterns)):
            by = first_few(cut.crossing, _CROSSING)
            return (
                f"{lacks} that nothing else crosses: what comes after {cut.name} also takes {by}; "
                "--all shows them"
            )
    names = {name for cut in found for name in (cut.name, *cut.aliases)}
    near = did_you_mean(" ".join(patterns), names)
    return f"{lacks}{near} `featx cuts {backbone}` lists all"


_CROSSING = 3  # values that cross a cut, by name; --json has them all
_PACKAGES = (
    "featx", "torch", "torchvision", "h5py", "numpy", "scikit-learn", "pillow", "simplejpeg",
    "isal", "safetensors", "openvino", "timm", "pillow-heif", "pyarrow",
)  # fmt: skip


@command
def doctor(cache_dir: CacheDir = Path("cache"), json_output: Json = False) -> None:
    """What this machine can do: devices, versions, decoders, weights on disk, free space."""
    import torch

    from featx.devices import resolve_device
    from featx.engines.choice import default_engine
    from featx.engines.store import folder as engine_folder
    from featx.resampling import why_pillow
    from featx.weights import checkpoint_folder

    device = resolve_device("auto")
    weights = checkpoint_folder()
    folder = cache_dir if cache_dir.is_dir() else Path()
    facts = {
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {**dict.fromkeys(_PACKAGES, "not installed"), **versions_of(_PACKAGES)},
        "device": str(device),
        "engine": default_engine(device, "fp32"),
        "cuda devices": [
            torch.cuda.get_device_name(i)
            for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
        ],
        "fast JPEG decoding": "simplejpeg"
        if importlib.util.find_spec("simplejpeg")
        else "no: Pillow is used",
        "fast resizing": f"no: Pillow is used; {why}"
        if (why := why_pillow("bilinear"))
        else "compiled",
        "HEIC": "yes"
        if importlib.util.find_spec("pillow_heif")
        else "no: pip install 'featx[heic]'",
        "prepared networks": str(engine_folder()),
        "weights folder": str(weights),
        "weights on disk": sorted(p.name for p in weights.glob("*.pth"))
        if weights.is_dir()
        else [],
        f"free space for {folder.resolve()}": f"{shutil.disk_usage(folder).free / 1e9:,.1f} GB",
    }
    if json_output:
        print_json(facts)
        return
    shown = table(None, "what", "found")
    for name, value in _flat(facts):
        shown.add_row(name, value or "none")
    out().print(shown)
