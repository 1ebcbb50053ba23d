"""A source of images becomes one ordered table, and nothing is left out without being counted."""

from __future__ import annotations

import os
import subprocess
import sys
import unicodedata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from featx import image_sources
from featx.errors import InputError
from featx.image_lists import read_csv
from featx.image_sources import place
from featx.images import ImageTable, display_names, expand_inputs, list_images

REAL_DATA = Path(os.environ.get("FEATX_REAL_DATA", Path(__file__).parents[1].parent / "shared"))
ON_LINUX = sys.platform.startswith("linux")


def make(root: Path, *paths: str | bytes) -> Path:
    """Create small files; their content is never looked at."""
    for path in paths:
        file = root / os.fsdecode(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * 7)
    return root


def rows(table: ImageTable) -> list[tuple[str, str | None, int]]:
    """Return (path, class name, split code) of every image."""
    return [
        (os.fsdecode(path), None if label < 0 else table.classes[label], int(split))
        for path, label, split in zip(table.paths, table.labels, table.split, strict=True)
    ]


# --- folders --------------------------------------------------------------------------------------


def test_class_folders_are_the_labels_and_paths_are_sorted_bytewise(tmp_path: Path) -> None:
    make(tmp_path, "wren/b.jpg", "wren/a.PNG", "owl/deep/er/c.jpeg", "owl-2/a.jpg", "owl/z.tif")
    table = list_images(tmp_path)
    assert rows(table) == [
        ("owl-2/a.jpg", "owl-2", 0),
        ("owl/deep/er/c.jpeg", "owl", 0),
        ("owl/z.tif", "owl", 0),
        ("wren/a.PNG", "wren", 0),
        ("wren/b.jpg", "wren", 0),
    ]
    assert list(table.paths) == sorted(table.paths)
    assert table.classes == ("owl", "owl-2", "wren")
    assert table.root == tmp_path.resolve()
    assert table.file(3) == tmp_path.resolve() / "wren" / "a.PNG"
    assert len(table) == 5
    assert table.skipped == {}
    assert table.notes == ()
    assert table.groups.tolist() == [-1] * 5
    assert table.group_names == ()


def test_arrays_have_the_types_of_the_cache_and_cannot_be_changed(tmp_path: Path) -> None:
    table = list_images(make(tmp_path, "a/1.jpg", "b/1.jpg"))
    arrays = [table.labels, table.split, table.groups, table.size_bytes, table.mtime_ns]
    assert [a.dtype for a in arrays] == [np.int64, np.uint8, np.int64, np.int64, np.int64]
    assert table.size_bytes.tolist() == [7, 7]
    assert table.mtime_ns[0] == (tmp_path / "a/1.jpg").stat().st_mtime_ns
    with pytest.raises(ValueError, match="read-only"):
        table.labels[0] = 5


@pytest.mark.parametrize("source", ["", "all.txt"])
def test_a_time_beyond_what_64_bits_hold_is_the_last_they_hold(tmp_path: Path, source: str) -> None:
    make(tmp_path, "a/1.jpg")
    (tmp_path / "all.txt").write_text("a/1.jpg\n")
    year_2400_s = 13_569_465_600
    try:
        os.utime(tmp_path / "a/1.jpg", (year_2400_s, year_2400_s))
    except (OSError, OverflowError) as error:
        pytest.skip(f"this file system holds no such time: {error}")
    held = (tmp_path / "a/1.jpg").stat().st_mtime_ns
    assert list_images(tmp_path / source).mtime_ns.tolist() == [min(held, 2**63 - 1)]
    past = SimpleNamespace(st_mtime_ns=-(10**20))
    assert image_sources.mtime_ns(past) == -(2**63)  # type: ignore[arg-type]


def test_the_leaf_folder_can_be_the_label(tmp_path: Path) -> None:
    make(tmp_path, "aves/passer/1.jpg", "aves/parus/1.jpg", "insecta/apis/1.jpg")
    assert list_images(tmp_path).classes == ("aves", "insecta")
    table = list_images(tmp_path, label_from="leaf")
    assert table.classes == ("apis", "parus", "passer")
    assert table.rules == {"source": "folder", "label_from": "leaf", "split_folders": "auto"}


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val", "VALIDATION"])
def test_train_val_and_test_folders_are_the_split_in_any_case(tmp_path: Path, val: str) -> None:
    make(tmp_path, "Train/owl/1.jpg", f"{val}/owl/2.jpg", "TEST/wren/3.jpg")
    got = sorted(
        (path.split("/", 1)[1], label, split) for path, label, split in rows(list_images(tmp_path))
    )
    assert got == [("owl/1.jpg", "owl", 1), ("owl/2.jpg", "owl", 2), ("wren/3.jpg", "wren", 3)]


