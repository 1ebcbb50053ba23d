"""Every image mode has one rule by which it becomes 8-bit RGB.

Level 0: an open Pillow image in, an array out; no files.
"""

from __future__ import annotations

import importlib

import numpy as np
from PIL import Image


def rgb_of(image: Image.Image) -> np.ndarray:
    """Return the RGB pixels of an image of any mode.

    ================================= ==========================================================
    1, L                              the gray value in all three channels
    RGB, P                            as they are; palette colours looked up
    LA, La, PA, RGBA, RGBa,           over white, so that what hides under transparent pixels
    a transparent palette or colour   does not show
    CMYK (YCCK), YCbCr, HSV, RGBX     Pillow's conversion
    LAB                               to sRGB by LittleCMS
    I;16, I;16B, I;16L, I;16N         the high byte, as Pillow reads 16-bit RGB
    I (32 bit)                        values within 0..255 as they are; within 0..65535 the high
                                      byte; else stretched from lowest..highest to 0..255
    F                                 within 0..1 times 255; within 0..255 as they are; else
                                      stretched; NaN and infinities are 0
    ================================= ==========================================================

    Parameters
    ----------
    image : loaded, or loaded here; not changed otherwise.

    Returns
    -------
    (h, w, 3) uint8 array
        RGB, 0 to 255, C-contiguous and writable.

    Raises
    ------
    ValueError
        For a mode Pillow cannot convert.

    Examples
    --------
    >>> rgb_of(Image.new("I;16", (1, 1), 0x1234)).tolist() == [[[0x12, 0x12, 0x12]]]
    True
    """
    mode = image.mode
    key = image.info.get("transparency")
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or (mode == "P" and image.has_transparency_data):
        return _over_white(image)
    if mode.startswith("I;16"):
        values = np.asarray(image)
        gray = (values >> 8).astype(np.uint8)
        if isinstance(key, int):  # the PNG's transparent gray
            gray[values == key] = 255
        return _three(gray)
    if mode == "I":
        return _three(_gray_of_int32(np.asarray(image)))
    if mode == "F":
        return _three(_gray_of_float32(np.asarray(image)))
    if mode == "LAB":
        return _lab_to_rgb(image)
    pixels = np.array(image if mode == "RGB" else image.convert("RGB"))
    if key is not None and mode in ("1", "L", "RGB"):
        pixels[_has_colour(pixels, key, mode)] = 255
    return pixels


def grey_of(pixels: np.ndarray) -> np.ndarray:
    """Return the grey pixels of RGB ones, by Pillow's rule of mode L.

    L = (19595 R + 38470 G + 7471 B + 2^15) / 2^16, cut off: ITU-R 601-2 luma. Grey stays as it is.

    Parameters
    ----------
    pixels : (h, w, 3) uint8 RGB.

    Returns
    -------
    (h, w, 1) uint8 array
        C-contiguous and writable.

    Examples
    --------
    >>> grey_of(np.array([[[255, 0, 0], [7, 7, 7]]], np.uint8)).tolist()
    [[[76], [7]]]
    """
    return np.array(Image.fromarray(pixels).convert("L"))[..., np.newaxis]


def _over_white(image: Image.Image) -> np.ndarray:
    # copy: converting a palette with transparency writes alpha into the image's own palette
    straight = image.copy() if image.mode in ("P", "PA") else image
    if image.mode == "La":  # premultiplied gray, which Pillow converts to LA only
        straight = image.convert("LA")
    rgba = straight.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return np.array(Image.alpha_composite(white, rgba).convert("RGB"))


def _has_colour(pixels: np.ndarray, key: object, mode: str) -> np.ndarray:
    """Return (h, w) bool: which pixels have the colour a PNG or GIF declares transparent."""
    if isinstance(key, int):
        colour = np.full(3, key * 255 if mode == "1" else key)
    elif isinstance(key, tuple) and len(key) == 3:
        # the colour of a 16-bit PNG has 16 bits, of which Pillow keeps the high byte
        colour = np.array([v >> 8 for v in key] if max(key) > 255 else key)
    else:
        return np.zeros(pixels.shape[:2], bool)
    return np.asarray((pixels == colour).all(axis=2))


def _three(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[:, :, np.newaxis], 3, axis=2)


def _gray_of_int32(values: np.ndarray) -> np.ndarray:
    low, high = int(values.min()), int(values.max())
    if low >= 0 and high <= 255:
        return values.astype(np.uint8)
    if low >= 0 and high <= 65535:
        return (values >> 8).astype(np.uint8)
    return _stretched(values, low, high)


def _gray_of_float32(values: np.ndarray) -> np.ndarray:
    finite = np.isfinite(values)
    if not finite.all():
        values = np.where(finite, values, np.float32(0))
    seen = values[finite]
    low, high = (float(seen.min()), float(seen.max())) if seen.size else (0.0, 0.0)
    if low >= 0 and high <= 255:
        gray = np.rint(values * 255 if high <= 1 else values).astype(np.uint8)
    else:
        gray = _stretched(values, low, high)
    gray[~finite] = 0
    return gray


def _stretched(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return values with low..high mapped to 0..255; a single value is 0."""
    # float64: the range of 32-bit numbers overflows or drowns in rounding otherwise
    scaled = (values.astype(np.float64) - low) * 255 / ((high - low) or 1.0)
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def _lab_to_rgb(image: Image.Image) -> np.ndarray:
    image_cms = importlib.import_module("PIL.ImageCms")
    transform = image_cms.buildTransform(
        image_cms.createProfile("LAB"), image_cms.createProfile("sRGB"), "LAB", "RGB"
    )
    return np.array(image_cms.applyTransform(image, transform))
