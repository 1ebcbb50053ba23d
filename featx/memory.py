"""How much memory this process has taken."""

from __future__ import annotations

import re
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_memory_bytes() -> int | None:
    """The most memory this process has had in RAM so far; None where the system does not tell."""
    try:  # first, as getrusage's figure has the peak of the process that started this one
        text = _STATUS.read_text("ascii", "replace")
    except OSError:
        text = ""
    told = re.search(r"^VmHWM:\s*(\d+) kB", text, re.MULTILINE)
    if told:
        return int(told[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
