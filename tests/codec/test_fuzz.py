"""Damaged and forged files: the picture that was written, or one line. `DCAE_FUZZ=100000` tries more of them."""

import os
import random

import torch

from dcae_lib.codec.bitstream import CorruptStream, Header, pack

TRIES = int(os.environ.get("DCAE_FUZZ", "2000"))


def mutate(rng, data, other):
    """Flip bits, or cut, insert, repeat, swap, splice or overwrite parts."""
    a, b, c = sorted(rng.randrange(len(data) + 1) for _ in "abc")
    flipped = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    noise = rng.choice([rng.randbytes(rng.randint(1, 9)), bytes(rng.randint(1, 9)), b"\xff" * rng.randint(1, 12)])
    return rng.choice(
        [
            bytes(flipped),
            *(data[:a], data[a:], data[:a] + data[b:], data[a:b]),
            data[:a] + noise + data[rng.choice([a, b]) :],
            data[:b] + data[a:b] * rng.randint(1, 3) + data[b:],
            data[:a] + data[b:c] + data[a:b] + data[c:],
            data[:a] + other[rng.randrange(len(other) + 1) :],
            data[: rng.randrange(5)] + rng.randbytes(rng.randrange(300)),
            data[: rng.randint(1, 3)] + noise + data[rng.randint(3, 9) :],
        ]
    )


def test_damaged_files_are_refused_and_never_decode_differently(codec, images):
    rng, unchanged = random.Random(0), 0
    pictures = [(images[0], 0), (images[1], 50), (images[2, :, :9, :30], 100), (images[3:5], 20)]
    files = [codec.compress(*picture) for picture in pictures]
    decoded = dict(zip(files, codec.decompress_each(files)))
    for _ in range(TRIES):
        data = rng.choice(files)
        for _ in range(rng.choice([1, 1, 1, 2, 5])):
            data = mutate(rng, data, rng.choice(files)) or b"\0"
        try:
            picture = codec.decompress(data)
        except ValueError as error:
            assert str(error) and "\n" not in str(error) and data not in decoded
        else:
            assert torch.equal(picture, decoded[data]), data.hex()
            unchanged += 1
    assert unchanged < TRIES / 10


def test_forged_payloads_decode_to_the_stated_size_or_are_corrupt(codec, images):
    rng, pictures, other = random.Random(1), 0, codec.compress(images[0], 50)[4:-4]
    for _ in range(150):
        header = Header(rng.randint(1, 12), rng.randint(1, 12), rng.choice([0, 0, 1, 3]), rng.randint(0, 100))
        noise, repeated = rng.randbytes(rng.randrange(400)), bytes([rng.choice([0, 255])]) * rng.randrange(200)
        try:
            picture = codec.decompress(pack(header, rng.choice([noise, repeated, other]), codec.identity))
        except CorruptStream as error:
            assert str(error) == "not a valid payload for this model"
        else:
            assert picture.shape == ((header.images,) if header.images else ()) + (3, *header[:2])
            pictures += 1
    assert 0 < pictures < 150
