"""Pictures that several tests train on, and the device of all tests: the one on which runs repeat bit for bit."""

import os

import numpy as np
import pytest
from PIL import Image

os.environ["DCAE_DEVICE"] = "cpu"                           # also of the processes that tests start


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Twenty images of one size."""
    folder = tmp_path_factory.mktemp("pictures")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    for k, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{k}.png")
    return folder
