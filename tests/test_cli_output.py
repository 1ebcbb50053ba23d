"""Standard output that is closed early, full or not there: how the commands end, what is kept."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from synthetic import write_cache
from typer.testing import CliRunner

from featx.cli import app
from featx.fitting import fit_head

FULL = Path("/dev/full")
posix = pytest.mark.skipif(os.name == "nt", reason="pipes and devices are those of POSIX")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = write_cache(tmp_path / "cache" / "a.h5", spread=1.0)
    fit_head(path, C=1.0)
    fit_head(path, head="centroid")
    return path


def ends(words: str, stdout: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of a command whose standard output is `stdout`."""
    monkeypatch.setattr("sys.stdout", stdout)
    with pytest.raises(SystemExit) as ended:
        app(words.split())
    assert isinstance(ended.value.code, int)
    return ended.value.code


def unread() -> io.TextIOWrapper:
    """A pipe that nobody reads any more, as behind `| head -0`."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", encoding="utf-8")


@posix
@pytest.mark.parametrize("more", ["", " --json"])
@pytest.mark.parametrize(
    ("words", "written"),
    [
        ("evaluate --out report", "report.json"),
        ("evaluate --cv 2 --repeats 1 --device cpu --out report", "cross_validation.json"),
        ("compare --out report", "comparison.json"),
        ("audit --no-labels --device cpu --out report", "audit.json"),
    ],
)
@pytest.mark.usefixtures("cache")
def test_a_reader_that_has_gone_takes_no_file_along(
    words: str,
    written: str,
    more: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with unread() as stdout:
        assert ends(words + more, stdout, monkeypatch) == 0
    assert json.loads(Path("report", written).read_text("utf-8"))
    told = capfd.readouterr().err
    assert f"wrote report/{written}" in told
    assert "Traceback" not in told


@posix
@pytest.mark.usefixtures("cache")
def test_a_folder_that_cannot_be_written_is_told_although_the_reader_has_gone(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("report").write_text("no folder")
    with unread() as stdout:
        assert ends("evaluate --out report", stdout, monkeypatch) == 6
    assert "report: a file is in the way" in capfd.readouterr().err


@posix
def test_another_broken_pipe_is_no_reader_that_had_enough(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("featx.evaluation.evaluate", broken)
    assert CliRunner().invoke(app, ["evaluate", str(cache)]).exit_code == 1


@needs_full
@pytest.mark.parametrize("more", ["", " --json"])
@pytest.mark.usefixtures("cache")
def test_a_full_disk_behind_standard_output_is_told_and_takes_no_file_along(
    more: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with FULL.open("w") as stdout:
        assert ends("evaluate --out report" + more, stdout, monkeypatch) == 6
    told = capfd.readouterr().err
    assert "featx: cannot write to standard output: the disk is full. Free space" in told
    assert "Traceback" not in told
    assert "wrote report/report.json" in told


@needs_full
def test_what_was_only_buffered_fails_before_the_command_ends(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Rows of a CSV stay in the buffer until the last."""
    head = next(cache.parent.glob("*.centroid.safetensors"))
    with FULL.open("w") as stdout:
        assert ends(f"predict {head} {cache} --csv -", stdout, monkeypatch) == 6
    assert "cannot write to standard output: the disk is full" in capfd.readouterr().err


@pytest.mark.parametrize("more", ["", " --json"])
@pytest.mark.usefixtures("cache")
def test_a_closed_standard_output_is_one_that_nobody_reads(
    more: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ends("evaluate --out report" + more, None, monkeypatch) == 0
    assert Path("report", "report.json").is_file()
