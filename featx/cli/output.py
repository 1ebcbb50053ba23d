"""What the commands share: where words go, how errors end, how long work shows itself."""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from pathlib import Path
from typing import Any, Final, ParamSpec, TextIO, TypeVar, get_type_hints

import typer
from rich.console import Console
from rich.table import Table
from typer.models import OptionInfo

from featx.counting import counted
from featx.errors import (
    EXIT_DISK,
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_SOME_FAILED,
    EXIT_UNEXPECTED,
    FeatxError,
)
from featx.home import at_home
from featx.interrupts import cleaning_up

_INTERVAL_S: Final = 5.0  # between two lines of progress where there is no terminal
_SHOWN_FAILURES: Final = 10

Params = ParamSpec("Params")
Result = TypeVar("Result")


def out() -> Console:
    """Standard output, for data. Wide where nobody looks, so that no table is folded."""
    width = None if sys.stdout.isatty() else 1_000
    return _console(width=width, file=_Trimmed(sys.stdout))


def err() -> Console:
    """Standard error, for messages and progress."""
    return _console(stderr=True, soft_wrap=True)


def _console(**options: Any) -> Console:
    """Words as they are: names of files, classes and functions may hold what Rich reads as more."""
    return Console(highlight=False, markup=False, emoji=False, **options)


def tell(sentence: str) -> None:
    """A message to the person at the terminal."""
    err().print(sentence)


def print_json(value: Any) -> None:
    """One JSON document on standard output, for programs."""
    sys.stdout.write(to_json(value, indent=2) + "\n")


def print_and_write(show: Callable[[], None], write: Callable[[], Iterable[str]]) -> None:
    """Write files, print figures, and tell what `write` gave.

    Neither takes the other along: a full disk the figures, a reader that has gone the files.
    """
    told: list[str] = []
    try:
        try:
            told.extend(write())
        except BaseException:
            with suppress(OSError, typer.Exit):  # what went wrong first is told
                show()
            raise
        show()
    finally:
        for sentence in told:
            tell(sentence)


def to_json(value: Any, *, indent: int | None = None) -> str:
    """`value` as JSON that standard output can hold: escaped where its encoding cannot."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text


def table(title: str | None, *columns: str, right: Sequence[str] = ()) -> Table:
    """An empty table for people; the columns in `right` hold numbers."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


class _Around:
    """`stream`, but for what is written here."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Trimmed(_Around):
    """Without the blanks at the ends of lines, which tables are filled up with."""

    def write(self, text: str) -> int:
        return self._stream.write(re.sub(r" +$", "", text, flags=re.MULTILINE))


class _StandardOutput(_Around):
    """Where a write that fails ends the command as what it is.

    With code 0 where the reader, `head` say, had enough, and with a `DiskError` otherwise.
    """

    def write(self, text: str) -> int:
        with self._told():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._told():
            self._stream.flush()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._discard()
            if isinstance(error, BrokenPipeError):
                raise typer.Exit(EXIT_DONE) from error
            from featx.cache.files import WRITE_ELSEWHERE, told_as_disk_error

            with told_as_disk_error("standard output", "write to", WRITE_ELSEWHERE):
                raise

    def _discard(self) -> None:
        """Lose what is buffered, or Python fails in it again at its end."""
        with suppress(OSError):  # it is no file
            number = self._stream.fileno()
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, number)
            os.close(null)


@contextmanager
def _standard_output() -> Iterator[None]:
    """Inside, failures of standard output are told; at its end everything is written."""
    given: TextIO | None = sys.stdout  # None where it was closed, by `>&-`
    with nullcontext(given) if given else Path(os.devnull).open("w", encoding="utf-8") as stream:
        guarded: Any = _StandardOutput(stream)
        with redirect_stdout(guarded):
            try:
                yield
            except typer.Exit:
                guarded.flush()
                raise
            except BaseException:
                with suppress(OSError, typer.Exit):  # what went wrong before is told instead
                    guarded.flush()
                raise
            guarded.flush()


# What a system says of a path that it does not let be looked at: no defect of ours.
_REFUSED: Final = {
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.EIO,
    errno.ENOTCONN,
    errno.ESTALE,
    errno.EHOSTDOWN,
    errno.ETIMEDOUT,
}


def command(function: Callable[Params, Result]) -> Callable[Params, Result]:
    """Turn the exceptions of a command into a message and an exit code."""

    @functools.wraps(function)
    def guarded(*args: Params.args, **kwargs: Params.kwargs) -> Result:
        kwargs.update({name: _at_home(value) for name, value in kwargs.items()})
        try:
            with cleaning_up(), _standard_output():
                return function(*args, **kwargs)
        except FeatxError as error:
            tell(f"featx: {_of_option(str(error), function)}")
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            tell("featx: interrupted")
            raise typer.Exit(EXIT_INTERRUPTED) from error
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except Exception as error:  # the last resort of a program: say it and fail
            if _out_of_memory(error):
                tell(
                    "featx: the memory ran out; rows that an extraction has committed are kept. "
                    "Close other programs and run the same command again, or take smaller batches "
                    "with --batch-size"
                )
                raise typer.Exit(EXIT_UNEXPECTED) from error
            if isinstance(error, OSError) and error.errno in _REFUSED and _is_path(error.filename):
                words = (error.strerror or "it cannot be looked at").lower()
                tell(f"featx: {os.fsdecode(error.filename)}: {words}")
                raise typer.Exit(EXIT_DISK) from error
            traceback.print_exc()
            tell(
                f"featx: unexpected {type(error).__name__}; this is a defect of featx, "
                "please report it with the lines above"
            )
            raise typer.Exit(EXIT_UNEXPECTED) from error

    return guarded


def _at_home(value: Any) -> Any:
    """A path with the home folder for its ``~``, which shells leave as it is in ``--out=~/a``."""
    if isinstance(value, list):
        return [_at_home(each) for each in value]
    return at_home(value) if isinstance(value, Path) else value


def _is_path(name: object) -> bool:
    """Whether an error tells of a path; it may be a descriptor, or nothing."""
    return isinstance(name, str | bytes | os.PathLike) and bool(os.fsencode(name))


def _of_option(message: str, function: Callable[..., Any]) -> str:
    """A message that begins with a parameter's name, with its option instead, which people type."""
    name, _, rest = message.partition(" ")
    if "_" not in name and not rest.startswith("must "):
        return message  # a word of a sentence
    hint = get_type_hints(function, include_extras=True).get(name)
    for info in getattr(hint, "__metadata__", ()):
        if isinstance(info, OptionInfo):
            # In Annotated, Typer's first argument is the first name, not the default.
            names = (info.default, *(info.param_decls or ()), "--" + name.replace("_", "-"))
            option = next(one for one in names if isinstance(one, str) and one.startswith("--"))
            return f"{option.partition('/')[0]} {rest}"
    return message


