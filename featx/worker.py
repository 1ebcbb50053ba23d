"""The process that decodes for another: paths in, pixels out, until its input ends.

`featx.isolation` starts it. It may die at any file. What it says is bytes of a fixed form, never
pickled, so that a decoder that a hostile image has taken over can make the other side run nothing.

Every message is a header (`HEADER`) and a body of the size told there. In: the pickled loader with
the seconds a file may take and the descriptor of memory that both see, if there is any; then paths
(`os.fsencode`), one by one. Out, for every path: `READ` with the file's SHA-256 as soon as it is
read, then `PIXELS` (as the loader packs them), `PLACED` (so many bytes of them lie in the memory),
`REFUSED` (a status, and why) or `DEFECT` (a traceback).
"""

from __future__ import annotations

import faulthandler
import hashlib
import os
import pickle
import signal
import struct
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Final

from featx.errors import ImageError
from featx.shared_memory import SharedMemory

if TYPE_CHECKING:
    from featx.loading import AnyLoader

HEADER: Final = struct.Struct("<BI")  # kind, size of the body in bytes
SIZE: Final = struct.Struct("<I")  # the body of PLACED
ASK, READ, PIXELS, REFUSED, DEFECT, PLACED = range(6)
READY: Final = b"\0featx decodes\0"  # ends whatever is said before the first path
MAX_WORDS: Final = 2_000  # bytes of a reason
MAX_TRACEBACK: Final = 20_000


def main() -> None:
    """Serve the process at the other end of standard input and output."""
    asked, answers = _take_pipes()
    _guard()
    loader, limit_s, descriptor = pickle.loads(_receive(asked) or b"")
    memory = None if descriptor is None else SharedMemory(descriptor)
    if memory is not None:
        memory.let_go()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # until here its words tell why it cannot start
    os.write(answers, READY)
    try:
        while (name := _receive(asked)) is not None:
            _end_after(limit_s)
            kind, *parts = _answer(loader, Path(os.fsdecode(name)), answers)
            _end_after(0)
            if kind == PIXELS and memory is not None:
                kind, parts = PLACED, [SIZE.pack(memory.place(parts))]
            _send(answers, kind, *parts)
    except BrokenPipeError:
        return  # nobody listens any more


def _answer(
    loader: AnyLoader, path: Path, answers: int
) -> tuple[int, *tuple[bytes | memoryview, ...]]:
    """What there is to say of one file, in parts; that it has been read is said on the way."""
    try:
        data = loader.read(path)
        sha256 = hashlib.sha256(data).digest()
        _send(answers, READ, sha256)
        return PIXELS, *loader.packed(loader.picture(data, sha256))
    except ImageError as error:
        return REFUSED, (bytes([error.status]) + str(error).encode("utf-8", "replace"))[:MAX_WORDS]
    except BrokenPipeError:
        raise
    except Exception:  # noqa: BLE001 (raised again by the process that asked)
        return DEFECT, traceback.format_exc().encode("utf-8", "replace")[-MAX_TRACEBACK:]


def _take_pipes() -> tuple[int, int]:
    """Descriptors of the two pipes; where they were, decoders find the null device."""
    asked, answers = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    return asked, answers


def _guard() -> None:
    """Leave Ctrl-C to the process that asks, and make a crash quick and quiet."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "win32":
        import msvcrt

        msvcrt.SetErrorMode(msvcrt.SEM_FAILCRITICALERRORS | msvcrt.SEM_NOGPFAULTERRORBOX)
        return
    import resource

    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # may have been inherited ignored or blocked
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])


def _end_after(seconds: int) -> None:
    """End this process in so many seconds, come what may; 0: do not.

    An orphan with a decoder that hangs has nobody to kill it. The kernel's alarm, or without one a
    thread of C, needs no interpreter lock, which the decoder may be holding.
    """
    if hasattr(signal, "alarm"):
        signal.alarm(seconds)
    elif seconds:
        faulthandler.dump_traceback_later(seconds, exit=True)
    else:
        faulthandler.cancel_dump_traceback_later()


def _receive(asked: int) -> bytes | None:
    """The body of the next message, or None at the end."""
    header = _read(asked, HEADER.size)
    if header is None:
        return None
    return _read(asked, HEADER.unpack(header)[1])


def _read(asked: int, size: int) -> bytes | None:
    body = b""
    while len(body) < size:
        part = os.read(asked, size - len(body))
        if not part:
            return None
        body += part
    return body


def _send(answers: int, kind: int, *parts: bytes | memoryview) -> None:
    message = memoryview(b"".join((HEADER.pack(kind, sum(map(len, parts))), *parts)))
    while message:
        message = message[os.write(answers, message) :]
