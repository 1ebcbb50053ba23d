"""Kill an extraction again and again, resume it each time, and compare what it ends with.

    python benchmarks/torture.py --kills 200 --seed 0 [--changing]

Every attempt is a real `featx extract` of squeezenet1_1 (random weights, 64-pixel images, the CPU,
one torch thread) over a folder of generated photographs, one in twenty of them damaged. It is ended
by SIGKILL mostly, by SIGTERM, by SIGINT, or by a MemoryError in the network, at a random instant:
uniform over the run's life, and in half of the attempts aimed at one of its phases, since creating
and finishing the file take milliseconds. The same command then goes on from what is there.
Importing torch costs seconds, so this process imports everything once, computes nothing, and forks
a child for every attempt, which calls the command line's entry point.

After every ending these must hold, or the program stops with what it found:

- no process is left behind;
- a file under the final name is whole to its last byte;
- every row that was committed before is still committed, with the same content;
- no committed row went to the network or the decoder again: every row that reaches the writer is
  noted in a log that outlives the child, and so is every forward pass, of which there are no more
  than fill the batches of those rows, but for those whose rows an end came before;
- a run that got to its end left nothing beside its cache, whose datasets have the SHA-256 of those
  of a run that nobody disturbed. Only two are left out: `run`, which holds seconds, and `digest`,
  which covers `run`.

With ``--changing`` the folder itself changes between two attempts: images are added, renamed,
replaced and removed. A finished cache must then equal one made from nothing, and its SHA-256s
those of the files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
from killed_run import (
    PASS,
    PHASES,
    PUT,
    Attempt,
    Broken,
    Ending,
    check_nothing_survived,
    extract_in_child,
    prepare_to_fork,
)
from PIL import Image

from featx.cache import Status, open_cache, partial_path, verify
from featx.errors import EXIT_INTERRUPTED, EXIT_SOME_FAILED, EXIT_UNEXPECTED

BATCH_SIZE: Final = 8
UNDER_WAY: Final = 2  # passes that an end may find running, or done and not yet written
OPTIONS: Final = (
    *("--backbone", "squeezenet1_1", "--weights", "random", "--device", "cpu"),
    *("--engine", "torch-eager"),  # whose forward passes the killed run counts
    *("--prune", "--max-failed", "1"),
    *("--batch-size", str(BATCH_SIZE), "--resize", "64", "--crop", "64"),
)
ENDINGS: Final = (("SIGKILL", 14), ("SIGTERM", 2), ("SIGINT", 2), ("MemoryError", 2))
AIMS: Final = (("any", 3), ("creating", 1), ("running", 1), ("finishing", 1))
DONE: Final = (0, EXIT_SOME_FAILED)

Content = tuple[bytes, bytes]  # path and SHA-256 of an image


@dataclass
class Tally:
    """What happened, as printed."""

    kills: int = 0
    by_phase: Counter[str] = field(default_factory=Counter)
    by_ending: Counter[str] = field(default_factory=Counter)
    completed: int = 0
    computed_twice: int = 0
    rows_computed: int = 0
    forward_passes: int = 0
    folder_changes: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        told = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            **told,
            "by_phase": {phase: self.by_phase[phase] for phase in PHASES.values()},
            "by_ending": {name: self.by_ending[name] for name, _ in ENDINGS},
            "seconds": round(self.seconds, 1),
        }


class Folder:
    """Generated images in class folders, one in twenty damaged; knows how to change itself."""

    def __init__(self, root: Path, n: int, rng: random.Random) -> None:
        self.root, self.rng, self.made = root, rng, 0
        for _ in range(n):
            self.add()

    def files(self) -> list[Path]:
        return sorted(path for path in self.root.rglob("*.*") if path.is_file())

    def add(self) -> None:
        self._write(self.root / f"class{self.made % 5}" / f"{self.made:06d}.jpg")

    def change(self) -> None:
        """One to six images added, renamed, replaced or removed."""
        for _ in range(self.rng.randint(1, 6)):
            path = self.rng.choice(self.files())
            kind = self.rng.choice(("add", "rename", "replace", "remove"))
            if kind == "add":
                self.add()
            elif kind == "replace":
                self._write(path)
            elif len(list(path.parent.iterdir())) < 3:
                continue  # a class folder without images is an error of its own
            elif kind == "remove":
                path.unlink()
            else:
                name = f"{self.rng.randrange(10**6):06d}-{self.made}.jpg"
                path.rename(self.rng.choice(self.files()).with_name(name))
                self.made += 1

    def _write(self, path: Path) -> None:
        number, self.made = self.made, self.made + 1
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (9, 9, 3), dtype=np.uint8)
        image = Image.fromarray(noise).resize((72 + number % 40, 80), Image.Resampling.BILINEAR)
        image.save(path, "JPEG", quality=90)
        if number % 20 == 7:
            path.write_bytes(path.read_bytes()[: 100 + number % 300])


class Torture:
    """The loop: attempt, end, check; start over when a run got to its end."""

    def __init__(self, work: Path, *, images: int, seed: int, changing: bool, workers: int) -> None:
        self.rng = random.Random(seed)
        self.folder = Folder(work / "images", images, self.rng)
        self.changing = changing
        self.options = (*OPTIONS, "--workers", str(workers))
        self.out = work / "cache" / "torture.h5"
        self.log, self.said = work / "log", work / "said"
        self.tally = Tally()
        self.committed: set[Content] = set()
        self.typical: dict[str, float] = {}  # seconds that a whole run spends in each phase
        self.reference = self._undisturbed(work / "reference" / "torture.h5")

    def run(self, kills: int, tell: Callable[[str], None]) -> Tally:
        begun = time.monotonic()
        while self.tally.kills < kills:
            ending = Ending(self._one_of(ENDINGS), self._one_of(AIMS), self.rng.random())
            before = self.tally.kills
            self.attempt(ending)
            if self.tally.kills > before and self.tally.kills % 10 == 0:
                tell(f"{self.tally.kills} kills, {self.tally.completed} runs completed")
        while not self.attempt(Ending()):  # the last one is let go, too
            continue
        self.tally.seconds = time.monotonic() - begun
        return self.tally

    def attempt(self, ending: Ending) -> bool:
        """One run, ended as told; returns whether it got to its end all the same."""
        passes = len(self.folder.files()) // BATCH_SIZE
        fail_at = 1 + int(ending.fraction * passes) if ending.kind == "MemoryError" else None
        self.log.unlink(missing_ok=True)
        child = Attempt(lambda events: self._start(self.out, events, fail_at))
        code, _ = child.end(ending, self.typical)
        check_nothing_survived()
        self._check_code(code, ending)
        self._check_rows(ended=code not in DONE)
        if code not in DONE:
            self.tally.kills += 1
            self.tally.by_phase[child.phase] += 1
            self.tally.by_ending[ending.kind] += 1
        else:
            self._check_finished()
        if self.changing and self.rng.random() < 0.5:
            self.folder.change()
            self.tally.folder_changes += 1
        return code in DONE

    def _start(self, out: Path, events: int, fail_at: int | None = None) -> NoReturn:
        command = ["featx", "extract", str(self.folder.root), "--out", str(out), *self.options]
        extract_in_child(command, events=events, log=self.log, said=self.said, fail_at=fail_at)

    def _undisturbed(self, out: Path) -> str:
        """The datasets' SHA-256 after a run from nothing that nobody ends."""
        shutil.rmtree(out.parent, ignore_errors=True)
        self.log.unlink(missing_ok=True)
        child = Attempt(lambda events: self._start(out, events))
        code, seconds = child.end(Ending(), {})
        self._check_code(code, Ending())
        check_nothing_survived()
        for (phase, start), (_, stop) in pairwise([*child.entered.items(), ("", seconds)]):
            self.typical[phase] = stop - start
        self.typical["any"] = seconds
        return datasets_sha256(out)

    def _check_code(self, code: int, ending: Ending) -> None:
        expected = {
            "SIGKILL": (-signal.SIGKILL,),
            "SIGTERM": (EXIT_INTERRUPTED, -signal.SIGTERM),  # the latter before it is handled
            "SIGINT": (EXIT_INTERRUPTED,),
            "MemoryError": (EXIT_UNEXPECTED,),
        }
        if code not in (*DONE, *expected.get(ending.kind, ())):
            raise Broken(
                f"a run that was to end by {ending.kind} ended with {code}:\n"
                f"{self.said.read_text('utf-8', 'replace')}"
            )

    def _check_rows(self, *, ended: bool) -> None:
        """Nothing committed is lost, and nothing committed was computed again."""
        lines = self.log.read_bytes().split(b"\n")[:-1] if self.log.exists() else []
        rows = [line.split(b" ") for line in lines if line != PASS]
        settled = {
            (bytes.fromhex(path.decode()), bytes.fromhex(sha256.decode()))
            for _, sha256, path in rows
        }
        put, passes = sum(kind == PUT for kind, _, _ in rows), lines.count(PASS)
        self.tally.rows_computed += len(rows)
        self.tally.forward_passes += passes
        self.tally.computed_twice += len(settled & self.committed)
        if settled & self.committed:
            raise Broken(f"{len(settled & self.committed)} committed rows were computed again")
        needed = math.ceil(put / BATCH_SIZE)
        if passes > needed + UNDER_WAY * ended:
            raise Broken(f"{passes} forward passes were made, for {put} rows that need {needed}")
        now = self._committed_now()
        lost = self.committed - now
        if self.changing and lost:  # an image that is gone or has changed may go
            there = {self._content(path) for path in self.folder.files()}
            lost &= there
        if lost:
            raise Broken(f"{len(lost)} committed rows are gone, {sorted(lost)[0][0]!r} among them")
        self.committed = now

    def _committed_now(self) -> set[Content]:
        """The rows that the file says it holds, which is the unfinished one where there is one."""
        for path in (partial_path(self.out), self.out):
            if path.exists():
                file = open_cache(path, partial=True)
                if path == self.out and not verify(path).ok:
                    raise Broken(f"{path} has its final name and is not whole")
                rows = np.flatnonzero(file.read("status") != Status.PENDING).tolist()
                sha256 = file.read("sha256")
                return {(file.paths[row], sha256[row].tobytes()) for row in rows}
        return set()

    def _check_finished(self) -> None:
        self.tally.completed += 1
        left = sorted(path.name for path in self.out.parent.iterdir() if path.name[0] != ".")
        if left != [self.out.name]:
            raise Broken(f"beside the finished cache there are {left}")
        file = open_cache(self.out)
        spans = [span for entry in file.run["plans"] for span in entry["rows"]]
        if sum(last + 1 - first for first, last in spans) != len(file):
            raise Broken(f"of {len(file)} rows these have a plan: {spans}")
        if self.changing:
            self.reference = self._undisturbed(self.out.parents[1] / "reference" / self.out.name)
            there = {self._content(path) for path in self.folder.files()}
            if there != self.committed:
                raise Broken("the finished cache does not hold the files of the folder")
        if datasets_sha256(self.out) != self.reference:
            raise Broken("the finished cache differs from that of an undisturbed run")
        if not self.changing or self.rng.random() < 0.5:
            shutil.rmtree(self.out.parent)
            self.committed = set()

    def _content(self, path: Path) -> Content:
        name = os.fsencode(path.relative_to(self.folder.root).as_posix())
        return name, hashlib.sha256(path.read_bytes()).digest()

    def _one_of(self, weighted: tuple[tuple[str, int], ...]) -> str:
        names, weights = zip(*weighted, strict=True)
        return str(self.rng.choices(names, weights)[0])