def _out_of_memory(error: Exception) -> bool:
    """Whether Python, PyTorch's CPU allocator or its CUDA one found no memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def images(count: int) -> str:
    """``1 image``, ``1,200 images``."""
    return counted(count, "image")


def tell_failures(failed: Sequence[Any], *, json_output: bool = False) -> None:
    """Name the first images that could not be used, and count the rest."""
    if not failed or json_output:
        return
    from featx.image_sources import shown

    tell(f"{images(len(failed))} could not be used:")
    for image in failed[:_SHOWN_FAILURES]:  # one line each, whatever the names hold
        tell(f"  {shown(image.path)}: {image.status.words} ({image.reason})")
    if len(failed) > _SHOWN_FAILURES:
        tell(f"  … and {len(failed) - _SHOWN_FAILURES:,} more")


def exit_if_failed(failed: Sequence[Any]) -> None:
    """End with the code that says: done, but some images failed."""
    if failed:
        raise typer.Exit(EXIT_SOME_FAILED)


class _Lines:
    """Progress where there is no terminal: one line every few seconds."""

    def __init__(self, doing: str, of: str) -> None:
        self._doing, self._of = doing, of
        self._total = self._done = 0
        self._started = self._told = time.monotonic()

    def start(self, total: int) -> None:
        self._total, self._started, self._told = total, time.monotonic(), time.monotonic()

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._told < _INTERVAL_S:
            return
        self._told = now
        rate = self._done / (now - self._started)
        left_s = (self._total - self._done) / rate
        tell(
            f"{self._doing}: {self._done:,} of {self._total:,} {self._of}, "
            f"{rate:,.1f} {self._of}/s, {left_s:,.0f} s left"
        )


class _Bar:
    """Progress on a terminal: a bar with rate and time left."""

    def __init__(self, doing: str, progress: Any) -> None:
        self._progress = progress
        self._doing = doing
        self._task: Any = None

    def start(self, total: int) -> None:
        self._task = self._progress.add_task(self._doing, total=total)

    def advance(self, count: int) -> None:
        if self._task is not None:
            self._progress.advance(self._task, count)


@contextmanager
def progress(doing: str, of: str = "images") -> Iterator[_Lines | _Bar]:
    """Something with `start(total)` and `advance(count)` that shows how far the work is.

    `of` says what is counted.
    """
    console = err()
    if not console.is_terminal:
        yield _Lines(doing, of)
        return
    from rich import progress as rich_progress

    class Rate(rich_progress.ProgressColumn):
        def render(self, task: rich_progress.Task) -> str:
            return f"{task.speed or 0:,.1f} {of}/s"

    with rich_progress.Progress(
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        Rate(),
        rich_progress.TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as bar:
        yield _Bar(doing, bar)


@contextmanager
def progress_of_fits(doing: str) -> Iterator[Callable[[int, int], None]]:
    """What to call after each fit, with the number of fits done and of all."""
    with progress(doing, "fits") as shown:
        started = False

        def advance(done: int, total: int) -> None:
            nonlocal started
            if not started:
                shown.start(total)
                started = True
            shown.advance(1)

        yield advance