def test_split_folders_can_be_forced_either_way(tmp_path: Path) -> None:
    make(tmp_path, "train/owl/1.jpg", "test/owl/2.jpg")
    assert list_images(tmp_path, split_folders=True).split.tolist() == [3, 1]
    table = list_images(tmp_path, split_folders=False)
    assert table.classes == ("test", "train")
    assert table.split.tolist() == [0, 0]
    assert table.rules["split_folders"] is False
    other = make(tmp_path / "other", "owl/1.jpg", "wren/1.jpg")
    with pytest.raises(InputError, match=r"no train, val or test folder in .*: found owl, wren"):
        list_images(other, split_folders=True)


def test_split_folders_beside_class_folders_are_refused_with_the_way_out(tmp_path: Path) -> None:
    make(tmp_path, "train/owl/1.jpg", "val/owl/1.jpg", "wren/1.jpg", "heron/1.jpg")
    message = r"split folders \(train, val\) beside .* \(heron, wren\).*--no-split-folders"
    for split_folders in (None, True):
        with pytest.raises(InputError, match=message):
            list_images(tmp_path, split_folders=split_folders)
    assert len(list_images(tmp_path, split_folders=False).classes) == 4


def test_folders_without_images_beside_split_folders_do_not_matter(tmp_path: Path) -> None:
    make(tmp_path, "train/owl/1.jpg", "val/wren/1.jpg", "annotations/x.xml")
    table = list_images(tmp_path)
    assert table.split.tolist() == [1, 2]
    assert table.skipped == {".xml file": 1}


def test_a_flat_folder_is_unlabelled_and_says_so(tmp_path: Path) -> None:
    table = list_images(make(tmp_path, "1.jpg", "2.jpg"))
    assert table.labels.tolist() == [-1, -1]
    assert table.classes == ()
    assert table.names == ()
    assert table.notes == (f"no class folders in {tmp_path}: all 2 images are unlabelled",)


def test_images_beside_class_folders_are_unlabelled_and_counted(tmp_path: Path) -> None:
    make(tmp_path / "birds", "a.jpg", "z.jpg", "owl/1.jpg", "wren/1.jpg")
    table = list_images(tmp_path / "birds")
    assert table.labels.tolist() == [-1, 0, 1, -1]
    assert table.notes == ("2 images directly in birds/, in no class: unlabelled",)
    make(tmp_path / "split", "train/1.jpg", "train/owl/2.jpg", "val/wren/3.jpg")
    table = list_images(tmp_path / "split")
    assert rows(table)[0] == ("train/1.jpg", None, 1)
    assert table.notes == ("1 image directly in a split folder: unlabelled",)


def test_a_single_class_is_listed_and_noted(tmp_path: Path) -> None:
    table = list_images(make(tmp_path, "images/owl/1.jpg", "images/wren/1.jpg"))
    assert table.classes == ("images",)
    assert "only one class, 'images'" in table.notes[0]
    assert "--label-from leaf" in table.notes[0]


def test_what_is_no_image_is_counted_by_kind(tmp_path: Path) -> None:
    make(tmp_path, "a/1.jpg", "b/1.jpg", "a/x.txt", "b/y.TXT", "a/README", "a/.DS_Store")
    make(tmp_path, "b/Thumbs.db", "__MACOSX/a/1.jpg", ".git/2.jpg", "a/@eaDir/1.jpg")
    make(tmp_path, "a/.ipynb_checkpoints/1.jpg", "a/frame.000123", "a/frame.000124")
    table = list_images(tmp_path)
    assert len(table) == 2
    assert table.skipped == {
        ".txt file": 2,
        "file with another ending": 2,
        "file without suffix": 1,
        "hidden": 6,
    }


