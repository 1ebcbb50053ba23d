"""The peak memory of a run report: a figure, or nothing; never an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from featx.memory import peak_memory_bytes


def test_the_peak_is_asked_of_whoever_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = peak_memory_bytes()
    assert expected is None or expected > 2**20
    for text in (None, "Name:\tpython\n", "Name:\tVmHWM: 9 kB\n"):
        status = tmp_path / "status"
        if text is not None:
            status.write_text(text)
        monkeypatch.setattr("featx.memory._STATUS", status)
        found = peak_memory_bytes()
        assert found is None or found > 2**20
    status.write_text("VmPeak:\t 9999 kB\nVmHWM:\t    2048 kB\n")
    assert peak_memory_bytes() == 2**21
