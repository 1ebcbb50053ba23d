"""Decoding processes that outlive a run, for tests that run often and are not about them.

To start one takes longer than the rest of a small extraction.
"""

from __future__ import annotations

import threading
import time

from featx.child import Child
from featx.isolation import IsolatedLoader
from featx.loading import Loader

_MOST = 4  # each takes some 40 MB
_START_S = 0.5  # what a start is said to have taken: a small run is over before another begins

_new, _close = IsolatedLoader._new, IsolatedLoader.close
_kept: list[tuple[object, Child]] = []  # what each loads with; the newest last
_lock = threading.Lock()


def new_or_kept(self: IsolatedLoader) -> Child | None:
    """In place of `_new`: a process that an earlier run has left for this loader, or a new one."""
    child = _take((self._loader, self._timeout_s))
    if child is None:
        return _new(self)
    with self._changed:
        self._all.add(child)
        self._has_started, self._start_s = True, _START_S
        self._grow_at = time.monotonic() + _START_S
    return child


def close_and_keep(self: IsolatedLoader) -> None:
    """In place of `close`: processes that have nothing to do are kept, the others end."""
    if type(self._loader) is Loader:
        with self._changed:
            idle, self._idle = self._idle, []
            self._all -= set(idle)
            self._n -= len(idle)
        with _lock:
            _kept.extend(((self._loader, self._timeout_s), child) for child in idle)
    _close(self)
    end_all_but(_MOST)


def end_all_but(most: int) -> None:
    """End the processes that have been kept for longest."""
    with _lock:
        while len(_kept) > most:
            _kept.pop(0)[1].end()


def _take(key: object) -> Child | None:
    with _lock:
        for entry in reversed(_kept):
            if entry[0] == key:
                _kept.remove(entry)
                if entry[1].is_alive:
                    return entry[1]
                entry[1].end()
    return None
