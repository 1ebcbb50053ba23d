"""Pooling of positions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featx.pooling import Pool


@pytest.fixture
def nchw():
    return torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["avg", "max", "gem"])
def test_the_layout_of_a_map_does_not_change_what_pooling_gives(nchw, kind):
    expected = Pool(kind, spatial=(2, 3))(nchw)
    assert expected.shape == (2, 5)
    for other, spatial in (
        (nchw.permute(0, 2, 3, 1), (1, 2)),
        (nchw.flatten(2), (2,)),
        (nchw.flatten(2).transpose(1, 2), (1,)),
    ):
        torch.testing.assert_close(Pool(kind, spatial=spatial)(other), expected)


def test_avg_has_the_bits_of_the_networks_own_global_pool(nchw):
    own = torch.nn.functional.adaptive_avg_pool2d(nchw, 1).flatten(1)
    assert torch.equal(Pool("avg", spatial=(2, 3))(nchw), own)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=4, max_size=4))
def test_gem_lies_between_the_mean_and_the_maximum(values):
    x = torch.tensor(values, dtype=torch.float64).reshape(1, 1, 2, 2)
    avg, gem, top = (Pool(k, spatial=(2, 3))(x).item() for k in ("avg", "gem", "max"))
    assert avg * (1 - 1e-5) <= gem <= top * (1 + 1e-5)


def test_gem_is_the_cube_root_of_the_mean_cube_of_clamped_values():
    x = torch.tensor([[[[1.0, 2.0], [-5.0, 3.0]]]])
    expected = ((1 + 8 + 27) / 4) ** (1 / 3)
    assert Pool("gem", spatial=(2, 3))(x).item() == pytest.approx(expected, rel=1e-6)


def test_gem_of_half_precision_does_not_overflow():
    x = torch.full((1, 1, 2, 2), 60.0, dtype=torch.float16)
    pooled = Pool("gem", spatial=(2, 3))(x)
    assert pooled.dtype == torch.float16
    assert pooled.item() == pytest.approx(60, rel=1e-3)


def test_the_class_token_is_taken_or_left_out():
    tokens = torch.randn(2, 6, 3)
    assert torch.equal(Pool("cls", spatial=(1,), prefix_tokens=2)(tokens), tokens[:, 0])
    avg = Pool("avg", spatial=(1,), prefix_tokens=2)(tokens)
    assert torch.equal(avg, tokens[:, 2:].mean(1))
    both = Pool("cls+avg", spatial=(1,), prefix_tokens=2)(tokens)
    assert torch.equal(both, torch.cat([tokens[:, 0], avg], 1))


def test_none_changes_nothing(nchw):
    assert Pool("none", spatial=(2, 3))(nchw) is nchw
