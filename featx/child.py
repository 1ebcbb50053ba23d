"""One decoding process from the side of the one that asks: start it, ask it, time it, end it."""

from __future__ import annotations

import json
import math
import multiprocessing.spawn
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from featx.decoding import TOO_LARGE, UNDECODABLE, UNREADABLE
from featx.errors import ImageError
from featx.loading import AnyLoader, Picture
from featx.shared_memory import SharedMemory
from featx.worker import (
    ASK,
    DEFECT,
    HEADER,
    MAX_TRACEBACK,
    MAX_WORDS,
    PIXELS,
    PLACED,
    READ,
    READY,
    REFUSED,
    SIZE,
)

if sys.platform == "linux":
    import fcntl

# `featx` is taken from where it lies here, all else from the same places in the same order as
# here; but never from the current folder ('' in sys.path), where anybody's numpy.py may lie.
_BOOT: Final = """
import json, sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
home, path = json.loads(sys.argv[1])
spec = PathFinder.find_spec("featx", [home])
sys.modules["featx"] = module = module_from_spec(spec)
spec.loader.exec_module(module)
sys.path[:] = path
from featx.worker import main
main()
"""
_START_S: Final = 60.0  # to start Python and import the decoders, from a slow disk too
_KILL_S: Final = 2.0  # a kill takes milliseconds, unless the kernel itself is stuck
_SPARE_S = 5.0  # so much later than it would be killed does it end itself, if it is orphaned
_SLICE_S: Final = 0.5
_HAS_POLL = hasattr(select, "poll")  # on Windows a thread with a clock kills instead


class NotStartedError(Exception):
    """No decoding process can be had; the message says why, `by_signal` whether a signal did it."""

    def __init__(self, message: str, *, by_signal: bool = False) -> None:
        super().__init__(message)
        self.by_signal = by_signal


class DiedError(Exception):
    """It ended, or said what makes no sense; the message says how."""


class HungError(Exception):
    """It took too long; `reading` says whether before it had read the file."""

    def __init__(self, *, reading: bool) -> None:
        super().__init__()
        self.reading = reading


class DefectError(RuntimeError):
    """It met an error that no image should cause; the message is its traceback."""


