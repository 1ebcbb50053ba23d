"""Options that several commands take, spelled once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from featx.errors import InputError


def note_all(names: list[str] | None) -> list[str] | None:
    """Note networks of the user's own that were given, so that heads of their rest are built."""
    from featx.own_network import note_given

    for name in names or ():
        note_given(name)
    return names


Device = Annotated[
    str,
    typer.Option(
        help="auto (CUDA, then MPS, then the CPU), cpu, cuda, cuda:N or mps.", show_default=True
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        help="What runs the network: auto (openvino for fp32 on the CPU, else torch-eager), "
        "torch-eager, torch-compiled, torch-cudagraph or openvino."
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Images per forward pass; of PyTorch 16 on the CPU, 32 on MPS, 128 on CUDA; of "
        "OpenVINO one on every core.",
    ),
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Decoding processes; one per core, at most 16.")
]
Precision = Annotated[
    str | None, typer.Option(help="fp32 (the default everywhere), tf32, bf16 or fp16.")
]
OwnBackbone = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        help="package.module:factory again, where it made the features; no file names code to run.",
    ),
]
# Of commands that only read heads; what was given is noted before one is read.
OwnBackbones = Annotated[
    list[str] | None,
    typer.Option(
        "--backbone",
        help="package.module:factory again, where a head is the rest of such a network (may be "
        "repeated); no file names code to run.",
        callback=note_all,
    ),
]
CacheDir = Annotated[Path, typer.Option(help="Where caches and heads of default names lie.")]
DataRoot = Annotated[
    Path, typer.Option(help="The folder that data sets by name lie in, or are downloaded to.")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything that is drawn at random.")]
DuplicateThreshold = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, help="Least similarity (cosine of centred features) of near duplicates."
    ),
]
MixPlans = Annotated[
    bool, typer.Option(help="Add rows although machine, device or versions differ.")
]
Json = Annotated[bool, typer.Option("--json", help="JSON on standard output, for programs.")]


def numbers(text: str | None, name: str, *lengths: int) -> tuple[float, ...] | None:
    """``0.5,0.5,0.5`` as numbers; None stays None.

    Raises
    ------
    InputError
        Not numbers, or not as many of them as one of `lengths`.
    """
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or (lengths and len(values) not in lengths):
        count = f"{' or '.join(map(str, lengths))} numbers".lstrip()
        raise InputError(f"--{name} takes {count} separated by commas, got {text!r}")
    return values


def whole_numbers(text: str | None, name: str) -> tuple[int, ...] | None:
    """``512,256`` as whole numbers; None stays None.

    Raises
    ------
    InputError
        Not whole numbers: none is rounded.
    """
    values = numbers(text, name)
    if values is None:
        return None
    if not all(value.is_integer() for value in values):
        raise InputError(f"--{name} takes whole numbers separated by commas, got {text!r}")
    return tuple(int(value) for value in values)


def given(**options: Any) -> dict[str, Any]:
    """Only those options that were given: what is None is left to the default below."""
    return {name: value for name, value in options.items() if value is not None}
