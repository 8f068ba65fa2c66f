"""An explorer of each kind, built once, and the model, latents and codec behind them."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from dcae_lib import DCAE, Codec, explore, load_images, plots, to_model
from dcae_lib.explore import latents

sys.path.insert(0, str(Path(__file__).parent))

from inspection import RECORD, all_controls


class Course:
    def __init__(self):
        self.model, self.codec, self.images = DCAE.from_pretrained(), Codec.from_pretrained(), load_images().test
        self.x = to_model(self.images.images)
        self.z, self.built = latents.encode_all(self.model, self.x), {}

    def __getitem__(self, name):
        if name not in self.built:
            others = {"upload": (self.model,), "budget": (self.codec, self.images, RECORD)}
            self.built[name] = getattr(explore, name)(*others.get(name, (self.model, self.images)))
        return self.built[name]

    def decode(self, z):
        return latents.decode_all(self.model, z[None])[0].clamp(-1, 1)


@pytest.fixture(scope="package")
def course():
    with plt.rc_context():
        plots.use_style()
        yield Course()


@pytest.fixture
def explorer(request, course):
    """The explorer named by the parameter; its controls go back to their values afterwards."""
    explorer = course[request.param]
    values = [(control, control.value) for control in all_controls(explorer)]
    yield explorer
    for control, value in values:
        control.value = value
    assert explorer.message.value == ""
