"""The codecs of Pillow: files that are what they claim to be, and the bytes they share."""

import io

import pytest
import torch
from PIL import Image, features

from dcae_lib import to_model
from dcae_lib.codec.compare import SETTINGS, decode, encode
from dcae_lib.metrics import psnr


@pytest.mark.parametrize("name", SETTINGS)
def test_files_have_their_format_and_improve_with_quality(name, images):
    if name == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow cannot write AVIF")
    x = images[0]
    low, high = (encode(name, x, quality) for quality in (10, 90))
    assert len(low) < len(high) and Image.open(io.BytesIO(low)).format == SETTINGS[name]["format"]
    scores = [psnr(to_model(decode(data))[None], to_model(x)[None]) for data in (low, high)]
    assert decode(low).dtype == torch.uint8 and scores[0] < scores[1] and scores[1] > 30
