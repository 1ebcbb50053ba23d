"""Finding image files: walking folders, matching globs, looking up the files a list names.

Level 0: everything here ends in a `Listing`, the plain rows of files found and what was left out.
What the rows mean (labels, split, class names) is `featx.images`, one level up.

File names stay the bytes of `os.fsencode` from the scan to the cache, so that names that are not
UTF-8, or hold newlines, commas or emoji, are files like all others.
"""

from __future__ import annotations

import errno
import fnmatch
import importlib.util
import os
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from featx.counting import first_few
from featx.datasets.packed import find, images_of, located
from featx.errors import InputError

IMAGE_SUFFIXES: frozenset[str] = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".bmp", ".dib"}
    | {".tif", ".tiff", ".webp", ".avif", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm"}
)
_IMAGE_ENDS = frozenset(suffix[1:].encode() for suffix in IMAGE_SUFFIXES)
HEIC_SUFFIXES: frozenset[str] = frozenset({".heic", ".heif", ".hif"})
# Left behind by systems and tools in folders of pictures; never content.
HIDDEN_NAMES = frozenset({b"__macosx", b"thumbs.db", b"desktop.ini", b"@eadir"})
N_SHOWN = 5  # how many examples an error shows

# line in the list, path as written, label, split, group (None: the list has no such column)
ListRow = tuple[int, str, str | None, str | None, str | None]


class Found(NamedTuple):  # made once a file: a frozen dataclass takes four times as long
    """One file: its path below the root, and the columns a list gave for it (None: none given)."""

    path: bytes
    size_bytes: int
    mtime_ns: int
    label: str | None = None
    split: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Listing:
    """The files of one source, with what was left out and why; `folders` are paths below `root`."""

    root: Path
    kind: str  # folder | glob | list | csv | cub-200-2011 | data set
    found: Sequence[Found]
    folders: Sequence[bytes] = ()
    skipped: Counter[str] = field(default_factory=Counter)
    notes: tuple[str, ...] = ()


def shown(name: bytes | str) -> str:
    """Return `name` as printable text on one line: what is not UTF-8 is written as ``\\xNN``."""
    data = os.fsencode(name) if isinstance(name, str) else name
    text = data.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def some(names: Sequence[bytes | str]) -> str:
    """Return the first few of `names` in words, and how many more there are."""
    return first_few(names, N_SHOWN, shown)


def is_hidden(name: bytes) -> bool:
    """Return whether a file or folder of this name is no content: dot-files, system left-overs."""
    return name.startswith(b".") or name.lower() in HIDDEN_NAMES


def why_no_image(name: bytes, *, heic: bool) -> str | None:
    """Return the reason to leave the file out by its name, or None for an image."""
    _, dot, end = name.rpartition(b".")
    if end.lower() in _IMAGE_ENDS and dot:  # bytes: nearly all files end here
        return None
    suffix = shown(dot + end).lower() if dot else ""
    if heic and suffix in HEIC_SUFFIXES:
        return None
    if suffix in HEIC_SUFFIXES:
        return f"{suffix} file (pip install 'featx[heic]')"
    if not suffix:
        return "file without suffix"
    # frame.000123 and its like would make one reason a file
    is_kind = len(suffix) <= 9 and any(c.isalpha() for c in suffix)
    return f"{suffix} file" if is_kind else "file with another ending"


def mtime_ns(status: os.stat_result) -> int:
    """Return when a file was last changed, within what a cache can hold: the years 1678 to 2262."""
    return min(max(status.st_mtime_ns, -(2**63)), 2**63 - 1)


def has_heic() -> bool:
    """Return whether pillow-heif is installed (looked up, not imported)."""
    return importlib.util.find_spec("pillow_heif") is not None


