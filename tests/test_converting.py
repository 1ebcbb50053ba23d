"""Weights of other key names become a file that a network takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from featx.backbones import load_backbone
from featx.cli import app
from featx.converting import convert_weights
from featx.errors import InputError, WeightsError

NAME = "shufflenet_v2_x0_5"


@pytest.fixture(scope="module")
def own() -> dict[str, torch.Tensor]:
    return dict(load_backbone(NAME, weights="random", seed=3).network.state_dict())


@pytest.fixture
def foreign(own: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    """As self-supervised training leaves it: an encoder, a projector, no classifier."""
    state = {f"encoder.{k}": t for k, t in own.items() if not k.startswith(("fc.", "conv1."))}
    state |= {f"encoder.stem.{k[6:]}": t for k, t in own.items() if k.startswith("conv1.")}
    state |= {"projector.0.weight": torch.ones(2, 2), "projector.0.bias": torch.ones(2)}
    torch.save({"state_dict": {f"module.{k}": t for k, t in state.items()}}, tmp_path / "ssl.pth")
    return tmp_path / "ssl.pth"


def test_dropped_and_renamed_keys_give_the_networks_weights(
    own: dict[str, torch.Tensor], foreign: Path, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match="file of another network"):
        load_backbone(NAME, weights=foreign)
    done = convert_weights(
        foreign, tmp_path / "new.pth", backbone=NAME, drop_keys=["projector.*"],
        rename_keys=[("encoder.", ""), ("stem.", "conv1.")],
    )  # fmt: skip
    assert done.dropped == ("projector.0.weight", "projector.0.bias")
    assert len(done.renamed) == done.n_keys == len(own) - 2
    (note,) = done.notes
    assert note.startswith(f"the classifier (fc) of {foreign}, so changed, was dropped")
    backbone = load_backbone(NAME, weights=done.path)
    for key, tensor in backbone.network.state_dict().items():
        assert torch.equal(tensor, own[key]) or key.startswith("fc.")
    assert backbone.untrained == ("fc.weight", "fc.bias")


def test_values_that_are_no_numbers_are_told(own: dict[str, torch.Tensor], tmp_path: Path) -> None:
    state = own | {"fc.bias": torch.full_like(own["fc.bias"], float("nan"))}
    torch.save(state, tmp_path / "nan.pth")
    (note,) = convert_weights(tmp_path / "nan.pth", tmp_path / "new.pth", backbone=NAME).notes
    assert "hold values that are not finite (fc.bias" in note


@pytest.mark.parametrize(
    ("drop", "rename", "words"),
    [
        (["nothing.*"], [], r"no key fits --drop-keys nothing\.\*; the file has encoder"),
        ([], [("nothing.", "")], "no key begins with 'nothing.'"),
        ([], [("projector.0.weight", "a"), ("projector.0.bias", "a")], "would be called 'a'"),
    ],
)
def test_changes_that_change_nothing_or_two_to_one_are_refused(
    foreign: Path, tmp_path: Path, drop: list[str], rename: list[Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        convert_weights(
            foreign, tmp_path / "a.pth", backbone=NAME, drop_keys=drop, rename_keys=rename
        )


def test_the_command_counts_what_is_missing_or_unexpected_and_then_writes_nothing(
    foreign: Path, tmp_path: Path
) -> None:
    new = tmp_path / "new.pth"

    def run(*changes: str, code: int = 0) -> str:
        words = ["convert-weights", foreign, "--backbone", NAME, "--out", new, *changes]
        made = CliRunner().invoke(app, [str(word) for word in words])
        assert made.exit_code == code, made.output
        return made.output

    told = run(code=7)
    assert "so changed" not in told
    assert "keys have 'encoder.' in front of the network's own: featx convert-weights" in told
    told = run("--rename-keys", "encoder.=", code=7)
    assert f"{foreign}, so changed, is a file of another network: 5 of 280 keys are missing" in told
    assert "8 are not the network's (stem.0.weight, " in told
    assert not new.exists()
    changes = (
        "--drop-keys",
        "proj*",
        "--rename-keys",
        "encoder.=",
        "--rename-keys",
        "stem.=conv1.",
    )
    told = run(*changes)
    assert "renamed, 2 dropped (projector.0.weight, projector.0.bias)" in told
    assert "nothing to do" in run(*changes)
    assert "OLD=NEW, got 'encoder.'" in run("--rename-keys", "encoder.", code=2)
