"""The demo's drawn birds: the same bytes for a seed, no two alike, told apart by the bird."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featx.drawing import SPECIES, draw_birds
from featx.errors import InputError


def _digests(files: tuple[Path, ...]) -> list[str]:
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    return draw_birds(tmp_path_factory.mktemp("drawn") / "birds", images_per_species=20)


def test_there_is_a_folder_for_each_species_and_some_names_are_not_ascii(birds):
    folders = [file.parent.name for file in birds]
    assert sorted(set(folders)) == list(SPECIES) == sorted(SPECIES)
    assert {folders.count(species) for species in SPECIES} == {20}
    assert sum(not species.isascii() for species in SPECIES) == 2
    assert sorted(p for p in birds[0].parents[1].rglob("*.*")) == sorted(birds)


def test_every_file_is_an_rgb_jpeg_of_about_the_size_asked(birds):
    sizes = set()
    for file in birds:
        with Image.open(file) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            sizes.add(image.size)
    assert all(0.85 * 256 < side < 1.25 * 256 for size in sizes for side in size)
    assert len(sizes) > 20


def test_a_seed_gives_the_same_bytes_and_another_seed_gives_others(tmp_path):
    one = draw_birds(tmp_path / "a", seed=3, images_per_species=2, size_px=64)
    same = draw_birds(tmp_path / "b", seed=3, images_per_species=2, size_px=64)
    other = draw_birds(tmp_path / "c", seed=4, images_per_species=2, size_px=64)
    assert _digests(one) == _digests(same)
    assert not set(_digests(one)) & set(_digests(other))


def test_no_two_pictures_are_alike(birds):
    assert len(set(_digests(birds))) == len(birds)
    small = np.stack([np.asarray(Image.open(f).resize((16, 16)), dtype=float) for f in birds])
    flat = small.reshape(len(birds), -1)
    distances = np.abs(flat[:, None] - flat[None]).mean(axis=2) + 1e9 * np.eye(len(birds))
    assert distances.min() > 3  # of 255 per pixel: more than grain


def test_more_pictures_leave_the_first_ones_as_they_were(tmp_path):
    few = _named(draw_birds(tmp_path / "few", images_per_species=1, size_px=64))
    many = _named(draw_birds(tmp_path / "many", images_per_species=3, size_px=64))
    assert few.items() <= many.items()


def _named(files: tuple[Path, ...]) -> dict[str, str]:
    names = [f"{file.parent.name}/{file.name}" for file in files]
    return dict(zip(names, _digests(files), strict=True))


def test_a_second_call_touches_nothing_and_a_damaged_file_is_drawn_again(tmp_path):
    files = draw_birds(tmp_path, images_per_species=1, size_px=64)
    before = {file: file.stat().st_mtime_ns for file in files}
    digests = _digests(files)
    files[2].write_bytes(files[2].read_bytes()[:100])
    draw_birds(tmp_path, images_per_species=1, size_px=64)
    assert _digests(files) == digests
    changed = [file for file in files if file.stat().st_mtime_ns != before[file]]
    assert changed == [files[2]]


def _corner_means(files: tuple[Path, ...]) -> np.ndarray:
    """Mean colours of the four corners, where there is scene and hardly any bird: (n, 12)."""
    rows = []
    for file in files:
        pixels = np.asarray(Image.open(file).resize((32, 32), Image.Resampling.BOX), dtype=float)
        corners = (pixels[:3, :3], pixels[:3, -3:], pixels[-3:, :3], pixels[-3:, -3:])
        rows.append(np.concatenate([corner.mean(axis=(0, 1)) for corner in corners]))
    return np.stack(rows)


def _nearest_centroid_accuracy(features: np.ndarray, labels: np.ndarray) -> float:
    """Trained on the even pictures of each species, tested on the odd ones."""
    scaled = (features - features.mean(axis=0)) / features.std(axis=0)
    even = np.arange(len(labels)) % 2 == 0
    centroids = np.stack([scaled[even & (labels == k)].mean(axis=0) for k in range(len(SPECIES))])
    distances = ((scaled[~even][:, None] - centroids[None]) ** 2).sum(axis=2)
    return float((distances.argmin(axis=1) == labels[~even]).mean())


def test_the_bird_tells_the_species_and_the_scene_does_not(birds):
    labels = np.array([SPECIES.index(file.parent.name) for file in birds])
    whole = np.stack(
        [np.asarray(Image.open(f).resize((6, 6), Image.Resampling.BOX)).ravel() for f in birds]
    ).astype(float)
    middle = whole.reshape(-1, 6, 6, 3)[:, 1:5, 1:5].reshape(len(birds), -1)
    assert _nearest_centroid_accuracy(middle, labels) > 0.6  # chance is 1/6
    assert _nearest_centroid_accuracy(_corner_means(birds), labels) < 0.4


def test_the_scenes_of_every_species_differ_in_colour(birds):
    upper = _corner_means(birds)[:, :6].reshape(-1, 2, 3).mean(axis=1)  # (n, 3)
    hue = upper - upper.mean(axis=1, keepdims=True)  # without how bright it is
    for species in SPECIES:
        rows = [file.parent.name == species for file in birds]
        assert hue[rows].std(axis=0).max() > 8, species


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"already holds 1 other file \(the first: holiday\.jpg\)"):
        draw_birds(tmp_path, images_per_species=1, size_px=64)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_what_file_managers_leave_in_a_folder_is_no_other_file(tmp_path):
    drawn = draw_birds(tmp_path, images_per_species=1, size_px=64)
    left = [tmp_path / ".DS_Store", drawn[0].with_name("Thumbs.db"), tmp_path / "desktop.ini",
            tmp_path / "@eaDir" / "holiday.jpg"]  # fmt: skip
    for file in left:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"theirs")
    assert draw_birds(tmp_path, images_per_species=1, size_px=64) == drawn
    assert {file.read_bytes() for file in left} == {b"theirs"}


def test_a_file_in_the_folders_place_is_refused(tmp_path):
    (tmp_path / "birds").write_text("no folder")
    with pytest.raises(InputError, match="is a file, not a folder"):
        draw_birds(tmp_path / "birds")


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("seed", -1, "seed must be at least 0; got -1"),
        ("images_per_species", 0, "images_per_species must be at least 1; got 0"),
        ("size_px", 63, "size_px must be at least 64; got 63"),
    ],
)
def test_a_number_out_of_range_is_refused_by_name(tmp_path, argument, value, message):
    with pytest.raises(InputError, match=message):
        draw_birds(tmp_path / "birds", **{argument: value})
    assert not (tmp_path / "birds").exists()


def test_drawing_imports_neither_torch_nor_scikit_learn():
    code = (
        "import sys, featx.drawing; "
        "print([m for m in ('torch', 'sklearn', 'scipy', 'matplotlib') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_pictures_may_be_wider_than_high(tmp_path: Path) -> None:
    files = draw_birds(tmp_path, images_per_species=2, size_px=160, aspect=0.5)
    sizes = []
    for file in files:
        with Image.open(file) as image:
            sizes.append(image.size)
    assert all(144 <= w <= 192 and 72 <= h <= 96 for w, h in sizes)
    for aspect in (1.5, 0.3):
        with pytest.raises(InputError, match="size_px times aspect at least 64; got"):
            draw_birds(tmp_path / "other", size_px=160, aspect=aspect)
