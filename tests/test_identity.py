"""The weights used are the weights named: their hash is asked on every run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import featx
from featx import architectures, weight_files, weights
from featx.backbones import load_backbone
from featx.cache import partial_path
from featx.cli import app
from featx.errors import CacheError, SpecMismatchError
from featx.extraction import Listener, run_extraction
from featx.specs import ExtractOptions

pytestmark = pytest.mark.usefixtures("kept_decoders")

Folder = Callable[..., Path]
TINY: dict[str, Any] = {
    "backbone": "squeezenet1_1", "device": "cpu", "engine": "torch-eager", "batch_size": 4,
    "transform": {"resize": 64, "crop": 64},
}  # fmt: skip
ARGUMENTS = [
    "--backbone", "squeezenet1_1", "--device", "cpu", "--engine", "torch-eager",
    "--batch-size", "4", "--resize", "64", "--crop", "64",
]  # fmt: skip


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    return load_backbone("squeezenet1_1", weights="random", seed=seed).network.state_dict()


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default weights as if downloaded: in torch.hub's folder, the hash in their name."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = weights.checkpoint_folder()
    folder.mkdir(parents=True)
    torch.save(state(), folder / "new.pth")
    digits = weight_files.sha256_file(folder / "new.pth")[:8]
    entry = architectures.published_named("squeezenet1_1", "default")
    assert entry is not None
    file = (folder / "new.pth").rename(folder / f"squeezenet1_1-{digits}.pth")
    url = f"https://download.pytorch.org/models/{file.name}"
    moved = dataclasses.replace(entry, url=url)
    monkeypatch.setattr(architectures, "published_named", lambda *_: moved)
    return file


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def test_a_flipped_byte_in_the_downloaded_weights_is_found_on_every_run(
    published: Path, colour_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(published.parent)
    arguments = ["extract", str(colour_folder(per_class=1)), *ARGUMENTS]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    for at in (9, published.stat().st_size // 2, published.stat().st_size - 1):
        flip(published, at)
        found = CliRunner().invoke(app, arguments)  # although the cache is complete
        assert found.exit_code == 7, at
        assert f"{published} is damaged: its SHA-256 begins with" in found.stderr
        assert "delete it and run again, or get it from https://" in found.stderr
        flip(published, at)
    assert CliRunner().invoke(app, arguments).exit_code == 0


def test_a_run_whose_weights_file_changed_is_not_resumed(
    colour_folder: Folder, tmp_path: Path
) -> None:
    root, file, out = colour_folder(), tmp_path / "mine.pth", tmp_path / "a.h5"
    torch.save(state(0), file)
    options = ExtractOptions(**TINY, weights=str(file))

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_extraction(root, options, out=out, listener=Listener(advance=interrupt))
    before = partial_path(out).read_bytes()
    torch.save(state(1), file)  # the same name, path and size
    with pytest.raises(SpecMismatchError, match="weights_sha256: ") as caught:
        run_extraction(root, options, out=out)
    assert caught.value.fields == ("weights_sha256",)
    assert caught.value.exit_code == 4
    assert partial_path(out).read_bytes() == before
    torch.save(state(0), file)
    assert len(run_extraction(root, options, out=out).features) == 18


def test_a_finished_cache_of_other_weights_is_not_reused(
    colour_folder: Folder, tmp_path: Path
) -> None:
    root, file = colour_folder(per_class=1), tmp_path / "mine.pth"
    torch.save(state(0), file)
    featx.extract(root, **TINY, weights=str(file), out=tmp_path / "a.h5")
    flip(file, file.stat().st_size // 2)
    with pytest.raises(CacheError, match="weights_sha256"):
        featx.extract(root, **TINY, weights=str(file), out=tmp_path / "a.h5")


def test_the_seed_of_random_weights_is_in_their_hash(colour_folder: Folder, tmp_path: Path) -> None:
    first, again, other = (
        load_backbone("squeezenet1_1", weights="random", seed=seed).weights_sha256
        for seed in (0, 0, 1)
    )
    assert first == again != other
    root = colour_folder(per_class=1)
    featx.extract(root, **TINY, weights="random", out=tmp_path / "a.h5")
    with pytest.raises(SpecMismatchError) as caught:
        featx.extract(root, **TINY, weights="random", seed=1, out=tmp_path / "a.h5")
    assert caught.value.fields == ("weights_sha256",)