def test_heic_without_its_extra_is_counted_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "a/1.jpg", "b/1.jpg", "b/2.HEIC")
    monkeypatch.setattr(image_sources, "has_heic", lambda: False)
    table = list_images(tmp_path)
    assert table.skipped == {".heic file (pip install 'featx[heic]')": 1}
    monkeypatch.setattr(image_sources, "has_heic", lambda: True)
    assert len(list_images(tmp_path)) == 3


def test_nfd_and_nfc_folders_are_one_class(tmp_path: Path) -> None:
    nfc, nfd = (unicodedata.normalize(form, "Grue cendrée") for form in ("NFC", "NFD"))
    assert nfc != nfd
    make(tmp_path, f"train/{nfc}/1.jpg", f"val/{nfd}/2.jpg", "train/麻雀/1.jpg")
    table = list_images(tmp_path)
    assert table.classes == (nfc, "麻雀")
    assert table.labels.tolist() == [0, 1, 0]
    assert all(table.file(i).is_file() for i in range(3))


@pytest.mark.skipif(not ON_LINUX, reason="only Linux file systems take any bytes")
def test_any_file_name_works(tmp_path: Path) -> None:
    names = [b"a,b.jpg", b"new\nline.jpg", "🦉.jpg".encode(), b"caf\xe9.jpg", b'quo"te.jpg']
    make(tmp_path, *(b"caf\xe9/" + name for name in names), "owl\n2/1.jpg")
    table = list_images(tmp_path)
    assert [path.split(b"/")[1] for path in table.paths[:-1]] == sorted(names)
    assert all(table.file(i).read_bytes() == b"x" * 7 for i in range(6))
    assert table.classes == ("caf\\xe9", "owl\n2")
    for name in table.classes:
        name.encode("utf-8")


def test_a_rerun_gives_the_same_table(tmp_path: Path) -> None:
    make(tmp_path, *(f"{c}/{i}.jpg" for c in "cab" for i in (10, 9, 1)))
    assert rows(list_images(tmp_path)) == rows(list_images(str(tmp_path) + os.sep))


# --- links and troubles of file systems -----------------------------------------------------------


