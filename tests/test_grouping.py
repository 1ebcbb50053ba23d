"""Groups of images by folder, by name and by a column of a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from synthetic import write_cache

import featx
from featx.errors import InputError
from featx.featureset import FeatureSet
from featx.grouping import group_images


@pytest.fixture
def features(tmp_path: Path) -> FeatureSet:
    return featx.load(write_cache(tmp_path / "a.h5", n=24, root=str(tmp_path / "birds")))


def renamed(features: FeatureSet, paths: list[str]) -> FeatureSet:
    rows = np.arange(len(paths))[::-1]
    part = features.take(rows[::-1])
    object.__setattr__(part, "raw_paths", [path.encode() for path in paths])
    return part


def test_the_parent_folder_is_the_group(features: FeatureSet) -> None:
    few = renamed(features, ["tit/nest1/a.jpg", "tit/nest1/b.jpg", "tit/nest2/a.jpg", "c.jpg"])
    found = group_images(few, "parent")
    assert found.groups.tolist() == [1, 1, 2, 0]
    assert (found.n_groups, found.n_alone) == (3, 0)
    assert found.source == "3 groups by parent folder"


def test_what_parentheses_hold_is_the_group_and_what_does_not_match_is_alone(
    features: FeatureSet,
) -> None:
    few = renamed(features, ["x/site_07_1.jpg", "y/site_12_1.jpg", "y/site_07_2.jpg", "z.jpg"])
    found = group_images(few, r"site_(\d+)")
    assert found.groups.tolist() == [0, 1, 0, -1]
    assert found.source == r"2 groups by 'site_(\d+)' in the path, 1 image alone"


def test_a_column_of_a_table_beside_the_images_is_the_group(
    features: FeatureSet, tmp_path: Path
) -> None:
    root = Path(features.root)
    root.mkdir()
    rows = [f"{path},{'' if i == 5 else i // 4}" for i, path in enumerate(features.paths)]
    (root / "plots.csv").write_text("\n".join(["path,Plot", *rows]), "utf-8-sig")
    (root / "broken.csv").write_text("nothing,of,use\n")
    found = group_images(features, "plot")
    expected = np.arange(24) // 4
    expected[5] = -1
    assert np.array_equal(found.groups, expected)
    assert found.source == "6 groups by 'plot' of plots.csv, 1 image alone"
    elsewhere = tmp_path / "elsewhere.csv"
    elsewhere.write_text("\n".join(["path;ring", *(f"{root}/{p};{i % 5}" for i, p in
                                                   enumerate(features.paths))]))  # fmt: skip
    found = group_images(features, f"{elsewhere}:ring")
    assert np.array_equal(found.groups, np.arange(24) % 5)


def test_without_a_rule_the_groups_are_those_of_the_cache(features: FeatureSet) -> None:
    assert group_images(features, None).source == "none"
    object.__setattr__(features, "groups", np.where(np.arange(24) < 20, np.arange(24) // 2, -1))
    found = group_images(features, None)
    assert np.array_equal(found.groups, features.groups)
    assert found.source == "10 groups of the cache, 4 images alone"


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("(", "not a regular expression"),
        ("plot", r"takes parent, a column of a CSV in .*birds, TABLE\.csv:COLUMN"),
        (r"(\d)(\d)", "one pair of parentheses"),
        (r"(\d+)\.jpg", "no two of the 24 images"),
        (r"(nothing)", r"24 have no group"),
        ("missing.csv:plot", "cannot read missing.csv"),
    ],
)
def test_a_rule_that_groups_nothing_is_refused(features: FeatureSet, rule: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        group_images(features, rule)


def test_a_table_that_does_not_fit_is_refused(features: FeatureSet, tmp_path: Path) -> None:
    root = Path(features.root)
    root.mkdir()
    for name in ("a.csv", "b.csv"):
        (root / name).write_text("path,plot\nother.jpg,1\n")
    with pytest.raises(InputError, match=r"a\.csv, b\.csv all have that column"):
        group_images(features, "plot")
    with pytest.raises(InputError, match="names none of the images"):
        group_images(features, f"{root / 'a.csv'}:plot")
    with pytest.raises(InputError, match="has no column 'ring'; it has path, plot"):
        group_images(features, f"{root / 'a.csv'}:ring")


def test_a_table_is_found_to_fit_whichever_link_leads_to_it(tmp_path: Path) -> None:
    (tmp_path / "disk/birds").mkdir(parents=True)
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    features = featx.load(
        write_cache(tmp_path / "a.h5", n=24, root=str(tmp_path / "disk/birds"))  # as listed
    )
    linked = tmp_path / "data/birds"
    for place in ("", f"{linked}/"):
        rows = [f"{place}{path},{i // 4}" for i, path in enumerate(features.paths)]
        (linked / "sites.csv").write_text("\n".join(["path,site", *rows]))
        found = group_images(features, f"{linked}/sites.csv:site")
        assert np.array_equal(found.groups, np.arange(24) // 4)


def test_a_table_is_looked_for_from_where_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        cache = write_cache(tmp_path / f"{name}.h5", n=24, root=str(tmp_path / name))
        features = featx.load(cache)
        monkeypatch.chdir(tmp_path / name)
        rows = [f"{path},{i // 4}" for i, path in enumerate(features.paths)]
        Path("sites.csv").write_text("\n".join(["path,site", *rows]))
        assert group_images(features, "sites.csv:site").n_groups == 6
