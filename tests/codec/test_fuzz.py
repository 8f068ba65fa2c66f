"""Forged files: a picture of the stated size, or one line. `DCAE_FUZZ=100000` tries more of them."""

import os
import random

from dcae_lib.codec.bitstream import CorruptStream, Header, pack

TRIES = int(os.environ.get("DCAE_FUZZ", "150"))


def test_forged_payloads_decode_to_the_stated_size_or_are_corrupt(codec, images):
    rng, pictures, other = random.Random(1), 0, codec.compress(images[0], 50)[4:-4]
    for _ in range(TRIES):
        header = Header(rng.randint(1, 12), rng.randint(1, 12), rng.choice([0, 0, 1, 3]), rng.randint(0, 100))
        noise, repeated = rng.randbytes(rng.randrange(400)), bytes([rng.choice([0, 255])]) * rng.randrange(200)
        try:
            picture = codec.decompress(pack(header, rng.choice([noise, repeated, other]), codec.identity))
        except CorruptStream as error:
            assert str(error) == "not a valid payload for this model"
        else:
            assert picture.shape == ((header.images,) if header.images else ()) + (3, *header[:2])
            pictures += 1
    assert 0 < pictures < TRIES