@pytest.fixture
def can_link(tmp_path: Path) -> None:
    try:
        (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    except OSError:
        pytest.skip("no right to make symbolic links")
    (tmp_path / "link").unlink()


@pytest.mark.usefixtures("can_link")
def test_links_are_followed_but_never_in_a_circle(tmp_path: Path) -> None:
    elsewhere = make(tmp_path / "elsewhere", "1.jpg", "2.jpg")
    root = make(tmp_path / "root", "owl/1.jpg", "owl/deep/2.jpg")
    (root / "wren").symlink_to(elsewhere, target_is_directory=True)
    (root / "owl/3.jpg").symlink_to(elsewhere / "1.jpg")
    (root / "owl/deep/up").symlink_to(root, target_is_directory=True)
    (elsewhere / "self").symlink_to(elsewhere, target_is_directory=True)
    (root / "owl/gone.jpg").symlink_to(root / "nowhere.jpg")
    (root / "owl/me.jpg").symlink_to(root / "owl/me.jpg")
    table = list_images(root)
    assert [path for path, *_ in rows(table)] == [
        "owl/1.jpg",
        "owl/3.jpg",
        "owl/deep/2.jpg",
        "wren/1.jpg",
        "wren/2.jpg",
    ]
    assert table.skipped == {"dangling symbolic link": 1, "symbolic link loop": 3}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_called_jpg_is_not_waited_for(tmp_path: Path) -> None:
    make(tmp_path, "a/1.jpg", "b/1.jpg")
    os.mkfifo(tmp_path / "a" / "2.jpg")
    assert list_images(tmp_path).skipped == {"not a regular file": 1}


def test_an_unreadable_folder_is_counted_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "a/1.jpg", "b/1.jpg", "lost+found/1.jpg")
    real = os.scandir

    def scandir(path: bytes) -> Any:
        if path.endswith(b"lost+found"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(image_sources.os, "scandir", scandir)
    table = list_images(tmp_path)
    assert len(table) == 2
    assert table.skipped == {"unreadable folder (Permission denied)": 1}
    assert table.notes == ("not read: lost+found/ (Permission denied)",)
    monkeypatch.setattr(image_sources.os, "scandir", lambda path: scandir(b"lost+found"))
    with pytest.raises(InputError, match=r"cannot read the folder .*: Permission denied"):
        list_images(tmp_path)


# --- what cannot be used --------------------------------------------------------------------------


def test_no_images_says_what_was_found_and_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found nothing at all; expected a folder of class"):
        list_images(tmp_path)
    make(tmp_path, "a/1.txt", "b/2.txt", "b/3.csv")
    message = r"no images in .*: found 2 x .txt file; 1 x .csv file; 2 folders \(a, b\); expected"
    with pytest.raises(InputError, match=message):
        list_images(tmp_path)


def test_a_class_folder_without_images_is_named(tmp_path: Path) -> None:
    make(tmp_path, "owl/1.jpg", "wren/notes.txt")
    with pytest.raises(InputError, match=r"1 of the class folders in .* hold no images: wren;"):
        list_images(tmp_path)
    make(tmp_path / "split", "train/owl/1.jpg", "train/wren/1.jpg", "val/owl/2.jpg")
    (tmp_path / "split/val/wren").mkdir()
    (tmp_path / "split/test").mkdir()
    table = list_images(tmp_path / "split")
    assert table.notes == ("no images in test, val/wren",)
    (tmp_path / "split/val/heron").mkdir()
    with pytest.raises(InputError, match=r"hold no images: val/heron; .* with --prune to go on"):
        list_images(tmp_path / "split")
    pruned = list_images(tmp_path / "split", prune=True)
    assert pruned.classes == ("owl", "wren")
    assert pruned.notes == ("no images in test, val/heron, val/wren",)


@pytest.mark.parametrize("name", ["birds.h5", "birds.h5.partial"])
def test_a_folder_of_caches_among_the_classes_is_none_of_them(tmp_path: Path, name: str) -> None:
    make(tmp_path, "owl/1.jpg", "wren/1.jpg", f"cache/{name}", "cache/report/notes.txt")
    for label_from in ("first", "leaf"):
        assert list_images(tmp_path, label_from=label_from).classes == ("owl", "wren")
    make(tmp_path, "heron/notes.txt", "all.h5")  # a cache beside the classes excuses none of them
    with pytest.raises(InputError, match="hold no images: heron;"):
        list_images(tmp_path)


def test_an_empty_leaf_folder_is_a_class_without_images(tmp_path: Path) -> None:
    make(tmp_path, "aves/owl/1.jpg", "aves/wren/1.jpg")
    (tmp_path / "aves/heron").mkdir()
    assert list_images(tmp_path).classes == ("aves",)
    with pytest.raises(InputError, match="hold no images: aves/heron;"):
        list_images(tmp_path, label_from="leaf")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "no such file or folder: .*missing; expected a folder of class folders"),
        ("a.jpg", "a.jpg is one image; .*featx predict takes single images"),
        ("a.zip", "a.zip is an archive: unpack it"),
        ("a.xlsx", "a.xlsx is a .xlsx file; expected"),
        ("", "the source of images is empty"),
    ],
)
def test_a_source_that_is_none_is_explained(tmp_path: Path, name: str, message: str) -> None:
    make(tmp_path, "a.jpg", "a.zip", "a.xlsx")
    with pytest.raises(InputError, match=message):
        list_images(tmp_path / name if name else "")


def test_an_unknown_rule_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="label_from must be 'first' or 'leaf', got 'last'"):
        list_images(tmp_path, label_from="last")  # type: ignore[arg-type]


# --- CSV ------------------------------------------------------------------------------------------


def csv_of(root: Path, text: str, encoding: str = "utf-8") -> Path:
    path = root / "images.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_a_csv_gives_labels_splits_and_groups(tmp_path: Path, encoding: str, newline: str) -> None:
    make(tmp_path, "x/b.jpg", "x/a, comma.jpg", "c")
    lines = [
        "path,label,split,group,note",
        "x/b.jpg,Grue cendrée,train,nest 2,hello",
        '"x/a, comma.jpg",owl,Valid,nest 1,',
        "./c,,,,",
        "",
    ]
    table = list_images(csv_of(tmp_path, newline.join(lines), encoding))
    assert rows(table) == [
        ("c", None, 0),
        ("x/a, comma.jpg", "owl", 2),
        ("x/b.jpg", "Grue cendrée", 1),
    ]
    assert table.groups.tolist() == [-1, 0, 1]
    assert table.group_names == ("nest 1", "nest 2")
    assert table.notes == ("columns of images.csv not used: 'note'",)
    assert table.root == tmp_path.resolve()
    assert table.rules == {"source": "csv"}


