"""Plots and grids: what is in the picture, any script without empty boxes, no setting touched."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib import font_manager
from PIL import Image
from scipy.stats import binomtest

from featx.errors import InputError
from featx.metrics.reliability import reliability
from featx.report import fonts as fonts_module
from featx.report import plots
from featx.report.fonts import FontFace, fonts_for, glyph_warning
from featx.report.grid import image_grid
from featx.report.plots import confusion_matrix_png, reliability_png, training_curves_png

GREEN, RED = (0, 158, 115), (213, 94, 0)


@pytest.fixture
def only_dejavu(monkeypatch):
    """A machine with no font beside matplotlib's own, and no font package."""
    monkeypatch.setattr(fonts_module, "_more_faces", lambda: iter(()))


@pytest.fixture
def drawn(monkeypatch):
    """The figure of each picture written, to ask what it holds."""
    figures = []
    save = plots.save_png
    monkeypatch.setattr(plots, "save_png", lambda f, p: (figures.append(f), save(f, p))[1])
    return figures


def _pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def _square(folder: Path, name: str, colour=(90, 120, 200), size=(40, 30)) -> Path:
    file = folder / name
    Image.new("RGB", size, colour).save(file)
    return file


# Fonts


def test_latin_with_accents_needs_no_other_face():
    fonts = fonts_for(["Grue cendrée", "Chim sẻ", "Воробей"])
    assert [face.family for face in fonts.faces] == ["DejaVu Sans"]
    assert fonts.warning is None


def test_a_decomposed_name_is_shown_composed():
    assert fonts_for(["e\u0301"]).shown("cendre\u0301e") == "cendrée"


def test_a_character_without_a_font_is_shown_by_its_code_point(only_dejavu):
    fonts = fonts_for(["麻雀 (sparrow)"])
    assert fonts.shown("麻雀 (sparrow)") == "U+9EBB U+96C0 (sparrow)"
    assert fonts.shown("a麻b") == "a U+9EBB b"
    assert fonts.missing == ("雀", "麻")
    assert fonts.warning.startswith(
        "no font here has the characters U+96C0, U+9EBB, shown by their"
    )
    assert "fonts-noto-cjk" in fonts.warning
    assert "\n" not in fonts.warning


def test_many_missing_characters_make_one_short_warning(only_dejavu):
    warning = glyph_warning(["红腹锦鸡", "丹顶鹤"])
    assert "and 2 more" in warning


def test_names_that_are_not_text_can_be_shown():
    shown = fonts_for(["a\udce9", "tab\there"]).shown
    assert shown("a\udce9") == "a U+DCE9"
    assert shown("tab\there") == "tab U+0009 here"


def test_a_newline_between_lines_of_a_caption_is_no_missing_character():
    assert glyph_warning(["Blue jay\n0.93"]) is None


def test_joiners_and_variation_selectors_without_a_glyph_are_left_out(only_dejavu):
    assert fonts_for(["a"]).shown("a\U000e0041b") == "ab"


def test_the_first_face_that_has_a_character_is_taken_and_useless_ones_are_not(monkeypatch):
    has_some = FontFace("One", Path("one.ttf"))
    useless = FontFace("Two", Path("two.ttf"))
    has_all = FontFace("Three", Path("three.ttf"))
    unused = FontFace("Four", Path("four.ttf"))
    maps = {"one.ttf": "麻", "two.ttf": "xyz", "three.ttf": "麻雀", "four.ttf": "麻雀"}
    real = fonts_module._characters

    def characters(file, index):
        return frozenset(map(ord, maps[file])) if file in maps else real(file, index)

    monkeypatch.setattr(fonts_module, "_characters", characters)
    faces = [has_some, useless, has_all, unused]
    monkeypatch.setattr(fonts_module, "_more_faces", lambda: iter(faces))
    fonts = fonts_for(["麻雀 jay"])
    assert [face.family for face in fonts.faces] == ["DejaVu Sans", "One", "Three"]
    runs = [(face.family, text) for face, text in fonts.runs("a麻雀 b")]
    assert runs == [("DejaVu Sans", "a"), ("One", "麻"), ("Three", "雀 "), ("DejaVu Sans", "b")]


