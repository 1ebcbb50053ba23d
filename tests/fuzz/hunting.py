"""Trying one damaged file after another, in a process that may crash, hang or eat memory."""

from __future__ import annotations

import functools
import multiprocessing
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

if __package__ == "tests.fuzz":
    from tests.fuzz.mutations import Sealed, damaged
else:
    from fuzz.mutations import Sealed, damaged

MAX_GROWTH_BYTES = 256 * 2**20  # far above what any of these small files may ask for
HANG_S = 30.0


@dataclass(frozen=True)
class Target:
    """A kind of file: what reads it, valid examples, and what makes damage look whole again."""

    read: Callable[[bytes, Path], bool]
    make_seeds: Callable[[Path], Sequence[bytes]]
    seal: Callable[[bytes], Sealed] = Sealed
    mend: Callable[[bytes], bytes] = bytes

    @functools.cached_property
    def seeds(self) -> tuple[Sealed, ...]:
        """Valid files, the same ones in every process."""
        with tempfile.TemporaryDirectory() as folder:
            return tuple(self.seal(data) for data in self.make_seeds(Path(folder)))

    def case(self, seed: int, number: int) -> bytes:
        """Case `number` of `seed`: damage to a valid file, the same bytes wherever it is drawn."""
        rng = np.random.default_rng([seed, number])
        file = self.seeds[int(rng.integers(len(self.seeds)))]
        data = damaged(file, self.seeds, rng)
        return self.mend(data) if rng.random() < 0.5 else data


def fuzz_one(target: Target, data: bytes) -> bool:
    """Whether `target` accepts `data`; raises what is a finding."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        return target.read(data, Path(folder))


@dataclass(frozen=True)
class Tally:
    """What came of a hunt: cases tried, how many of them were accepted, and the findings."""

    tried: int
    accepted: int
    findings: tuple[tuple[int, str], ...]


def _work(target: Target, seed: int, numbers: range, current: Any, findings: Any) -> None:
    """Try cases until the parent has had enough; `current` says which one and how many passed."""
    fuzz_one(target, target.seeds[0].data)  # what is imported on the way is no growth
    before = _peak_bytes()
    for number in numbers:
        current[0] = number
        try:
            current[1] += fuzz_one(target, target.case(seed, number))
        except Exception:  # noqa: BLE001 (whatever it is, it is what is looked for)
            findings.send((number, traceback.format_exc()))
        grown = _peak_bytes() - before
        if grown > MAX_GROWTH_BYTES:
            findings.send((number, f"memory grew by {grown / 2**20:.0f} MiB"))
            before += grown
    current[0] = numbers.stop


def _peak_bytes() -> int:
    """Peak memory of this process; 0 where the platform does not tell."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's figure has the peak of the process that started this one
        text = status.read_text("ascii", "replace")
        return int(text.split("VmHWM:")[1].split()[0]) * 1024
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of macOS, in bytes


def hunt(
    target: Target,
    *,
    seed: int,
    seconds: float | None = None,
    cases: int | None = None,
    first: int = 0,
    hang_s: float = HANG_S,
) -> Tally:
    """Try cases of `target` from number `first` on, for so long or so many."""
    context = multiprocessing.get_context("spawn")
    ends = time.monotonic() + seconds if seconds is not None else None
    stop = first + cases if cases is not None else 2**62
    found: list[tuple[int, str]] = []
    tried = accepted = 0
    while first < stop and (ends is None or time.monotonic() < ends):
        current = context.Array("q", [-1, 0], lock=False)
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(
            target=_work, args=(target, seed, range(first, stop), current, theirs)
        )
        child.start()
        theirs.close()
        why = _watch(child, ours, current, found, ends, hang_s)
        reached = int(current[0])
        if why is not None:
            found.append((reached, why))
        tried += max(0, reached - first) + (why is not None)
        accepted += int(current[1])
        if why is None:
            break
        first = reached + 1
    return Tally(tried, accepted, tuple(found))


def _watch(
    child: Any,
    pipe: Any,
    current: Any,
    found: list[tuple[int, str]],
    ends: float | None,
    hang_s: float,
) -> str | None:
    """Gather a child's findings till it or the time ends; why it died, or None."""
    last, moved = -2, time.monotonic()
    while True:
        try:
            while pipe.poll(0.2):
                found.append(pipe.recv())
        except EOFError:
            child.join()
            if current[0] < 0:
                raise RuntimeError("the child process ended before its first case") from None
            return f"the process died: exit code {child.exitcode}" if child.exitcode else None
        if ends is not None and time.monotonic() > ends:
            child.kill()
            child.join()
            return None
        if int(current[0]) != last:
            last, moved = int(current[0]), time.monotonic()
        elif time.monotonic() - moved > hang_s and last >= 0:
            child.kill()
            child.join()
            return f"no answer for {hang_s:g} s"