def datasets_sha256(path: Path) -> str:
    """SHA-256 over every dataset but `run`, which holds seconds, and `digest`, which covers it."""
    file = open_cache(path)
    sha256 = hashlib.sha256()
    for name, column in sorted(file.columns.items()):
        if name not in ("run", "digest"):
            sha256.update(f"{name} {column.dtype.str} {column.shape}".encode())
            sha256.update(file.read(name).tobytes())
    return sha256.hexdigest()


def check_command(torture: Torture, work: Path) -> None:
    """A forked run gives what the command gives that users type."""
    out = work / "command" / "torture.h5"
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "featx",
            "extract",
            torture.folder.root,
            "--out",
            out,
            *torture.options,
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    if run.returncode not in DONE:
        raise Broken(f"the command ended with {run.returncode}")
    if datasets_sha256(out) != torture.reference:
        raise Broken("the command's cache differs from that of a forked run")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--workers", type=int, default=2, help="decoding processes of each run")
    parser.add_argument("--changing", action="store_true", help="change the folder meanwhile")
    parser.add_argument("--command", action="store_true", help="compare with the real command, too")
    asked = parser.parse_args(arguments)
    prepare_to_fork()
    with tempfile.TemporaryDirectory(prefix="featx-torture-") as work:
        try:
            torture = Torture(
                Path(work),
                images=asked.images,
                seed=asked.seed,
                changing=asked.changing,
                workers=asked.workers,
            )
            if asked.command:
                check_command(torture, Path(work))
            tally = torture.run(asked.kills, lambda text: print(text, file=sys.stderr, flush=True))
        except Broken as broken:
            print(f"broken: {broken}", file=sys.stderr)
            return 1
    print(json.dumps(tally.to_dict(), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