def test_a_damaged_font_file_draws_nothing_and_stops_nothing(tmp_path):
    file = tmp_path / "broken.ttf"
    file.write_bytes(b"not a font")
    assert FontFace("Broken", file).characters == frozenset()


def test_fonts_that_only_promise_characters_are_never_taken(monkeypatch):
    entry = font_manager.FontEntry
    listed = [entry(fname="x.ttf", name=name, style="normal", stretch="normal", weight=400)
              for name in ("Noto Color Emoji", "LastResort", "Plain")]  # fmt: skip
    monkeypatch.setattr(font_manager.fontManager, "ttflist", listed)
    monkeypatch.setattr(fonts_module, "_bundled_face", lambda: None)
    monkeypatch.setattr(fonts_module, "_installed_face", lambda f: FontFace(f, Path("x.ttf")))
    assert [face.family for face in fonts_module._more_faces()] == ["Plain"]


def test_the_font_package_serves_chinese_japanese_and_korean_without_being_imported():
    face = fonts_module._bundled_face()
    if face is None:
        pytest.skip("the font package notojp-matplotlib is not installed")
    assert {ord(c) for c in "麻雀红腹锦鸡丹顶鹤スズメ참새"} <= face.characters
    assert "notojp_matplotlib" not in sys.modules


def test_the_font_package_comes_after_known_fonts_and_before_any_other(monkeypatch):
    entry = font_manager.FontEntry
    listed = [entry(fname="x.ttf", name=name, style="normal", stretch="normal", weight=400)
              for name in ("A Handwriting", "SimHei")]  # fmt: skip
    monkeypatch.setattr(font_manager.fontManager, "ttflist", listed)
    monkeypatch.setattr(fonts_module, "_installed_face", lambda f: FontFace(f, Path("x.ttf")))
    package = FontFace("Package", Path("p.otf"))
    monkeypatch.setattr(fonts_module, "_bundled_face", lambda: package)
    families = [face.family for face in fonts_module._more_faces()]
    assert families == ["SimHei", "Package", "A Handwriting"]


# The confusion matrix


def test_a_small_matrix_has_its_counts_in_its_cells(tmp_path, drawn):
    counts = np.array([[7, 2], [0, 12]])
    assert confusion_matrix_png(tmp_path / "new" / "m.png", counts, ["a", "b"], title="T") == ()
    axes = drawn[0].axes[0]
    assert [text.get_text() for text in axes.texts] == ["7", "2", "0", "12"]
    assert axes.get_xlabel() == "predicted class"
    assert axes.get_ylabel() == "true class"
    np.testing.assert_allclose(axes.images[0].get_array(), [[7 / 9, 2 / 9], [0, 1]])
    assert _pixels(tmp_path / "new" / "m.png").std() > 20
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["m.png"]


def test_without_normalisation_the_colours_are_the_counts(tmp_path, drawn):
    counts = np.array([[7, 2], [0, 12]])
    confusion_matrix_png(tmp_path / "m.png", counts, ["a", "b"], title="T", normalise=False)
    np.testing.assert_allclose(drawn[0].axes[0].images[0].get_array(), counts)
    assert drawn[0].axes[0].images[0].get_clim() == (0, 12)


def test_a_class_without_test_images_is_left_blank_not_zero(tmp_path, drawn):
    confusion_matrix_png(tmp_path / "m.png", np.array([[3, 1], [0, 0]]), ["a", "b"], title="T")
    shares = np.ma.filled(drawn[0].axes[0].images[0].get_array(), np.nan)
    assert np.isnan(shares[1]).all()
    assert not np.isnan(shares[0]).any()


def test_two_hundred_classes_have_no_numbers_and_thinned_names(tmp_path, drawn):
    names = [f"class {i}" for i in range(200)]
    notes = confusion_matrix_png(tmp_path / "m.png", np.eye(200, dtype=int), names, title="T")
    axes = drawn[0].axes[0]
    assert len(axes.texts) == 0
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == ["class 0", "class 4"]
    assert len(axes.get_yticklabels()) == 50
    assert notes == ("m.png has names on one class in 4; there are 200",)