def walk(
    root: Path,
    *,
    match: Callable[[str], bool] | None = None,
    max_depth: int | None = None,
    kind: str = "folder",
) -> Listing:
    """Find the images below a folder, following symbolic links but never in a circle.

    Parameters
    ----------
    root : the folder; it must exist.
    match : keeps only files whose path below the root it accepts; the others are not counted.
    max_depth : how many folder levels to enter; None: all.

    Returns
    -------
    Listing
        Sorted by path, bytewise. Everything not taken is counted in `skipped`.

    Raises
    ------
    InputError
        When the root itself cannot be read.
    """
    heic = has_heic()
    found: list[Found] = []
    folders: list[bytes] = []
    skipped: Counter[str] = Counter()
    unreadable: list[str] = []
    # A path is entered with the identities of all folders above it: meeting one of them again is
    # a loop. Names alone cannot tell, and Windows and bind mounts have no symbolic link to look at.
    pending: list[tuple[bytes, int, frozenset[tuple[int, int]]]] = [(b"", 0, frozenset())]
    top = os.fsencode(root)
    while pending:
        below, depth, above = pending.pop()
        path = os.path.join(top, below) if below else top  # noqa: PTH118 (bytes)
        try:
            status = os.stat(path)  # noqa: PTH116
            identity = (status.st_dev, status.st_ino)
            if identity in above:
                skipped["symbolic link loop"] += 1
                continue
            with os.scandir(path) as entries:
                names = list(entries)
        except OSError as error:
            if not below:
                raise InputError(f"cannot read the folder {root}: {error.strerror}") from error
            skipped[f"unreadable folder ({error.strerror})"] += 1
            unreadable.append(f"{shown(below)}/ ({error.strerror})")
            continue
        if below:
            folders.append(below)
        prefix = below + b"/" if below else b""
        for entry in names:
            if is_hidden(entry.name):
                skipped["hidden"] += 1
            elif _is_folder(entry):
                if max_depth is None or depth < max_depth:
                    pending.append((prefix + entry.name, depth + 1, above | {identity}))
            elif match is None or match(os.fsdecode(prefix + entry.name)):
                _take(entry, prefix + entry.name, found, skipped, heic=heic)
    found.sort(key=lambda row: row.path)
    notes = (f"not read: {some(sorted(unreadable))}",) if unreadable else ()
    return Listing(root, kind, found, sorted(folders), skipped, notes)


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    """Return whether the entry is a folder or links to one (a link to itself is neither)."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _take(
    entry: os.DirEntry[bytes], path: bytes, found: list[Found], skipped: Counter[str], *, heic: bool
) -> None:
    """Append the file of `entry` to `found`, or count why not."""
    reason = why_no_image(entry.name, heic=heic)
    if reason is not None:
        skipped[reason] += 1
        return
    try:
        status = entry.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            skipped["symbolic link loop"] += 1
        elif entry.is_symlink():
            skipped["dangling symbolic link"] += 1
        else:  # it is there but may not be looked at: reading it will say so, row by row
            found.append(Found(path, 0, 0))
        return
    if stat.S_ISREG(status.st_mode):
        found.append(Found(path, status.st_size, mtime_ns(status)))
    else:  # a pipe called x.jpg would be waited for without end
        skipped["not a regular file"] += 1


def has_magic(source: str) -> bool:
    """Return whether `source` holds glob characters."""
    return any(c in source for c in "*?[")


def walk_glob(pattern: str) -> Listing:
    """Find the images a glob matches; the root is the longest part without glob characters.

    `**` stands for any number of folders, none included; `*`, `?` and `[...]` as in `fnmatch`,
    within one name. Hidden files and folders never match.

    Raises
    ------
    InputError
        When the part without glob characters is no folder.
    """
    parts = pattern.replace(os.sep, "/").split("/")
    n_fixed = next(i for i, part in enumerate(parts) if has_magic(part))
    fixed = "/".join(parts[:n_fixed])
    root = Path(fixed or ("/" if n_fixed else "."))
    if not root.is_dir():
        raise InputError(f"no folder {root}, so nothing can match {shown(pattern)}")
    wanted = [part for part in parts[n_fixed:] if part]
    return walk(
        root,
        match=lambda path: _matches(path.split("/"), wanted),
        max_depth=None if "**" in wanted else len(wanted) - 1,
        kind="glob",
    )


def _matches(names: Sequence[str], parts: Sequence[str]) -> bool:
    """Return whether the names of a path match the parts of a glob."""
    if not parts or not names:
        return not names and all(part == "**" for part in parts)
    if parts[0] == "**":
        return _matches(names, parts[1:]) or _matches(names[1:], parts)
    return fnmatch.fnmatch(names[0], parts[0]) and _matches(names[1:], parts[1:])


def locate(source: Path, rows: Sequence[ListRow], *, kind: str) -> Listing:
    """Find the files a list names: rows of (line, path, label, split, group).

    Paths are absolute or relative to the folder of `source`. That folder is the root where all
    files lie below it; else their common ancestor is.

    Raises
    ------
    InputError
        For an empty list, a row without path, a file listed twice, missing files and folders.
    """
    root, found = place(source, rows)
    return Listing(root, kind, sorted(found, key=lambda row: row.path))


def place(
    source: Path, rows: Sequence[ListRow], *, folder: Path | None = None, missing_ok: bool = False
) -> tuple[Path, list[Found]]:
    """`locate`, in the order of the list.

    Parameters
    ----------
    source, rows : as of `locate`.
    folder : what paths are relative to, instead of the folder of `source`.
    missing_ok : take a file that is not there for one of size and time 0.

    Returns
    -------
    The root, and one entry for each row.
    """
    top = os.path.abspath(folder or source.parent)  # noqa: PTH100 (links stay as they were written)
    lines: dict[str, int] = {}
    found: list[tuple[str, int, int]] = []
    problems: list[str] = []
    for line, name, *_ in rows:
        if not name.strip():
            raise InputError(f"{source}, line {line}: no path")
        file = os.path.normpath(os.path.join(top, name))  # noqa: PTH118
        if file in lines:
            raise InputError(f"{source} lists {shown(name)} twice: lines {lines[file]} and {line}")
        lines[file] = line
        problem, size, time_ns = _stat_of(file)
        if problem and not (missing_ok and "\0" not in file):
            problems.append(f"line {line}: {_brief(name)} ({problem})")
        found.append((file, size, time_ns))
    if problems:
        raise InputError(
            f"{source}: {len(problems):,} of {len(rows):,} files cannot be found, looked for below "
            f"{shown(top)}: {'; '.join(problems[:N_SHOWN])}{' ...' * (len(problems) > N_SHOWN)}"
        )
    if not rows:
        raise InputError(f"{source} lists no images; expected one path a line")
    root = _common_root(source, top, list(lines))
    cut = len(root.rstrip(os.sep)) + 1
    return Path(root), [
        Found(os.fsencode(file[cut:].replace(os.sep, "/")), size, time_ns, *row[2:])
        for (file, size, time_ns), row in zip(found, rows, strict=True)
    ]


def _stat_of(file: str) -> tuple[str, int, int]:
    """Why a file cannot be used, or nothing; its size and when it was last changed."""
    try:
        status = os.stat(file)  # noqa: PTH116
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return "missing", 0, 0
    if stat.S_ISREG(status.st_mode):
        return "", status.st_size, mtime_ns(status)
    what = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or pipe"
    return f"{what}, not a file", 0, 0


def _brief(name: str) -> str:
    """Return `name` as `shown`, of a line too long to be a name only its ends."""
    text = shown(name)
    return text if len(text) <= 300 else f"{text[:200]} ... {text[-50:]}"


def _common_root(source: Path, folder: str, files: Sequence[str]) -> str:
    """Return the list's folder where all files lie below it, else the files' common ancestor."""
    inside = folder.rstrip(os.sep) + os.sep
    if all(file.startswith(inside) for file in files):
        return folder
    try:
        return os.path.commonpath([os.path.dirname(file) for file in files])  # noqa: PTH120
    except ValueError as error:  # two drives of Windows
        raise InputError(
            f"{source}: its files lie on several drives; list one at a time"
        ) from error


def expand_inputs(
    inputs: Sequence[str | os.PathLike[str]], *, data_root: str | os.PathLike[str] = "data"
) -> tuple[Path, ...]:
    """Return the files that the inputs of a prediction name: files, folders, globs, data sets.

    Parameters
    ----------
    inputs
        A file stands for itself whatever its suffix; a folder for all images below it; a glob
        for the images it matches; the name of a data set (``torchvision:CIFAR10``), alone or with
        a part or the path of an image behind it, for all of its images or those.
    data_root
        The folder that data sets by name lie in.

    Returns
    -------
    tuple of Path
        In the order of the inputs, sorted within each.

    Raises
    ------
    InputError
        Naming every input that is not there, and every folder or glob without images.
    """
    files: list[Path] = []
    missing: list[str] = []
    empty: list[str] = []
    for item in inputs:
        text = os.fspath(located(item, data_root))
        path = Path(text)
        place = find(path)
        if place is not None:
            files += [place.root / os.fsdecode(row.path) for row in images_of(place)[0]]
        elif path.is_dir() or (has_magic(text) and not path.exists()):
            listing = walk(path) if path.is_dir() else walk_glob(text)
            files += [listing.root / os.fsdecode(row.path) for row in listing.found]
            if not listing.found:
                empty.append(text)
        elif text and path.is_file():
            files.append(path)
        else:
            missing.append(text)
    problems = [f"not found: {some(missing)}"] if missing else []
    problems += [f"no images in: {some(empty)}"] if empty else []
    if problems:
        raise InputError(f"{'; '.join(problems)}; expected image files, folders or globs")
    return tuple(files)
