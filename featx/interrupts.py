"""Ctrl-C: the program ends at once or cleans up before, but never in the middle of an import.

An exception in an import leaves half a module behind, and is not always passed on: PyTorch takes
it for the lack of NumPy and goes on without, and C++ code that meets it ends the whole process.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final, NoReturn

from featx.errors import EXIT_INTERRUPTED

_IMPORTING: Final = "<frozen importlib._bootstrap>"  # the code that every import runs in
_SHOW_CURSOR: Final = b"\r\x1b[?25h"  # a progress bar hides it

_to_do: list[Callable[[], object]] = []  # before the process is ended


def hear() -> None:
    """From now on Ctrl-C is `end`, where it is Python's `KeyboardInterrupt` and nobody's else.

    It stays ignored in a job that a shell has in the background.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end)


@contextmanager
def cleaning_up() -> Iterator[None]:
    """Inside, Ctrl-C is `interrupt` where it was `end`: there are files to remove."""
    if signal.getsignal(signal.SIGINT) is not end:
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, end)


@contextmanager
def at_the_end(action: Callable[[], object]) -> Iterator[None]:
    """Call `action` when the block is left, or when `end` ends the process in it.

    `action` must import nothing: an import may be under way.
    """
    _to_do.append(action)
    try:
        yield
    finally:
        _to_do.remove(action)
        action()


def end(number: int, frame: FrameType | None) -> NoReturn:
    """A signal handler: say so, and end the process as it is."""
    words = b"featx: interrupted\n"
    for action in _to_do:
        with suppress(OSError):
            action()
    with suppress(OSError):
        os.write(2, _SHOW_CURSOR + words if os.name != "nt" and os.isatty(2) else words)
    os._exit(EXIT_INTERRUPTED)


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """A signal handler: raise `KeyboardInterrupt`; in the middle of an import, `end`."""
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING:
            end(number, frame)
        frame = frame.f_back
    raise KeyboardInterrupt
