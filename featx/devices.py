"""Which device runs a network, in which precision and batch size: fixed rules, never a timing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from featx.errors import InputError

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
PRECISIONS: Final[tuple[str, ...]] = get_args(Precision)

# Fixed batch shapes, so that the same command gives the same bits. 16 keeps a CPU busy and the
# activations of a 224-pixel network under 2 GB; 128 fills a current GPU without exhausting 8 GB.
_BATCH_SIZE: Final = {"cpu": 16, "mps": 32, "cuda": 128}
_DEVICE_FILES: Final = (
    "/dev/nvidiactl",
    "/dev/nvidia-uvm",
    "/dev/nvidia0",
    "/dev/nvmap",  # Jetson
    "/dev/kfd",  # AMD
    "/dev/dxg",  # in Windows' subsystem
)


@dataclass(frozen=True)
class Device:
    """A device that exists on this machine.

    Attributes
    ----------
    name : the device as PyTorch spells it: ``cpu``, ``mps``, ``cuda:0``.
    why : one clause for the user: how it was chosen.
    """

    name: str
    why: str

    @property
    def kind(self) -> str:
        """``cpu``, ``cuda`` or ``mps``."""
        return self.name.partition(":")[0]

    def __str__(self) -> str:
        return f"{self.name} ({self.why})"


def resolve_device(device: str = "auto") -> Device:
    """The device to use: `auto` takes CUDA, then MPS, then the CPU.

    Parameters
    ----------
    device : ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises
    ------
    InputError
        The name is none of these, or this machine has no such device.

    Examples
    --------
    >>> resolve_device("cpu").name
    'cpu'
    """
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (
        index and not (kind == "cuda" and index.isdecimal())
    ):
        raise InputError(f"device must be auto, cpu, cuda, cuda:N or mps, got {device!r}")
    if device == "cpu":
        return Device("cpu", "as asked")
    if device == "auto" and "torch" not in sys.modules and not _may_have_accelerator():
        return Device("cpu", "auto: no CUDA or MPS device found")
    import torch  # here, so that a bad name is told without waiting for the import

    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    has_mps = torch.backends.mps.is_available()
    if device == "auto":
        if n_gpus:
            return Device("cuda:0", f"auto: {torch.cuda.get_device_name(0)}")
        if has_mps:
            return Device("mps", "auto: Apple GPU; no CUDA device found")
        return Device("cpu", "auto: no CUDA or MPS device found")
    if kind == "cuda":
        number = int(index or 0)
        if number >= n_gpus:
            found = f"{n_gpus} CUDA device(s)" if n_gpus else "no CUDA device"
            raise InputError(
                f"device {device!r} was asked for, but this machine shows {found}; "
                "use --device auto or cpu, or see `featx doctor`"
            )
        return Device(f"cuda:{number}", torch.cuda.get_device_name(number))
    if kind == "mps" and not has_mps:
        raise InputError(
            "device 'mps' was asked for, but PyTorch finds no Apple GPU here; "
            "use --device auto or cpu, or see `featx doctor`"
        )
    return Device(kind, "as asked")


def _may_have_accelerator() -> bool:
    """Whether PyTorch could find a GPU; importing it to ask takes seconds.

    On Linux a GPU that programs can use is a device file.
    """
    if sys.platform != "linux":
        return True
    return any(Path(name).exists() for name in _DEVICE_FILES)


def check_precision(device: Device, precision: str | None = None) -> Precision:
    """The precision to compute in; fp32 on every device unless another is asked for.

    fp32 is the default because features are meant to equal the published network's; the faster
    ones change them (tf32 about 1e-3, bf16 about 1e-2 relative) and so enter the cache's spec.

    Raises
    ------
    InputError
        The name is unknown, or the device cannot compute in it: the CPU does fp32 and bf16, MPS
        fp32 and fp16, CUDA all four (tf32 and bf16 from compute capability 8.0).
    """
    if precision is None:
        return "fp32"
    if precision not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    able: dict[str, tuple[str, ...]] = {
        "cpu": ("fp32", "bf16"),
        "mps": ("fp32", "fp16"),
        "cuda": PRECISIONS,
    }
    if device.kind == "cuda" and precision in ("tf32", "bf16"):
        import torch

        if torch.cuda.get_device_capability(device.name) < (8, 0):
            able["cuda"] = ("fp32", "fp16")
    if precision not in able[device.kind]:
        raise InputError(
            f"precision {precision!r} is not available on {device.name}, which does "
            f"{' and '.join(able[device.kind])}; choose one of these or another --device"
        )
    return precision  # type: ignore[return-value]  # narrowed by the test against PRECISIONS


def torch_default_threads() -> int:
    """Threads that PyTorch computes with on the CPU where nobody says otherwise."""
    import torch

    return torch.get_num_threads()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let PyTorch compute with `count` CPU threads inside the block.

    The number matters to the bits: several threads add up their parts of a sum in another order
    than one does (MobileNetV2 and DenseNet differ in the seventh digit). A program that has not
    imported PyTorch is not made to.
    """
    if "torch" not in sys.modules:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def accelerator_name(device: Device) -> str:
    """What CUDA calls a device; empty for others."""
    if device.kind != "cuda":
        return ""
    import torch

    return torch.cuda.get_device_name(device.name)


def default_batch_size(device: Device) -> int:
    """Images per forward pass when none is asked for: 16 on the CPU, 32 on MPS, 128 on CUDA."""
    return _BATCH_SIZE[device.kind]
