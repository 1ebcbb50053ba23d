"""Rates in words: which stage is the bottleneck, and by how much."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import replace

import pytest

from featx.cache import Status
from featx.featureset import FailedImage
from featx.rates import Rates, StageRate, per_s, verdict


def rates_of(
    decode: float, forward: float, write: float, end_to_end: float, **setting: str
) -> Rates:
    return Rates(
        StageRate("decode, one core", decode / 2, "files", "bare decoding", decode),
        StageRate("decode", decode, "files"),
        StageRate("forward", forward, "pictures", "matrix products", 4 * forward),
        StageRate("write", write, "rows"),
        StageRate("end to end", end_to_end, "all"),
        setting,
    )


@pytest.mark.parametrize(
    ("rates", "bottleneck", "words"),
    [
        (
            (560, 25, 40_000, 24), "forward",
            "The network is the bottleneck: forward does 25.0 images/s, decoding could feed 560 "
            "and writing could take 40,000; end to end 24.0 (0.96 of the slowest stage).",
        ),
        (
            (90.4, 3_000, 40_000, 88), "decode",
            "Decoding is the bottleneck: it feeds 90.4 images/s, the network could do 3,000 and "
            "writing could take 40,000; end to end 88.0 (0.97 of the slowest stage).",
        ),
        (
            (900, 300, 8.123, 8.123), "write",
            "Writing is the bottleneck: it takes 8.12 images/s, decoding could feed 900 and the "
            "network could do 300; end to end 8.12 (1.00 of the slowest stage).",
        ),
    ],
)  # fmt: skip
def test_each_stage_can_be_the_bottleneck_and_is_named_with_the_numbers(
    rates: tuple[float, float, float, float], bottleneck: str, words: str
) -> None:
    assert verdict(*rates) == words
    found = rates_of(*rates)
    assert found.bottleneck == bottleneck
    assert found.verdict == words


def test_a_stage_above_its_limit_was_measured_on_a_busy_machine() -> None:
    usual = rates_of(560, 25, 40_000, 24)
    assert "busy" not in usual.verdict
    forward = StageRate("forward", 25, "pictures", "matrix products", 18)
    assert replace(usual, forward=forward).verdict.count("The machine was busy") == 1
    both = replace(rates_of(560, 25, 40_000, 40), forward=forward)
    assert both.verdict.count("The machine was busy") == 1


@pytest.mark.parametrize(
    ("rates", "bottleneck"),
    [((5, 5, 9), "decode"), ((9, 5, 5), "forward"), ((5, 9, 5), "decode"), ((5, 5, 5), "decode")],
)
def test_of_equal_stages_the_first_is_named_in_the_words_too(
    rates: tuple[float, float, float], bottleneck: str
) -> None:
    found = rates_of(*rates, 4)
    assert found.bottleneck == bottleneck
    starts = {"decode": "Decoding is", "forward": "The network is"}
    assert found.verdict.startswith(starts[bottleneck])


def test_a_whole_that_is_slower_because_cores_are_shared_is_explained() -> None:
    assert "share the processor's cores" in rates_of(100, 100, 1e5, 50, device="cpu").verdict
    assert "share the processor's cores" not in rates_of(100, 100, 1e5, 95, device="cpu").verdict
    assert "share the processor's cores" not in rates_of(100, 100, 1e5, 50, device="cuda:0").verdict


def test_a_whole_that_is_faster_than_its_slowest_stage_is_not_believed() -> None:
    assert "measure again when it is idle" in rates_of(100, 10, 1e5, 15).verdict
    assert "measure again" not in rates_of(100, 10, 1e5, 10.5).verdict


def test_a_share_is_of_the_limit_where_there_is_one() -> None:
    found = rates_of(100, 50, 1e5, 45)
    assert [rate.share for rate in found.stages] == [0.5, None, 0.25, None, None]


def test_all_of_it_is_json() -> None:
    found = dataclasses.replace(
        rates_of(100, 50, 1e5, 45, device="cpu"),
        failed=(FailedImage("a.jpg", Status.UNDECODABLE, "broken"),),
    )
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert told["device"] == "cpu"
    assert told["bottleneck"] == "forward"
    assert told["verdict"] == found.verdict
    assert told["failed"] == [{"path": "a.jpg", "status": "undecodable", "reason": "broken"}]
    assert [stage["stage"] for stage in told["stages"]] == [
        "decode, one core", "decode", "forward", "write", "end to end",
    ]  # fmt: skip
    assert told["stages"][2] == {
        "stage": "forward", "images_per_s": 50, "measured_on": "pictures",
        "limit": "matrix products", "limit_images_per_s": 200, "share": 0.25,
    }  # fmt: skip


def test_rates_are_read_in_three_digits() -> None:
    assert [per_s(r) for r in (0.01234, 9.876, 98.76, 987.6, 98_765)] == [
        "0.0123", "9.88", "98.8", "988", "98,765",
    ]  # fmt: skip
    assert math.isclose(float(per_s(1 / 3)), 1 / 3, rel_tol=0.01)