def test_a_csv_of_a_spreadsheet_with_semicolons_works(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.jpg")
    table = list_images(csv_of(tmp_path, "Label; Path\nowl;a.jpg\nwren;b.jpg\n"))
    assert [label for _, label, _ in rows(table)] == ["owl", "wren"]


def test_a_csv_without_labels_uses_the_folders(tmp_path: Path) -> None:
    make(tmp_path, "train/owl/1.jpg", "val/wren/1.jpg")
    table = list_images(csv_of(tmp_path, "path\nval/wren/1.jpg\ntrain/owl/1.jpg\n"))
    assert rows(table) == [("train/owl/1.jpg", "owl", 1), ("val/wren/1.jpg", "wren", 2)]


def test_files_outside_the_folder_of_the_list_move_the_root(tmp_path: Path) -> None:
    make(tmp_path, "photos/owl/1.jpg", "photos/wren/1.jpg")
    (tmp_path / "lists").mkdir()
    absolute = tmp_path / "photos" / "wren" / "1.jpg"
    source = csv_of(tmp_path / "lists", f"path\n../photos/owl/1.jpg\n{absolute}\n")
    table = list_images(source)
    assert table.root == (tmp_path / "photos").resolve()
    assert table.classes == ("owl", "wren")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.jpg,owl\n", "has no column 'path': its first line is 'file,label'"),
        ("", "has no column 'path'"),
        ("x" * 200_000, "has no column 'path'"),  # longer than the csv module takes a field
        ("path,label,label\na.jpg,x,y\n", "the column 'label' is there twice"),
        ("path,label\na.jpg,owl\nb.jpg,owl\n./a.jpg,owl\n", "lists ./a.jpg twice: lines 2 and 4"),
        ("path,split\na.jpg,train\nb.jpg,dev\n", "line 3: unknown split 'dev'; expected train"),
        ("path,label\na.jpg,owl\n,wren\n", "line 3: no path"),
        ("path,label\na.jpg,owl,x\n", "line 2: 3 fields under 2 columns; put paths that hold ','"),
        ('path,label\n"a.jpg,owl\n', "line 3: not a valid CSV|line 2: not a valid CSV"),
        ("path,label\nfolder,owl\n", r"line 2: folder \(a folder, not a file\)"),
        ("path,label\n", "lists no images"),
    ],
)
def test_a_mistake_in_a_csv_is_named_by_line(tmp_path: Path, text: str, message: str) -> None:
    make(tmp_path, "a.jpg", "b.jpg", "folder/1.jpg")
    with pytest.raises(InputError, match=message):
        list_images(csv_of(tmp_path, text))


