"""Ctrl-C on the command line: the batch in hand is finished, and the rest told how to go on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import featx
from featx.cache import open_cache, partial_path
from featx.cli.stopping import stop_on_signals

Folder = Callable[..., Path]
# One image a batch, each announced, so that a signal can be sent while many are left.
SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run in the background
from featx.engines.eager import EagerEngine
forward = EagerEngine.__call__
def slow(self, pixels):
    print("batch", flush=True)
    time.sleep(0.05)
    return forward(self, pixels)
EagerEngine.__call__ = slow
from featx.cli import main
main()
"""


def test_the_first_signal_asks_and_the_second_insists() -> None:
    with stop_on_signals() as stopper:
        with pytest.raises(KeyboardInterrupt):
            stopper.request(2, None)  # nothing is under way that could be finished
        stopper.begin()
        stopper.request(2, None)
        assert stopper.asked
        with pytest.raises(KeyboardInterrupt):
            stopper.request(2, None)


def test_the_handlers_of_before_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stop_on_signals() as stopper:
        assert signal.getsignal(signal.SIGTERM) == stopper.request
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_on_signals():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_signals_belong_to_somebody_else() -> None:
    seen: list[bool] = []

    def work() -> None:
        with stop_on_signals() as stopper:
            seen.append(stopper.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_keeps_what_is_done_and_goes_on(
    colour_folder: Folder, tmp_path: Path, number: signal.Signals
) -> None:
    root, out = colour_folder(per_class=20), tmp_path / "birds.h5"
    command = [
        sys.executable, "-c", SLOW, "extract", str(root), "--out", str(out), "--batch-size", "1",
        "--engine", "torch-eager",
        "--backbone", "squeezenet1_1", "--weights", "random", "--resize", "64", "--crop", "64",
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        for _ in range(3):
            assert run.stdout.readline() == "batch\n"
        run.send_signal(number)
        _, told = run.communicate(timeout=120)
    assert run.returncode == 130, told
    assert "finishing the batch in hand" in told
    said = re.search(r"stopped as asked: (\d+) of 60 images are done and kept in", told)
    assert said, told
    done = int((open_cache(partial_path(out), partial=True).map("status") == 1).sum())
    assert 3 <= done == int(said[1]) < 60
    assert "Traceback" not in told
    made = featx.extract(
        root,
        out=out,
        backbone="squeezenet1_1",
        weights="random",
        engine="torch-eager",
        batch_size=1,
        transform={"resize": 64, "crop": 64},
    )
    assert len(made) == 60
