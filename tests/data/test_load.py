"""Images as one array: pixels to floats and back, batches, the embedded sample, a folder of images."""

import hashlib
import io
import json
import os
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from dcae_lib import load_images, to_model, to_uint8
from dcae_lib.data.cifar10 import DataError
from dcae_lib.data import batches, read_picture
from dcae_lib.files import resource

# ---- pixels and batches


def test_all_256_values_survive_the_way_to_the_model_and_back():
    x = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_model(x)), x)
    assert to_model(x)[[0, 255]].tolist() == [-1, 1] and (to_model(x).diff() > 0).all()
    assert to_uint8(torch.tensor([-9.0, -1.001, 1.001, 9.0])).tolist() == [0, 0, 255, 255]


@settings(deadline=None)                                   # a busy core is no failure
@given(arrays(np.uint8, array_shapes(max_dims=4)).map(torch.from_numpy))
def test_arrays_of_any_shape_survive_the_way_to_the_model_and_back(x):
    assert torch.equal(to_uint8(to_model(x)), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_what_is_not_uint8_is_refused(dtype):
    with pytest.raises(ValueError, match=f"expected uint8 pixels, got {dtype}"):
        to_model(torch.zeros(1, 3, 4, 4, dtype=dtype))


COUNTED = torch.arange(25, dtype=torch.uint8).view(25, 1, 1, 1).expand(25, 3, 4, 4)      # image i has the value i


def drawn(batch_size, seed):
    return list(batches(COUNTED, batch_size, torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("batch_size, lengths", [(1, [1] * 25), (8, [8, 8, 8, 1]), (25, [25]), (99, [25])])
def test_an_epoch_holds_every_image_once_and_its_last_batch_may_be_short(batch_size, lengths):
    assert [len(x) for x in drawn(batch_size, seed=0)] == lengths
    x = torch.cat(drawn(batch_size, seed=0))
    assert torch.equal(x[x[:, 0, 0, 0].argsort()], to_model(COUNTED))


def test_the_generator_alone_decides_the_order():
    assert torch.equal(torch.cat(list(batches(COUNTED, 8))), to_model(COUNTED))
    assert all(map(torch.equal, drawn(8, seed=1), drawn(8, seed=1)))
    assert not torch.equal(torch.cat(drawn(8, seed=1)), torch.cat(drawn(8, seed=2)))


# ---- the embedded sample


def test_the_sample_is_balanced_in_turn_and_has_the_recorded_hashes():
    record = json.loads((resource("sample") / "sample.json").read_text())
    for (split, images), N in zip(load_images()._asdict().items(), (2000, 500)):
        assert images.images.shape == (N, 3, 32, 32) and images.images.dtype == torch.uint8 and len(images) == N
        assert torch.equal(images.labels, torch.arange(N) % 10)
        pixels = images.images.permute(0, 2, 3, 1).numpy().tobytes()
        assert hashlib.sha256(pixels).hexdigest() == images.sha256 == record[split]["sha256"]


def change_a_pixel(sheet):
    pixels = np.array(Image.open(sheet))
    pixels[100, 100, 1] ^= 1
    Image.fromarray(pixels).save(sheet)


@pytest.mark.parametrize("damage, message", [
    (change_a_pixel, "the train sheets in .* were changed"),
    (lambda sheet: sheet.unlink(), "cannot be read .*train-cat.png"),
    (lambda sheet: sheet.write_bytes(sheet.read_bytes()[:5000]), "cannot be read"),
    (lambda sheet: sheet.write_bytes(b"\x8f\x05! ".join(sheet.read_bytes().rsplit(b"IDAT", 1))), "cannot be read"),
], ids=["one pixel", "missing", "truncated", "broken chunk"])
def test_a_damaged_sample_is_refused(tmp_path, monkeypatch, damage, message):
    shutil.copytree(resource("sample"), tmp_path / "sample")
    monkeypatch.setattr("dcae_lib.data.resource", tmp_path.joinpath)
    assert len(load_images("sample").test) == 500
    damage(tmp_path / "sample" / "train-cat.png")
    with pytest.raises(DataError, match=message):
        load_images("sample")


# ---- a folder of images


def stripes(*colors, width=32, height=32):
    """Vertical stripes, equally wide."""
    image = Image.new("RGB", (width, height))
    for i, color in enumerate(colors):
        image.paste(color, (i * width // len(colors), 0, width, height))
    return image


def loaded(folder, *arguments):
    """All images of a folder, uint8 [N, 3, H, W], those of the test set last."""
    return torch.cat([split.images for split in load_images(folder, *arguments)])


def twice(folder, image, ending="png", **options):
    """A folder needs two images."""
    for name in "ab":
        image.save(folder / f"{name}.{ending}", **options)
    return folder


def encoded(image, format="PNG"):
    image.save(file := io.BytesIO(), format)
    return file.getvalue()


@pytest.mark.parametrize("fit", ["crop", "resize"])
@pytest.mark.parametrize("size, shape", [(24, (24, 24)), ((16, 40), (16, 40)), ((40, 16), (40, 16))])
def test_images_of_all_formats_and_sizes_become_one_array(tmp_path, size, shape, fit):
    (tmp_path / "deep").mkdir()
    for i, name in enumerate(["a.png", "b.jpg", "c.JPEG", "d.bmp", "e.webp", "f.tif", "deep/g.ppm"]):
        stripes((200, 100, 50), width=20 + 9 * i, height=50 - 5 * i).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    x = loaded(tmp_path, size, fit)
    assert x.shape == (7, 3, *shape) and x.dtype == torch.uint8
    assert (x.float() - torch.tensor([200, 100, 50]).view(3, 1, 1)).abs().max() <= 3        # JPEG and WebP lose a little


def test_crop_cuts_the_centre_and_resize_keeps_the_edges(tmp_path):
    twice(tmp_path, stripes("red", "lime", "lime", "blue", width=64))
    assert (loaded(tmp_path, 32, "crop") == torch.tensor([0, 255, 0]).view(3, 1, 1)).all()
    x = loaded(tmp_path, 32, "resize")[0]
    assert x[:, 16, [0, 16, 31]].T.tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


def test_images_of_one_size_stay_as_they_are(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 28, 3), np.uint8)
    splits = load_images(str(twice(tmp_path, Image.fromarray(pixels))))
    assert all((split.images[0].permute(1, 2, 0).numpy() == pixels).all() for split in splits)
    assert splits.train.labels is splits.test.labels is None and splits.test.name == f"{tmp_path.name} test"


@pytest.mark.parametrize("mode, ending", [("L", "png"), ("LA", "png"), ("P", "png"), ("RGBA", "png"), ("CMYK", "tif")])
def test_images_without_three_channels_become_rgb(tmp_path, mode, ending):
    twice(tmp_path, stripes((204, 204, 204)).convert(mode), ending)
    assert Image.open(tmp_path / f"a.{ending}").mode == mode
    assert (loaded(tmp_path) == 204).all()


def test_a_photo_stands_upright_as_its_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6                                        # the camera was held upright: turn by 90° clockwise
    x = loaded(twice(tmp_path, stripes("red", "blue", width=40, height=20), "jpg", exif=exif, quality=95))
    assert x.shape == (2, 3, 40, 20)
    assert (x[:, 0, :18] > 200).all() and (x[:, 2, 22:] > 200).all()       # what was left is on top


def test_one_picture_is_read_from_a_path_or_an_open_file_if_it_has_no_more_pixels_than_allowed(tmp_path):
    stripes("red", width=8, height=4).save(tmp_path / "a.png")
    for file in (tmp_path / "a.png", str(tmp_path / "a.png"), io.BytesIO((tmp_path / "a.png").read_bytes())):
        assert read_picture(file, "a", most_pixels=32).tobytes() == stripes("red", width=8, height=4).tobytes()
        with pytest.raises(DataError, match=r"^a is 8×4; 0 megapixels at most"):
            read_picture(file, "a", most_pixels=31)


def test_what_is_half_transparent_is_half_white():
    content = encoded(Image.new("RGBA", (4, 4), (200, 100, 0, 51)))
    assert read_picture(io.BytesIO(content), "a").getpixel((1, 1)) == (244, 224, 204)


def test_the_test_set_is_the_same_tenth_every_time_and_the_rest_is_for_training(tmp_path):
    for i in range(30):
        stripes((i, 0, 0)).save(tmp_path / f"{i:02}.png")
    train, test = (split.images[:, 0, 0, 0].tolist() for split in load_images(tmp_path))
    assert test == [13, 14, 23] and train == sorted({*range(30)} - {*test})


RED = {"a.png": encoded(stripes("red"))}


@pytest.mark.parametrize("files, message", [
    ({}, "holds no images"),
    (RED, "holds one image, and two are needed"),
    (RED | {"b.png": encoded(stripes("red", width=40, height=20))}, "b.png is 20×40, but .*a.png is 32×32; say size="),
    (RED | {"b.png": b"some text"}, "b.png is not a picture"),
    (RED | {"b.jpg": encoded(stripes("red"), "JPEG")[:-100]}, "b.jpg cannot be read as a picture"),
    (RED | {"b.png": encoded(Image.fromarray(np.full((32, 32), 9999, np.uint16)))}, "b.png has more than 8 bits"),
], ids=["empty", "one image", "two sizes", "text", "truncated", "16 bits"])
def test_what_spoils_a_folder_is_named(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"^{tmp_path}.*{message}"):
        load_images(tmp_path)


def test_the_folder_that_one_is_in_has_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(twice(tmp_path, stripes("red")))
    assert [split.name for split in load_images(".", np.int64(16))] == [f"{tmp_path.name} train", f"{tmp_path.name} test"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes among its files")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(twice(tmp_path, stripes("red")) / "c.png")
    assert len(loaded(tmp_path)) == 2


def test_links_are_followed_once_and_what_they_miss_is_named(tmp_path):
    photos, chosen = tmp_path / "photos", tmp_path / "chosen"
    photos.mkdir()
    chosen.mkdir()
    twice(photos, stripes("red"))
    (chosen / "linked").symlink_to(photos)
    (chosen / "round").symlink_to(chosen)
    assert len(loaded(chosen)) == 2
    (chosen / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"gone\.png cannot be read \(No such file"):
        load_images(chosen)


def test_what_is_not_a_folder_is_named():
    with pytest.raises(DataError, match="cifar100 is not a folder"):
        load_images("cifar100")


@pytest.mark.parametrize("source, size, fit, message", [
    ("sample", 64, "crop", "size= is for a folder"),
    ("cifar10", (32, 32), "crop", "size= is for a folder"),
    (".", 32, "stretch", "fit must be"),
    (".", -1, "crop", "must be"),
    (".", 0, "crop", "size must be"),
    (".", 32.0, "crop", "size must be in whole pixels, 1 or more, got 32.0"),
    (".", (32, 32, 3), "crop", r"size must be a side or \(height, width\), got"),
    (".", (), "crop", r"size must be a side or \(height, width\), got"),
    ("sample", None, "stretch", "fit must be"),
])
def test_arguments_without_a_meaning_are_refused(tmp_path, monkeypatch, source, size, fit, message):
    monkeypatch.chdir(twice(tmp_path, stripes("red")))
    with pytest.raises(ValueError, match=message):
        load_images(source, size, fit)
