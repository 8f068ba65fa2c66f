"""The file format: a header, the range coder's bytes and a checksum; and an error for every file that is not in it.

1 byte    magic number and version: 0xD2
1 byte    first byte of the model's SHA-256
1 byte    side of a single square image of 1 to 255 pixels, or 0; then follow, little-endian,
          2 bytes height, 2 bytes width, and 4 bytes number of images, or 0 for a single image that is not a batch
1 byte    quality, 0 to 100
…         bytes of the range coder, without trailing zero bytes
4 bytes   CRC-32 of the model's whole SHA-256 and all preceding bytes, little-endian
"""

import struct
import zlib
from typing import NamedTuple

MAGIC = 0xD0  # upper half of the first byte
VERSION = 2  # lower half; version 1 coded tiles of 32×32, each on its own
SIZE = struct.Struct("<HHI")
MAX_SIDE = 2**16 - 1
MAX_PIXELS = 2**26  # of all images in a file: bounds the memory that it can ask for


class CorruptStream(ValueError):
    """The bytes are not what a codec wrote: truncated, damaged, or not a compressed image."""


class Header(NamedTuple):
    height: int
    width: int
    images: int  # 0: a single image that is not a batch
    quality: int


def pack(header: Header, payload: bytes, model: bytes) -> bytes:
    """Return a file's bytes: header, payload and checksum. `model` is the SHA-256 of the weights."""
    H, W, count, quality = header
    size = bytes([H]) if H == W <= 255 and count == 0 else b"\0" + SIZE.pack(H, W, count)
    body = bytes([MAGIC | VERSION, model[0]]) + size + bytes([quality]) + payload
    return body + zlib.crc32(body, zlib.crc32(model)).to_bytes(4, "little")


def unpack(data: bytes, model: bytes) -> tuple[Header, bytes]:
    """Return header and payload, checksum verified.

    Raises CorruptStream, and a plain ValueError for what another model, or another version of the codec, wrote.
    """
    if len(data) < 8:
        raise CorruptStream(f"a compressed image has at least 8 bytes, this has {len(data)}")
    if data[0] & 0xF0 != MAGIC:
        raise CorruptStream(f"not a compressed image: it begins with 0x{data[0]:02X}, not 0x{MAGIC | VERSION:X}")
    if data[0] & 0x0F != VERSION:
        wrote = f"version {data[0] & 0x0F} of the codec" + " (dcae-lib 0.1)" * (data[0] & 0x0F == 1)
        raise ValueError(f"written by {wrote}, this is version {VERSION}: decompress it with the one that wrote it")
    if data[1] != model[0]:
        raise ValueError(f"written with another model, whose hash begins with {data[1]:02x}; load its own codec")
    body, checksum = data[:-4], int.from_bytes(data[-4:], "little")
    if zlib.crc32(body, zlib.crc32(model)) != checksum:
        raise CorruptStream("the checksum does not match: bytes were lost or changed, or another model wrote them")
    H = W = body[2]
    count, start = 0, 3
    if H == 0 and len(body) > 3 + SIZE.size:
        (H, W, count), start = SIZE.unpack_from(body, 3), 3 + SIZE.size
    if body[start] > 100:
        raise CorruptStream("the header holds no quality from 0 to 100")
    try:
        check_size(H, W, count)
    except ValueError as error:
        raise CorruptStream(f"invalid size in the header: {error}") from error
    return Header(H, W, count, body[start]), body[start + 1 :]


def check_size(H: int, W: int, count: int) -> None:
    """Raise ValueError for images without pixels, or with more than a file may hold."""
    if not H or not W:
        raise ValueError(f"images of {H}×{W} pixels: there is nothing to compress")
    if max(H, W) > MAX_SIDE or H * W * max(count, 1) > MAX_PIXELS:
        most = f"{MAX_PIXELS / 1e6:.0f} megapixels, no side above {MAX_SIDE:,}"
        raise ValueError(f"{max(count, 1)} × {H}×{W} pixels; a file holds at most {most}: split the images")
