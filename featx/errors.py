"""The exceptions featx raises, and the exit code each one means on the command line.

Every exception derives from `FeatxError` and, where there is one, from the builtin that people
expect (`ValueError` for bad arguments, `OSError` for the disk, `ImportError` for a missing extra).
"""

from __future__ import annotations

EXIT_DONE = 0
EXIT_UNEXPECTED = 1
EXIT_USAGE = 2
EXIT_SOME_FAILED = 3  # done, but some images failed
EXIT_UNUSABLE = 4  # a cache or a head cannot be used
EXIT_LOCKED = 5
EXIT_DISK = 6
EXIT_WEIGHTS = 7
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells do


class FeatxError(Exception):
    """Root of all errors featx raises; `exit_code` is what the command line returns."""

    exit_code: int = EXIT_UNEXPECTED


class InputError(FeatxError, ValueError):
    """An argument, a folder of images, a list or a name that cannot be used."""

    exit_code = EXIT_USAGE


class MissingExtraError(FeatxError, ImportError):
    """An optional package is needed; the message names the `pip install` that brings it."""

    exit_code = EXIT_USAGE


class TooManyFailedError(FeatxError):
    """So few images could be used that going on would mislead; nothing was renamed."""

    exit_code = EXIT_UNEXPECTED


class StoppedError(FeatxError):
    """The run was asked to stop and did so between two batches; what is done is kept."""

    exit_code = EXIT_INTERRUPTED


class ImageError(FeatxError):
    """One image file that cannot become pixels.

    `status` is the cache's code for why; `sha256` the digest of the file's bytes, or 32 zeros
    where they could not be read.
    """

    def __init__(self, message: str, *, status: int, sha256: bytes = bytes(32)) -> None:
        super().__init__(message)
        self.status = status
        self.sha256 = sha256


class CacheError(FeatxError):
    """A file that is no cache, is damaged, or does not fit what was asked."""

    exit_code = EXIT_UNUSABLE


class NewerFormatError(CacheError):
    """A cache written by a newer featx, which this one cannot read."""


class SpecMismatchError(CacheError):
    """A cache made with another spec; `fields` are the names that differ."""

    def __init__(self, message: str, *, fields: tuple[str, ...]) -> None:
        super().__init__(message)
        self.fields = fields


class HeadError(FeatxError):
    """A head file that is damaged, of an unknown format, or does not fit the cache."""

    exit_code = EXIT_UNUSABLE


class LockedError(FeatxError):
    """Another run holds the cache; the message names its process and host."""

    exit_code = EXIT_LOCKED


class DiskError(FeatxError, OSError):
    """The disk is full, read-only or failing; what was committed is kept."""

    exit_code = EXIT_DISK


class WeightsError(FeatxError):
    """Weights that cannot be had, read, or fitted into the network."""

    exit_code = EXIT_WEIGHTS
