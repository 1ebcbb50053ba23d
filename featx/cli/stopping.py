"""Ctrl-C, and a scheduler's request to end: between two batches first, at once when repeated."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from featx.cli.output import progress, tell
from featx.errors import StoppedError
from featx.interrupts import interrupt

if TYPE_CHECKING:
    from featx.extraction import Listener


class Stopper:
    """Whether the run was `asked` to stop. Until it has `begun` there is no batch to finish."""

    def __init__(self) -> None:
        self.asked = False
        self.begun = False

    def begin(self) -> None:
        """From now on the first request only asks."""
        self.begun = True

    def request(self, number: int, frame: FrameType | None) -> None:
        """A signal handler."""
        if self.asked or not self.begun:
            interrupt(number, frame)
        self.asked = True
        tell("featx: finishing the batch in hand; once more stops at once")


@contextmanager
def stop_on_signals() -> Iterator[Stopper]:
    """Send SIGINT (Ctrl-C) and SIGTERM (batch systems) to a `Stopper` inside the block."""
    stopper = Stopper()
    before: dict[signal.Signals, Callable[..., Any] | int | None] = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            continue  # so shells start a job in the background: it is not to hear Ctrl-C
        try:
            before[number] = signal.signal(number, stopper.request)
        except ValueError:  # only the main thread may; elsewhere somebody else owns the signals
            break
    try:
        yield stopper
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def listening(doing: str) -> Iterator[Listener]:
    """A listener that shows progress, tells the person at the terminal, and hears Ctrl-C.

    Raises
    ------
    StoppedError
        Ctrl-C at once, while images were computed.
    """
    from featx.extraction import Listener

    with progress(doing) as bar, stop_on_signals() as stopper:

        def start(total: int) -> None:
            stopper.begin()
            bar.start(total)

        try:
            yield Listener(tell=tell, start=start, advance=bar.advance, stop=lambda: stopper.asked)
        except KeyboardInterrupt as error:
            if not stopper.begun:
                raise
            raise StoppedError(
                "interrupted; what was committed is kept, run the same command to go on"
            ) from error
