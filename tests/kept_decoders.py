"""Decoding processes that outlive a run, for tests that run often and are not about them.

To start one takes longer than the rest of a small extraction.
"""

from __future__ import annotations

import time

from featx.child import Child
from featx.isolation import IsolatedLoader
from featx.loading import Loader

_START_S = 0.5  # what a start is said to have taken: a small run is over before another begins

_new, _close = IsolatedLoader._new, IsolatedLoader.close
_kept: dict[tuple[object, float], list[Child]] = {}


def new_or_kept(self: IsolatedLoader) -> Child | None:
    """In place of `_new`: a process that an earlier run has left for this loader, or a new one."""
    kept = _kept.get((self._loader, self._timeout_s), [])
    while kept:
        child = kept.pop()
        if child.is_alive:
            with self._changed:
                self._all.add(child)
                self._has_started, self._start_s = True, _START_S
                self._grow_at = time.monotonic() + _START_S
            return child
        child.end()
    return _new(self)


def close_and_keep(self: IsolatedLoader) -> None:
    """In place of `close`: processes that have nothing to do are kept, the others end."""
    if type(self._loader) is Loader:
        with self._changed:
            idle, self._idle = self._idle, []
            self._all -= set(idle)
            self._n -= len(idle)
        _kept.setdefault((self._loader, self._timeout_s), []).extend(idle)
    _close(self)


def end_all() -> None:
    """End the processes that are kept."""
    for kept in _kept.values():
        for child in kept:
            child.end()
    _kept.clear()
