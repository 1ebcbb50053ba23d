"""What the machine could do at best: the counting is right, and the rates are rates."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from featx import limits
from featx.backbones import load_backbone
from featx.cut import build_front
from featx.devices import resolve_device
from featx.errors import ImageError


def jpeg(image: Image.Image, kind: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=kind)
    return stream.getvalue()


def noise(h: int = 30, w: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (h, w, 3), dtype=np.uint8))


def test_a_multiply_add_counts_as_two_operations() -> None:
    network = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.Flatten(), nn.Linear(5 * 36, 7))
    products = 5 * 36 * 3 * 9 + 5 * 36 * 7
    assert limits.flops_per_image(network.eval(), (3, 8, 8)) == 2 * products
    assert limits.flops_per_image(nn.Identity(), (3, 8, 8)) == 0


def test_the_products_of_attention_are_counted() -> None:
    backbone = load_backbone("vit_b_16", weights="random")
    front = build_front(backbone.network, cut="penultimate", pool="auto")
    before = torch.backends.mha.get_fastpath_enabled()
    counted = limits.flops_per_image(front, (3, 224, 224))
    assert torch.backends.mha.get_fastpath_enabled() == before
    d, tokens, layers = 768, 197, 12
    each = 2 * tokens * d * (4 * d + 2 * 4 * d) + 2 * 2 * tokens**2 * d  # linear layers, attention
    assert counted == layers * each + 2 * 196 * (3 * 16 * 16) * d


def test_products_are_of_fp32_on_the_cpu_and_their_rate_is_finite(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu = resolve_device("cpu")
    assert limits.gemm_precision(cpu, "bf16") == "fp32"
    monkeypatch.setitem(limits._SIDE, "cpu", 64)
    rate = limits.gemm_flops_per_s(cpu, "fp32", seconds=0.01)
    assert math.isfinite(rate)
    assert rate > 0


def test_the_bare_decoder_gives_the_whole_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    image = noise()
    png = limits.decode_bare(jpeg(image, "PNG"))
    assert np.array_equal(png, np.asarray(image))
    assert limits.bare_decoder() == "simplejpeg"
    by_simplejpeg = limits.decode_bare(jpeg(image))
    gray = limits.decode_bare(jpeg(image.convert("CMYK")))  # which simplejpeg does not take as RGB
    assert by_simplejpeg.shape == gray.shape == (30, 40, 3)
    monkeypatch.setattr(limits, "jpeg_module", lambda: None)
    assert limits.bare_decoder() == "Pillow"
    assert np.array_equal(limits.decode_bare(jpeg(image)), by_simplejpeg)
    with pytest.raises(ImageError, match="not a picture"):
        limits.decode_bare(b"this is a text, not a picture")


def test_plain_writing_writes_all(tmp_path: Path) -> None:
    assert limits.plain_write_s(tmp_path / "a", b"hello") > 0
    assert (tmp_path / "a").read_bytes() == b"hello"
    with pytest.raises(FileExistsError):
        limits.plain_write_s(tmp_path / "a", b"again")
