"""What the tests share: where real photographs lie, and small folders of generated ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

# The same examples on every unattended run, so that it fails only for what has changed; at the
# desk new ones are drawn each time. No deadlines: a busy machine is no defect.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("desk", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "desk")

COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (50, 60, 210)}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test downloads anything, or finds what happens to lie on this machine."""
    home = tmp_path_factory.getbasetemp()
    monkeypatch.setenv("TORCH_HOME", str(home / "torch-home"))
    monkeypatch.setenv("FEATX_ENGINE_FOLDER", str(home / "engines"))


@pytest.fixture(scope="session")
def _decoders() -> Iterator[None]:
    yield
    import kept_decoders

    kept_decoders.end_all_but(0)


@pytest.fixture
def kept_decoders(_decoders: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run takes the decoding processes of the one before it, where they load alike."""
    import kept_decoders

    from featx.isolation import IsolatedLoader

    monkeypatch.setattr(IsolatedLoader, "_new", kept_decoders.new_or_kept)
    monkeypatch.setattr(IsolatedLoader, "close", kept_decoders.close_and_keep)


@pytest.fixture
def few_to_choose_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """A logistic head chooses its C from two values, for tests that are not about the grid."""
    from featx.heads import logistic

    monkeypatch.setitem(logistic._GRIDS, "default", (1e-2, 1.0))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with ``data/`` and ``weights/`` of real photographs; skips where it is not."""
    folder = Path(os.environ.get("FEATX_REAL_DATA", Path(__file__).parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip("no real photographs: set FEATX_REAL_DATA to a folder with data/ and weights/")
    return folder


@pytest.fixture
def colour_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of class folders whose images have the colour that names their class."""

    def make(
        name: str = "birds", *, per_class: int = 6, parts: tuple[str, ...] = ("",), size: int = 40
    ) -> Path:
        root = tmp_path / name
        rng = np.random.default_rng(len(name))
        for part in parts:
            for label, colour in COLOURS.items():
                folder = root / part / label
                folder.mkdir(parents=True)
                for i in range(per_class):
                    pixels = np.array(colour) + rng.integers(-40, 40, (size, size, 3))
                    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
                    image.save(folder / f"{label}{i}.png")
        return root

    return make
