"""Whatever bytes a decoder is given: the picture that was written, or a sentence. `DCAE_FUZZ=100000` tries more of them."""

import os
import random
import sys
import time
import zlib

import pytest
import torch

from dcae_lib import Codec, load_images
from dcae_lib.codec.bitstream import MOST_PIXELS, CorruptStream, Header, pack, unpack

TRIES = int(os.environ.get("DCAE_FUZZ", "2000"))


def peak_kib():
    """The most memory that this process has held."""
    resource = pytest.importorskip("resource")              # Windows has none
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 if sys.platform == "darwin" else peak


@pytest.fixture(scope="module")
def codec():
    return Codec.from_pretrained()


@pytest.fixture(scope="module")
def streams(codec):
    x = load_images("sample").test.images
    return [codec.compress(x[0], 0), codec.compress(x[1], 50), codec.compress(x[2, :, :9, :30], 100), codec.compress(x[3:5], 20)]


def flip(rng, data, _):
    data = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def cut(rng, data, _):
    a, b = sorted(rng.randrange(len(data) + 1) for _ in "ab")
    return rng.choice([data[:a], data[a:], data[:a] + data[b:], data[a:b]])


def insert(rng, data, _):
    a = rng.randrange(len(data) + 1)
    return data[:a] + rng.choice([rng.randbytes(rng.randint(1, 9)), bytes(rng.randint(1, 9))]) + data[a:]


def duplicate(rng, data, _):
    a, b = sorted(rng.randrange(len(data) + 1) for _ in "ab")
    return data[:b] + data[a:b] * rng.randint(1, 3) + data[b:]


def swap(rng, data, _):
    a, b, c = sorted(rng.randrange(len(data) + 1) for _ in "abc")
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def splice(rng, data, other):
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def noise(rng, data, _):
    return data[: rng.randrange(5)] + rng.randbytes(rng.randrange(300))


def header(rng, data, _):
    return data[: rng.randint(1, 3)] + rng.choice([b"\xff", b"\x80", b"\0"]) * rng.randint(1, 12) + data[rng.randint(3, 9) :]


def test_a_changed_stream_is_refused_within_a_second_and_never_read_as_another_picture(codec, streams):
    rng, pictures, unchanged = random.Random(0), [codec.decompress(data) for data in streams], 0
    for _ in range(TRIES):
        k = rng.randrange(len(streams))
        data = streams[k]
        for _ in range(rng.choice([1, 1, 1, 2, 5])):
            data = rng.choice([flip, cut, insert, duplicate, swap, splice, noise, header])(rng, data, rng.choice(streams))
            data = data or b"\0"
        start = time.process_time()
        try:
            picture = codec.decompress(data)
        except ValueError as error:                         # of which the three kinds of the codec are
            assert str(error) and "\n" not in str(error) and data not in streams
        else:
            assert data in streams, data.hex()
            assert torch.equal(picture, pictures[streams.index(data)])
            unchanged += 1
        assert time.process_time() - start < 1, data.hex()
    assert unchanged < TRIES / 10                           # nearly all of them were changed indeed


def payloads(rng, streams):
    """Noise, one byte again and again, none, and what was written for another picture."""
    return rng.choice([
        rng.randbytes(rng.randrange(400)), bytes([rng.randrange(256)]) * rng.randrange(60), b"\xff" * rng.randrange(200), b"",
        streams[rng.randrange(len(streams))][6:-4],
    ])


def test_a_forged_stream_is_a_picture_of_the_size_that_it_says_or_corrupt(codec, streams):
    rng, pictures = random.Random(1), 0
    before = peak_kib()
    for k in range(150):
        H, W = (rng.randint(1, 12), rng.randint(1, 12)) if k % 15 else (rng.randint(1, 40), rng.randint(1, 40))
        said = Header(H, W, rng.choice([0, 0, 1, 3]), rng.randint(0, 100))
        data = pack(said, payloads(rng, streams), codec.identity)
        start = time.process_time()
        try:
            picture = codec.decompress(data)
        except CorruptStream as error:
            assert str(error) == "the coded latents are none that the model could have written"
        else:
            assert picture.shape == ((said.images,) if said.images else ()) + (3, H, W) and picture.dtype == torch.uint8
            pictures += 1
        assert time.process_time() - start < 5, data.hex()
    assert 0 < pictures < 150
    assert peak_kib() - before < 300_000


def test_a_forged_header_of_any_bytes_is_never_more_than_the_format_allows(codec):
    rng = random.Random(2)
    size = pack(Header(1, 1, 1, 0), b"", codec.identity)[:3]
    for _ in range(3000):
        body = size + bytes(rng.choice([0, 1, 127, 128, 255, rng.randrange(256)]) for _ in range(rng.randrange(14)))
        try:
            found, _ = unpack(forged(body, codec.identity), codec.identity)
        except CorruptStream:
            continue
        assert 0 < found.height * found.width * max(found.images, 1) <= MOST_PIXELS and found.quality <= 100


def forged(body, model):
    """Any bytes with the checksum of a model: that of zlib, as everybody has it."""
    return body + zlib.crc32(body, zlib.crc32(model)).to_bytes(4, "little")


@pytest.mark.parametrize("size", ["01 81808020 00", "81808020 01 00", "8040 8140 00", "01 01 81808020", "ffffffff0f ffffffff0f 01"])
def test_a_forged_header_of_too_many_pixels_is_refused_at_once(size, codec):
    data = forged(codec.compress(torch.zeros(3, 1, 2, dtype=torch.uint8))[:2] + b"\0" + bytes.fromhex(size) + b"\x32", codec.identity)
    start = time.process_time()
    for read in (codec.decompress, lambda data: codec.decompress_each([data])):
        with pytest.raises(CorruptStream, match="megapixels at most"):
            read(data)
    assert time.process_time() - start < 0.2
