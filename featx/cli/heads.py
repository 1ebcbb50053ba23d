"""`featx fit-head` and `featx evaluate`: everything from the cache, in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featx.cli.compare import fit_all
from featx.cli.cross_validation import cross_validation
from featx.cli.few_shot import few_shot
from featx.cli.options import (
    CacheDir,
    Device,
    DuplicateThreshold,
    Json,
    Precision,
    Seed,
    given,
    numbers,
)
from featx.cli.output import command, out, print_json, table, tell
from featx.cli.reporting import print_evaluation
from featx.errors import InputError

if TYPE_CHECKING:
    from featx.evaluation import Evaluation
    from featx.fitting import Fit
    from featx.leaks import Leaks


@command
def fit_head(
    cache: Annotated[
        Path | None, typer.Argument(help="A cache; the newest in --cache-dir if none is named.")
    ] = None,
    head: Annotated[
        str,
        typer.Option(
            help="logistic, linear, mlp, ridge, knn or centroid; all fits and ranks every one."
        ),
    ] = "logistic",
    out_file: Annotated[
        Path | None, typer.Option("--out", help="The head file, instead of the default name.")
    ] = None,
    force: Annotated[
        bool, typer.Option(help="Replace a head of other settings that has this name.")
    ] = False,
    like: Annotated[
        Path | None, typer.Option(help="Repeat how this head was fitted, on another cache.")
    ] = None,
    final: Annotated[
        bool,
        typer.Option(
            help="Then fit the chosen settings on all labelled images, into "
            "NAME.final.safetensors, with the report of the head before."
        ),
    ] = False,
    group: Annotated[
        str | None,
        typer.Option(
            help="Images that are never parted: parent (folder), a column of a CSV in the image "
            "folder, TABLE.csv:COLUMN, or a regular expression with one (pair)."
        ),
    ] = None,
    c: Annotated[
        float | None,
        typer.Option("--C", min=0, help="logistic: inverse regularisation; chosen if not given."),
    ] = None,
    cs: Annotated[
        str | None,
        typer.Option(help="logistic: values of C to try: default (7), dinov2 (45), or 0.001,0.01."),
    ] = None,
    class_weight: Annotated[
        str | None, typer.Option(help="logistic, ridge: balanced weighs rare classes up.")
    ] = None,
    max_iter: Annotated[int | None, typer.Option(min=1, help="logistic: iterations.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="linear, mlp: passes at most.")] = None,
    lr: Annotated[
        str | None,
        typer.Option(
            help="linear, mlp: learning rate; linear: several, as 1e-4,1e-3, or grid, side by side."
        ),
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help="linear: of the learning rate, constant or cosine.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="linear, mlp: rows per step.")
    ] = None,
    optimizer: Annotated[str | None, typer.Option(help="linear: adam or sgd.")] = None,
    weight_decay: Annotated[
        float | None, typer.Option(min=0, help="linear, mlp: weight decay.")
    ] = None,
    hidden: Annotated[
        str | None, typer.Option(help="mlp: sizes of the hidden layers, as 512,256.")
    ] = None,
    dropout: Annotated[float | None, typer.Option(min=0, max=1, help="mlp: dropout.")] = None,
    patience: Annotated[
        int | None, typer.Option(min=1, help="mlp: epochs without gain before stopping.")
    ] = None,
    n_seeds: Annotated[
        int | None,
        typer.Option(min=1, help="mlp: networks trained side by side; the best is kept."),
    ] = None,
    precision: Precision = None,
    device: Device = "auto",
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Also fit a temperature for the probabilities, on validation images or on "
            "out-of-fold training images (five more fits).",
        ),
    ] = False,
    momentum: Annotated[
        float | None, typer.Option(min=0, max=1, help="linear: momentum of sgd.")
    ] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(min=0, max=1, help="linear, mlp: label smoothing.")
    ] = None,
    cv: Annotated[
        int | None,
        typer.Option(min=2, help="logistic: folds that C is chosen by; ridge: with groups, alpha."),
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(min=0, help="ridge: penalty; chosen if not given.")
    ] = None,
    n_neighbors: Annotated[
        int | None, typer.Option(min=1, help="knn: neighbours that vote; chosen if not given.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="knn: exponential (nearer rows weigh more; the default) or uniform."),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="knn: of the exponential weights, 0.07.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="centroid: euclidean (the default) or cosine.")
    ] = None,
    standardise: Annotated[
        bool | None,
        typer.Option(
            "--standardise/--no-standardise",
            help="Bring features to mean 0 and variance 1 first; the default of all heads but knn.",
        ),
    ] = None,
    test_fraction: Annotated[
        float | None,
        typer.Option(help="Held out, where the images have no split of their own: 0.2."),
    ] = None,
    group_duplicates: Annotated[
        bool,
        typer.Option(
            "--group-duplicates", help="Keep duplicates, exact and near, on one side of the split."
        ),
    ] = False,
    duplicate_threshold: DuplicateThreshold = None,
    seed: Seed = 0,
    shots: Annotated[
        str | None,
        typer.Option(
            help="Instead, a learning curve: test heads fitted on so many images a class, as "
            "1,2,4,8,16. No head is written."
        ),
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="--shots: times images are drawn: 10.")
    ] = None,
    curves: Annotated[
        Path | None,
        typer.Option(help="linear, mlp, --shots: draw loss and accuracy, or the learning curve."),
    ] = None,
    cache_dir: CacheDir = Path("cache"),
    json_output: Json = False,
) -> None:
    """Fit a head on cached features; choices are made without looking at the held-out images."""
    from featx.fitting import fit_head as fit
    from featx.fitting import fit_like

    sizes = numbers(hidden, "hidden")
    where: dict[str, Any] = {"device": device, "cache_dir": cache_dir}
    common: dict[str, Any] = {"seed": seed, **given(test_fraction=test_fraction, group=group)}
    more: dict[str, Any] = given(
        calibrate=calibrate or None,
        group_duplicates=group_duplicates or None,
        duplicate_threshold=duplicate_threshold,
    )
    params: dict[str, Any] = {
        **given(
            C=c,
            cs=cs if cs is not None and cs[:1].isalpha() else numbers(cs, "cs"),
            class_weight=class_weight,
            max_iter=max_iter,
            epochs=epochs,
            lr=_learning_rates(lr),
            schedule=schedule,
            batch_size=batch_size,
            optimizer=optimizer,
            weight_decay=weight_decay,
            hidden=tuple(int(size) for size in sizes) if sizes else None,
            dropout=dropout,
            patience=patience,
            n_seeds=n_seeds,
            momentum=momentum,
            label_smoothing=label_smoothing,
            cv=cv,
            alpha=alpha,
            n_neighbors=n_neighbors,
            weights=weights,
            temperature=temperature,
            metric=metric,
            standardise=standardise,
            precision=precision,
        ),
    }
    if shots is not None:
        if out_file is not None or force or like or final or more or head == "all":
            raise InputError("--shots writes no head: leave --out, --force, --like, --final, "
                             "--calibrate and duplicates away, "
                             "and name one kind of head")  # fmt: skip
        keywords = {**where, **common, **params, **given(repeats=repeats)}
        few_shot(cache, head=head, shots=shots, curves=curves, json_output=json_output, **keywords)
        return
    if repeats is not None:
        raise InputError("--repeats goes with --shots")
    if head == "all":
        if params or out_file or like or final or curves or more:
            raise InputError("--head all takes the defaults of every head: leave its options away")
        fit_all(cache, force=force, json_output=json_output, **where, **common)
        return
    if curves is not None and head not in ("linear", "mlp"):
        raise InputError(f"--curves needs a head with epochs (linear or mlp), not {head}")
    if like is not None:
        alone = not (params or group or seed or more) and test_fraction is None
        if not alone or head != "logistic":
            raise InputError("--like repeats all settings of that head: leave the others away")
        fitted = fit_like(like, cache, out=out_file, force=force, **where)
    else:
        keywords = {**where, **common, **more, **params}
        fitted = fit(cache, head=head, out=out_file, force=force, **keywords)
    if curves is not None:
        _draw_curves(fitted, curves)
    made = fitted
    if final:
        from featx.finalising import fit_final

        made = fit_final(fitted.path, force=force, device=device)
    if json_output:
        print_json({"head": str(made.path), **made.file.metadata})
        return
    for note in fitted.split.notes:
        tell(note)
    if fitted.split.unlabelled:
        tell(f"left out: {fitted.split.unlabelled:,} images without a label")
    if fitted.split.left_out:
        tell(f"left out: {fitted.split.left_out:,} images outside the given split")
    _print_fit(fitted, is_last=not final)
    if final:
        _print_final(made)


def _print_final(made: Fit) -> None:
    report = made.file.metadata["final"]["report"]
    accuracy = report["accuracy"]
    tell(
        f"the same settings on all {len(made.split.train):,} labelled images: {made.path}. What to "
        f"say of it is what the head before had on {report['n']:,} {report['tested_on']}: accuracy "
        f"{accuracy['value']:.3f} ({accuracy['low']:.3f} to {accuracy['high']:.3f}). Next: featx "
        "predict"
    )


def _learning_rates(text: str | None) -> float | tuple[float, ...] | str | None:
    rates = None if text == "grid" else numbers(text, "lr")
    if rates is None:
        return text
    return rates if len(rates) > 1 else rates[0]


def _print_fit(fitted: Fit, *, is_last: bool = True) -> None:
    metadata, split = fitted.file.metadata, fitted.split
    facts = metadata["fit"]
    shown = table(None, "head", "classes", "trained on", "chosen on", "held out", "chosen",
                  "majority in training")  # fmt: skip
    counts = metadata["split"]["train_counts"]
    shown.add_row(
        str(fitted.path),
        f"{len(fitted.file.classes):,}",
        f"{len(split.train):,} images",
        metadata["split"]["chosen_on"],
        f"{len(split.held_out):,} ({split.held_out_name})",
        _chosen(facts),
        f"{max(counts) / sum(counts):.3f}",
    )
    out().print(shown)
    if "converged" in facts:
        reached = "converged" if facts["converged"] else "NOT converged"
        tell(
            f"{reached} to gradient norm {facts['gradient_norm']:.1e} "
            f"after {facts['n_iter']} iterations"
        )
    if "calibration" in metadata:
        tell(_calibrated(metadata["calibration"]))
    if fitted.leaks is not None:
        tell(_leaks_of_split(fitted, fitted.leaks))
    tell(f"split: {split.source}.{' Next: featx evaluate' if is_last else ''}")


def _calibrated(calibration: Mapping[str, Any]) -> str:
    """The temperature, and what it does on the images it was fitted on."""
    if not calibration["n_wrong"]:
        return f"temperature 1, fitted on {calibration['fitted_on']}"
    loss, ece = calibration["log_loss"], calibration["ece"]
    low, high = calibration["interval"]
    told = (
        f"calibrated: temperature {calibration['temperature']:.3g} (95 % interval {low:.3g} to "
        f"{high:.3g}) fitted on {calibration['fitted_on']}, {calibration['n_wrong']:,} of them "
        f"wrong; on these its log-loss goes from {loss['before']:.3f} to {loss['after']:.3f}, its "
        f"ECE from {ece['before']:.3f} to {ece['after']:.3f}"
    )
    return told + ("; 1 is in the interval: it may be no gain" if low <= 1 <= high else "")


def _leaks_of_split(fitted: Fit, leaks: Leaks) -> str:
    """Whether held-out images are duplicates of others, and what to do about it."""
    held_out = f"{len(fitted.split.held_out):,} held-out images"
    trained = f"the {len(fitted.split.train) + len(fitted.split.val):,} trained or chosen on"
    near = f"{leaks.near:,} near, similarity {leaks.threshold:g}"
    if leaks.why_exact_only:
        near = f"near ones were not looked for: {leaks.why_exact_only}"
    if not leaks.pairs:
        return f"leaks: none of {held_out} has a duplicate among {trained} (0 exact, {near})"
    return (
        f"leaks: {len(leaks.pairs):,} of {held_out} have a duplicate among {trained} "
        f"({leaks.exact:,} exact, {near}); evaluate leaves the exact ones out and gives the "
        "accuracy without the near ones; --group-duplicates keeps duplicates on one side of a "
        "split by seed"
    )


def _chosen(facts: dict[str, Any]) -> str:
    """What was chosen and how well it did where it was chosen."""
    choice = facts["choice"]
    told = ""
    if choice["accuracy"] is not None:
        told = f" (accuracy {choice['accuracy']:.3f}{_spread(facts)})"
    return f"{choice['what']}{told}"


def _spread(facts: dict[str, Any]) -> str:
    """How far several seeds lie apart."""
    results = facts.get("seed_results") or []
    accuracies = [row["val_accuracy"] for row in results if row["val_accuracy"] is not None]
    if len(results) < 2:
        return ""
    return f"; {len(accuracies)} seeds {min(accuracies):.3f} to {max(accuracies):.3f}"


def _draw_curves(fitted: Fit, path: Path) -> None:
    from featx.report.plots import training_curves_png

    facts = fitted.file.metadata["fit"]
    epochs, names = facts["history"], ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
    history = {name: [epoch[name] for epoch in epochs if epoch[name] is not None] for name in names}
    others: dict[str, dict[str, list[float]]] = {}  # learning rates not kept
    for epoch in getattr(fitted.file.head, "lr_history_", []):
        if epoch["lr"] != facts["lr"]:
            curves = others.setdefault(f"lr {epoch['lr']:g}", {"val_loss": [], "val_accuracy": []})
            for name, values in curves.items():
                values.append(epoch[name])
    best = {"best_epoch": facts["best_epoch"] - 1}
    title = f"Training of the head, lr {facts['lr']:g}" if others else "Training of the head"
    for note in training_curves_png(path, {**history, **best}, others=others, title=title):
        tell(note)
    tell(f"wrote {path}")


@command
def evaluate(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[CACHE] [HEAD]",
            help="A cache (.h5) and a head (.safetensors), either or both; the newest head and "
            "its own cache if none is named.",
        ),
    ] = None,
    on: Annotated[str, typer.Option(help="held-out, or all labelled images.")] = "held-out",
    include_trained: Annotated[
        bool, typer.Option(help="Test also on images that were trained on (no honest figure).")
    ] = False,
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Write report.json, classes.csv, confusion.csv, predictions.csv, leaks.csv, "
            "confusion.png and reliability.png into this folder.",
        ),
    ] = None,
    duplicate_threshold: DuplicateThreshold = None,
    bootstrap: Annotated[int, typer.Option(min=0, help="Draws for the 95 % intervals.")] = 1000,
    cv: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Instead, measure the way of fitting (HEAD's, or --head with its defaults) by "
            "so many folds over all labelled images, every choice made inside the folds.",
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="--cv: times the folds are drawn.")] = 10,
    group: Annotated[
        str | None,
        typer.Option(
            help="--cv: images that stay in one fold: parent (folder), a column of a CSV in the "
            "image folder, TABLE.csv:COLUMN, or a regular expression with one (pair)."
        ),
    ] = None,
    group_duplicates: Annotated[
        bool, typer.Option("--group-duplicates", help="--cv: keep duplicates in one fold.")
    ] = False,
    head_kind: Annotated[
        str | None, typer.Option("--head", help="--cv: kind of head where no HEAD is named.")
    ] = None,
    device: Device = "auto",
    seed: Seed = 0,
    cache_dir: CacheDir = Path("cache"),
    json_output: Json = False,
) -> None:
    """Measure a head on images it was not trained on, beside the majority-class baseline."""
    from featx.evaluation import evaluate as run

    cache, head = _cache_and_head(files or [])
    if cv is not None:
        cross_validation(
            cache,
            head,
            kind=head_kind,
            out_dir=out_dir,
            cv=cv,
            repeats=repeats,
            group=group,
            group_duplicates=group_duplicates,
            duplicate_threshold=duplicate_threshold,
            device=device,
            seed=seed,
            cache_dir=cache_dir,
            json_output=json_output,
        )
        return
    if group is not None or head_kind is not None or group_duplicates:
        raise InputError(
            "--group, --group-duplicates and --head of evaluate go with --cv; fit-head has them too"
        )
    if on not in ("held-out", "all"):
        raise InputError(f"--on must be held-out or all, got {on!r}")
    evaluation = run(
        cache,
        head,
        on=on,  # type: ignore[arg-type]  # checked above
        include_trained=include_trained,
        duplicate_threshold=duplicate_threshold,
        bootstrap=bootstrap,
        seed=seed,
        cache_dir=cache_dir,
    )
    if out_dir is not None:
        from featx.report.tables import write_evaluation

        paths, notes = write_evaluation(out_dir, evaluation)
        for sentence in (*notes, f"wrote {', '.join(map(str, paths))}"):
            tell(sentence)
    if json_output:
        print_json(evaluation.to_dict())
        return
    print_evaluation(evaluation)
    _tell_left_out(evaluation)


def _cache_and_head(files: list[Path]) -> tuple[Path | None, Path | None]:
    heads = [path for path in files if path.suffix == ".safetensors"]
    caches = [path for path in files if path.suffix != ".safetensors"]
    if len(heads) > 1 or len(caches) > 1:
        raise InputError(f"evaluate takes one cache and one head, got {', '.join(map(str, files))}")
    return (caches[0] if caches else None), (heads[0] if heads else None)


def _tell_left_out(evaluation: Evaluation) -> None:
    if evaluation.trained_left_out:
        tell(
            f"left out: {evaluation.trained_left_out:,} images that the head was trained or "
            "chosen on"
        )
    if evaluation.unknown:
        told: Any = ", ".join(f"{name} ({count})" for name, count in evaluation.unknown.items())
        tell(f"left out: images of classes the head does not know: {told}")
    if evaluation.unlabelled:
        tell(f"left out: {evaluation.unlabelled:,} images without a label")
    if evaluation.failed:
        tell(f"left out: {evaluation.failed:,} images that could not be used")
