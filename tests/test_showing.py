"""Which images `featx show` draws: those that were asked for, with the right words below them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from synthetic import SPEC, write_cache

import featx
from featx.decoding import read_image
from featx.errors import HeadError, InputError
from featx.fitting import fit_head
from featx.heads import load_head
from featx.report.grid import image_grid
from featx.report.showing import Chosen, choose

NAMES = ("Great tit", "Grue cendrée", "麻雀")


def _numbers(chosen: Chosen) -> list[int]:
    """Numbers of the images of a cache of `write_cache`, whose files are called after them."""
    return [int(Path(file).stem) for file in chosen.files]


@pytest.fixture(scope="module")
def unsure(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A cache of 150 images, ten without a label, and a head that gets some of them wrong."""
    labels = np.arange(150) % 3
    labels[:10] = -1
    path = write_cache(tmp_path_factory.mktemp("unsure") / "a.h5", n=150, labels=labels, spread=2.5)
    return path, fit_head(path, C=1.0).path


def _said(cache: Path, head: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True labels, predicted labels and their probabilities of every row, the plain way."""
    features = featx.load(cache)
    proba = load_head(head).head.predict_proba(features.X)
    return features.y, proba.argmax(axis=1), proba.max(axis=1)


# Folders


def test_images_of_a_folder_are_captioned_by_their_class(
    colour_folder: Callable[..., Path],
) -> None:
    chosen = choose(colour_folder(per_class=4))
    assert chosen.total == len(chosen.files) == 12
    assert all(file.is_file() for file in chosen.files)
    assert list(chosen.captions) == [file.parent.name for file in chosen.files]
    assert chosen.marks == (None,) * 12


def test_class_names_are_written_as_people_read_them(colour_folder: Callable[..., Path]) -> None:
    root = colour_folder(per_class=1)
    (root / "red").rename(root / "001.Rouge-gorge_familier")
    (root / "blue").rename(root / "002.麻雀")
    assert set(choose(root).captions) == {"Rouge-gorge familier", "麻雀", "green"}


def test_images_without_a_class_are_captioned_by_their_path(
    colour_folder: Callable[..., Path],
) -> None:
    root = colour_folder(per_class=2)
    flat = root.parent / "flat"
    shutil.copytree(root / "red", flat)
    assert choose(flat).captions == ("red0.png", "red1.png")


def test_no_more_than_n_are_chosen_out_of_all_and_shown_in_the_order_of_their_paths(
    colour_folder: Callable[..., Path],
) -> None:
    root = colour_folder(per_class=8)
    chosen = choose(root, n=7, seed=3)
    assert (len(set(chosen.files)), chosen.total) == (7, 24)
    assert list(chosen.files) == sorted(chosen.files)
    assert len({file.parent for file in chosen.files}) > 1  # drawn, not the first seven


def test_a_seed_chooses_the_same_images_and_another_seed_others(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5", n=90)
    assert choose(path, n=9, seed=1) == choose(path, n=9, seed=1)
    assert choose(path, n=9, seed=1).files != choose(path, n=9, seed=2).files


# Classes


@pytest.mark.parametrize("called", ["002.Grue_cendrée", "Grue cendrée"])
def test_a_class_is_found_by_its_folder_and_by_its_name(tmp_path: Path, called: str) -> None:
    chosen = choose(write_cache(tmp_path / "a.h5", n=30), class_name=called)
    assert _numbers(chosen) == list(range(1, 30, 3))
    assert set(chosen.captions) == {"Grue cendrée"}
    assert chosen.total == 10


def test_a_class_of_a_folder_is_found_too(colour_folder: Callable[..., Path]) -> None:
    chosen = choose(colour_folder(per_class=3), class_name="green")
    assert [file.name for file in chosen.files] == ["green0.png", "green1.png", "green2.png"]
    assert chosen.total == 3


def test_an_unknown_class_is_told_with_the_ones_there_are(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5")
    with pytest.raises(InputError, match="no class 'Moineau'; there are Great tit, Grue cendrée"):
        choose(path, class_name="Moineau")
    bare = write_cache(tmp_path / "b.h5", n=9, classes=(), labels=np.full(9, -1))
    with pytest.raises(InputError, match="no class 'Moineau'; there are no classes"):
        choose(bare, class_name="Moineau")


def test_of_many_classes_the_error_names_ten(tmp_path: Path) -> None:
    classes = tuple(f"bird {letter}" for letter in "abcdefghijkl")
    path = write_cache(tmp_path / "a.h5", n=24, classes=classes)
    with pytest.raises(InputError, match=r"bird i, bird j, …$"):
        choose(path, class_name="wren")


def test_a_class_without_usable_images_has_nothing_to_show(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5", n=6, failed=(0, 3))
    with pytest.raises(InputError, match="there are no images to show"):
        choose(path, class_name="Great tit")


# Caches


def test_the_files_of_a_cache_lie_below_its_root(tmp_path: Path) -> None:
    chosen = choose(write_cache(tmp_path / "a.h5", n=5, root="/some/birds"))
    assert chosen.files == tuple(Path(f"/some/birds/{number:06d}.jpg") for number in range(5))
    assert chosen.captions == tuple(NAMES[number % 3] for number in range(5))


def test_unlabelled_images_of_a_cache_are_captioned_by_their_path(tmp_path: Path) -> None:
    labels = np.array([0, -1, 2, 0, 1, 2])
    chosen = choose(write_cache(tmp_path / "a.h5", n=6, labels=labels))
    assert chosen.captions[:3] == ("Great tit", "000001.jpg", "麻雀")


def test_images_that_failed_are_not_shown_unless_asked_for(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5", n=12, failed=(2, 7, 11))
    assert set(_numbers(choose(path))) == set(range(12)) - {2, 7, 11}
    chosen = choose(path, failed=True)
    assert _numbers(chosen) == [2, 7, 11]
    assert chosen.captions[0] == "000002.jpg\nundecodable"
    assert (chosen.marks, chosen.total) == ((None,) * 3, 3)
    assert len(choose(path, failed=True, n=2).files) == 2


def test_a_file_that_crashed_the_decoder_is_not_decoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_cache(tmp_path / "a.h5", n=6, failed=(1,), crashed=(4,))
    chosen = choose(path, failed=True)
    assert chosen.files == (Path("/birds/000001.jpg"), "the decoder hung")
    assert chosen.captions[1] == "000004.jpg\ncrashed or hung the decoder"
    read: list[Path] = []

    def reading(file: Path) -> bytes:
        read.append(file)
        return read_image(file)

    monkeypatch.setattr("featx.report.grid.read_image", reading)
    grid = np.asarray(image_grid(chosen.files, chosen.captions, columns=2))
    assert read == [Path("/birds/000001.jpg")]
    assert (grid[40:120, 190:340] < 160).all(axis=2).sum() > 50  # words in the second tile


def test_asking_for_failed_images_where_none_failed_is_told(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5")
    with pytest.raises(InputError, match=r"no image of .*a\.h5 failed"):
        choose(path, failed=True)


# Heads


def test_a_prediction_is_written_with_its_probability_and_marked(
    unsure: tuple[Path, Path],
) -> None:
    cache, head = unsure
    true, said, best = _said(cache, head)
    chosen = choose(cache, head=head, n=200)
    assert _numbers(chosen) == list(range(150))
    for row, (caption, mark) in enumerate(zip(chosen.captions, chosen.marks, strict=True)):
        wrong = true[row] >= 0 and said[row] != true[row]
        below = f"\n(is {NAMES[true[row]]})" if wrong else ""
        assert caption == f"{NAMES[said[row]]} {best[row]:.2f}{below}"
        assert mark == (None if true[row] < 0 else "wrong" if wrong else "ok")
    assert set(chosen.marks) == {None, "ok", "wrong"}


def test_errors_are_all_wrong_predictions_the_surest_first(unsure: tuple[Path, Path]) -> None:
    cache, head = unsure
    true, said, best = _said(cache, head)
    wrong = np.flatnonzero((true >= 0) & (said != true))
    assert len(wrong) > 5
    chosen = choose(cache, head=head, errors=True, n=200)
    assert sorted(_numbers(chosen)) == wrong.tolist()
    probabilities = best[_numbers(chosen)]
    assert (np.diff(probabilities) <= 0).all()
    assert (np.diff(probabilities) < 0).any()
    assert set(chosen.marks) == {"wrong"}
    few = choose(cache, head=head, errors=True, n=3)
    assert (few.files, few.total) == (chosen.files[:3], len(wrong))


def test_errors_of_one_class_are_images_of_that_class(unsure: tuple[Path, Path]) -> None:
    cache, head = unsure
    true, said, _ = _said(cache, head)
    chosen = choose(cache, head=head, errors=True, class_name="麻雀", n=200)
    assert sorted(_numbers(chosen)) == np.flatnonzero((true == 2) & (said != 2)).tolist()
    assert all(caption.endswith("\n(is 麻雀)") for caption in chosen.captions)


def test_a_head_without_errors_has_none_to_show(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "a.h5", spread=0.1)
    head = fit_head(cache, C=1.0).path
    with pytest.raises(InputError, match="gets none of these images wrong"):
        choose(cache, head=head, errors=True)
    assert set(choose(cache, head=head).marks) == {"ok"}


def test_a_head_of_other_features_is_refused(tmp_path: Path) -> None:
    head = fit_head(write_cache(tmp_path / "a.h5"), C=1.0).path
    other = write_cache(tmp_path / "b.h5", spec={**SPEC, "backbone": "alexnet"})
    with pytest.raises(HeadError, match="backbone: 'alexnet', not 'squeezenet1_1'"):
        choose(other, head=head)


def test_a_right_prediction_is_right_though_the_caches_name_their_classes_otherwise(
    tmp_path: Path,
) -> None:
    # With both Jays there the number is part of the name people read; alone it is not.
    both = ("001.Jay", "002.Jay", "003.Owl")
    head = fit_head(write_cache(tmp_path / "a.h5", classes=both), C=1.0).path
    first = write_cache(
        tmp_path / "b.h5", n=9, first_image=500, classes=("001.Jay",), labels=np.zeros(9, int)
    )
    chosen = choose(first, head=head)
    assert chosen.marks == ("ok",) * 9
    assert not any("(is" in caption for caption in chosen.captions)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"failed": True}, "shown for a cache"),
        ({"errors": True}, "shown for a cache"),
        ({"head": "a.safetensors"}, "shown for a cache"),
    ],
)
def test_what_a_folder_cannot_show_is_refused(
    colour_folder: Callable[..., Path], arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        choose(colour_folder(), **arguments)  # type: ignore[arg-type]


def test_arguments_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5", failed=(1,))
    with pytest.raises(InputError, match="--errors needs --head"):
        choose(path, errors=True)
    with pytest.raises(InputError, match="it goes with no class and head"):
        choose(path, failed=True, class_name="麻雀")
