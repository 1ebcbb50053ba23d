"""The cache: one HDF5 file of features and all that is known of their images."""

from featx.cache.decide import Decision, Trust, decide
from featx.cache.files import Disk
from featx.cache.layout import (
    FORMAT,
    SPLIT_NAMES,
    Status,
    canonical_json,
    differing_fields,
    fingerprint,
    split_counts,
)
from featx.cache.lock import cache_lock
from featx.cache.reader import PARTIAL_SUFFIX, CacheFile, open_cache
from featx.cache.seal import is_intact, seal_of
from featx.cache.skeleton import Rows, size_of
from featx.cache.verify import Verification, check, open_to_check, verify
from featx.cache.writer import CacheWriter, partial_path

__all__ = [
    "FORMAT",
    "PARTIAL_SUFFIX",
    "SPLIT_NAMES",
    "CacheFile",
    "CacheWriter",
    "Decision",
    "Disk",
    "Rows",
    "Status",
    "Trust",
    "Verification",
    "cache_lock",
    "canonical_json",
    "check",
    "decide",
    "differing_fields",
    "fingerprint",
    "is_intact",
    "open_cache",
    "open_to_check",
    "partial_path",
    "seal_of",
    "size_of",
    "split_counts",
    "verify",
]
