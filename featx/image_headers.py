"""Sizes that headers tell, for formats whose decoder takes memory before it can be asked.

Level 0: bytes in, numbers out.
"""

from __future__ import annotations

import struct


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a WebP picture, or None where the header tells none.

    libwebp's decoder of animations, which Pillow uses for all WebP, reserves two canvases when it
    is made. Source: RFC 9649, 2.5 to 2.7 (VP8, VP8L and VP8X chunks).
    """
    kind, body = data[12:16], data[20:30]
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(body) < 10:
        return None
    if kind == b"VP8X":
        sides = body[4:7] + b"\0" + body[7:10] + b"\0"
        w, h = struct.unpack("<II", sides)
        return w + 1, h + 1
    if kind == b"VP8L" and body[0] == 0x2F:
        (bits,) = struct.unpack("<I", body[1:5])
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        w, h = struct.unpack("<HH", body[6:10])
        return w & 0x3FFF, h & 0x3FFF
    return None
