"""Heads, and the backbones behind them, side by side on the same images."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from featx.comparison import Difference, compare_accuracies
from featx.duplicates import merged_groups
from featx.errors import CacheError, FeatxError, HeadError, InputError
from featx.evaluation import Evaluation, evaluate
from featx.featureset import load
from featx.fitting import Fit, fit_head
from featx.heads.cached import is_final, load_recorded
from featx.heads.file import HEADS, HeadFile
from featx.images import display_names
from featx.leaks import Leaks
from featx.metrics import Report, score
from featx.own_network import note_given
from featx.standings import Comparison, Entry, Leaderboard
from featx.workspace import newest_first

_SAME_TEST: Final = 0.5  # heads that share this part of their test images are compared in a folder


def compare(
    files: Sequence[str | os.PathLike[str]],
    *,
    backbones: Sequence[str] = (),
    bootstrap: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Measure heads on the images that all of them can be tested on.

    Parameters
    ----------
    files : heads, or caches, which stand for the newest head that was fitted on them; a cache
        without one gets a logistic head, as `fit_head` makes it.
    backbones : ``package.module:factory`` again, of each of the user's own networks that a tail
        head among them is of.
    bootstrap : draws for the intervals; 0 for none.
    seed : of the draws.

    Raises
    ------
    InputError
        Fewer than two heads, or no image that all can be tested on.
    HeadError, CacheError
        A file that cannot be used.

    Examples
    --------
    >>> found = compare(["cache/birds-resnet50.h5", "cache/birds-densenet121.h5"])  # doctest: +SKIP
    >>> found.entries[0].backbone, found.pairs[0].p_adjusted  # doctest: +SKIP
    ('densenet121', 0.21)
    """
    for backbone in backbones:
        note_given(backbone)  # a head of the rest of that network is built as it is read
    heads = list(dict.fromkeys(_head_of(Path(file)) for file in files))
    if len(heads) < 2:
        raise InputError(
            f"compare takes at least two different heads or caches, got {len(heads)}; for all of "
            "a folder name the folder"
        )
    return _compared([_tested(head) for head in heads], bootstrap, seed)


def fit_heads(
    cache: str | os.PathLike[str] | None = None,
    *,
    kinds: Sequence[str] = tuple(HEADS),
    bootstrap: int = 1000,
    seed: int = 0,
    advance: Callable[[Fit], None] | None = None,
    **keywords: Any,
) -> tuple[tuple[Fit, ...], Comparison]:
    """Fit a head of every kind on one split, and rank them on the held-out images.

    Parameters
    ----------
    cache : a finished cache; the newest in `cache_dir` if none is named.
    kinds : of heads, with their default parameters; two at least.
    bootstrap : draws for the intervals; 0 for none.
    seed : of the split, where the folder has none of its own, of the heads, and of the draws.
    advance : called with each head once it is fitted.
    **keywords : as of `fit_head`: test_fraction, group, device, cache_dir, force.

    Returns
    -------
    The fits in the order of `kinds`, and their comparison.
    """
    if len(kinds) < 2:
        raise InputError(f"fit_heads takes at least two kinds of head, got {len(kinds)}")
    fits = []
    for kind in kinds:
        fit = fit_head(cache, head=kind, seed=seed, **keywords)
        cache = fit.features.path  # the newest may be another by now
        fits.append(fit)
        if advance is not None:
            advance(fit)
    return tuple(fits), compare([fit.path for fit in fits], bootstrap=bootstrap, seed=seed)


def leaderboard(
    folder: str | os.PathLike[str] = "cache", *, bootstrap: int = 1000, seed: int = 0
) -> Leaderboard:
    """Every head of a folder, beside those that can be tested on the same images.

    Heads are put together where at least half of the test images of either are the other's too,
    and all of these have the same labels.
    Caches without a head are named as skipped.

    Parameters
    ----------
    folder : where caches and heads lie.
    bootstrap, seed : as of `compare`.

    Raises
    ------
    HeadError
        There is no head in the folder.
    """
    folder = Path(folder)
    heads = newest_first(folder, "*.safetensors")
    if not heads:
        raise HeadError(f"there is no head in {folder}; fit one with `featx fit-head`")
    skipped: dict[Path, str] = {}
    together: list[list[_Tested]] = []
    used = set()
    for head in heads:
        try:
            tested = _tested(head)
        except FeatxError as why:
            skipped[head] = str(why)
            continue
        used.add(tested.evaluation.cache.resolve())
        fitting = [group for group in together if _fits(group, tested)]
        if fitting:
            fitting[0].append(tested)
        else:
            together.append([tested])
    unread = [head.name for head in skipped]
    for cache in newest_first(folder, "*.h5"):
        has_unread = any(name.startswith(f"{cache.stem}.") for name in unread)
        if cache.resolve() not in used and not has_unread:
            skipped[cache] = "no head was fitted on it"
    found = [_compared(group, bootstrap, seed) for group in together]
    return Leaderboard(tuple(sorted(found, key=lambda c: -len(c.entries))), skipped)


@dataclass(frozen=True, eq=False)
class _Tested:
    file: HeadFile
    evaluation: Evaluation
    rows: dict[bytes, int]  # hash of a test image -> its position in the evaluation
    labels: dict[bytes, str]  # and -> its class, as people read it


def _tested(head: Path) -> _Tested:
    evaluation = evaluate(head=head, bootstrap=0)
    rows: dict[bytes, int] = {}
    for row, sha256 in enumerate(evaluation.sha256):
        rows.setdefault(sha256.tobytes(), row)
    file = load_recorded(head)
    names = display_names(file.classes)
    labels = {sha256: names[evaluation.y_true[row]] for sha256, row in rows.items()}
    return _Tested(file, evaluation, rows, labels)