def test_numbers_are_light_on_dark_cells_and_dark_on_light_ones(tmp_path, drawn):
    confusion_matrix_png(tmp_path / "m.png", np.array([[9, 0], [0, 9]]), ["a", "b"], title="T")
    assert [text.get_color() for text in drawn[0].axes[0].texts][:2] == ["#1d1d1f", "white"]


def test_a_name_with_dollar_signs_is_not_read_as_a_formula(tmp_path, drawn):
    names = ["$\\frac{1}", "a $b$ c"]
    confusion_matrix_png(tmp_path / "m.png", np.eye(2, dtype=int), names, title="100$ and 5$")
    axes = drawn[0].axes[0]
    labels = [*axes.get_xticklabels(), *axes.get_yticklabels(), axes.title]
    assert not any(label.get_parse_math() for label in labels)


def test_any_script_is_drawn_without_a_missing_glyph(tmp_path, drawn, caplog):
    # matplotlib's "Glyph missing" is a warning, and warnings are errors here.
    names = ["麻雀", "Grue cendrée", "참새", "🐦\udce9"]
    with caplog.at_level(logging.WARNING):
        confusion_matrix_png(tmp_path / "m.png", np.eye(4, dtype=int), names, title="丹顶鹤")
    assert not caplog.records
    assert drawn[0].axes[0].get_yticklabels()[1].get_text() == "Grue cendrée"


def test_without_a_font_the_plot_shows_code_points_and_returns_one_warning(
    tmp_path, drawn, only_dejavu
):
    notes = confusion_matrix_png(
        tmp_path / "m.png", np.eye(2, dtype=int), ["麻雀", "jay"], title="T"
    )
    assert drawn[0].axes[0].get_yticklabels()[0].get_text() == "U+9EBB U+96C0"
    assert len(notes) == 1
    assert "U+9EBB" in notes[0]


def test_a_plot_changes_no_setting_and_loads_no_window_system(tmp_path):
    before = dict(matplotlib.rcParams)
    figures = sys.modules.get("matplotlib.pyplot")
    confusion_matrix_png(tmp_path / "m.png", np.eye(2, dtype=int), ["麻雀", "b"], title="T")
    assert dict(matplotlib.rcParams) == before
    assert sys.modules.get("matplotlib.pyplot") is figures


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (np.zeros((2, 3), dtype=int), r"must have shape \(2, 2\).*got \(2, 3\)"),
        (np.zeros((2, 2)), r"holds counts: integers from 0; got float64"),
        (np.array([[1, -1], [0, 1]]), r"holds counts: integers from 0; .*minimum -1"),
    ],
)
def test_a_matrix_that_is_no_confusion_matrix_is_refused(tmp_path, counts, message):
    with pytest.raises(InputError, match=message):
        confusion_matrix_png(tmp_path / "m.png", counts, ["a", "b"], title="T")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_picture_and_no_rubbish(tmp_path, monkeypatch):
    path = tmp_path / "m.png"
    path.write_bytes(b"old")

    def fail(self, name):
        Path(name).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(plots.FigureCanvasAgg, "print_png", fail)
    with pytest.raises(OSError, match="disk full"):
        confusion_matrix_png(path, np.eye(2, dtype=int), ["a", "b"], title="T")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("m.png", b"old")]


# Reliability


def _curve(seed=0, n=200):
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.4, 1, n)
    return reliability(confidence, rng.random(n) < confidence)


def test_the_points_are_the_bins_that_have_images_and_the_bars_wilsons(tmp_path, drawn):
    curve = _curve()
    assert reliability_png(tmp_path / "r.png", {"this head": curve}, title="T") == ()
    filled = curve.count > 0
    assert not filled.all()
    top, below = drawn[0].axes
    diagonal, points = (line for line in top.lines if line.get_linestyle() != "None")
    np.testing.assert_array_equal(diagonal.get_xydata(), [[0, 0], [1, 1]])
    np.testing.assert_allclose(points.get_xdata(), curve.confidence[filled])
    np.testing.assert_allclose(points.get_ydata(), curve.accuracy[filled])
    (bars,) = top.collections
    for segment, accuracy, n in zip(
        bars.get_segments(), curve.accuracy[filled], curve.count[filled], strict=True
    ):
        theirs = binomtest(round(accuracy * n), n).proportion_ci(0.95, "wilson")
        np.testing.assert_allclose(segment[:, 1], theirs, rtol=1e-6)
    assert sum(bar.get_height() for bar in below.patches) == pytest.approx(1)
    assert _pixels(tmp_path / "r.png").std() > 20


