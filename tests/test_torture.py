"""The torture of `benchmarks/torture.py` in small: killed, resumed, and the same bytes at the end.

It runs as a program of its own: it forks, which a process that has computed with torch must not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "torture.py"

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="forks, and adopts orphans as Linux does"),
    pytest.mark.skipif(not PROGRAM.is_file(), reason="benchmarks/ is not part of this copy"),
]

# Each takes one mechanism out of featx and names what the torture must then find.
DEFECTS = {
    "committed rows were computed again": """
import numpy as np
import featx.cache.writer
writer = featx.cache.writer.CacheWriter
pending = writer.pending.fget
def everything(self):
    return np.arange(len(self.file)) if len(pending(self)) else pending(self)
writer.pending = property(everything)
""",
    "forward passes were made": """
import os
from dataclasses import replace
from pathlib import Path
import numpy as np
import featx.filling
class Nowhere:
    put = fail = staticmethod(lambda *row: None)
run = featx.filling.run_together
def run_again(pipelines, lanes, files, **keywords):  # forwards what is committed, writes none of it
    (lane,) = lanes
    file = lane.sink.file
    done = np.setdiff1d(np.arange(len(file)), lane.sink.pending).tolist()
    committed = [(row, Path(file.root) / os.fsdecode(file.paths[row])) for row in done]
    run(pipelines, [replace(lane, sink=Nowhere())], committed, workers=keywords["workers"])
    return run(pipelines, lanes, files, **keywords)
featx.filling.run_together = run_again
""",
    "committed rows ": """
import featx.filling, featx.target
decide = featx.target.decide
def forgetful(*args, **keywords):
    return decide(*args, **{**keywords, "complete": None, "partial": None})
featx.target.decide = forgetful
""",
    "has its final name and is not whole": """
import featx.cache.writer, featx.target
from featx.cache.files import Disk
featx.cache.writer.partial_path = lambda path: path
featx.target.partial_path = lambda path: path
rename = Disk.rename
Disk.rename = lambda self, source, target: source == target or rename(self, source, target)
""",
    "differs from that of an undisturbed run": """
import featx.cache.writer
writer = featx.cache.writer.CacheWriter
resume, put = writer.resume.__func__, writer.put
def resumed(cls, path, **keywords):
    found = resume(cls, path, **keywords)
    found.resumed = len(found.pending) < len(found.file)
    return found
def put_otherwise(self, rows, features, sha256):
    put(self, rows, features + self.resumed, sha256)
writer.resumed, writer.resume, writer.put = False, classmethod(resumed), put_otherwise
""",
    "processes of a killed run are still there": """
import os
import featx.filling, featx.target
build = featx.filling.build_pipeline
def with_an_orphan(*args, **keywords):
    if not os.fork():
        os.execvp("sleep", ["sleep", "30"])
    return build(*args, **keywords)
featx.filling.build_pipeline = with_an_orphan
import killed_run
killed_run.SURVIVORS_S = 0.5
""",
}


def torture(*arguments: str, defect: str = "") -> subprocess.CompletedProcess[str]:
    code = f"import sys\nsys.path.insert(0, {str(PROGRAM.parent)!r})\n{defect}\n"
    code += f"import torture\nif __name__ == '__main__':\n    sys.exit(torture.main({arguments!r}))"
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def figures(*arguments: str) -> dict[str, Any]:
    done = torture(*arguments)
    assert done.returncode == 0, done.stderr
    tally: dict[str, Any] = json.loads(done.stdout)
    return tally


def test_a_killed_run_resumes_to_the_same_bytes_and_repeats_nothing() -> None:
    tally = figures("--kills", "3", "--images", "40", "--seed", "1", "--workers", "1")
    assert tally["kills"] == 3
    assert tally["completed"] >= 1
    assert tally["computed_twice"] == 0
    assert 0 < tally["forward_passes"] <= tally["rows_computed"]


@pytest.mark.slow
def test_kills_in_every_phase_are_survived_and_the_command_gives_the_same_bytes() -> None:
    tally = figures("--kills", "25", "--images", "120", "--seed", "2", "--command")
    assert all(tally["by_phase"][phase] for phase in ("creating", "running", "finishing"))
    assert sum(tally["by_ending"].values()) == tally["kills"]
    assert tally["computed_twice"] == 0


@pytest.mark.slow
def test_a_folder_that_changes_between_kills_is_followed() -> None:
    tally = figures("--kills", "15", "--images", "80", "--seed", "3", "--changing")
    assert tally["folder_changes"] > 5
    assert tally["completed"] > 2


@pytest.mark.slow
@pytest.mark.parametrize("finding", DEFECTS)
def test_the_torture_finds_a_mechanism_taken_out(finding: str) -> None:
    done = torture("--kills", "30", "--images", "60", "--workers", "1", defect=DEFECTS[finding])
    assert done.returncode == 1, done.stdout
    assert finding in done.stderr
