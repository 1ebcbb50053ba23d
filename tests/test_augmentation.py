"""Augmentation: where torchvision defines the same thing, the same pictures come out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from featx.augmentation import COLOUR_CHANGES, Augmentation, jittered, plain, rotated
from featx.batch_resize import Spans, resized
from featx.errors import InputError
from featx.transforms import INTERPOLATIONS, Transform

CIFAR = Transform(resize=None, crop=32, mean=(0.5,) * 3, std=(0.5,) * 3)
SMALL = Transform(resize=40, crop=32, mean=(0.5,) * 3, std=(0.5,) * 3)


def photographs(b: int, h: int, w: int, c: int = 3) -> torch.Tensor:
    """(b, h, w, c) uint8: smooth waves with some noise on them."""
    rng = np.random.default_rng(0)
    down, across = np.mgrid[0:h, 0:w] / 9.0
    phases = rng.uniform(0, 6, (b, c, 1, 1))
    waves = 110 + 80 * np.sin(down + phases) * np.cos(across - phases)
    noisy = (waves + rng.normal(0, 12, waves.shape)).clip(0, 255).astype(np.uint8)
    return torch.from_numpy(np.ascontiguousarray(noisy.transpose(0, 2, 3, 1)))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def floats(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.permute(0, 3, 1, 2).to(torch.float32) / 255


def spans(low: float, high: float, n: float, first: float, b: int = 1) -> Spans:
    return Spans(*(torch.full((b,), float(value)) for value in (low, high, n, first)))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("h", "w"), [(97, 61), (20, 33)])
def test_resizing_is_pillows_but_for_its_rounding(interpolation: str, h: int, w: int) -> None:
    pixels = photographs(1, h, w)
    ours = resized(pixels, spans(0, h, 32, 0), spans(0, w, 32, 0), 32, interpolation)[0]
    filter_ = Image.Resampling(INTERPOLATIONS[interpolation])
    theirs = np.asarray(Image.fromarray(pixels[0].numpy()).resize((32, 32), filter_))
    # it rounds twice; between, by a half, which weights whose absolute values add up to more spread
    total = {"bicubic": 1.25, "lanczos": 1.54}.get(interpolation, 1.0)
    assert np.abs(ours.permute(1, 2, 0).numpy() - theirs).max() <= 0.5 + 0.5 * total + 1e-3
    edges = 255 * (pixels > 110)  # which a cubic oversteps
    sharp = resized(
        edges.to(torch.uint8), spans(0, h, 32, 0), spans(0, w, 32, 0), 32, interpolation
    )
    assert 0 <= float(sharp.min()) < float(sharp.max()) <= 255


def test_cutting_out_and_resizing_is_torchvisions() -> None:
    pixels = photographs(1, 90, 70)
    ours = resized(pixels, spans(11, 75, 32, 0), spans(5, 33, 32, 0), 32, "bilinear") / 255
    theirs = tv.resized_crop(floats(pixels), 11, 5, 64, 28, [32, 32], antialias=True)
    assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.parametrize(("h", "w"), [(60, 48), (40, 55), (33, 90), (20, 21)])
def test_plain_of_a_whole_picture_is_the_transform(h: int, w: int) -> None:
    pixels = torch.zeros((1, 90, 90, 3), dtype=torch.uint8)
    pixels[:, :h, :w] = photographs(1, h, w)
    pixels[:, h:] = 255  # of what is no picture nothing may come in
    ours = plain(pixels, torch.tensor([[h, w]]), SMALL)
    theirs = SMALL.resize_crop(pixels[0, :h, :w].contiguous().numpy(), mode="exact")
    assert ours.shape == (1, 3, 32, 32)
    assert (ours[0] * 255 - torch.from_numpy(theirs).permute(2, 0, 1)).abs().max() <= 1.01


def test_what_is_smaller_than_the_crop_when_resized_has_black_around_it() -> None:
    transform = Transform(resize=20, crop=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    pixels = photographs(1, 45, 60)
    ours = plain(pixels, torch.tensor([[45, 60]]), transform)[0] * 255
    theirs = torch.from_numpy(transform.resize_crop(pixels[0].numpy(), mode="exact"))
    assert (ours - theirs.permute(2, 0, 1)).abs().max() <= 1.01


def test_plain_of_a_small_picture_that_is_not_resized_has_black_around_it() -> None:
    pixels = photographs(1, 40, 40)
    ours = plain(pixels, torch.tensor([[21, 40]]), CIFAR)
    theirs = CIFAR.resize_crop(pixels[0, :21].contiguous().numpy())
    assert torch.equal((ours[0] * 255).round(), floats(torch.from_numpy(theirs)[None])[0] * 255)


@pytest.mark.parametrize("channels", [1, 3])
def test_plain_of_cropped_pictures_is_the_pictures(channels: int) -> None:
    pixels = photographs(3, 32, 32, channels)
    assert torch.equal(plain(pixels, None, CIFAR), floats(pixels))
    assert torch.equal(Augmentation(CIFAR)(pixels, None, seeded()), floats(pixels))


def test_each_picture_is_mirrored_or_not() -> None:
    pixels = photographs(200, 32, 32)
    made, there = Augmentation(CIFAR, flip=0.25)(pixels, None, seeded()), floats(pixels)
    mirrored = (made == there.flip(-1)).flatten(1).all(dim=1)
    same = (made == there).flatten(1).all(dim=1)
    assert (mirrored ^ same).all()
    assert 35 <= int(mirrored.sum()) <= 65  # 50; a standard deviation is 6


def test_a_padded_crop_is_a_part_of_the_padded_picture_and_every_part_comes() -> None:
    pixels = photographs(1, 32, 32).expand(400, 32, 32, 3)
    made = Augmentation.parse("pad=1", CIFAR)(pixels, None, seeded())
    padded = tv.pad(floats(pixels[:1]), [1, 1])
    parts = [padded[0, :, i : i + 32, j : j + 32] for i in range(3) for j in range(3)]
    which = [[i for i in range(9) if (one - parts[i]).abs().max() < 1e-6] for one in made]
    assert all(len(found) == 1 for found in which)
    counts = np.bincount([found[0] for found in which], minlength=9)
    assert counts.min() >= 20  # 44 on average; a standard deviation is 6


def test_random_parts_are_drawn_as_torchvision_draws_them() -> None:
    """Area, shape and place of 3,000 parts, by the test of Kolmogorov and Smirnov."""
    h, w, b = 56, 56, 3000
    pixels = torch.zeros((b, h, w, 2), dtype=torch.uint8)
    ramps = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"), -1)
    pixels[:] = 4 * ramps  # what is cut out tells where it lay
    transform = Transform(resize=2, crop=2, mean=(0.5,) * 3, std=(0.5,) * 3)
    augment = Augmentation(transform, crop=0.2)
    ours = augment(pixels, torch.tensor([[h, w]]).expand(b, 2), seeded()) * 255 / 4
    torch.manual_seed(0)
    picture = torch.empty(3, h, w)
    drawn = torch.tensor(
        [RandomResizedCrop.get_params(picture, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(b)]
    ).to(torch.float32)
    top, left, height, width = drawn.T
    two, none = torch.full((b,), 2.0), torch.zeros(b)
    down, across = Spans(top, top + height, two, none), Spans(left, left + width, two, none)
    theirs = resized(pixels, down, across, 2, "bilinear") / 4

    def told(corners: torch.Tensor) -> torch.Tensor:
        """Where its first pixel lies, and how far it is to the next; the area of that: (5, b)."""
        y, x = corners[:, 0, :, 0], corners[:, 1, 0, :]
        down, across = y[:, 1] - y[:, 0], x[:, 1] - x[:, 0]
        return torch.stack([y[:, 0], down, x[:, 0], across, down * across])

    for found, expected in zip(told(ours), told(theirs), strict=True):
        assert ks_2samp(found.round(decimals=3), expected.round(decimals=3)).pvalue > 0.01
    assert told(ours)[4].max() > 0.97 * told(theirs)[4].max()  # all of a picture comes, too
    together, expected = (torch.corrcoef(told(made)) for made in (ours, theirs))
    assert (together - expected).abs().max() < 0.1


def test_parts_of_a_strip_fall_back_to_its_middle() -> None:
    pixels = torch.zeros((1, 100, 100, 1), dtype=torch.uint8)
    pixels[:, :4, 47:53] = 200  # of a strip of 4 x 100, a part of 4 x 5 is the most
    made = Augmentation(SMALL, crop=1.0)(pixels, torch.tensor([[4, 100]]), seeded())
    assert (made * 255 - 200).abs().max() < 1e-3


@pytest.mark.parametrize("angle", [-15.0, 7.5, 90.0])
def test_turning_is_torchvisions(angle: float) -> None:
    pictures = floats(photographs(2, 32, 32))
    ours = rotated(pictures, torch.tensor([angle, -angle]))
    for i, turn in enumerate((angle, -angle)):
        theirs = tv.rotate(pictures[i : i + 1], turn, InterpolationMode.BILINEAR)[0]
        assert (ours[i] - theirs).abs().max() < 1e-5


def test_each_picture_is_turned_by_an_angle_of_its_own() -> None:
    pixels = photographs(1, 32, 32).expand(40, 32, 32, 3)
    made = Augmentation(CIFAR, rotate=15)(pixels, None, seeded())
    angles = 30 * torch.rand(40, generator=seeded(), dtype=torch.float64) - 15
    assert torch.allclose(made, rotated(floats(pixels), angles), atol=1e-6)


@pytest.mark.parametrize("name", COLOUR_CHANGES)
@pytest.mark.parametrize("channels", [1, 3])
def test_colours_are_changed_as_by_torchvision(name: str, channels: int) -> None:
    pictures = floats(photographs(3, 32, 32, channels))
    factors = torch.tensor([0.6, 1.0, 1.4])
    ours = COLOUR_CHANGES[name](pictures, factors)
    for i, factor in enumerate(factors.tolist()):
        theirs = getattr(tv, f"adjust_{name}")(pictures[i], factor)
        assert (ours[i] - theirs).abs().max() < 1e-5


def test_each_picture_has_colours_of_its_own_in_an_order_of_its_own() -> None:
    pictures = floats(photographs(1, 32, 32)).expand(64, 3, 32, 32)
    made = jittered(pictures, 0.4, seeded())
    assert len({one.numpy().tobytes() for one in made}) == 64
    # of the six orders each gives another picture; every one of ours is one of them
    generator = seeded()
    factors = 0.6 + 0.8 * torch.rand((3, 64), generator=generator, dtype=torch.float64)
    order = torch.rand((64, 3), generator=generator).argsort(dim=1)
    changes = list(COLOUR_CHANGES)
    assert len({tuple(one) for one in order.tolist()}) == 6
    for i in range(8):
        expected = pictures[i]
        for number in order[i].tolist():
            change = getattr(tv, f"adjust_{changes[number]}")
            expected = change(expected, float(factors[number, i]))
        assert (made[i] - expected).abs().max() < 1e-5


def test_a_generator_gives_the_same_pictures_again_and_another_others() -> None:
    pixels = photographs(4, 48, 48)
    augment = Augmentation.parse("flip,crop,color,rotate", SMALL)
    extent = torch.tensor([[48, 48], [48, 30], [20, 48], [9, 9]])
    first, again, other = (augment(pixels, extent, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first.shape, first.dtype) == ((4, 3, 32, 32), torch.float32)
    assert 0 <= float(first.min()) < float(first.max()) <= 1
    # what a picture becomes does not depend on what the others are
    others = pixels.clone()
    others[1:] = 0
    assert torch.allclose(augment(others, extent, seeded(1))[0], first[0], atol=1e-6)


def test_nothing_beyond_a_picture_comes_into_it() -> None:
    pixels = torch.full((60, 48, 48, 3), 255, dtype=torch.uint8)
    pixels[:, :30, :20] = 10
    extent = torch.tensor([[30, 20]]).expand(60, 2)
    for words in ("crop", "flip,crop=0.5", "pad=3"):
        made = Augmentation.parse(words, SMALL)(pixels, extent, seeded())
        assert float(made.max()) * 255 < 10.01


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("flop", "augment word 'flop' is unknown; known are flip, crop, pad, color, rotate"),
        ("flip,flip", "augment word 'flip' is twice"),
        ("crop=wide", "augment 'crop=wide' has no number after ="),
        ("crop=1.5", "augment crop must be a number from 0 to 1, got 1.5"),
        ("rotate=nan", "augment rotate must be a number from 0 to 180, got nan"),
        ("pad=1.5", "augment pad must be a whole number of pixels, got 1.5"),
        ("crop,pad", "augment takes crop or pad, not both"),
    ],
)
def test_words_that_make_no_sense_are_refused(words: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        Augmentation.parse(words, SMALL)


@pytest.mark.parametrize("words", ["", "flip,crop,color,rotate", "flip=0.25,pad=2,rotate=5"])
def test_words_are_given_back(words: str) -> None:
    assert Augmentation.parse(words, SMALL).words == words


def test_pictures_that_are_not_cropped_need_their_extent() -> None:
    with pytest.raises(InputError, match="of 40 x 36 pixels are not cropped to 32"):
        plain(photographs(1, 40, 36), None, SMALL)
