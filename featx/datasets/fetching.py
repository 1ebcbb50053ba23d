"""Files of a data set that are not there: unpacked from their archives, these downloaded."""

from __future__ import annotations

import gzip
import http.client
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, cast

from featx.datasets.catalogue import DataSet
from featx.errors import DiskError, InputError

_MAX_BYTES: Final = 2**30  # of an unpacked file; the largest is 150 MB
_CHUNK: Final = 2**20
_DAMAGED: Final = (gzip.BadGzipFile, EOFError, zlib.error, tarfile.TarError)


def ensure(name: str, data_set: DataSet, data_root: Path) -> tuple[str, ...]:
    """Have every file of a data set in its folder, as torchvision unpacks them.

    Returns
    -------
    Sentences on what was done; none where all was there.

    Raises
    ------
    InputError
        An archive is damaged, or not there and not to be had, with its address and its place.
    DiskError
        Nothing can be written below `data_root`.
    """
    assert data_set.folder is not None
    folder = data_root / data_set.folder
    missing = [file for file in data_set.files if not (folder / file).is_file()]
    wanted = [archive for archive, files in data_set.archives.items() if {*files} & {*missing}]
    absent = [archive for archive in wanted if not (data_root / archive).is_file()]
    notes = [_download(name, data_root, absent)] if absent else []
    for archive in wanted:
        with _told_as_disk_error(data_root):
            _unpack(data_root / archive, folder, data_set.archives[archive])
        notes.append(f"unpacked {data_root / archive}")
    return tuple(notes)


def _download(name: str, data_root: Path, archives: Sequence[str]) -> str:
    """Download archives by torchvision, which checks their MD5; they appear only when whole."""
    from torchvision.datasets.utils import download_url

    addresses = _addresses(name)
    for archive in archives:
        target = data_root / archive
        urls, md5 = addresses[target.name]
        with _told_as_disk_error(data_root):
            there = next(folder for folder in target.absolute().parents if folder.is_dir())
            made = tempfile.TemporaryDirectory(prefix=".featx-", dir=there)
        with made as temporary:
            for url in urls:
                try:
                    download_url(url, temporary, target.name, md5)
                except (OSError, RuntimeError, http.client.HTTPException) as error:
                    reason = " ".join(str(error).split()) or type(error).__name__
                else:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    Path(temporary, target.name).replace(target)
                    break
            else:
                places = "; ".join(
                    f"{addresses[Path(each).name][0][0]} as {(data_root / each).absolute()}"
                    for each in archives
                )
                raise InputError(
                    f"{name} is not in {data_root.absolute()} and cannot be downloaded ({reason}). "
                    f"Put {places}, or name the folder that has it with --data-root"
                )
    return f"downloaded {', '.join(archives)} to {data_root.absolute()}"


def _addresses(name: str) -> dict[str, tuple[list[str], str]]:
    """Archive -> where torchvision has it from, and its MD5."""
    import torchvision.datasets

    its: Any = getattr(torchvision.datasets, name.partition(":")[2])
    if hasattr(its, "mirrors"):
        return {
            file: ([mirror + file for mirror in its.mirrors], md5) for file, md5 in its.resources
        }
    return {its.filename: ([its.url], its.tgz_md5)}


def _unpack(archive: Path, folder: Path, files: Sequence[str]) -> None:
    """Unpack the named files of an archive; they appear when all of it was read and is whole.

    Raises
    ------
    InputError
        It is damaged, or a file is not in it.
    """
    with tempfile.TemporaryDirectory(prefix=".featx-", dir=archive.parent) as temporary:
        try:
            with gzip.open(archive) as stream:
                for file, content in _contents(archive, stream, folder.name, files):
                    _copy(content, Path(temporary, file))
                while stream.read(_CHUNK):  # to its end, where the checksum is
                    pass
        except _DAMAGED as error:
            raise InputError(f"{archive} is damaged ({error}); get it anew") from error
        lacking = [file for file in files if not Path(temporary, file).exists()]
        if lacking:
            raise InputError(f"{archive} does not hold {', '.join(lacking)}; get it anew")
        folder.mkdir(exist_ok=True)
        for file in files:
            Path(temporary, file).replace(folder / file)


def _contents(
    archive: Path, stream: gzip.GzipFile, folder: str, files: Sequence[str]
) -> Iterator[tuple[str, IO[bytes]]]:
    """The wanted files in an unpacked stream: it is the one, or a tar."""
    if ".tar" not in archive.suffixes:
        yield files[0], cast(IO[bytes], stream)
        return
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            name = member.name.removeprefix(f"{folder}/")
            content = tar.extractfile(member) if name in files and member.isreg() else None
            if content is not None:
                yield name, content


def _copy(content: IO[bytes], target: Path) -> None:
    with target.open("wb") as stream:
        while chunk := content.read(_CHUNK):
            stream.write(chunk)
            if stream.tell() > _MAX_BYTES:
                raise gzip.BadGzipFile(f"{target.name} has more than {_MAX_BYTES:,} bytes")


@contextmanager
def _told_as_disk_error(data_root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"cannot unpack or download in {data_root.absolute()} ({error.strerror or error}); "
            "mend permissions or make room, or name another folder with --data-root"
        ) from error