def test_two_curves_stand_side_by_side_with_their_errors(tmp_path, drawn):
    curves = {"at temperature 2": _curve(), "without calibration": _curve(1)}
    reliability_png(tmp_path / "r.png", curves, title="T")
    _, below = drawn[0].axes
    texts = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert texts[1:] == [f"{name}: ECE {curve.ece:.3f}" for name, curve in curves.items()]
    lefts = [bar.get_x() for bar in below.patches]
    assert len(set(lefts)) == 30  # no bar hides another


# Training curves


def _history(**changes):
    base = {
        "train_loss": [1.5, 0.9, 0.5],
        "train_accuracy": [0.4, 0.7, 0.9],
        "val_loss": [1.6, 1.1, 1.2],
        "val_accuracy": [0.3, 0.6, 0.5],
        "best_epoch": 1,
    }
    return base | changes


def test_the_curves_are_the_history_and_the_kept_epoch_is_marked(tmp_path, drawn):
    assert training_curves_png(tmp_path / "t.png", _history()) == ()
    loss, accuracy = drawn[0].axes
    assert list(loss.lines[0].get_ydata()) == [1.5, 0.9, 0.5]
    assert list(accuracy.lines[1].get_ydata()) == [0.3, 0.6, 0.5]
    assert list(loss.lines[0].get_xdata()) == [1, 2, 3]
    assert [text.get_text() for text in loss.texts] == ["kept: epoch 2"]
    assert loss.texts[0].xy[0] == 2
    assert loss.lines[2].get_xdata()[0] == 2


def test_the_legend_of_the_curves_covers_none_of_them(tmp_path, drawn):
    training_curves_png(tmp_path / "t.png", _history())
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["training", "validation"]
    for axes in drawn[0].axes:
        assert axes.get_legend() is None
        assert not legend.get_window_extent().overlaps(axes.get_window_extent())


def test_without_validation_only_the_training_curves_are_drawn(tmp_path, drawn):
    training_curves_png(tmp_path / "t.png", _history(val_loss=[], val_accuracy=[], best_epoch=None))
    assert [len(axes.lines) for axes in drawn[0].axes] == [1, 1]
    assert not drawn[0].axes[0].texts


def test_networks_that_were_not_kept_are_thin_lines_with_their_names(tmp_path, drawn):
    others = {
        "lr 0.1": {"val_loss": [9.0, 7.0], "val_accuracy": [0.1, 0.2]},
        "lr 1": {"val_loss": [], "val_accuracy": []},  # diverged at once
    }
    training_curves_png(tmp_path / "t.png", _history(), others=others)
    loss, accuracy = drawn[0].axes
    assert list(loss.lines[0].get_ydata()) == [9.0, 7.0]
    assert list(accuracy.lines[0].get_ydata()) == [0.1, 0.2]
    assert list(loss.lines[2].get_ydata()) == [1.5, 0.9, 0.5]
    names = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert names == ["validation, lr 0.1", "validation, lr 1"]
    assert loss.get_yscale() == "log"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_loss": [1.0]}, "one value per epoch in each list"),
        ({"train_loss": []}, "one value per epoch in each list"),
        ({"best_epoch": 3}, r"best_epoch must be 0 to 2 .*got 3"),
    ],
)
def test_a_history_that_does_not_fit_together_is_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        training_curves_png(tmp_path / "t.png", _history(**changes))


def test_a_history_without_a_list_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="missing are val_loss, val_accuracy"):
        training_curves_png(tmp_path / "t.png", {"train_loss": [1.0], "train_accuracy": [1.0]})


# The grid


