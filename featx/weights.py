"""One weights file: found or downloaded, hashed, and read into a state dict without running code.

`torch.load` is only ever called with ``weights_only=True``; a file that would need more than that
is refused with one line that says what it is and what is expected.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import os
import pickle
import re
import socket
import struct
import sys
import urllib.error
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from featx.errors import DiskError, WeightsError

# Keys under which training scripts put the state dict, in the order they are tried.
_WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "model_state",
    "net",
    "network",
    "weights",
    "params",
    "module",
    "backbone",
    "ema_state_dict",
    "model_ema",
)
# What DataParallel, torch.compile and Lightning modules put before every key.
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "network.", "net.")
_EXPECTED = (
    "expected a state_dict: a .pth file written by torch.save(network.state_dict(), PATH), "
    "or a .safetensors file"
)
# What torch.load(weights_only=True) and its zip reader raise for bytes they cannot read.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    ImportError,
    MemoryError,
    RecursionError,
    struct.error,
)
_MAGIC = (
    (b"", "an empty file"),
    (b"<!DOCTYPE", "a web page, not the file it links to"),
    (b"<html", "a web page, not the file it links to"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file it points to"),
    (b"\x89HDF", "an HDF5 file (a Keras model, or a featx cache)"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
)
# torch.hub opens addresses without a timeout: behind a firewall that drops packets it would
# wait for minutes before the user hears that there is no network.
_CONNECT_TIMEOUT_S = 30.0


def state_dict_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of a state dict's canonical bytes: the identity of weights that have no file.

    The keys in sorted order; of each its name, dtype, shape and little-endian values. So it does
    not depend on the order of the keys, the device, the strides or the machine.

    Returns
    -------
    str
        64 lower-case hexadecimal digits.

    Examples
    --------
    >>> a = {"x": torch.zeros(2, 3), "y": torch.ones(1)}
    >>> state_dict_sha256(a) == state_dict_sha256(dict(reversed(a.items())))
    True
    >>> state_dict_sha256(a) == state_dict_sha256({**a, "x": torch.zeros(3, 2)})
    False
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        values = tensor.reshape(-1).view(torch.uint8).numpy()
        if sys.byteorder == "big":
            values = values.reshape(-1, tensor.element_size())[:, ::-1]
        header = f"{len(name)}:{name} {tensor.dtype} {tuple(tensor.shape)}\n"
        digest.update(header.encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Read a weights file into a state dict on the CPU; nothing in the file is executed.

    Wrappers (``{"state_dict": ...}``, ``{"model": ...}``) are opened and prefixes that all keys
    share (``module.``, ``_orig_mod.``, ``model.``, ``backbone.``) are taken off. The module
    versions that PyTorch stores in ``_metadata`` are kept, because some networks read them.

    Parameters
    ----------
    path
        ``.safetensors``, or anything `torch.save` wrote (``.pth``, ``.pt``, ``.bin``).

    Raises
    ------
    WeightsError
        The file is missing, empty, truncated, something else than weights, or a pickle that holds
        objects beside tensors (a whole network, say).

    Examples
    --------
    >>> import tempfile, pathlib
    >>> file = pathlib.Path(tempfile.mkdtemp(), "a.pth")
    >>> torch.save({"state_dict": {"module.fc.weight": torch.ones(2, 2)}}, file)
    >>> list(read_state_dict(file))
    ['fc.weight']
    """
    file = Path(path)
    if not file.is_file():
        what = "is a folder, not a file" if file.is_dir() else "does not exist"
        raise WeightsError(f"weights file {file} {what}; {_EXPECTED}")
    _refuse_by_magic(file)
    if file.suffix.lower() == ".safetensors":
        try:
            content: Any = load_file(file, device="cpu")
        except (SafetensorError, *_UNREADABLE) as error:
            raise WeightsError(
                f"{file} is not a whole .safetensors file ({_first_line(error)}); "
                "it may be truncated: get it again"
            ) from error
    else:
        content = _load_pickle(file)
    return _strip_prefixes(_unwrap(content, file))


