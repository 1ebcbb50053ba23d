"""A loader whose decoder does what the file tells it; worker processes import it from here."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path

from featx.loading import Loader, Picture
from featx.transforms import Transform

SIZE = 8
PLAIN = Transform(resize=SIZE, crop=SIZE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class Misbehaving(Loader):
    """Decodes pictures, and obeys files that are none: ``verb argument``."""

    def picture(self, data: bytes, sha256: bytes) -> Picture:
        verb, _, argument = data.partition(b" ")
        if verb.isalpha() and hasattr(self, verb.decode()):
            getattr(self, verb.decode())(argument.decode())
            data = PICTURE
        return super().picture(data, sha256)

    def segfault(self, _: str) -> None:
        ctypes.string_at(0)

    def abort(self, _: str) -> None:
        os.abort()

    def leave(self, _: str) -> None:
        os._exit(3)

    def loop(self, _: str) -> None:
        while True:
            pass

    def freeze(self, _: str) -> None:
        """Hang in C with the interpreter lock held: no thread of Python goes on."""
        ctypes.PyDLL(None).sleep(1_000)

    def doze(self, seconds: str) -> None:
        time.sleep(float(seconds))

    def once(self, marker: str) -> None:
        """Crash at the first attempt only."""
        if not Path(marker).exists():
            Path(marker).touch()
            self.segfault("")

    def after(self, marker: str) -> None:
        """Go on when another process has made the file `marker`."""
        while not Path(marker).exists():
            time.sleep(0.01)

    def touch(self, marker: str) -> None:
        Path(marker).touch()

    def hold(self, fifo: str) -> None:
        """Hold a pipe open until this process ends."""
        os.open(fifo, os.O_WRONLY)

    def cling(self, fifo: str) -> None:
        """Hold a pipe open until this process ends, and hang."""
        self.hold(fifo)
        self.freeze("")

    def noise(self, _: str) -> None:
        os.write(1, b"noise on standard output\n")
        os.write(2, b"noise on standard error\n")
        print("noise of Python", file=sys.stderr, flush=True)

    def core(self, size: str) -> None:
        import resource

        assert resource.getrlimit(resource.RLIMIT_CORE)[0] == int(size)

    def defect(self, _: str) -> None:
        raise ZeroDivisionError("a defect")


def _picture() -> bytes:
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), (1, 2, 3)).save(stream, "PNG")
    return stream.getvalue()


PICTURE = _picture()
