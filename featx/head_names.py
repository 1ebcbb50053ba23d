"""What a head file is called: by every setting that is not the default."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from featx.cache import canonical_json
from featx.errors import HeadError
from featx.heads.file import load_head
from featx.splits import TEST_FRACTION

_SHOWN: Final = 24  # characters of a grouping rule in a file's name
_LONGEST: Final = 6  # values of a setting that a file's name spells out
# File systems allow 255; .final, a number, .safetensors.checkpoint and more come on top.
_MAX_NAME_BYTES: Final = 198


def head_name(head: str, params: Mapping[str, Any], seed: int, settings: Mapping[str, Any]) -> str:
    """``logistic``, with every setting that is not the default."""
    extras = {key: _short(value) for key, value in sorted(params.items()) if value is not None}
    if seed:
        extras["seed"] = str(seed)
    if settings["test_fraction"] != TEST_FRACTION:
        extras["test"] = f"{settings['test_fraction']:g}"
    if settings.get("group"):
        extras["group"] = re.sub(r"[^\w.-]+", "_", settings["group"].rpartition("/")[2])[:_SHOWN]
    if "group_duplicates" in settings:
        extras["group-duplicates"] = f"{settings['group_duplicates']:g}"
    name = head + "".join(f"+{key}={value}" for key, value in extras.items())
    return name + ("+calibrated" if settings.get("calibrate") else "")


def beside(cache: Path, name: str) -> Path:
    """The head file of a cache, its name cut short where it would be too long, by a digest."""
    whole = os.fsencode(cache.with_suffix(f".{name}").name)
    if len(whole) > _MAX_NAME_BYTES:
        digest = hashlib.sha256(whole).hexdigest()[:8]
        whole = os.fsencode(f"{whole[:_MAX_NAME_BYTES].decode('utf-8', 'ignore')}~{digest}")
    return cache.with_name(f"{os.fsdecode(whole)}.safetensors")


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        if len(value) > _LONGEST:
            return f"{_short(value[0])},..,{_short(value[-1])},{len(value)}-values"
        return ",".join(_short(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def free_path(path: Path, settings: Mapping[str, Any], *, force: bool) -> tuple[Path, bool]:
    """`path`, or the first numbered name beside it that holds no head of other settings."""
    candidate, number = path, 1
    while candidate.exists():
        if force:
            return candidate, False
        try:
            there = load_head(candidate).metadata.get("settings", {})
            same = canonical_json(there) == canonical_json(settings)
        except HeadError:
            same = False  # not a head, or a newer one: never written over
        if same:
            return candidate, True
        number += 1
        candidate = path.with_name(f"{path.name.removesuffix('.safetensors')}-{number}.safetensors")
    return candidate, False
