"""Memory is bounded by a batch and what is known of each row, not by the features of all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "memory.py"
FEW, MANY, FEATURES = 10_000, 40_000, 1_024
ROW_BYTES = 1_000  # paths, labels, sizes and hashes as Python holds them; features are 4,096
NOISE_BYTES = 12 * 2**20

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc"),
    pytest.mark.skipif(not PROGRAM.is_file(), reason="benchmarks/ is not part of this copy"),
]


def peaks(n: int, folder: Path) -> dict[str, int]:
    command = [sys.executable, str(PROGRAM), "--rows", str(n), "--features", str(FEATURES)]
    made = subprocess.run(
        [*command, "--folder", str(folder), "--json"], capture_output=True, text=True, check=True
    )
    assert not list(folder.iterdir())
    return {stage: found["peak_bytes"] for stage, found in json.loads(made.stdout).items()}


@pytest.mark.slow
def test_four_times_the_rows_take_no_more_memory_than_what_is_known_of_them(
    tmp_path: Path,
) -> None:
    few, many = peaks(FEW, tmp_path), peaks(MANY, tmp_path)
    assert set(few) == {"write", "load", "decide", "verify", "extend"}
    allowed = (MANY - FEW) * ROW_BYTES + NOISE_BYTES
    assert allowed < 0.4 * (MANY - FEW) * FEATURES * 4
    grown = {stage: many[stage] - few[stage] for stage in few}
    assert max(grown.values()) <= allowed, grown
