"""The device of all tests, a Ctrl-C that stops them, and a small run that several of them read."""

import os
import shutil
import signal

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image
from several import CONFIG, PICTURES

from dcae_lib import TrainConfig, train

os.environ["DCAE_DEVICE"] = "cpu"  # on which runs repeat bit for bit; also of the processes that tests start
settings.register_profile("dcae", deadline=None, derandomize="DCAE_FUZZ" not in os.environ)  # always the same examples
settings.load_profile("dcae")


@pytest.fixture(scope="session", autouse=True)
def ctrl_c():
    """Have Ctrl-C stop Python, and what it starts, even where the tests run in the background of a script."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Twenty images of one size."""
    folder = tmp_path_factory.mktemp("pictures")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    for k, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{k}.png")
    return folder


@pytest.fixture(scope="session")
def trained(folder, tmp_path_factory):
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("trained") / "run"
    model = dict(channels=(4, 8), latent_channels=4, groups=4)
    train(TrainConfig(dataset=str(folder), epochs=2, batch_size=6, device="cpu", model=model), out)
    return out


@pytest.fixture
def run(trained, tmp_path):
    """A copy of that folder."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture(scope="session")
def whole():
    """A run that was never stopped."""
    return train(CONFIG, splits=PICTURES)


@pytest.fixture
def one_thread():
    """Compute on one thread during a test."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def float64_by_default():
    """Let torch make float64 of what has no type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