def test_the_grid_shows_each_image_in_order_with_its_frame(tmp_path):
    files = [_square(tmp_path, "a.png", (250, 0, 250)), _square(tmp_path, "b.png", (0, 0, 250)),
             _square(tmp_path, "c.png", (250, 250, 0))]  # fmt: skip
    grid = image_grid(files, ["a", "b", "c"], columns=2, tile_px=80, marks=["ok", "wrong", None])
    pixels = np.asarray(grid)
    where = [tuple(np.argwhere((pixels == colour).all(axis=2)).mean(axis=0).round())
             for colour in ((250, 0, 250), (0, 0, 250), (250, 250, 0))]  # fmt: skip
    assert where[0][0] == where[1][0] < where[2][0]  # two in the first row, one below
    assert where[0][1] == pytest.approx(where[2][1], abs=1)
    assert where[0][1] < where[1][1]
    middle = grid.width // 2
    for colour, side in ((GREEN, slice(0, middle)), (RED, slice(middle, None))):
        inside = (pixels[:, side] == colour).all(axis=2).sum()
        assert inside > 500
        assert inside == (pixels == colour).all(axis=2).sum()


def test_a_tall_image_keeps_its_shape(tmp_path):
    file = _square(tmp_path, "tall.png", (250, 0, 0), size=(100, 400))
    found = np.argwhere((np.asarray(image_grid([file], ["x"], tile_px=80)) == (250, 0, 0)).all(2))
    high, wide = np.ptp(found, axis=0) + 1
    assert (high, wide) == (80, 20)


def test_an_unreadable_image_is_a_grey_tile_with_the_reason_and_the_others_are_shown(tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    good = _square(tmp_path, "good.png", (250, 0, 250))
    grid = np.asarray(image_grid([broken, good, tmp_path / "gone.jpg"], ["a", "b", "c"], columns=3))
    assert (grid == (250, 0, 250)).all(axis=2).sum() > 10_000
    tile = grid[40:120, 13:173]  # of the first
    assert (tile == (236, 237, 240)).all(axis=2).mean() > 0.5
    assert (tile < 160).all(axis=2).sum() > 50  # words


def test_a_caption_fits_its_tile_and_ends_in_an_ellipsis_when_cut(tmp_path):
    from featx.report.grid import _Pen

    pen = _Pen(fonts_for(["…"]), 12)
    for text in ("a word " * 40, "Unbroken" * 40, "W" * 200):
        lines = pen.wrap(text, 100, 3)
        assert len(lines) == 3
        assert lines[-1].endswith("…")
        assert all(pen.width(line) <= 100 for line in lines)
    assert pen.wrap("Blue jay\n0.93", 100, 3) == ["Blue jay", "0.93"]
    assert pen.wrap("Blue jay", 100, 3) == ["Blue jay"]


def test_captions_in_any_script_leave_ink_below_the_tile(tmp_path, only_dejavu):
    file = _square(tmp_path, "麻雀.png")
    for caption in ("麻雀", "Grue cendrée", "عصفور", "a\udce9"):
        below = np.asarray(image_grid([file], [caption], tile_px=96))[108:]
        assert (below < 128).all(axis=2).sum() > 20


def test_a_longer_caption_makes_the_grid_higher_and_a_title_too(tmp_path):
    file = _square(tmp_path, "a.png")
    plain = image_grid([file], ["short"]).height
    assert image_grid([file], ["long enough for two lines of text"]).height > plain
    assert image_grid([file], ["short"], title="Title").height > plain


@pytest.mark.parametrize(
    ("files", "captions", "options", "message"),
    [
        (0, 0, {}, "at least one image; got none"),
        (2, 1, {}, "got 2 images, 1 captions and 2 marks"),
        (1, 1, {"marks": ["good"]}, "a mark must be 'ok', 'wrong' or None; got good"),
        (1, 1, {"tile_px": 20}, "tile_px must be at least 48; got 20"),
        (1, 1, {"columns": 0}, "columns must be at least 1; got 0"),
        (9000, 9000, {}, "show fewer images or use smaller tiles"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(tmp_path, files, captions, options, message):
    with pytest.raises(InputError, match=message):
        image_grid([tmp_path / "x.jpg"] * files, ["c"] * captions, **options)
