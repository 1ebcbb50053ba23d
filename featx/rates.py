"""How fast each stage of an extraction runs, as data, and what that means in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from featx.featureset import FailedImage

# Below this share of the slowest stage, stages that compete for the same cores are told of.
_NOTABLE_SHARE: Final = 0.9
# The whole cannot be faster than its slowest stage; above this it was not the same machine.
_CREDIBLE_SHARE: Final = 1.1


@dataclass(frozen=True)
class StageRate:
    """The rate of one stage, and of what it could be at best.

    Attributes
    ----------
    stage : its name.
    images_per_s : measured.
    measured_on : what it was measured on, and how.
    limit : what it is compared with; empty where there is nothing.
    limit_images_per_s : the rate of that; None where there is nothing.
    """

    stage: str
    images_per_s: float
    measured_on: str
    limit: str = ""
    limit_images_per_s: float | None = None

    @property
    def share(self) -> float | None:
        """The rate as a share of its limit, where there is one; 1 is all of it."""
        return self.images_per_s / self.limit_images_per_s if self.limit_images_per_s else None


@dataclass(frozen=True)
class Rates:
    """What `featx.bench` found.

    Attributes
    ----------
    decode_one_core : files to the network's pixels, on one core in this process.
    decode : the same, in as many processes as an extraction has.
    forward : pixels to features, with as many batches at a time as the engine takes.
    write : features into a cache.
    end_to_end : files to rows of a cache, all stages at the same time.
    setting : backbone, engine, device, number of images and so on, as JSON.
    failed : images that could not be used, and that nothing was measured on.
    """

    decode_one_core: StageRate
    decode: StageRate
    forward: StageRate
    write: StageRate
    end_to_end: StageRate
    setting: Mapping[str, Any]
    failed: tuple[FailedImage, ...] = ()

    @property
    def stages(self) -> tuple[StageRate, ...]:
        """All five, in the order in which an image passes them."""
        return self.decode_one_core, self.decode, self.forward, self.write, self.end_to_end

    @property
    def bottleneck(self) -> str:
        """``decode``, ``forward`` or ``write``: the slowest; the first one where they are equal."""
        names = ("decode", "forward", "write")
        return min(names, key=lambda name: getattr(self, name).images_per_s)

    @property
    def verdict(self) -> str:
        """The bottleneck in a sentence, with the numbers; and why the whole is slower, if it is."""
        return verdict(
            self.decode.images_per_s,
            self.forward.images_per_s,
            self.write.images_per_s,
            self.end_to_end.images_per_s,
            shares_cores=self.setting.get("device") == "cpu",
            was_busy=any(_is_incredible(stage.share) for stage in self.stages),
        )

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {
            **self.setting,
            "stages": [{**asdict(rate), "share": rate.share} for rate in self.stages],
            "bottleneck": self.bottleneck,
            "verdict": self.verdict,
            "failed": [
                {"path": image.path, "status": image.status.words, "reason": image.reason}
                for image in self.failed
            ],
        }


def verdict(
    decode: float,
    forward: float,
    write: float,
    end_to_end: float,
    *,
    shares_cores: bool = False,
    was_busy: bool = False,
) -> str:
    """Which stage is the bottleneck, in words, from the images/s of each and of the whole.

    Parameters
    ----------
    decode, forward, write, end_to_end : images/s, above 0.
    shares_cores : whether the network runs on the cores that decode.
    was_busy : whether a stage seemed to be faster than what limits it.

    Examples
    --------
    >>> verdict(560, 25.2, 40_000, 24.1)  # doctest: +NORMALIZE_WHITESPACE
    'The network is the bottleneck: forward does 25.2 images/s, decoding could feed 560 and writing
    could take 40,000; end to end 24.1 (0.96 of the slowest stage).'
    """
    slowest = min(decode, forward, write)
    d, f, w = per_s(decode), per_s(forward), per_s(write)
    if decode == slowest:
        words = (
            f"Decoding is the bottleneck: it feeds {d} images/s, the network could do {f} and "
            f"writing could take {w}"
        )
    elif forward == slowest:
        words = (
            f"The network is the bottleneck: forward does {f} images/s, decoding could feed {d} "
            f"and writing could take {w}"
        )
    else:
        words = (
            f"Writing is the bottleneck: it takes {w} images/s, decoding could feed {d} and the "
            f"network could do {f}"
        )
    share = end_to_end / slowest
    words += f"; end to end {per_s(end_to_end)} ({share:.2f} of the slowest stage)."
    if shares_cores and share < _NOTABLE_SHARE:
        words += " All stages share the processor's cores, which each had for itself before."
    if was_busy or _is_incredible(share):
        words += " The machine was busy with other work meanwhile: measure again when it is idle."
    return words


def _is_incredible(share: float | None) -> bool:
    """Whether a share is one that only a machine that was busy at times can give."""
    return share is not None and share > _CREDIBLE_SHARE


def per_s(rate: float) -> str:
    """A rate as people read it, in three digits or more.

    Examples
    --------
    >>> per_s(0.0721), per_s(7.21), per_s(72.1), per_s(7210.4)
    ('0.0721', '7.21', '72.1', '7,210')
    """
    if rate >= 100:
        return f"{rate:,.0f}"
    return f"{rate:.1f}" if rate >= 10 else f"{rate:.3g}"