def _shared(tested: Sequence[_Tested]) -> set[bytes]:
    """The test images that all of them have."""
    return set.intersection(*(set(one.rows) for one in tested))


def _fits(group: Sequence[_Tested], one: _Tested) -> bool:
    """Whether a head is tested on enough of the images of the others, by the same labels."""
    shared = _shared(group)
    common = shared & one.rows.keys()
    return len(common) >= _SAME_TEST * max(len(shared), len(one.rows)) and all(
        group[0].labels[sha256] == one.labels[sha256] for sha256 in common
    )


def _head_of(path: Path) -> Path:
    """The head that a file stands for."""
    if path.is_dir():
        raise InputError(f"{path} is a folder: name it alone for its leaderboard, or name heads")
    if path.suffix != ".h5":
        return path
    features = load(path)  # every byte is checked where a head is tested on it
    for candidate in newest_first(path.parent, "*.safetensors"):
        try:
            file = load_recorded(candidate)
            if is_final(file):
                continue
        except HeadError:
            continue  # some other file: not the one looked for
        recorded = file.metadata["cache"]
        if (recorded["file"], recorded["fingerprint"]) == (path.name, features.fingerprint):
            return candidate
    return fit_head(path).path


def _compared(tested: Sequence[_Tested], bootstrap: int, seed: int) -> Comparison:
    """Heads on their common test images."""
    known = _shared(tested)
    common = [sha256 for sha256 in tested[0].rows if sha256 in known]
    if not common:
        names = ", ".join(one.file.path.name for one in tested)
        raise InputError(
            f"{names} have no test image in common that none of them was trained on: fit them on "
            "the same split of the same folder (the same --seed)"
        )
    groups = merged_groups(
        *(one.evaluation.groups[[one.rows[sha256] for sha256 in common]] for one in tested)
    )
    short = _short_names([one.file.path for one in tested])
    entries, right = [], []
    for name, one in zip(short, tested, strict=True):
        rows = np.array([one.rows[sha256] for sha256 in common])
        entries.append(_entry(name, one, rows, groups, bootstrap, seed))
        predicted = one.evaluation.probabilities[rows].argmax(axis=1)
        right.append(predicted == one.evaluation.y_true[rows])
    _check_labels(tested, common)
    order = sorted(range(len(entries)), key=lambda i: _rank(entries[i].report))
    entries = [entries[i] for i in order]
    pairs: tuple[Difference, ...] = ()
    if len(entries) > 1:
        pairs = compare_accuracies(
            np.stack([right[i] for i in order]),
            [entry.name for entry in entries],
            groups=groups,
            bootstrap=bootstrap,
            seed=seed,
        )
    baseline = entries[0].report.baseline
    first = tested[0]
    return Comparison(
        tuple(entries),
        pairs,
        len(common),
        baseline.class_name,
        baseline.accuracy.value,
        tuple(first.evaluation.paths[first.rows[sha256]] for sha256 in common),
        groups,
        tuple(
            name
            for name, one in zip(short, tested, strict=True)
            if (one.evaluation.groups >= 0).any()
        ),
    )


def _rank(report: Report) -> tuple[float, float]:
    return -report.accuracy.value, report.log_loss.value


def _entry(
    name: str, one: _Tested, rows: np.ndarray, groups: np.ndarray, bootstrap: int, seed: int
) -> Entry:
    evaluation, metadata = one.evaluation, one.file.metadata
    report = score(
        evaluation.y_true[rows],
        evaluation.probabilities[rows],
        classes=evaluation.report.classes,
        train_counts=metadata["split"]["train_counts"],
        groups=groups,
        bootstrap=bootstrap,
        seed=seed,
    )
    spec = metadata["cache"]["spec"]
    return Entry(
        name=name,
        head=one.file.path,
        cache=evaluation.cache,
        kind=one.file.kind,
        backbone=str(spec.get("backbone")),
        cut=str(spec.get("cut")),
        report=report,
        own=evaluation.report.n,
        leaks=_leaks_among(evaluation, rows),
    )


def _leaks_among(evaluation: Evaluation, rows: np.ndarray) -> Leaks:
    """The exact leaks, and the near ones that are among these tested images."""
    assert evaluation.leaks is not None  # looked for where no image trained on is tested
    among = {evaluation.paths[row] for row in rows}
    pairs = [pair for pair in evaluation.leaks.pairs if pair.exact or pair.path in among]
    return replace(evaluation.leaks, pairs=tuple(pairs), accuracy_without=None)


def _check_labels(tested: Sequence[_Tested], common: Sequence[bytes]) -> None:
    """Refuse heads whose caches call the same image by different classes."""
    first = tested[0]
    for one in tested[1:]:
        for sha256 in common:
            if first.labels[sha256] != one.labels[sha256]:
                path = first.evaluation.paths[first.rows[sha256]]
                raise CacheError(
                    f"{path} is {first.labels[sha256]!r} in {first.evaluation.cache} and "
                    f"{one.labels[sha256]!r} in {one.evaluation.cache}: extract both from the same "
                    "folder"
                )


def _short_names(paths: Sequence[Path]) -> list[str]:
    """File names without their ending; with the folder where two are alike."""
    names = [path.name.removesuffix(".safetensors") for path in paths]
    return [
        name if names.count(name) == 1 else os.fspath(path.with_suffix(""))
        for name, path in zip(names, paths, strict=True)
    ]
