"""The file: a header, the coder's bytes, a checksum; and what is said of a file that is not one.

    1 byte    magic and version: 0xD1
    1 byte    the first of the SHA-256 that names the model
    1 byte    the side of a single square image of 1 to 255 pixels, or 0; then three numbers follow, each in LEB128:
              height, width, and how many images there are, or 0 for one that is no batch
    1 byte    quality, 0 to 100
    …         what the range coder wrote, without zero bytes at its end
    4 bytes   CRC-32 of the model's whole SHA-256 and all the bytes before, little-endian
"""

import zlib
from typing import NamedTuple

MAGIC = 0xD0                                                # the upper half of the first byte
VERSION = 1                                                 # the lower
SHORTEST = 8
TILE = 32                                                   # the side of the squares that an image is coded in
MOST_PIXELS = 2**26                                         # of all tiles in a file: bounds what a forged header can ask for


class CorruptStream(ValueError):
    """These bytes are not what a codec wrote: cut, damaged, or of something else."""


class WrongModel(ValueError):
    """These bytes were written with other weights."""


class UnknownVersion(ValueError):
    """These bytes were written by a later version of the codec."""


class Header(NamedTuple):
    height: int
    width: int
    images: int             # 0: one image that is no batch
    quality: int


def pack(header: Header, payload: bytes, model: bytes) -> bytes:
    """Header, payload and checksum as the bytes of a file. `model`: the SHA-256 that names the weights."""
    H, W, count, quality = header
    check_size(H, W, count)
    square = H == W <= 255 and count == 0
    size = bytes([H]) if square else b"\0" + b"".join(map(_leb128, (H, W, count)))
    body = bytes([MAGIC | VERSION, model[0]]) + size + bytes([quality]) + payload
    return body + zlib.crc32(body, zlib.crc32(model)).to_bytes(4, "little")


def unpack(data: bytes, model: bytes) -> tuple[Header, bytes]:
    """The header and the payload. Raises CorruptStream, WrongModel or UnknownVersion; reads nothing that is not checked."""
    if len(data) < SHORTEST:
        raise CorruptStream(f"a compressed image has {SHORTEST} bytes at least, this has {len(data)}: it was cut, or is none")
    if data[0] & 0xF0 != MAGIC:
        raise CorruptStream(f"these bytes do not begin as a compressed image does, with 0x{MAGIC | VERSION:X}, but with 0x{data[0]:02X}")
    if data[0] & 0x0F != VERSION:
        raise UnknownVersion(f"written by version {data[0] & 0x0F} of the codec, this is version {VERSION}: update dcae_lib")
    if data[1] != model[0]:
        raise WrongModel(
            f"written with a model whose hash begins with {data[1]:02x}, this one's is {model.hex()[:8]}…; "
            "load the codec that wrote it"
        )
    body, checksum = data[:-4], int.from_bytes(data[-4:], "little")
    if zlib.crc32(body, zlib.crc32(model)) != checksum:
        raise CorruptStream("the checksum does not fit: the bytes were cut or changed, or another model wrote them")
    H = W = body[2]
    count, place = 0, 3
    if H == 0:
        H, place = _read_leb128(body, place)
        W, place = _read_leb128(body, place)
        count, place = _read_leb128(body, place)
    if place >= len(body) or body[place] > 100:
        raise CorruptStream("the header holds no quality from 0 to 100")
    try:
        check_size(H, W, count)
    except ValueError as error:
        raise CorruptStream(f"the header says {error}") from error
    return Header(H, W, count, body[place]), body[place + 1 :]


def check_size(H: int, W: int, count: int) -> None:
    """ValueError for images without pixels, or with more than a file may hold."""
    if not H or not W:
        raise ValueError(f"images of {H}×{W} pixels: there is nothing to compress")
    tiles = -(-H // TILE) * -(-W // TILE) * max(count, 1)
    if tiles * TILE**2 > MOST_PIXELS:
        raise ValueError(
            f"{max(count, 1)} × {H}×{W} pixels, a file holds {MOST_PIXELS / 1e6:.0f} megapixels at most, in whole tiles of "
            f"{TILE}×{TILE}: split them"
        )


def _leb128(n: int) -> bytes:
    """Seven bits to a byte, the lowest first; the top bit says that more follow."""
    out = b""
    while n >= 128:
        out += bytes([n % 128 + 128])
        n //= 128
    return out + bytes([n])


def _read_leb128(data: bytes, place: int) -> tuple[int, int]:
    """A number, and the place after it. Five bytes at most."""
    n = 0
    for k, byte in enumerate(data[place : place + 5]):
        n |= (byte & 127) << 7 * k
        if byte < 128:
            return n, place + k + 1
    raise CorruptStream("a number in the header does not end")