def hash_prefix(url: str) -> str | None:
    """The first hexadecimal digits of a file's SHA-256, as published in its name.

    Examples
    --------
    >>> hash_prefix("https://download.pytorch.org/models/resnet18-f37072fd.pth")
    'f37072fd'
    >>> hash_prefix("https://example.org/mine.pth") is None
    True
    """
    match = re.search(r"-([a-f0-9]{8,})\.\w+$", file_name(url))
    return match.group(1) if match else None


def file_name(url: str) -> str:
    """The file name at the end of an address."""
    return Path(urlparse(url).path).name


def checkpoint_folder() -> Path:
    """The folder in which torch.hub keeps downloaded weights; ``TORCH_HOME`` moves it."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def fetch(url: str, *, label: str) -> Path:
    """Path of a published weights file: from torch.hub's folder, else downloaded into it.

    `torch.hub` downloads to a temporary name, compares the SHA-256 with the digits in the
    published name, and renames.

    Parameters
    ----------
    label
        What the weights are, for messages: ``"densenet121 IMAGENET1K_V1"``.

    Raises
    ------
    WeightsError
        The file is not there and cannot be downloaded; the message gives the file name, the
        address, the folder to put it in and the alternatives.
    DiskError
        The folder cannot be written.
    """
    target = checkpoint_folder() / file_name(url)
    if target.is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _socket_timeout(_CONNECT_TIMEOUT_S):
            torch.hub.download_url_to_file(
                url, str(target), hash_prefix(url), progress=sys.stderr.isatty()
            )
    except RuntimeError as error:  # torch.hub's "invalid hash value"
        reason = f"what came from there is not the published file: {_first_line(error)}"
        raise WeightsError(_not_to_be_had(url, label, reason)) from error
    except OSError as error:  # URLError, timeouts and refused connections are OSErrors too
        if _is_disk(error):
            raise DiskError(
                f"weights of {label} cannot be stored in {target.parent}: {error.strerror}; "
                "free some space, or set TORCH_HOME to a folder that can be written"
            ) from error
        reason = str(getattr(error, "reason", None) or error) or type(error).__name__
        raise WeightsError(_not_to_be_had(url, label, reason)) from error
    return target


def check_published_hash(path: Path, sha256: str, url: str) -> None:
    """Refuse a file whose bytes are not those its published name promises.

    Raises
    ------
    WeightsError
        `sha256` does not begin with the digits in the name at the end of `url`.
    """
    expected = hash_prefix(url)
    if expected is not None and not sha256.startswith(expected):
        raise WeightsError(
            f"{path} is damaged: its SHA-256 begins with {sha256[: len(expected)]}, but the "
            f"published file's begins with {expected} (an interrupted download?); "
            f"delete it and run again, or get it from {url}"
        )


def _not_to_be_had(url: str, label: str, reason: str) -> str:
    folder = checkpoint_folder()
    return (
        f"weights of {label} are not on this machine and cannot be downloaded ({reason}).\n"
        f"  file:    {file_name(url)}\n"
        f"  address: {url}\n"
        f"  folder:  {folder}\n"
        "Put the file into that folder, or give another with --weights PATH (.pth or "
        ".safetensors), or try the pipeline without pretrained weights with --weights random."
    )


def _is_disk(error: OSError) -> bool:
    if isinstance(error, (urllib.error.URLError, ConnectionError, TimeoutError)):
        return False
    return error.errno in {errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


@contextmanager
def _socket_timeout(timeout_s: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout_s)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _refuse_by_magic(file: Path) -> None:
    try:
        with file.open("rb") as stream:
            start = stream.read(64)
    except OSError as error:
        raise WeightsError(f"weights file {file} cannot be read: {error.strerror}") from error
    for magic, what in _MAGIC:
        if (magic and start.startswith(magic)) or (not magic and not start):
            raise WeightsError(f"{file} is {what}; {_EXPECTED}")


def _refuse_packed(file: Path) -> None:
    """Refuse a zip archive that holds more than its size: `torch.save` neither packs nor shares."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, LookupError, NotImplementedError):
        return  # no archive, or a damaged one: torch.load says so
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > file.stat().st_size or any(e.compress_type for e in entries):
        raise WeightsError(
            f"{file} is a packed archive of {unpacked:,} bytes in {file.stat().st_size:,}, and "
            f"torch.save packs nothing; {_EXPECTED}"
        )


