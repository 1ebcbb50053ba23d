"""The home folder, which people write as ``~``."""

from __future__ import annotations

import os
from pathlib import Path


def at_home(path: str | os.PathLike[str]) -> Path:
    """A path with the home folder for its ``~``.

    Where there is no such user (``~nobody``) it is a name like any other; `Path.expanduser` raises.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111
