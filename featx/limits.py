"""What this machine could do at best: matrix products, bare decoding, plain writing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from featx.cache import Disk
from featx.decoding import DecodeOptions, decode, jpeg_module
from featx.devices import Device, Precision
from featx.engines.eager import arithmetic

_SIDE: Final = {"cpu": 2048, "mps": 4096, "cuda": 8192}  # large enough for each one's full rate
_LEAST_PRODUCTS: Final = 3
_TYPE: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}


def gemm_precision(device: Device, precision: Precision) -> Precision:
    """What the products are computed in: the engine's precision, on the CPU always fp32.

    Many processors compute bf16 more slowly than fp32, which would be no roof.
    """
    return "fp32" if device.kind == "cpu" else precision


def gemm_flops_per_s(device: Device, precision: Precision, *, seconds: float) -> float:
    """Floating-point operations per second of products of large square matrices, the fastest.

    Parameters
    ----------
    device, precision : where, and in which arithmetic.
    seconds : for how long products are tried; at least three are.
    """
    side, where = _SIDE[device.kind], torch.device(device.name)
    factors = torch.rand(2, side, side, device=where).to(_TYPE.get(precision, torch.float32))
    a, b = factors
    times: list[float] = []
    with torch.inference_mode(), arithmetic(where, precision):
        product = torch.mm(a, b)  # not timed: the first one sets things up
        until = time.perf_counter() + seconds
        while len(times) < _LEAST_PRODUCTS or time.perf_counter() < until:
            _finish(device)
            begun = time.perf_counter()
            torch.mm(a, b, out=product)
            _finish(device)
            times.append(time.perf_counter() - begun)
    return 2 * side**3 / min(times)


def _finish(device: Device) -> None:
    """Wait for what was asked of an accelerator."""
    if device.kind == "cuda":
        torch.cuda.synchronize(device.name)
    elif device.kind == "mps":
        torch.mps.synchronize()


def flops_per_image(front: torch.nn.Module, input_shape: tuple[int, int, int]) -> int:
    """Floating-point operations for one image; a multiply-add counts as two.

    Convolutions and matrix products only, as `torch.utils.flop_counter` counts them. PyTorch's
    fused attention is set aside meanwhile, because its products are not counted.

    Parameters
    ----------
    front : in evaluation mode, normalised pixels (n, c, h, w) to features.
    input_shape : (c, h, w).
    """
    device = next((tensor.device for tensor in front.parameters()), torch.device("cpu"))
    image = torch.zeros((1, *input_shape), device=device)
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as count:
            front(image)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return int(count.get_total_flops())


def bare_decoder() -> str:
    """The name of what `decode_bare` decodes JPEG with."""
    return "Pillow" if jpeg_module() is None else "simplejpeg"


def decode_bare(data: bytes) -> Any:
    """The pixels of a file's bytes by its decoder alone: not turned, resized or hashed.

    JPEG by simplejpeg where it is installed and takes the file; everything else by Pillow.

    Raises
    ------
    ImageError
        No decoder takes it.
    """
    simplejpeg = jpeg_module()
    if simplejpeg is not None and data[:2] == b"\xff\xd8":
        try:
            return simplejpeg.decode_jpeg(data, "RGB", strict=True)
        except (ValueError, MemoryError, RuntimeError):  # as featx.decoding: left to Pillow
            pass
    return decode(data, DecodeOptions(exif=False), fast=False)


def plain_write_s(path: Path, data: bytes) -> float:
    """Seconds to write `data` to a new file from its start to its end, and to force it to disk.

    Raises
    ------
    OSError
        It cannot be written.
    """
    disk = Disk()
    begun = time.perf_counter()
    fd = disk.create(path)
    try:
        disk.write(fd, data, 0)
        disk.sync(fd)
    finally:
        disk.close(fd)
    return time.perf_counter() - begun
