"""The embedded sample and folders of images as sets."""

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

from dcae_lib import load_images
from dcae_lib.data import DataError
from dcae_lib.files import resource


def test_the_sample_is_balanced_and_has_the_recorded_hashes():
    record = json.loads((resource("sample") / "sample.json").read_text())
    for (split, images), N in zip(load_images()._asdict().items(), (2000, 500)):
        assert images.images.shape == (N, 3, 32, 32) and images.images.dtype == torch.uint8 and len(images) == N
        assert torch.equal(images.labels, torch.arange(N) % 10)
        pixels = images.images.permute(0, 2, 3, 1).numpy().tobytes()
        assert hashlib.sha256(pixels).hexdigest() == images.sha256 == record[split]["sha256"]


def stripes(*colors, width=32, height=32):
    """Vertical stripes, equally wide."""
    image = Image.new("RGB", (width, height))
    for i, color in enumerate(colors):
        image.paste(color, (i * width // len(colors), 0, width, height))
    return image


def twice(folder, image):
    """A folder needs two images."""
    for name in "ab":
        image.save(folder / f"{name}.png")
    return folder


def loaded(folder, *arguments):
    return torch.cat([split.images for split in load_images(folder, *arguments)])


@pytest.mark.parametrize("size, shape", [(24, (24, 24)), ((16, 40), (16, 40)), ((40, 16), (40, 16))])
def test_images_of_all_formats_and_sizes_become_one_array(tmp_path, size, shape):
    (tmp_path / "deep").mkdir()
    for i, name in enumerate(["a.png", "b.jpg", "c.JPEG", "d.bmp", "e.webp", "f.tif", "deep/g.ppm"]):
        stripes((200, 100, 50), width=20 + 9 * i, height=50 - 5 * i).save(tmp_path / name)
    x = loaded(tmp_path, size)
    assert x.shape == (7, 3, *shape)
    assert (x.float() - torch.tensor([200, 100, 50]).view(3, 1, 1)).abs().max() <= 3  # JPEG and WebP lose a little


def test_crop_cuts_the_centre(tmp_path):
    twice(tmp_path, stripes("red", "lime", "lime", "blue", width=64))
    assert (loaded(tmp_path, 32) == torch.tensor([0, 255, 0]).view(3, 1, 1)).all()


def test_images_of_one_size_stay_as_they_are(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 28, 3), np.uint8)
    monkeypatch.chdir(twice(tmp_path, Image.fromarray(pixels)))
    splits = load_images(".")
    assert all((split.images[0].permute(1, 2, 0).numpy() == pixels).all() for split in splits)
    assert splits.train.labels is splits.test.labels is None
    assert [split.name for split in splits] == [f"{tmp_path.name} train", f"{tmp_path.name} test"]


def test_the_test_set_is_the_same_tenth_every_time(tmp_path):
    for i in range(30):
        stripes((i, 0, 0)).save(tmp_path / f"{i:02}.png")
    train, test = (split.images[:, 0, 0, 0].tolist() for split in load_images(tmp_path))
    assert test == [13, 14, 23] and train == sorted({*range(30)} - {*test})


@pytest.mark.parametrize(
    "images, message",
    [
        ([stripes("red")], "holds fewer than two images"),
        ([stripes("red"), stripes("red", width=40, height=20)], r".*1.png is 20×40, but .*0.png is 32×32; say size="),
        (
            [stripes("red"), Image.fromarray(np.full((32, 32), 9999, np.uint16))],
            ".*1.png cannot .*more than 8 bits",
        ),
    ],
)
def test_what_spoils_a_folder_is_named(tmp_path, images, message):
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
    with pytest.raises(DataError, match=f"^{tmp_path}.*{message}"):
        load_images(tmp_path)
    with pytest.raises(DataError, match="cifar100 is not a folder"):
        load_images("cifar100")


def test_a_folder_may_lie_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(twice(tmp_path, stripes("red"))))
    assert len(load_images("~").train) == 1