def test_columns_that_are_not_used_are_named_up_to_ten(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg")
    columns = [f"f{i}" for i in range(2048)]
    (tmp_path / "images.csv").write_text(f"path,{','.join(columns)}\na.jpg\n")
    (note,) = read_csv(tmp_path / "images.csv").notes
    assert note.startswith("columns of images.csv not used: 'f0', 'f1', ")
    assert note.endswith("'f8', 'f9' and 2,038 more")


def test_files_are_placed_in_the_order_of_the_list_wherever_they_are(tmp_path: Path) -> None:
    root = make(tmp_path / "photos", "b/2.jpg", "a/1.jpg")
    (root / "c.jpg").mkdir()
    rows = [(2, "b/2.jpg", "x", None, None), (3, "gone.jpg", None, None, None),
            (4, "c.jpg", None, None, None), (5, "a/1.jpg", "y", None, None)]  # fmt: skip
    with pytest.raises(
        InputError, match=r"2 of 4 files .*gone\.jpg \(missing\).*c\.jpg \(a folder"
    ):
        place(tmp_path / "list.csv", rows, folder=root)
    top, found = place(tmp_path / "list.csv", rows, folder=root, missing_ok=True)
    assert top == root
    assert [row.path for row in found] == [b"b/2.jpg", b"gone.jpg", b"c.jpg", b"a/1.jpg"]
    assert [row.label for row in found] == ["x", None, None, "y"]
    assert [row.mtime_ns > 0 for row in found] == [True, False, False, True]
    with pytest.raises(InputError, match="1 of 1 files cannot be found"):
        place(tmp_path / "list.csv", [(2, "a\0.jpg", None, None, None)], missing_ok=True)


def test_missing_files_of_a_csv_are_counted_and_the_first_named(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg")
    text = "path\na.jpg\n" + "".join(f"gone{i}.jpg\n" for i in range(9))
    message = r"9 of 10 files cannot be found, .*: line 3: gone0.jpg \(missing\); line 4: .* \.\.\."
    with pytest.raises(InputError, match=message) as caught:
        list_images(csv_of(tmp_path, text))
    assert "gone8" not in str(caught.value)


def test_a_label_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg")
    with pytest.raises(InputError, match=r"line 2: the label .* is not UTF-8; save the file as"):
        list_images(csv_of(tmp_path, "path,label\na.jpg,cendrée\n", "latin-1"))


# --- text lists, globs, CUB-200-2011 --------------------------------------------------------------


def test_a_text_list_takes_every_line_as_it_is(tmp_path: Path) -> None:
    names = ["#1.jpg", "with space .jpg", "a,b.jpg", "plain"]
    make(tmp_path, *names)
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n\n".join(names).encode())
    table = list_images(tmp_path / "list.txt")
    assert [path for path, *_ in rows(table)] == sorted(names)
    assert table.rules["source"] == "list"
    (tmp_path / "list.txt").write_text("#1.jpg\n#1.jpg\n")
    with pytest.raises(InputError, match=r"lists #1.jpg twice: lines 1 and 2"):
        list_images(tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("**/*.jpg", ["owl/1.jpg", "owl/deep/3.jpg", "top.jpg", "wren/1.jpg"]),
        ("*/*.jpg", ["owl/1.jpg", "wren/1.jpg"]),
        ("*/?.p*", ["wren/2.png"]),
        ("[ow]*/**/*", ["owl/1.jpg", "owl/deep/3.jpg", "wren/1.jpg", "wren/2.png"]),
        ("**", ["owl/1.jpg", "owl/deep/3.jpg", "top.jpg", "wren/1.jpg", "wren/2.png"]),
    ],
)
def test_a_glob_lists_what_it_matches(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    root = make(tmp_path / "birds", "owl/1.jpg", "owl/deep/3.jpg", "wren/1.jpg", "wren/2.png")
    make(root, "top.jpg", "wren/notes.txt", ".hidden/1.jpg")
    table = list_images(f"{root}/{pattern}")
    assert [path for path, *_ in rows(table)] == expected
    assert table.root == root.resolve()
    if pattern == "*/*.jpg":
        assert table.classes == ("owl", "wren")
        assert table.skipped == {"hidden": 1}


def test_a_relative_glob_starts_at_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "owl/1.jpg", "wren/1.jpg")
    monkeypatch.chdir(tmp_path)
    assert list_images("*/*.jpg").root == tmp_path.resolve()


def test_a_glob_that_matches_nothing_is_an_error(tmp_path: Path) -> None:
    make(tmp_path, "owl/1.jpg")
    with pytest.raises(InputError, match=r"no images in .*\*.png: found"):
        list_images(f"{tmp_path}/*/*.png")
    with pytest.raises(InputError, match=r"no folder .*gone, so nothing can match"):
        list_images(f"{tmp_path}/gone/*.png")


def test_a_folder_whose_name_looks_like_a_glob_is_a_folder(tmp_path: Path) -> None:
    make(tmp_path / "birds [2]", "owl/1.jpg", "wren/1.jpg")
    assert len(list_images(tmp_path / "birds [2]")) == 2


def cub(root: Path) -> Path:
    """Write a small CUB-200-2011 as it is downloaded; images not in order of their numbers."""
    names = ["002.Wren/W_2.jpg", "001.Owl/O_1.jpg", "002.Wren/W_1.jpg"]
    make(root, *(f"images/{name}" for name in names), "README", "attributes/attributes.txt")
    (root / "images.txt").write_text("".join(f"{i} {n}\n" for i, n in enumerate(names, 1)))
    (root / "image_class_labels.txt").write_text("1 2\n2 1\n3 2\n")
    (root / "train_test_split.txt").write_text("1 1\n2 0\n3 0\n")
    (root / "classes.txt").write_text("1 001.Owl\n2 002.Wren\n3 003.Absent\n")
    return root


def test_cub_is_recognised_as_downloaded_and_from_its_parent(tmp_path: Path) -> None:
    root = cub(tmp_path / "CUB_200_2011")
    for source in (root, tmp_path):
        table = list_images(source)
        assert rows(table) == [
            ("images/001.Owl/O_1.jpg", "001.Owl", 3),
            ("images/002.Wren/W_1.jpg", "002.Wren", 3),
            ("images/002.Wren/W_2.jpg", "002.Wren", 1),
        ]
        assert table.root == root.resolve()
        assert table.classes == ("001.Owl", "002.Wren", "003.Absent")
        assert table.names == ("Owl", "Wren", "Absent")
        assert table.rules == {"source": "cub-200-2011"}


def test_a_broken_cub_archive_is_explained(tmp_path: Path) -> None:
    root = cub(tmp_path)
    (root / "images/001.Owl/O_1.jpg").unlink()
    with pytest.raises(InputError, match=r"1 of 3 files cannot be found.*001.Owl/O_1.jpg"):
        list_images(root)
    cub(root)
    (root / "image_class_labels.txt").write_text("1 2\n2 1\n")
    with pytest.raises(InputError, match=r"image 3 .* has no class or split"):
        list_images(root)
    (root / "classes.txt").unlink()
    with pytest.raises(InputError, match=r"looks like CUB-200-2011 but has no classes.txt"):
        list_images(root)


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (["001.Black_footed_Albatross", "002.Owl"], ["Black footed Albatross", "Owl"]),
        (["0042-wren", "100_owl"], ["wren", "owl"]),
        (["1.gull", "2.gull", "3.owl"], ["1.gull", "2.gull", "owl"]),
        (["a_b", "a b"], ["a_b", "a b"]),
        (["1.a_b", "a b", "c"], ["1.a b", "a b", "c"]),
        (["001", "002"], ["001", "002"]),
        (["2.5mm", "7_spot_ladybird", "4x4"], ["2.5mm", "7 spot ladybird", "4x4"]),
        (["麻雀", "Grue cendrée"], ["麻雀", "Grue cendrée"]),
        ([], []),
    ],
)
def test_class_names_are_shown_as_people_read_them(classes: list[str], expected: list[str]) -> None:
    assert display_names(classes) == tuple(expected)
    assert len(set(display_names(classes))) == len(classes)


