"""The fuzzing targets: nothing is found, and what there would be to find is seen."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from fuzz.hunting import Target, fuzz_one, hunt
from fuzz.mutations import Sealed
from fuzz.readers import TARGETS, Finding, main
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

many = settings(
    max_examples=70, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)  # fmt: skip
each_target = pytest.mark.parametrize("name", TARGETS)


@each_target
@given(seed=st.integers(0, 2**32))
@many
def test_damaged_files_are_read_or_refused_in_one_line(name: str, seed: int) -> None:
    fuzz_one(TARGETS[name], TARGETS[name].case(seed, 0))


@each_target
@given(data=st.binary(max_size=300))
@many
def test_arbitrary_bytes_are_read_or_refused_in_one_line(name: str, data: bytes) -> None:
    fuzz_one(TARGETS[name], data)


@each_target
def test_valid_files_are_accepted_and_most_damage_reaches_past_the_gate(name: str) -> None:
    target = TARGETS[name]
    whole = [file.data for file in target.seeds]
    # of caches, those that are not finished are accepted as such only
    assert sum(fuzz_one(target, data) for data in whole) >= len(whole) // 2
    accepted = sum(fuzz_one(target, target.case(0, number)) for number in range(150))
    assert 2 <= accepted < 100
    assert target.case(0, 1) == target.case(0, 1) != target.case(0, 2)


def test_every_block_of_a_caches_metadata_is_resealed_after_damage() -> None:
    file = TARGETS["cache"].seeds[-1]
    assert len(file.seals) == 20  # superblock, root, 14 datasets, heap and its block, tree and leaf
    for seal in file.seals:
        data = bytearray(file.data)
        data[seal.stop - 1] ^= 1
        assert data[seal.at : seal.at + 4] != seal.value(data)
        file.resealed(data)
        assert data[seal.at : seal.at + 4] == seal.value(data)


# --- the hunt sees what it is for: these run in its child process ---------------------------------


def numbers(folder: Path) -> Sequence[bytes]:
    return [bytes(16)]


def well(data: bytes, folder: Path) -> bool:
    return True


def die(data: bytes, folder: Path) -> bool:
    if data[:1] > b"\x7f":
        os._exit(7)
    return True


_calls: list[int] = []  # in the child process, whose first call is there to warm it up


def hang(data: bytes, folder: Path) -> bool:
    _calls.append(1)
    if len(_calls) > 1:
        time.sleep(600)
    return True


def gorge(data: bytes, folder: Path) -> bool:
    _calls.append(1)
    if len(_calls) > 1:
        len(b"x" * 400_000_000)
    return True


def blunder(data: bytes, folder: Path) -> bool:
    _calls.append(1)
    if len(_calls) > 1:
        raise KeyError("x")
    return True


@pytest.mark.parametrize(
    ("read", "cases", "words"),
    [
        pytest.param(well, 50, None, marks=pytest.mark.slow),
        (die, 8, "the process died: exit code 7"),
        pytest.param(hang, 1, "no answer for 1 s", marks=pytest.mark.slow),
        (gorge, 1, "memory grew by"),
        pytest.param(blunder, 3, "KeyError: 'x'", marks=pytest.mark.slow),
    ],
)
def test_the_hunt_reports_crashes_hangs_and_greed_with_their_numbers_and_goes_on(
    read: object, cases: int, words: str | None
) -> None:
    if read is gorge and sys.platform != "linux":
        pytest.skip("peak memory is asked of Linux")
    target = Target(read, numbers)  # type: ignore[arg-type]
    hang_s = 1.0 if read is hang else 60.0  # a busy machine takes its time to fill memory
    tally = hunt(target, seed=0, cases=cases, hang_s=hang_s)
    assert tally.tried == cases
    if words is None:
        assert (tally.findings, tally.accepted) == ((), cases)
        return
    assert tally.findings
    assert all(words in why for _, why in tally.findings)
    first = tally.findings[0][0]
    again = hunt(target, seed=0, first=first, cases=1, hang_s=hang_s)
    assert [number for number, _ in again.findings] == [first]


def test_a_message_of_several_lines_is_a_finding(tmp_path: Path) -> None:
    from fuzz.readers import _allowed

    from featx.errors import CacheError

    def refuse(text: str) -> None:
        raise CacheError(text)

    assert not _allowed(lambda: refuse("one line"), CacheError)
    for text in ("two\nlines", "", "x" * 3000):
        with pytest.raises(Finding, match="not one line"):
            _allowed(lambda text=text: refuse(text), CacheError)  # type: ignore[misc]


def test_the_program_says_how_many_cases_it_tried(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--target", "list", "--cases", "20", "--seed", "3"]) == 0
    assert capsys.readouterr().out.startswith("list: 20 cases, ")


def test_a_file_without_seals_is_damaged_anywhere() -> None:
    assert Sealed(b"abc").places.tolist() == [0, 1, 2]
