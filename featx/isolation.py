"""Decoding in processes of their own, so that a decoder that crashes or hangs costs one file.

Image decoders are C code that reads what strangers wrote. In this process a fault of theirs would
end the run; in another, `featx.worker`, it ends that one, and a new one takes its place. This
keeps a run whole; it is no sandbox: the processes may do what the user may.
"""

from __future__ import annotations

import math
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Final, Self

from featx.child import Child, DefectError, DiedError, HungError, NotStartedError
from featx.decoding import UNREADABLE
from featx.errors import FeatxError, ImageError
from featx.loading import AnyLoader, Picture

CRASHED: Final = 5  # the cache's status for a decoder that crashed or hung
_CLOSE_S: Final = 5.0
_STARTS: Final = 3  # of which signals may end all but the last


class IsolatedLoader:
    """A `Loader` whose work is done in other processes; a context manager.

    To be called from several threads at once. Each call borrows a process that has nothing to do.
    The first is started by the first call. Their number doubles, up to that of calls at the same
    time, whenever a call still finds none free after as long as it took to start one: for a few
    small files one process is done before another would have begun.

    A file that crashes its process is tried once more in a new one, because the system may have
    killed the first for want of memory; a process that a signal ends while it starts is started up
    to twice more, for the same reason. Where no process can be started at all (a sandbox, a
    frozen program) files are decoded in this one, with a warning.

    Parameters
    ----------
    loader : what the processes load with; must be picklable.
    timeout_s : how long reading a file may take, and how long decoding it.

    Examples
    --------
    >>> with IsolatedLoader(loader) as load:  # doctest: +SKIP
    ...     picture = load(Path("a.jpg"))
    """

    def __init__(self, loader: AnyLoader, *, timeout_s: float = 30.0) -> None:
        self._loader = loader
        self._timeout_s = timeout_s
        self._changed = threading.Condition()
        self._idle: list[Child] = []
        self._all: set[Child] = set()  # also those at work
        self._n = 0  # those in `_all`, and those being started
        self._limit = sys.maxsize
        self._room, self._grow_at = 1, math.inf  # how many there may be, and when there may be more
        self._start_s = 0.0
        self._has_started = self._in_process = self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, path: Path) -> Picture:
        """The picture in a file.

        Raises
        ------
        ImageError
            The file cannot be used: what `Loader` raises, status 5 where it crashed its decoder
            twice or decoding took more than `timeout_s`, status 2 where reading took so long.
        RuntimeError
            The decoding itself has a defect; with the traceback.
        FeatxError
            No process takes the place of one that crashed.
        """
        path = Path(path).absolute()
        sha256 = bytes(32)
        for last in (False, True):
            child = self._borrow()
            if child is None:
                return self._loader(path)
            try:
                picture = child.load(path)
            except (ImageError, DefectError):  # full answers, both
                self._give_back(child)
                raise
            except HungError as error:
                self._discard(child)
                raise self._too_slow(child.sha256, reading=error.reading) from error
            except DiedError as error:
                self._discard(child)
                sha256 = child.sha256 if any(child.sha256) else sha256
                if last or self._closed:
                    words = f"crashed the decoder ({error})"
                    raise ImageError(words, status=CRASHED, sha256=sha256) from error
            except BaseException:  # Ctrl-C amid an answer
                self._discard(child)
                raise
            else:
                self._give_back(child)
                return picture
        raise AssertionError("either attempt returns or raises")

    @property
    def processes(self) -> int:
        """How many there are, also those being started."""
        return len(self._all)

    def close(self) -> None:
        """End every process, also those at work, whose calls then raise. May be repeated."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            for child in self._all:
                child.kill()
            idle, self._idle = self._idle, []
        for child in idle:
            self._discard(child)
        until = time.monotonic() + _CLOSE_S
        with self._changed:  # calls return now; one that does not is stuck in the kernel
            while self._all and time.monotonic() < until:
                self._changed.wait(until - time.monotonic())

    def _too_slow(self, sha256: bytes, *, reading: bool) -> ImageError:
        doing, status = ("reading", UNREADABLE) if reading else ("decoding", CRASHED)
        words = f"{doing} took more than {self._timeout_s:g} s"
        return ImageError(words, status=status, sha256=sha256)

    def _borrow(self) -> Child | None:
        """A process with nothing to do; None: do it in this one."""
        while True:
            with self._changed:
                while not (self._closed or self._in_process or self._idle or self._may_start()):
                    left_s = self._grow_at - time.monotonic()
                    self._changed.wait(left_s if math.isfinite(left_s) else None)
                if self._closed:
                    raise FeatxError("the loader has been closed")
                if self._in_process:
                    return None
                child = self._idle.pop() if self._idle else None
                self._n += child is None
            if child is None:
                child = self._new()
            elif not child.is_alive:  # killed while it had nothing to do
                self._discard(child)
                continue
            if child is not None:
                return child

    def _may_start(self) -> bool:
        """Whether a call that found no free process may start one."""
        if time.monotonic() >= self._grow_at:
            self._room, self._grow_at = min(2 * self._room, self._limit), math.inf
            self._changed.notify_all()
        return self._n < self._room

    def _new(self) -> Child | None:
        """A new process, ready; None where there can be no more than there are."""
        for last in (*[False] * (_STARTS - 1), True):
            child = None
            begun = time.monotonic()
            try:
                child = Child(self._loader, timeout_s=self._timeout_s)
                with self._changed:
                    self._all.add(child)
                    if self._closed:  # in between
                        child.kill()
                child.wait_until_ready()
            except NotStartedError as error:
                if child is not None and error.by_signal and not (last or self._closed):
                    self._end(child)  # the system may be short of memory for a moment
                    continue
                self._discard(child)
                self._do_with_less(error)
                return None
            except BaseException:
                self._discard(child)
                raise
            with self._changed:
                now = time.monotonic()
                self._start_s = self._start_s or now - begun
                self._has_started, self._grow_at = True, now + self._start_s
                self._changed.notify_all()
            return child
        raise AssertionError("the last attempt returns or raises")

    def _do_with_less(self, error: NotStartedError) -> None:
        """Go on with the processes there are; without any, in this one, if none ever started."""
        with self._changed:
            self._limit = self._room = max(self._n, 1)
            if self._n or self._closed or self._in_process:
                return
            if self._has_started:
                raise FeatxError(f"no new process for decoding can be started: {error}") from error
            self._in_process = True
            self._changed.notify_all()
        warnings.warn(
            "images are decoded in this process, where a file that crashes the decoder ends the "
            f"run, because no process can be started for it: {error}",
            RuntimeWarning,
            stacklevel=2,
        )

    def _give_back(self, child: Child) -> None:
        with self._changed:
            if not self._closed:
                self._idle.append(child)
                self._changed.notify()
                return
        self._discard(child)

    def _discard(self, child: Child | None) -> None:
        """End a process, which makes room for another; None: one that was not even started."""
        if child is not None:
            self._end(child)
        with self._changed:
            self._n -= 1
            self._changed.notify_all()

    def _end(self, child: Child) -> None:
        """End a process whose place another is to take."""
        child.end()
        with self._changed:
            self._all -= {child}
