"""Ctrl-C: an import is never broken off, and the program ends in one line from its start on."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

import featx
from featx import interrupts
from featx.cli.stopping import Stopper

# The import of a module takes long, and passes over what is raised in it, as PyTorch's of NumPy.
SLOW_IMPORT = """
import sys, time
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            print("importing", flush=True)
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                pass
sys.meta_path.insert(0, Slow())
"""


@pytest.fixture
def _python_s_own() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["typer", "torch"])  # before a command has begun, and in it
def test_ctrl_c_in_the_middle_of_an_import_ends_the_program(
    colour_folder: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    out = tmp_path / "made" / "birds.h5"
    (tmp_path / "sitecustomize.py").write_text(SLOW_IMPORT.format(name=name))
    command = [sys.executable, "-m", "featx", "extract", os.fspath(colour_folder(per_class=1))]
    command += ["--backbone", "squeezenet1_1", "--weights", "random", "--out", os.fspath(out)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(featx.__file__).parents[1]}",
        },
        # in a job that a shell has in the background Ctrl-C would be ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "importing\n"
        run.send_signal(signal.SIGINT)
        _, told = run.communicate(timeout=120)
    assert run.returncode == 130, told
    # PyTorch is imported after the images were listed
    assert [line for line in told.splitlines() if "images in" not in line] == ["featx: interrupted"]
    assert not out.parent.exists()


@pytest.mark.parametrize("handler", [interrupts.interrupt, Stopper().request])
def test_an_interrupt_is_raised_but_never_in_an_import(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    handler: Callable[[int, FrameType], None],
) -> None:
    with pytest.raises(KeyboardInterrupt):
        handler(signal.SIGINT, sys._getframe())
    monkeypatch.setattr(os, "_exit", sys.exit)
    monkeypatch.setattr(sys, "the_handler", handler, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "awaited.py").write_text(
        "import sys\ndef deep():\n    sys.the_handler(2, sys._getframe())\ndeep()\n"
    )
    with pytest.raises(SystemExit) as ended:
        importlib.import_module("awaited")
    assert ended.value.code == 130
    assert capfd.readouterr().err == "featx: interrupted\n"


def test_a_command_may_clean_up_and_nothing_else() -> None:
    # in a program of its own: a signal that went astray would end the tests
    program = """
import signal
from featx import interrupts
from featx.cli.output import command
signal.signal(signal.SIGINT, signal.default_int_handler)
interrupts.hear()
assert signal.getsignal(signal.SIGINT) is interrupts.end
try:
    with interrupts.cleaning_up():
        signal.raise_signal(signal.SIGINT)
    raise AssertionError("nothing was raised")
except KeyboardInterrupt:
    pass
seen = []
command(lambda: seen.append(signal.getsignal(signal.SIGINT)))()
assert seen == [interrupts.interrupt]
assert signal.getsignal(signal.SIGINT) is interrupts.end
print("cleaned up")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("cleaned up\n", 0), done.stderr


@pytest.mark.usefixtures("_python_s_own")
@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda number, frame: None])
def test_what_others_have_set_stays(handler: Callable[..., None]) -> None:
    signal.signal(signal.SIGINT, handler)
    interrupts.hear()
    with interrupts.cleaning_up():
        assert signal.getsignal(signal.SIGINT) is handler
    assert signal.getsignal(signal.SIGINT) is handler


def test_what_is_to_be_done_at_the_end_is_done_once_however_it_ends(tmp_path: Path) -> None:
    done: list[str] = []
    with interrupts.at_the_end(lambda: done.append("left")):
        assert done == []
    with pytest.raises(ZeroDivisionError), interrupts.at_the_end(lambda: done.append("raised")):
        raise ZeroDivisionError
    assert done == ["left", "raised"]
    code = (
        "import sys\nfrom pathlib import Path\nfrom featx.interrupts import at_the_end, end\n"
        "with at_the_end(Path(sys.argv[1]).rmdir):\n    end(2, None)\n"
    )
    folder = tmp_path / "temporary"
    folder.mkdir()
    run = subprocess.run([sys.executable, "-c", code, os.fspath(folder)], check=False)
    assert run.returncode == 130
    assert not folder.exists()
