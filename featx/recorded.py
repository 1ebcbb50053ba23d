"""The pipeline that made a cache, built again from what its cache or a head records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from featx.errors import HeadError, InputError, WeightsError
from featx.foreign import check_computable, is_imported
from featx.heads.base import Head
from featx.identity import BackboneIdentity, FrontIdentity
from featx.own_network import code_sha256, is_own, name_if_given, trusted_name
from featx.passes import Pipeline
from featx.pipeline import MAX_SAMPLES, build_pipeline, pixel_pipeline
from featx.specs import PIXEL_TYPE, ExtractOptions
from featx.transforms import Transform
from featx.weight_files import check_made_with, is_local_weights, sha256_file

if TYPE_CHECKING:
    from featx.frozen import Backbone

# What a spec must say for the pipeline to be built again.
_RECORD: Final = {
    "backbone": str,
    "weights_sha256": str,
    "cut": str,
    "pool": str,
    "decode": str,
    "exif": bool,
    "max_pixels": int,
    "precision": str,
    "transform": dict,
}


def pipeline_of_spec(
    spec: Mapping[str, Any],
    plan: Mapping[str, Any],
    *,
    backbone: str | None = None,
    weights: str | None = None,
    engine: str = "auto",
    device: str = "auto",
    precision: str | None = None,
    batch_size: int | None = None,
    files: Sequence[Path] = (),
) -> Pipeline:
    """The pipeline that made a cache, from its recorded spec.

    Weights are looked for at `weights`, else where they lay then, else by their published name;
    for pixels none are needed. `backbone` is needed where the user's own code made the network.
    `files` are those it is for.

    Raises
    ------
    HeadError
        The features were imported; the weights found are not the ones recorded, for their SHA-256
        differs; or the user's own code is not what it was.
    WeightsError
        No weights can be found.
    """
    check_computable(spec)
    _check_record(spec, plan)
    recorded = plan["weights"]
    options = options_of_spec(
        spec, plan, backbone=backbone, weights=weights, device=device, batch_size=batch_size
    )
    options = replace(options, engine=engine, precision=precision or options.precision)
    if _is_of_pixels(spec):
        return pixel_pipeline(_recorded_backbone(spec, plan), options)
    _check_recorded_file(recorded, weights, spec)
    pipeline = build_pipeline(
        options,
        transform=Transform.from_dict(spec["transform"]),
        samples=files[:MAX_SAMPLES],
        n_images=len(files) or None,
    )
    _check_weights(spec, pipeline.backbone.weights_sha256, options.weights)
    _check_code(spec, pipeline.front.code_sha256, options.backbone)
    return pipeline


def backbone_of_spec(
    spec: Mapping[str, Any],
    plan: Mapping[str, Any],
    *,
    backbone: str | None = None,
    weights: str | None = None,
) -> Backbone:
    """The whole network that made a cache, from its recorded spec.

    Parameters and errors as of `pipeline_of_spec`.
    """
    from featx.backbones import load_backbone
    from featx.cut import build_front

    check_computable(spec)
    _check_record(spec, plan)
    options = options_of_spec(spec, plan, backbone=backbone, weights=weights)
    _check_recorded_file(plan["weights"], weights, spec)
    loaded = load_backbone(options.backbone, weights=options.weights, seed=options.seed)
    loaded = replace(loaded, transform=Transform.from_dict(spec["transform"]))
    _check_weights(spec, loaded.weights_sha256, options.weights)
    if is_own(loaded.name) and not _is_of_pixels(spec):  # which no code made
        front = build_front(
            loaded.network, cut=options.cut, pool=options.pool, input_shape=loaded.traced_at
        )
        _check_code(spec, code_sha256(front.body), options.backbone)
    return loaded


def _is_of_pixels(spec: Mapping[str, Any]) -> bool:
    return FrontIdentity(spec["cut"], spec["pool"], spec.get("layout", "")).is_pixels


def _check_weights(spec: Mapping[str, Any], found: str, weights: str) -> None:
    check_made_with(spec["weights_sha256"], found, backbone=spec["backbone"], weights=weights)


def _check_code(spec: Mapping[str, Any], found: str, backbone: str) -> None:
    """Refuse code that computes something else than what made the features."""
    if spec.get("code_sha256", "") != found:
        raise HeadError(
            f"{backbone} computes something else than the {spec['backbone']} that made the "
            "features: its layers or its code have changed (or PyTorch, which tells of them); "
            "restore the code, or extract the features and fit the head again"
        )


def options_of_spec(
    spec: Mapping[str, Any],
    plan: Mapping[str, Any],
    *,
    backbone: str | None = None,
    weights: str | None = None,
    device: str = "auto",
    batch_size: int | None = None,
) -> ExtractOptions:
    """What was asked when a cache was made, but for the preprocessing, which the spec holds whole.

    Weights are those at `weights`, else where they lay then, else of their published name;
    `backbone` replaces the name recorded, see `featx.own_network.trusted_name`.
    """
    recorded = plan.get("weights", {})
    rules = spec.get("images", {})
    split_folders, dtype = rules.get("split_folders"), spec.get("dtype", ExtractOptions.dtype)
    return ExtractOptions(
        backbone=trusted_name(spec["backbone"], backbone),
        weights=weights or _recorded_weights(recorded, spec["backbone"]),
        seed=int(recorded.get("seed", 0)),
        cut=spec["cut"],
        pool=spec["pool"],
        decode=spec["decode"],
        exif=spec["exif"],
        max_pixels=spec["max_pixels"],
        precision=spec["precision"],
        dtype=ExtractOptions.dtype if dtype == PIXEL_TYPE else dtype,
        store_size=spec.get("store_size"),
        device=device,
        batch_size=batch_size,
        label_from=rules.get("label_from", "first"),
        split_folders=split_folders if isinstance(split_folders, bool) else None,
    )


def settle_on_features(estimator: Head, spec: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
    """Set the parameters of a head that the features settle, of a tail its network; in place.

    Parameters
    ----------
    estimator : heads of other kinds have none. The `weights` of a tail, if not None, say where
        they are now, or of pixels with which training starts; its `backbone` is needed where the
        user's own code made the network.
    spec, plan : of the cache that it is to be fitted on.

    Raises
    ------
    InputError
        Features that a tail cannot be fitted on: pooled ones, or imported ones.
    HeadError, WeightsError
        As `pipeline_of_spec`.
    """
    if not estimator.OF_FEATURES:
        return
    if is_imported(spec):
        raise InputError("a tail needs the network that made the features, but these were imported")
    _check_record(spec, plan)
    if spec["pool"] != "none":
        raise InputError(
            f"a tail needs features as they enter it, but these were pooled ({spec['pool']}): "
            "extract them with --pool none, at the cut from which it is to be trained"
        )
    asked = estimator.get_params()
    weights, backbone = asked["weights"], None
    if is_own(spec["backbone"]):
        is_asked = is_own(asked["backbone"])
        backbone = asked["backbone"] if is_asked else name_if_given(spec["backbone"])
    _check_recorded_file(plan["weights"], weights, spec)
    options = options_of_spec(spec, plan, backbone=backbone, weights=weights)
    any_weights = weights is not None and _is_of_pixels(spec)  # they had no part in the pixels
    estimator.set_params(
        backbone=options.backbone,
        weights=options.weights,
        weights_seed=options.seed,
        weights_sha256=None if any_weights else spec["weights_sha256"],
        cut=options.cut,
        shape=tuple(spec["shape"]),
        transform=spec["transform"],
    )


def _check_record(spec: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
    """Refuse a spec or plan that lacks what it takes to build the pipeline again."""
    weights = plan.get("weights")
    parts = [(spec, name, kind) for name, kind in _RECORD.items()]
    parts.append((plan, "weights", dict))
    if isinstance(weights, dict):
        parts += [({"seed": 0, "path": "", "name": "", **weights}, "seed", int)]
        parts += [({"path": "", "name": "", **weights}, name, str) for name in ("path", "name")]
    wrong = [name for values, name, kind in parts if type(values.get(name)) is not kind]
    if wrong:
        raise HeadError(
            f"it does not say how its features were made ({', '.join(wrong)} missing or garbled); "
            "extract the features and fit the head again"
        )


def _recorded_backbone(spec: Mapping[str, Any], plan: Mapping[str, Any]) -> BackboneIdentity:
    """The backbone as it is recorded; neither its weights nor its classes are looked at."""
    return BackboneIdentity(
        name=spec["backbone"],
        transform=Transform.from_dict(spec["transform"]),
        classes=(),
        weights=str(plan["weights"].get("name", "")),
        weights_sha256=spec["weights_sha256"],
        weights_path=None,
        notes=(),
    )


def _check_recorded_file(
    recorded: Mapping[str, Any], weights: str | None, spec: Mapping[str, Any]
) -> None:
    """Refuse a recorded weights file that is not the one, before anything in it is read.

    The record may come from a stranger: it must not make featx parse a file of its choosing.
    """
    path = recorded.get("path") or ""
    if weights is not None or not path:
        return
    if is_local_weights(path):
        _check_weights(spec, sha256_file(path), path)
    elif Path(path).name == recorded["name"]:
        gone = "is no plain file of weights" if Path(path).exists() else "is no longer there"
        raise WeightsError(
            f"the features were made with {spec['backbone']} weights from {path} (SHA-256 "
            f"{spec['weights_sha256'][:16]}…), which {gone}; give the file with --weights"
        )


def _recorded_weights(recorded: Mapping[str, Any], backbone: str) -> str:
    path, name = recorded.get("path"), str(recorded.get("name") or "default")
    if path and is_local_weights(path):
        return str(path)
    if Path(name).name != name:
        raise HeadError(f"it records {name[:80]!r} as the name of its weights; give --weights")
    # timm's own weights have no file that featx knows of; their hash is checked all the same
    return "default" if backbone.startswith("timm:") and name != "random" else name