class Child:
    """A process that decodes one file at a time.

    Parameters
    ----------
    loader : what it decodes with.
    timeout_s : how long reading a file may take, and how long decoding it.

    Attributes
    ----------
    sha256 : of the file that was asked for last; zeros until the process has read it.

    Raises
    ------
    NotStartedError
        The system starts no process.
    """

    def __init__(self, loader: AnyLoader, *, timeout_s: float) -> None:
        self.sha256 = bytes(32)
        self._loader, self._timeout_s = loader, timeout_s
        self._left_s = math.inf
        self._ended = self._too_late = False
        self._memory = SharedMemory.create(loader.body_bytes[1])
        self._descriptor = None if self._memory is None else self._memory.descriptor
        try:
            self._process = _start(self._descriptor)
        except NotStartedError:
            self._close_memory()
            raise
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        if self._memory is not None:
            self._memory.let_go()
        else:
            _enlarge(self._stdout.fileno(), HEADER.size + loader.body_bytes[1])
        if _HAS_POLL:
            self._poll = select.poll()
            self._poll.register(self._stdout, select.POLLIN)

    def wait_until_ready(self) -> None:
        """Return when it can be asked; `NotStartedError` with its last words when it never can."""
        own_limit_s = math.ceil(2 * self._timeout_s + _SPARE_S)  # for reading and decoding
        said = b""
        with suppress(DiedError):  # what it said before it ended is read below
            self._send(pickle.dumps((self._loader, own_limit_s, self._descriptor)))
        try:
            with self._patience(_START_S):
                while not said.endswith(READY):
                    said = said[-MAX_TRACEBACK:] + self._some(4096)
        except (DiedError, HungError) as error:
            what, died = f"took more than {_START_S:g} s to be ready", isinstance(error, DiedError)
            if died:
                what = f"ended before it was ready ({error})"
            words = " ".join(said.decode("utf-8", "replace").split())[-300:]
            name = self._process.args[0]  # type: ignore[index]
            raise NotStartedError(
                f"{name!r} {what}{': ' if words else ''}{words}",
                by_signal=died and (self._process.poll() or 0) < 0,
            ) from error

    def load(self, path: Path) -> Picture:
        """The picture in a file.

        Raises
        ------
        ImageError
            The file cannot be used.
        DefectError
            There is a defect in the decoding.
        DiedError, HungError
            The process cannot be asked again: `end` it.
        """
        self.sha256 = bytes(32)
        self._send(os.fsencode(path))
        kind, body = self._answer(READ)
        if kind == READ:
            self.sha256 = bytes(body)
            kind, body = self._answer(PIXELS if self._memory is None else PLACED)
        if kind in (PIXELS, PLACED):
            try:
                return self._loader.unpacked(body, self.sha256)
            except ValueError as error:
                raise DiedError(f"it answered what makes no sense ({error})") from error
        if kind == REFUSED:
            words = body[1:].decode("utf-8", "replace")
            raise ImageError(words, status=body[0], sha256=self.sha256)
        raise DefectError(f"decoding {path} met an error:\n{body.decode('utf-8', 'replace')}")

    def kill(self) -> None:
        """Kill it from any thread; who waits for its answer gets `DiedError` soon."""
        self._ended = True
        self._process.kill()

    def end(self) -> None:
        """Kill it and leave nothing behind. Nobody may be waiting for its answer."""
        self.kill()
        try:
            self._process.wait(_KILL_S)
        except subprocess.TimeoutExpired:  # stuck in the kernel: it goes when the kernel lets it
            threading.Thread(target=self._process.wait, daemon=True).start()
        self._stdin.close()
        self._stdout.close()
        self._close_memory()

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def _close_memory(self) -> None:
        if self._memory is not None:
            self._memory.close()

    # --- messages ---------------------------------------------------------------------------------

    def _answer(self, expected: int) -> tuple[int, bytearray]:
        """The next message: kind and body. What it claims of its size is believed within bounds.

        The body of `PLACED` is what lies in the memory of both.
        """
        pixels = self._loader.body_bytes
        sizes = {
            READ: (32, 32),
            PIXELS: pixels,
            PLACED: (SIZE.size, SIZE.size),
            REFUSED: (1, MAX_WORDS),
            DEFECT: (0, MAX_TRACEBACK),
        }
        try:
            with self._patience(self._timeout_s):
                kind, size = HEADER.unpack(self._exactly(HEADER.size))
                least, most = sizes[kind] if kind in (expected, REFUSED, DEFECT) else (0, -1)
                body = self._exactly(size) if least <= size <= most else None
            if body is not None and kind == PLACED:
                (size,) = SIZE.unpack(body)
                assert self._memory is not None
                body = self._memory.copy(size) if pixels[0] <= size <= pixels[1] else None
        except HungError:
            raise HungError(reading=expected == READ) from None
        if body is None or (
            kind == REFUSED and body[0] not in (UNREADABLE, UNDECODABLE, TOO_LARGE)
        ):
            raise DiedError(f"it answered what makes no sense (kind {kind}, {size} bytes)")
        return kind, body

    def _send(self, body: bytes) -> None:
        message = memoryview(HEADER.pack(ASK, len(body)) + body)
        try:
            while message:
                message = message[self._stdin.write(message) :]
        except OSError as error:
            raise DiedError(self._how_it_ended()) from error

    def _exactly(self, size: int) -> bytearray:
        body = bytearray(size)
        view = memoryview(body)
        while view:
            self._wait()
            n = self._stdout.readinto(view)  # type: ignore[attr-defined]
            if not n:
                self._no_more()
            view = view[n:]
        return body

    def _some(self, size: int) -> bytes:
        self._wait()
        return self._stdout.read(size) or self._no_more()

    def _no_more(self) -> bytes:
        if self._too_late:
            raise HungError(reading=False)
        raise DiedError(self._how_it_ended())

    # --- time -------------------------------------------------------------------------------------

    @contextmanager
    def _patience(self, limit_s: float) -> Iterator[None]:
        """Within, waiting for an answer raises `HungError` after `limit_s`."""
        self._left_s = limit_s
        if _HAS_POLL:
            yield
            return
        timer = threading.Timer(limit_s, self._kill_late)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _kill_late(self) -> None:
        self._too_late = True
        self._process.kill()

    def _wait(self) -> None:
        """Return when there is something to read, or the end.

        Time is counted in slices: if this process or the whole machine was halted in between, that
        is one slice, and the file is not blamed for it.
        """
        while _HAS_POLL:
            begun = time.monotonic()
            if self._poll.poll(1_000 * min(_SLICE_S, self._left_s)):
                return
            self._left_s -= min(_SLICE_S, time.monotonic() - begun)
            if self._left_s <= 0:
                raise HungError(reading=False)
            # A copy of this process (os.fork) may hold the pipe open beyond the end.
            if self._ended or (not self.is_alive and not self._poll.poll(0)):
                raise DiedError(self._how_it_ended())

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(_KILL_S)
        except subprocess.TimeoutExpired:
            return "it closed its pipe"
        if code >= 0:
            return f"exit code {code if code < 2**16 else hex(code)}"  # Windows: 0xc0000005
        name = signal.Signals(-code).name if -code in set(signal.Signals) else "without a name"
        why = ", perhaps for want of memory" if name == "SIGKILL" else ""
        return f"signal {-code}, {name}{why}"


def _enlarge(pipe: int, size_bytes: int) -> None:
    """Let a pipe take a whole picture, so that its writer need not wait for its reader.

    Linux only. The system may refuse: above 1 MiB (fs.pipe-max-size), or where the user's pipes
    hold much already. Then the writer waits.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, size_bytes)


def _start(descriptor: int | None) -> subprocess.Popen[bytes]:
    """Start Python with nothing but what `_BOOT` says, and that descriptor.

    `subprocess`, not `multiprocessing`: that would run the user's script again in every process,
    or fork beside the network's threads.
    """
    if getattr(sys, "frozen", False):  # the executable is the user's program: it would start again
        raise NotStartedError("this is a frozen program, which brings no Python of its own")
    executable = multiprocessing.spawn.get_executable()  # what embedding programs set
    if not executable:
        raise NotStartedError("sys.executable does not say where Python is")
    flags = ["-P"]
    flags += ["-E"] if sys.flags.ignore_environment else []
    flags += ["-s"] if sys.flags.no_user_site else []
    home = os.fspath(Path(__file__).absolute().parents[1])
    # Python passes over what is no text there, such as a Path that a notebook appended.
    path = [entry for entry in sys.path if entry and isinstance(entry, str)]
    try:
        return subprocess.Popen(
            [os.fsdecode(executable), *flags, "-c", _BOOT, json.dumps([home, path])],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=() if descriptor is None else (descriptor,),
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            # A group or a console of its own: Ctrl-C is for the process that asks.
            process_group=0 if os.name == "posix" else None,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except OSError as error:
        raise NotStartedError(f"{os.fsdecode(executable)!r}: {error}") from error
