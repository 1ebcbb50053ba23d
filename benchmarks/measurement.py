"""featx and its peers on one network: all features compared, and times of those who agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from benchmarks import networks
from benchmarks.comparison import FAST_BOUND, FP32_BOUND, TORCH_BOUND, Comparison, compare
from benchmarks.peers import Request, unsupported
from benchmarks.runs import Run, has_option
from featx.devices import Precision, resolve_device
from featx.limits import gemm_flops_per_s

Runner = Callable[[Request], Run]
Tell = Callable[[str], None]

_GEMM_S: Final = 1.0  # of matrix products, at each turn
_EXACT: Final = ("--decode", "exact")


@dataclass
class Result:
    """What was found of one network.

    Attributes
    ----------
    comparisons : all that were made.
    turns : by name, a run for each turn; only of those whose features agree.
    left_out : by name, why somebody has no times.
    gemm : by precision, floating-point operations per second, best of all turns.
    """

    comparisons: list[Comparison] = field(default_factory=list)
    turns: dict[str, list[Run]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    gemm: dict[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether all features agree."""
        return all(comparison.ok for comparison in self.comparisons)

    def largest(self, name: str) -> float:
        """The largest difference found in the timed features of `name`, or in their stead."""
        return max(c.largest for c in self.comparisons if c.name == name and c.measure != "top-1")


def names_of(peers: Sequence[str]) -> list[str]:
    """featx and the peers, in the order of their turns; featx in fp16 too where a peer is."""
    ours = ["featx", "featx-amp"] if any(name.endswith("-amp") for name in peers) else ["featx"]
    return [*ours, *peers]


def request_of(name: str, request: Request) -> Request:
    """The request of ``script``, ``script-amp``, ``featx-amp`` and so on."""
    peer, _, amp = name.partition("-")
    return replace(request, peer=peer, precision="amp" if amp else "default")


def measure(
    request: Request,
    peers: Sequence[str],
    *,
    repeats: int,
    runner: Runner,
    trained: bool = False,
    tell: Tell = lambda sentence: None,
) -> Result:
    """Let featx and its peers take turns, compare all features, and keep who agrees.

    Parameters
    ----------
    request : the work; who does it is filled in.
    runner : does one run.
    trained : the weights are not random, so that classes mean something.
    """
    result = Result()
    for name in peers:
        reason = unsupported(name.partition("-")[0], request.network)
        if reason:
            result.left_out[name] = reason
    names = [name for name in names_of(peers) if name not in result.left_out]
    reference = runner(replace(request, peer="script", precision="fp32"))
    exact = _exact(request, reference, result, runner)
    if "img2vec" in names:
        same = runner(replace(request, peer="img2vec", precision="fp32", same_pixels=True))
        what = "on the weights' own pixels and layer"
        _judge(result, compare("img2vec", same, reference, FP32_BOUND, what=what))
    classes = networks.top_1(exact.features, request.network, request.weights) if trained else None
    for turn in range(1, repeats + 1):
        for name in names:
            if name in result.left_out or "featx" in result.left_out:
                continue  # features that differ need no time
            tell(f"{request.network}: turn {turn} of {repeats}, {name}")
            done = runner(request_of(name, request))
            result.turns.setdefault(name, []).append(done)
            _compare_turn(
                name, done, exact if name.startswith("featx") else reference, request, result
            )
            if classes is not None and name == "featx" and result.ok:
                found = networks.top_1(done.features, request.network, request.weights)
                changed = int(np.count_nonzero(found != classes))
                _judge(result, Comparison(name, "", "top-1", changed, 0))
        _gemm(request.device, "featx-amp" in names, result)
    wrong = result.turns if "featx" in result.left_out else result.left_out
    result.turns = {name: done for name, done in result.turns.items() if name not in wrong}
    return result


def _exact(request: Request, reference: Run, result: Result, runner: Runner) -> Run:
    """featx's exact features, compared with the script's: the torch engine's, then its own."""
    exact = replace(request, peer="featx", options=(*_EXACT, *request.options))
    if has_option("engine"):
        torch = replace(exact, options=(*_EXACT, "--engine", "torch-eager"))
        what, bound = "exact, torch engine", TORCH_BOUND if request.device == "cpu" else FP32_BOUND
        _judge(result, compare("featx", runner(torch), reference, bound, what=what))
        what, bound = "exact", FP32_BOUND
    else:  # there is but one engine, torch
        what, bound = "exact", TORCH_BOUND if request.device == "cpu" else FP32_BOUND
    done = runner(exact)
    _judge(result, compare("featx", done, reference, bound, what=what))
    return done


def _compare_turn(name: str, done: Run, reference: Run, request: Request, result: Result) -> None:
    """Judge the features of one timed run."""
    reduced = name.endswith("-amp")
    if name.startswith("featx"):
        found = compare(name, done, reference, FAST_BOUND, reduced=reduced)
    elif name == "img2vec":
        if done.paths == reference.paths:  # its features are others, and were compared before
            return
        found = Comparison(name, "other images", "relative", np.inf, FP32_BOUND)
    else:
        reduced = reduced or request.device == "cuda"  # convolutions are in TF32 by default
        found = compare(name, done, reference, FP32_BOUND, reduced=reduced)
    _judge(result, found)


def _judge(result: Result, comparison: Comparison) -> None:
    result.comparisons.append(comparison)
    if not comparison.ok:
        result.left_out[comparison.name] = f"{comparison}"


def _gemm(device: str, reduced: bool, result: Result) -> None:
    """Measure the rate of matrix products once more."""
    precisions: tuple[Precision, ...] = ("fp32", "fp16") if reduced else ("fp32",)
    for precision in precisions:
        rate = gemm_flops_per_s(resolve_device(device), precision, seconds=_GEMM_S)
        result.gemm[precision] = max(rate, result.gemm.get(precision, 0.0))
