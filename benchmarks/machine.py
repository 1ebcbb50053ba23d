"""What a benchmark ran on, and with which versions, as JSON."""

from __future__ import annotations

import datetime
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from featx.versions import versions_of

ROOT: Final = Path(__file__).parents[1]
_PACKAGES: Final = (
    "featx",
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "scikit-learn",
    "h5py",
    "isal",
    "pillow",
    "simplejpeg",
    "openvino",
    "timm",
    "img2vec-pytorch",
)


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """The processor's name, as Linux tells it where it is Linux."""
    told = Path("/proc/cpuinfo")
    if told.is_file():
        found = re.search(r"model name\s*: *(.+)", told.read_text("utf-8", "replace"))
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def gpu() -> str | None:
    """The first CUDA device's name, if there is one."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def circumstances(program: str) -> dict[str, Any]:
    """Date, command, machine, versions and commit, for the head of a results file.

    Parameters
    ----------
    program : as it is started: ``python -m benchmarks.extraction``.
    """
    import torch

    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join([*program.split(), *sys.argv[1:]]),
        "commit": commit(),
        "machine": {
            "processor": processor(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "cores": cores(),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
            "gpu": gpu(),
            "system": f"{platform.system()} {platform.release()}",
            "load_before": [round(load, 2) for load in os.getloadavg()],
        },
        "versions": {"python": platform.python_version(), **versions_of(_PACKAGES)},
    }


def commit() -> str | None:
    """The commit of this code, with ``+changes`` where files differ from it."""
    try:
        head = _git("rev-parse", "HEAD")
        return head + ("+changes" if _git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None  # not a repository, or no git


def _git(*words: str) -> str:
    ended = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return ended.stdout.strip()


def results_path(told: dict[str, Any], name: str) -> Path:
    """Where results go by default: ``benchmarks/results/DATE-NAME-MACHINE.json``."""
    machine = told["machine"]
    words = f"{machine['gpu'] or machine['processor']} {machine['cores']} cores"
    slug = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
    return ROOT / "benchmarks" / "results" / f"{told['date'][:10]}-{name}-{slug}.json"
