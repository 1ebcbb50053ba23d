"""Memory that two processes see: pictures lie there, instead of going through a pipe.

Not `multiprocessing.shared_memory`: its files lie in /dev/shm, of which containers have 64 MB, and
stay there when a process is killed. These have no name and end with the last process.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Sequence
from typing import Self

if sys.platform == "linux":
    import fcntl


class SharedMemory:
    """One block of memory, by a file descriptor that another process may be started with."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor
        self._memory = mmap.mmap(descriptor, 0)

    @classmethod
    def create(cls, size_bytes: int) -> Self | None:
        """A new block; None where the system has none to give (Linux only).

        Its size is sealed: if the other process could make it smaller, the next look at what is no
        longer there would end this one.
        """
        # A Python that was built for an older Linux lacks them.
        if sys.platform != "linux" or not (
            hasattr(os, "memfd_create") and hasattr(fcntl, "F_ADD_SEALS")
        ):
            return None
        try:
            made = os.memfd_create("featx", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError:  # sandboxes may not allow it
            return None
        try:
            # Not 0 to 2, which may be free here, and are pipes in the other process.
            descriptor = fcntl.fcntl(made, fcntl.F_DUPFD_CLOEXEC, 3)
        finally:
            os.close(made)
        try:
            os.posix_fallocate(descriptor, 0, size_bytes)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
            return cls(descriptor)
        except OSError:  # there is not so much
            os.close(descriptor)
            return None

    @property
    def descriptor(self) -> int | None:
        """To start a process with; None once it is let go."""
        return self._descriptor

    def let_go(self) -> None:
        """Close the descriptor; the memory stays."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def place(self, parts: Sequence[bytes | memoryview]) -> int:
        """Write parts one after another, from the beginning; return how many bytes they are."""
        end = 0
        for part in parts:
            begin, end = end, end + len(part)
            self._memory[begin:end] = part
        return end

    def copy(self, size_bytes: int) -> bytearray:
        """The first so many bytes, which the other process cannot change any more."""
        return bytearray(memoryview(self._memory)[:size_bytes])

    def close(self) -> None:
        """Give the memory back."""
        self.let_go()
        self._memory.close()
