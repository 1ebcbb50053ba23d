"""The stage that runs networks: a folder of images becomes a cache, or several."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

from featx.datasets.packed import located
from featx.errors import InputError
from featx.featureset import FeatureSet
from featx.filling import Extraction as Extraction
from featx.filling import Listener as Listener
from featx.filling import fill_caches
from featx.home import at_home
from featx.identity import BackboneIdentity
from featx.images import list_images
from featx.specs import ExtractOptions, ExtractRules
from featx.target import Job, target_of

# What decides which pixels are found where; one image list and one decoded image serve all caches.
_SHARED: Final = ("decode", "exif", "max_pixels", "label_from", "split_folders")


def extract(
    images: str | os.PathLike[str],
    *,
    cache_dir: str | os.PathLike[str] = "cache",
    out: str | os.PathLike[str] | None = None,
    data_root: str | os.PathLike[str] = "data",
    **options: Any,
) -> FeatureSet:
    """Features of a folder of images: from the cache if they are there, else computed into it.

    Parameters
    ----------
    images : a folder of class folders (also below ``train/``, ``val/``, ``test/``), a flat
        folder, a CSV, a text list, a glob, the CUB-200-2011 archive, or a data set by name:
        ``torchvision:CIFAR10``, ``CIFAR100``, ``MNIST``, ``FashionMNIST``; ``sklearn:digits``.
    cache_dir : where caches of default names lie.
    out : the cache file, instead of the default name.
    data_root : the folder that data sets by name lie in, or are downloaded to.
    **options : fields of `ExtractOptions` (backbone, weights, cut, pool, decode, device, …) and of
        `ExtractRules` (fresh, prune, retry_failed, rehash, mix_plans, max_failed, on_error,
        max_size).

    Raises
    ------
    InputError, CacheError, LockedError, DiskError, WeightsError, TooManyFailedError
        See `featx.errors`. Rows that were committed before an error are kept for the next run.
    ImageError
        An image that cannot be used, with ``on_error="stop"``.

    Examples
    --------
    >>> features = extract("birds/", backbone="densenet121")  # doctest: +SKIP
    >>> features.X.shape, features.y.shape  # doctest: +SKIP
    ((590, 1024), (590,))
    """
    asked, rules = _parted(options)
    images = located(images, data_root)
    return run_extraction(images, asked, cache_dir=cache_dir, out=out, **rules).features


def extract_many(
    images: str | os.PathLike[str],
    *,
    backbones: Sequence[str] = ("densenet121",),
    cuts: Sequence[str] = ("penultimate",),
    weights: str | Sequence[str] = "default",
    cache_dir: str | os.PathLike[str] = "cache",
    data_root: str | os.PathLike[str] = "data",
    **options: Any,
) -> tuple[FeatureSet, ...]:
    """Features of several networks, or at several cuts, each in a cache of its own, in one pass.

    Every image is read and decoded once, whatever the number of caches. The features are those that
    `extract` gives one by one.

    Parameters
    ----------
    images, cache_dir, data_root, **options : as of `extract`; the same for all.
    backbones : names of networks.
    cuts : where each of them is cut.
    weights : for all networks, or one for each.

    Returns
    -------
    One for each cut of each network, the cuts of a network side by side.

    Raises
    ------
    InputError
        Neither one entry of `weights` nor one for each network, or the same cache twice; and as
        `extract`, from whichever cache is the first to fail. Those that were whole are finished.

    Examples
    --------
    >>> a, b = extract_many("birds/", backbones=["densenet121", "resnet50"])  # doctest: +SKIP
    """
    asked, rules = _parted({**options, "cut": next(iter(cuts), ExtractOptions.cut)})
    wanted = combinations(
        asked, backbones, cuts, [weights] if isinstance(weights, str) else weights
    )
    done = run_extractions(located(images, data_root), wanted, cache_dir=cache_dir, **rules)
    return tuple(extraction.features for extraction in done)


def combinations(
    options: ExtractOptions, backbones: Sequence[str], cuts: Sequence[str], weights: Sequence[str]
) -> list[ExtractOptions]:
    """What is asked for by several networks and cuts, one by one.

    Raises
    ------
    InputError
        Neither one entry of `weights` nor one for each network.
    """
    if len(weights) not in (1, len(backbones)):
        raise InputError(
            f"{len(weights)} weights for {len(backbones)} backbones; give one for all, or one for "
            "each in their order"
        )
    each = list(weights) * (len(backbones) if len(weights) == 1 else 1)
    return [
        replace(options, backbone=backbone, weights=its_weights, cut=cut)
        for backbone, its_weights in zip(backbones, each, strict=True)
        for cut in cuts
    ]


def _parted(options: dict[str, Any]) -> tuple[ExtractOptions, dict[str, Any]]:
    """What is asked, and the rules by which it is done."""
    names = {field.name for field in fields(ExtractRules)}
    asked = ExtractOptions(**{key: value for key, value in options.items() if key not in names})
    return asked, {key: value for key, value in options.items() if key in names}


def run_extraction(
    images: str | os.PathLike[str],
    options: ExtractOptions,
    *,
    cache_dir: str | os.PathLike[str] = "cache",
    out: str | os.PathLike[str] | None = None,
    listener: Listener | None = None,
    **rules: Any,
) -> Extraction:
    """`extract`, with an account of what was done. Parameters and errors as there.

    Raises
    ------
    StoppedError
        `listener.stop` said so; the images done so far are kept.
    """
    (done,) = run_extractions(
        images, [options], cache_dir=cache_dir, out=out, listener=listener, **rules
    )
    return done


def run_extractions(
    images: str | os.PathLike[str],
    asked: Sequence[ExtractOptions],
    *,
    cache_dir: str | os.PathLike[str] = "cache",
    out: str | os.PathLike[str] | None = None,
    listener: Listener | None = None,
    **rules: Any,
) -> tuple[Extraction, ...]:
    """`extract_many`, with an account of what was done.

    Parameters
    ----------
    images : as of `extract`; data sets by name are looked for in ``data``.
    cache_dir, **rules : as of `extract`.
    asked : what each cache is to hold. How images are listed and decoded is the same for all.
    out : the cache file, where there is but one.
    listener : is told what is done.

    Raises
    ------
    InputError
        `asked` differ in how images are listed or decoded; and as `extract_many`.
    """
    for name in _SHARED:
        if len({getattr(options, name) for options in asked}) > 1:
            raise InputError(f"{name} must be the same for all that is extracted in one pass")
    if out is not None and len(asked) > 1:
        raise InputError(f"--out names one cache, but {len(asked)} are asked for; use --cache-dir")
    listener, checked = listener or Listener(), ExtractRules(**rules)
    images = os.path.expanduser(located(images))  # noqa: PTH111 (a glob is no path)
    cache_dir = at_home(cache_dir)
    out = None if out is None else at_home(out)
    table = list_images(
        images,
        label_from=asked[0].label_from,  # type: ignore[arg-type]  # checked by ExtractOptions
        split_folders=asked[0].split_folders,
        prune=checked.prune,
    )
    purpose = "fresh" if checked.fresh else ""

    def job(options: ExtractOptions) -> Job:
        def target(backbone: BackboneIdentity) -> Path:
            return target_of(images, options, backbone, cache_dir, out)

        return Job(os.fspath(images), table, target, purpose=purpose)

    return fill_caches([(job(options), options) for options in asked], checked, listener)