def _load_pickle(file: Path) -> Any:
    _refuse_packed(file)
    try:
        # torchvision's and timm's training scripts store their options beside the weights: a
        # Namespace is a bag of values, without code of its own.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            # A TorchScript archive makes torch.load warn before it raises; the error says it all.
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        text = str(error)
        if held := re.search(r"(?:GLOBAL|global:?)\s+(?:GLOBAL\s+)?([A-Za-z_][\w.]*\.\w+)", text):
            raise WeightsError(
                f"{file} holds a pickled Python object ({held.group(1)}), not only tensors; "
                f"featx does not run code from files: {_EXPECTED}"
            ) from error
        if "TorchScript" in text:
            raise WeightsError(f"{file} is a TorchScript archive; {_EXPECTED}") from error
        with file.open("rb") as stream:
            start = stream.read(2)
        if start[:1] == b"\x80" and start[1:2] >= b"\x03":  # newer than torch.save's protocol 2
            raise WeightsError(
                f"{file} is a plain Python pickle, not written by torch.save; featx does not run "
                f"code from files: {_EXPECTED}"
            ) from error
        what = "not a weights file"
        if start in (b"PK", b"\x80\x02"):  # the beginning of what torch.save writes, and wrote
            what = f"truncated or damaged ({_first_line(error)})"
        raise WeightsError(
            f"{file} is {what}; {_EXPECTED}; if it was downloaded, get it again"
        ) from error


def _first_line(error: BaseException) -> str:
    # torch.load puts advice to turn the protection off before its own reason.
    lines = str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


def _unwrap(content: Any, file: Path) -> Mapping[str, torch.Tensor]:
    trail = ""
    while isinstance(content, Mapping):
        if content and all(isinstance(value, torch.Tensor) for value in content.values()):
            if not all(isinstance(key, str) for key in content):
                break
            return content
        key = next((k for k in _WRAPPERS if isinstance(content.get(k), Mapping)), None)
        if key is None:
            names = ", ".join(map(str, list(content)[:6])) or "nothing"
            raise WeightsError(
                f"{file} holds no state dict{trail}: a dict with {names}; {_EXPECTED}"
            )
        content = content[key]
        trail = f" under {key!r}"
    kind = type(content).__name__
    raise WeightsError(f"{file} holds something of type {kind}{trail}; {_EXPECTED}")


def with_own_prefix(
    state: Mapping[str, torch.Tensor], network: torch.nn.Module
) -> Mapping[str, torch.Tensor]:
    """A state dict as `read_state_dict` gives it, with the prefix that the network's own keys have.

    What wrappers put before all keys is taken off as a file is read; a network all of whose layers
    lie in one module of such a name, as ``self.net``, has it in its own keys.
    """
    own = network.state_dict()
    key = next(iter(own), "")
    prefix = key.removesuffix(next(iter(_strip_prefixes(own)), ""))
    if not prefix:
        return state
    found: OrderedDict[str, torch.Tensor] = OrderedDict((prefix + k, t) for k, t in state.items())
    metadata = getattr(state, "_metadata", None) or {}
    found._metadata = {  # type: ignore[attr-defined]
        prefix + path if path else prefix[:-1]: entry for path, entry in metadata.items()
    }
    return found


def _strip_prefixes(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    plain: OrderedDict[str, torch.Tensor] = OrderedDict(state)
    metadata = dict(getattr(state, "_metadata", None) or {})
    stripped = True
    while stripped:
        stripped = False
        for prefix in _PREFIXES:
            if all(key.startswith(prefix) for key in plain):
                plain = OrderedDict((key[len(prefix) :], t) for key, t in plain.items())
                # Module paths in the metadata carry the prefix without a key behind it.
                metadata = {
                    path[len(prefix) :] if path.startswith(prefix) else "": entry
                    for path, entry in metadata.items()
                    if path.startswith(prefix) or path == prefix[:-1]
                }
                stripped = True
    if metadata:
        plain._metadata = metadata  # type: ignore[attr-defined]
    return plain
