"""`featx fit-head`: a classifier from cached features, in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from featx.cli.compare import fit_all
from featx.cli.few_shot import few_shot
from featx.cli.fitted import draw_curves, print_final, print_fit
from featx.cli.options import (
    CacheDir,
    Device,
    DuplicateThreshold,
    Json,
    Precision,
    Seed,
    given,
    note_all,
    numbers,
    whole_numbers,
)
from featx.cli.output import command, print_json
from featx.cli.training import telling_epochs
from featx.errors import InputError


@command
def fit_head(
    cache: Annotated[
        Path | None, typer.Argument(help="A cache; the newest in --cache-dir if none is named.")
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            help="logistic (the default), linear, mlp, ridge, knn or centroid; all fits and ranks "
            "every one of these. tail: the rest of the network, trained on (features of --pool "
            "none)."
        ),
    ] = None,
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
    epochs: Annotated[
        int | None, typer.Option(min=1, help="linear, mlp, tail: passes at most.")
    ] = None,
    lr: Annotated[
        str | None,
        typer.Option(
            help="linear, mlp, tail: learning rate; linear: several, as 1e-4,1e-3, or grid, side "
            "by side."
        ),
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help="linear, tail: of the learning rate, constant or cosine.")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="linear, mlp, tail: rows per step (mlp: grows with the rows)."),
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="linear: adam or sgd; tail: adamw or sgd.")
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(min=0, help="linear, mlp, tail: weight decay.")
    ] = None,
    hidden: Annotated[
        str | None, typer.Option(help="mlp: sizes of the hidden layers, as 512,256.")
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="mlp: share of hidden units that each batch leaves out (0.5)."
        ),
    ] = None,
    patience: Annotated[
        int | None, typer.Option(min=1, help="mlp, tail: epochs without gain before stopping.")
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
        float | None, typer.Option(min=0, max=1, help="linear, tail: momentum of sgd.")
    ] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(min=0, max=1, help="linear, mlp, tail: label smoothing.")
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
        typer.Option(
            help="knn: exponential (nearer rows weigh more; the default) or uniform. tail: the "
            "network's weights, if they are no longer where they lay; on pixels any to start from."
        ),
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
    backbone: Annotated[
        str | None,
        typer.Option(help="tail: package.module:factory again, where that made the features."),
    ] = None,
    batchnorm: Annotated[
        str | None,
        typer.Option(
            help="tail: BatchNorm's running statistics, frozen or learn; by default they learn "
            "where the weights are random."
        ),
    ] = None,
    augment: Annotated[
        str | None,
        typer.Option(
            help="tail, on pixels (--cut input): what is changed at random in each step: flip, "
            "crop or pad, color, rotate, as flip,pad=4."
        ),
    ] = None,
    lr_ratio: Annotated[
        float | None,
        typer.Option(
            help="tail: the first layer's learning rate over the classifier's, above 0, at most "
            "1: 0.1, with random weights 1.",
        ),
    ] = None,
    warmup: Annotated[
        float | None, typer.Option(min=0, max=1, help="tail: share of the steps: 0.05.")
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
        typer.Option(
            help="linear, mlp, tail, --shots: draw loss and accuracy, or the learning curve."
        ),
    ] = None,
    cache_dir: CacheDir = Path("cache"),
    json_output: Json = False,
) -> None:
    """Fit a head on cached features; choices are made without looking at the held-out images."""
    from featx.fitting import fit_head as fit
    from featx.fitting import fit_like

    note_all([] if backbone is None else [backbone])  # --like reads a head before it is fitted
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
            hidden=whole_numbers(hidden, "hidden"),
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
            backbone=backbone,
            batchnorm=batchnorm,
            augment=augment,
            lr_ratio=lr_ratio,
            warmup=warmup,
        ),
    }
    if c is not None and (cs is not None or cv is not None):
        raise InputError("--C gives the one value, so that there is none to choose: leave --cs and "
                         "--cv away, or --C")  # fmt: skip
    if shots is not None:
        threshold = given(duplicate_threshold=more.pop("duplicate_threshold", None))
        if out_file is not None or force or like or final or more or head == "all":
            raise InputError("--shots writes no head: leave --out, --force, --like, --final, "
                             "--calibrate and --group-duplicates away, and name one kind of "
                             "head")  # fmt: skip
        keywords = {**where, **common, **threshold, **params, **given(head=head, repeats=repeats)}
        few_shot(cache, shots=shots, curves=curves, json_output=json_output, **keywords)
        return
    if repeats is not None:
        raise InputError("--repeats goes with --shots")
    if head == "all":
        if params or out_file or like or final or curves or more:
            raise InputError("--head all takes the defaults of every head: leave its options away")
        fit_all(cache, force=force, json_output=json_output, **where, **common)
        return
    if curves is not None:
        _check_has_epochs(head, like)
    asked = group or seed or more or head is not None or test_fraction is not None
    if like is not None and (asked or params.keys() - {"backbone"}):
        raise InputError("--like repeats all settings of that head: leave the others away")
    with telling_epochs() as told:
        if like is not None:
            fitted = fit_like(like, cache, out=out_file, force=force, told=told, **where)
        else:
            keywords = {**where, **common, **more, **params}
            fitted = fit(
                cache, head=head or "logistic", out=out_file, force=force, told=told, **keywords
            )
    made = fitted
    if final:
        from featx.finalising import fit_final

        with telling_epochs() as told:  # a training of its own
            made = fit_final(fitted.path, force=force, device=device, told=told)
    if json_output:
        print_json({"head": str(made.path), **made.file.metadata})
    else:
        print_fit(fitted, is_last=not final)
        if final:
            print_final(made)
    if curves is not None:  # after the figures, which a full disk must not take along
        draw_curves(fitted, curves)


def _check_has_epochs(head: str | None, like: Path | None) -> None:
    """Refuse to draw the epochs of a head without any, before it is fitted."""
    if like is not None:
        from featx.heads.cached import load_recorded

        head = load_recorded(like).kind
    if head not in ("linear", "mlp", "tail"):
        kind = head or "logistic"
        raise InputError(f"--curves needs a head with epochs (linear, mlp or tail), not {kind}")


def _learning_rates(text: str | None) -> float | tuple[float, ...] | str | None:
    rates = None if text == "grid" else numbers(text, "lr")
    if rates is None:
        return text
    return rates if len(rates) > 1 else rates[0]
