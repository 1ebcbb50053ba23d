"""One run of `featx extract` in a forked child that can be ended at any instant.

The child notes in a log that outlives it every forward pass that it begins and every row that it
settles, and says on a pipe which phase it has entered; the parent sends the signal when its moment
has come.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
import torch

import featx.cache.writer
from featx.cache import CacheFile, CacheWriter
from featx.cli import main as featx_main
from featx.engines.eager import EagerEngine
from featx.errors import EXIT_INTERRUPTED

COMMIT_INTERVAL_S: Final = 0.02  # a run of a second must not be one commit
SURVIVORS_S: Final = 10.0  # how long processes of a killed run may take to notice
HANG_S: Final = 120.0

# The lines of the log: a forward pass, and rows with features or without, each followed by the
# SHA-256 of its image and its path, in hexadecimal.
PASS: Final = b"pass"
PUT: Final = b"put"
FAIL: Final = b"fail"

# What a child says of itself, one byte each, as it enters a phase.
PHASES: Final = {b"s": "starting", b"c": "creating", b"r": "running", b"f": "finishing"}
ENDED: Final = b"x"


class Broken(Exception):
    """A promise that did not hold."""


@dataclass(frozen=True)
class Ending:
    """How an attempt is to end: `kind`, `aim` (a phase or ``any``), and when within it."""

    kind: str = "none"
    aim: str = "any"
    fraction: float = 0.0


def prepare_to_fork() -> None:
    """Import all that a child needs, compute nothing, and adopt what a killed child leaves."""
    torch.set_num_threads(1)  # a pool of threads does not outlive a fork
    with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        sys.argv = ["featx", "extract", os.devnull + "/no/images"]
        featx_main()
    if sys.platform == "linux":
        pr_set_child_subreaper = 36  # linux/prctl.h
        ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1, 0, 0, 0)


def extract_in_child(
    command: list[str], *, events: int, log: Path, said: Path, fail_at: int | None
) -> NoReturn:
    """One attempt; never returns. Says its phases on `events`, logs each pass and settled row."""
    code = -1
    try:
        os.write(events, b"s")
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
        terminal = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(terminal, 1)
        os.dup2(terminal, 2)
        _watch(events, os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), fail_at)
        sys.argv = command
        featx_main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    except KeyboardInterrupt:  # before or after the command, where Python itself ends like this
        code = EXIT_INTERRUPTED
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.write(events, ENDED)
        os._exit(code & 0xFF)


def _watch(events: int, log: int, fail_at: int | None) -> None:
    """Put thin wrappers around the writer and the engine of this process."""
    featx.cache.writer.COMMIT_INTERVAL_S = COMMIT_INTERVAL_S  # type: ignore[misc]
    create, finish = CacheWriter.create, CacheWriter.finish
    put, fail, run_batch = CacheWriter.put, CacheWriter.fail, EagerEngine.__call__
    passes = 0

    def noted(kind: bytes, file: CacheFile, row: int, sha256: bytes) -> bytes:
        path = file.paths[row]
        return b"%s %s %s\n" % (kind, sha256.hex().encode(), path.hex().encode())

    def watched_create(*args: Any, **keywords: Any) -> CacheWriter:
        os.write(events, b"c")
        writer = create(*args, **keywords)
        os.write(events, b"r")
        return writer

    def watched_finish(self: CacheWriter, *args: Any) -> CacheFile:
        os.write(events, b"f")
        return finish(self, *args)

    def watched_resume(*args: Any, **keywords: Any) -> CacheWriter:
        writer = resume(*args, **keywords)
        os.write(events, b"r")
        return writer

    def watched_put(self: CacheWriter, rows: Any, features: Any, sha256: Any) -> None:
        named = zip(rows.tolist(), sha256, strict=True)
        lines = (noted(PUT, self.file, row, digest.tobytes()) for row, digest in named)
        os.write(log, b"".join(lines))
        put(self, rows, features, sha256)

    def watched_fail(self: CacheWriter, row: int, status: int, reason: str, sha256: bytes) -> None:
        os.write(log, noted(FAIL, self.file, row, sha256))
        fail(self, row, status, reason, sha256)

    def watched_pass(self: EagerEngine, pixels: np.ndarray) -> np.ndarray:
        nonlocal passes
        passes += 1
        if passes == fail_at:
            raise MemoryError("as if there were none left")
        os.write(log, PASS + b"\n")
        return run_batch(self, pixels)

    resume = CacheWriter.resume
    for owner, name, watched in (
        (CacheWriter, "create", watched_create),
        (CacheWriter, "resume", watched_resume),
        (CacheWriter, "finish", watched_finish),
        (CacheWriter, "put", watched_put),
        (CacheWriter, "fail", watched_fail),
        (EagerEngine, "__call__", watched_pass),
    ):
        setattr(owner, name, watched)


def check_nothing_survived() -> None:
    """Wait until no descendant is left; the orphans among them are this process's children now."""
    deadline = time.monotonic() + SURVIVORS_S
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            return
        if time.monotonic() > deadline:
            raise Broken(f"processes of a killed run are still there after {SURVIVORS_S:g} s")
        time.sleep(0.005)


class Attempt:
    """One forked run: waits for it, ends it as told, and says what became of it."""

    def __init__(self, start: Callable[[int], NoReturn]) -> None:
        reading, writing = os.pipe()
        self.begun = time.monotonic()
        self.pid = os.fork()
        if not self.pid:
            os.close(reading)
            start(writing)
        os.close(writing)
        self._events = reading
        self.entered: dict[str, float] = {}  # phase -> seconds after the start
        self.phase = "starting"

    def end(self, ending: Ending, typical: dict[str, float]) -> tuple[int, float]:
        """The exit code and the seconds it lived; the signal is sent when its moment comes."""
        due = None
        if ending.kind.startswith("SIG") and ending.aim == "any":
            due = self.begun + ending.fraction * typical["any"]
        deadline = self.begun + HANG_S
        while True:
            until = deadline if due is None else due
            ready, _, _ = select.select([self._events], [], [], max(0, until - time.monotonic()))
            told = os.read(self._events, 1) if ready else None
            if told in (b"", ENDED):
                break
            if told is not None:
                self.phase = PHASES[told]
                self.entered[self.phase] = time.monotonic() - self.begun
                if ending.kind.startswith("SIG") and ending.aim == self.phase:
                    due = time.monotonic() + ending.fraction * typical[self.phase]
            elif due is not None:
                os.kill(self.pid, getattr(signal, ending.kind))
                due = None
            else:
                os.kill(self.pid, signal.SIGKILL)
                raise Broken(f"a run hung for {HANG_S:g} s while {self.phase}")
        _, status = os.waitpid(self.pid, 0)
        os.close(self._events)
        return os.waitstatus_to_exitcode(status), time.monotonic() - self.begun
