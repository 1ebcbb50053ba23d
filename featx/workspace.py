"""The folder where caches and heads lie: which of them is meant when none is named."""

from __future__ import annotations

import os
from pathlib import Path

from featx.cache import PARTIAL_SUFFIX, CacheFile, open_cache
from featx.errors import CacheError, HeadError


def newest_cache(folder: str | os.PathLike[str] = "cache") -> Path:
    """The newest finished cache in `folder`.

    Raises
    ------
    CacheError
        There is none; the message says whether one is unfinished.
    """
    found = newest_first(Path(folder), "*.h5")
    if found:
        return found[0]
    unfinished = newest_first(Path(folder), f"*.h5{PARTIAL_SUFFIX}")
    if unfinished:
        raise CacheError(
            f"no cache in {folder} is finished yet ({unfinished[0].name} is under way or was "
            "interrupted); run the same `featx extract` again to complete it"
        )
    raise CacheError(f"there is no cache in {folder}; make one with `featx extract FOLDER`")


def newest_head(folder: str | os.PathLike[str] = "cache") -> Path:
    """The newest head file in `folder`.

    Raises
    ------
    HeadError
        There is none.
    """
    found = newest_first(Path(folder), "*.safetensors")
    if not found:
        raise HeadError(f"there is no head in {folder}; fit one with `featx fit-head`")
    return found[0]


def cache_of_head(recorded: dict[str, str], head: Path) -> Path:
    """The cache a head was fitted on: of the recorded name beside the head, else where it lay,
    else the newest beside the head; always with the same fingerprint, made from the same folder.

    Parameters
    ----------
    recorded : file, path, fingerprint and root, as the head file holds them.
    head : the head file.

    Raises
    ------
    CacheError
        No such cache is found.
    """
    # the record may come from a stranger: names, not ways out of the folder; caches, nothing else
    named = [head.parent / Path(recorded["file"]).name, Path(recorded["path"])]
    named = [path for path in named if path.suffix == ".h5" and not _is_of_another_host(path)]
    for path in (*named, *newest_first(head.parent, "*.h5")):
        found = _try_open(path)
        if found and (found.fingerprint, found.root) == (recorded["fingerprint"], recorded["root"]):
            return path
    raise CacheError(
        f"the cache that {head.name} was fitted on ({recorded['file']}) is not beside it nor at "
        f"{recorded['path']}; name a cache: featx evaluate CACHE {head}"
    )


def _is_of_another_host(path: Path) -> bool:
    """Whether Windows would ask another host for it, and tell that host who asks."""
    return path.drive.startswith("\\\\")


def _try_open(path: Path) -> CacheFile | None:
    try:
        return open_cache(path)
    except CacheError:
        return None  # missing, damaged or something else: not the one looked for


def newest_first(folder: Path, pattern: str) -> list[Path]:
    """Files in `folder` that match the glob `pattern`, the newest first."""
    files = [path for path in folder.glob(pattern) if path.is_file()]
    return sorted(files, key=lambda path: (-path.stat().st_mtime_ns, path.name))