# --- predict --------------------------------------------------------------------------------------


def test_inputs_expand_in_order_and_sorted_within(tmp_path: Path) -> None:
    make(tmp_path, "z.jpg", "dir/b.jpg", "dir/sub/a.png", "dir/x.txt", "g2.jpg", "g1.jpg", "odd")
    got = expand_inputs(
        [tmp_path / "z.jpg", tmp_path / "dir", f"{tmp_path}/g*.jpg", str(tmp_path / "odd")]
    )
    assert [path.relative_to(tmp_path).as_posix() for path in got] == [
        "z.jpg",
        "dir/b.jpg",
        "dir/sub/a.png",
        "g1.jpg",
        "g2.jpg",
        "odd",
    ]
    assert expand_inputs([]) == ()


def test_inputs_that_are_not_there_are_all_named(tmp_path: Path) -> None:
    make(tmp_path, "z.jpg", "empty/x.txt")
    with pytest.raises(InputError, match=r"not found: .*no1.jpg, .*no2; no images in: .*empty;"):
        expand_inputs([tmp_path / n for n in ("no1.jpg", "z.jpg", "no2", "empty")])


# --- imports and real data ------------------------------------------------------------------------


def test_listing_imports_nothing_heavy() -> None:
    code = (
        "import sys, featx.images; "
        "print([m for m in ('torch', 'sklearn', 'PIL', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.real_data
@pytest.mark.skipif(not (REAL_DATA / "data" / "birds").is_dir(), reason="no FEATX_REAL_DATA")
def test_real_folders_list_as_their_readme_says() -> None:
    birds = list_images(REAL_DATA / "data" / "birds")
    assert len(birds) == 590
    assert len(birds.classes) == 10
    assert "Groove billed Ani" in birds.names
    assert set(birds.split.tolist()) == {1, 2}
    small = list_images(REAL_DATA / "data" / "cifar10_small")
    assert np.bincount(small.split).tolist() == [0, 5000, 0, 1000]
    assert list_images(REAL_DATA / "data" / "hymenoptera").classes == ("ants", "bees")
