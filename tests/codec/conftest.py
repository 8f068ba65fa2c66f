"""The shipped codec, and pictures for it."""

import math

import pytest
import torch

from dcae_lib import Codec, load_images
from dcae_lib.codec.context import ContextModel
from dcae_lib.data import read_picture
from dcae_lib.files import resource


@pytest.fixture(scope="session")
def codec():
    return Codec.from_pretrained()


@pytest.fixture(scope="session")
def images():
    return load_images("sample").test.images


@pytest.fixture(scope="session")
def cat():
    return read_picture(resource("photos") / "cat.webp")


@pytest.fixture(scope="session")
def random_context():
    """Build small context models whose inputs all matter; `spread` scales their means."""

    def build(seed=0, channels=4, groups=2, spread=1.0):
        torch.manual_seed(seed)
        model = ContextModel(channels, groups, hidden=8, anchors=3)
        for layer in (*model.first, *model.second, *model.third):
            torch.nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features))
            torch.nn.init.normal_(layer.bias, std=0.5)
        for layer in model.third:
            layer.weight.data[: layer.out_features // 2] *= spread
        torch.nn.init.normal_(model.quality)
        return model

    return build


@pytest.fixture(scope="session", params=[0, 50, 100])
def sampled(request, codec, images):
    """Fine latents of 200 images, their context in integers, and its mean and log scale in floats, at a quality."""
    *_, y = codec._latents(images[:200], request.param)
    with torch.no_grad():
        mean, log_scale = codec.thumbnails.contexts[-1](y, torch.full((len(y),), float(request.param)))
    return y, codec.contexts(32, 32, request.param)[-1], mean, log_scale
