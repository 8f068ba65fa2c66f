"""Pictures of every kind and size become bytes and pictures again; anything else is refused."""

import copy
import pickle
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from dcae_lib import Codec, to_model, to_uint8
from dcae_lib.codec import codec as module
from dcae_lib.codec import refine as refining
from dcae_lib.codec.model import trade
from dcae_lib.data import DataError, open_picture
from dcae_lib.metrics import psnr


def close(one, other):
    """The same pixels up to the rounding of floats, which depends on the batch."""
    return one.shape == other.shape and (one.int() - other.int()).abs().max() <= 1


# ---- every kind of picture


def test_tensors_arrays_and_pillow_images_give_the_same_bytes(codec, images):
    array = images[3].permute(1, 2, 0).numpy()
    read_only = array.copy()
    read_only.setflags(write=False)
    flipped = np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1]  # negative strides
    data = codec.compress(images[3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for same in (array, np.asfortranarray(array), flipped, read_only, Image.fromarray(array)):
            assert codec.compress(same) == data
        assert codec.compress(np.stack([array] * 2)) == codec.compress(torch.stack([images[3]] * 2))
    assert data == codec.compress(images[3], 50) == codec.compress(images[3], np.int64(50)) != codec.compress(array, 51)


def test_pillow_images_are_opened_as_pictures_are(codec, cat):
    image = Image.fromarray(cat[:, :24, :40].permute(1, 2, 0).numpy())
    image.putalpha(200)
    image.getexif()[ExifTags.Base.Orientation] = 6
    assert codec.compress(image, 70) == codec.compress(open_picture(image), 70)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (torch.zeros(3, 8, 8), r"uint8 pixels, got torch.float32; to_uint8\(x\) converts"),
        (np.zeros((8, 8, 3), np.uint16), "uint8 pixels, got uint16"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), r"shape \[0, 3, 8, 8\]"),
        (torch.zeros(3, 0, 8, dtype=torch.uint8), r"shape \[3, 0, 8\]"),
        (torch.zeros(1, 8, 8, dtype=torch.uint8), r"shape \[1, 8, 8\]"),
        (torch.zeros(8, 8, dtype=torch.uint8), r"shape \[8, 8\]"),
        (torch.zeros(1, 1, 3, 8, 8, dtype=torch.uint8), r"shape \[1, 1, 3, 8, 8\]"),
        (np.zeros((3, 8, 8), np.uint8), r"shape \[8, 3, 8\] with channels before rows"),
        (torch.zeros((), dtype=torch.uint8), "expected a tensor"),
        (Image.new("RGB", (0, 5)), "expected a tensor"),
        (Image.new("I;16", (8, 8)), "the image .*8 bits"),
        (torch.zeros(1, dtype=torch.uint8).expand(3, 8193, 8192), "at most 67 megapixels"),
    ],
    ids=range(12),
)
def test_everything_else_is_refused(wrong, message, codec):
    for call in (codec.compress, codec.compress_each, codec.preview):
        with pytest.raises((ValueError, DataError), match=message):
            call(wrong)


@pytest.mark.parametrize("quality", [-1, 101, 50.5, float("nan"), "50", None])
def test_quality_must_be_whole_and_in_range(quality, codec, images):
    for call in (codec.compress, codec.compress_each, codec.costs, codec.preview):
        with pytest.raises(ValueError, match="quality must be a whole number from 0 to 100, got "):
            call(images[0], quality)


# ---- there and back


@pytest.mark.parametrize("H, W", [(1, 1), (3, 50), (4, 4), (33, 31), (32, 32), (100, 64), (255, 255), (256, 256)])
def test_images_of_every_size_come_back_similar(H, W, codec, cat):
    x = cat[:, 10 : 10 + H, 30 : 30 + W]
    y = codec.decompress(codec.compress(x, 100))
    assert y.shape == x.shape and y.dtype == torch.uint8 and y.is_contiguous()
    assert psnr(to_model(y)[None], to_model(x)[None]) > 25
    both = codec.decompress(codec.compress(torch.stack([x.flip(2), x]), 100))
    assert both.is_contiguous() and close(both[1], y)


def test_compress_each_equals_compress_image_by_image(codec, images, cat):
    pairs = zip(codec.compress_each(images[:20], 63), (codec.compress(x, 63) for x in images[:20]), strict=True)
    assert sum(one == other for one, other in pairs) >= 19  # floats may round a latent near ½ differently
    crops = torch.stack([cat[:, :45, k : k + 70] for k in (0, 99, 200)])
    each, batch = codec.compress_each(crops, 20), codec.compress(crops, 20)
    assert all(map(close, codec.decompress_each(each), codec.decompress(batch)))
    assert len(batch) < sum(map(len, each))
    assert codec.compress_each(images[0], 63) == [codec.compress(images[0], 63)]


def test_decompress_each_mixes_sizes_and_qualities(codec, images, cat):
    pictures = [(images[1], 0), (cat[:, :33, :31], 100), (images[:3], 0), (cat[None, :, :7, :9], 37), (images[2], 100)]
    data = [codec.compress(*picture) for picture in pictures]
    for (x, _), together, file in zip(pictures, codec.decompress_each(data), data, strict=True):
        assert together.shape == x.shape and close(together, codec.decompress(file))
    assert codec.decompress_each([]) == []
    assert torch.equal(codec.decompress(memoryview(data[0])), codec.decompress(bytearray(data[0])))


def test_higher_quality_costs_bytes_and_gains_decibels(codec, images):
    sizes, decibels = [], []
    for q in (0, 20, 40, 60, 80, 100):
        each = codec.compress_each(images[:40], q)
        sizes.append(sum(map(len, each)))
        decibels.append(psnr(to_model(torch.stack(codec.decompress_each(each))), to_model(images[:40])).mean())
    assert all(a < b for a, b in pairwise(sizes)) and all(a < b for a, b in pairwise(decibels))


@torch.no_grad()
@pytest.mark.parametrize("q", [0, 33, 100])
def test_bytes_and_pixels_are_what_the_model_predicts(q, codec, images):
    x = images[:20]
    expected, cost = codec.thumbnails(to_model(x), torch.full((20,), float(q)))
    each = codec.compress_each(x, q)
    assert close(torch.stack(codec.decompress_each(each)), to_uint8(expected))
    assert 8 * sum(len(data) - 8 for data in each) == pytest.approx(cost.sum().item(), rel=0.1)


def test_costs_cover_the_sites_of_the_image(codec, cat):
    x = cat[:, :50, :70]
    cost = codec.costs(x, 40)
    assert cost.shape == (1, 16, 13, 18) and (cost > 0).all()
    assert abs(len(codec.compress(x, 40)) - 16 - cost.sum() / 8) < 6  # a header with height, width and count
    assert torch.equal(codec.costs(torch.stack([x, x.flip(1)]), 40)[:1], cost)


@pytest.mark.parametrize("q", [10, 90])
def test_preview_equals_the_decompressed_image(q, codec, images, cat):
    for x in (images[0], images[:3], cat[:, :50, :41]):
        y = codec.decompress(codec.compress(x, q))
        assert close(codec.preview(x, q), y.view(-1, *y.shape[-3:]))


@pytest.mark.parametrize("q", [0, 50, 100])
def test_pictures_in_pieces_are_those_in_one_piece(q, codec, cat, monkeypatch):
    x = cat[None, :, :150, :203]
    latents = codec._latents(x, q)
    pixels = codec._pixels(latents, 150, 203, q)
    monkeypatch.setattr(module, "PIECE", 12)
    for level, whole in zip(codec._latents(x, q), latents):
        assert (level != whole).float().mean() < 1e-3  # floats may round a latent near ½ differently
    assert close(codec._pixels(latents, 150, 203, q), pixels)
    monkeypatch.setattr(module, "MARGIN", 0)  # the convolutions meet borders
    assert not close(codec._pixels(latents, 150, 203, q), pixels)


# ---- the model's identity


def test_pickled_codec_writes_the_same_bytes(codec, images):
    assert pickle.loads(pickle.dumps(codec)).compress(images[0]) == codec.compress(images[0])


def test_identity_depends_on_every_weight_and_setting(codec):
    assert len(codec.identity) == 32 and Codec.from_pretrained().identity == codec.identity
    changed = copy.deepcopy(codec)
    for model in (changed.photographs, changed.thumbnails):
        for value in model.state_dict().values():
            last = value.view(-1).view(torch.int32)[-1:]
            last ^= 1  # the last bit of a float
            assert changed.identity != codec.identity
            last ^= 1
        assert changed.identity == codec.identity
        model.config = model.config | dict(groups=model.config["groups"] + 1)
        assert changed.identity != codec.identity
        model.config = model.config | dict(groups=model.config["groups"] - 1)


def test_a_model_changed_in_place_writes_files_of_its_own(images):
    codec, other = Codec.from_pretrained(), Codec.from_pretrained()
    before = codec.compress(images[0])
    for changed in (codec, other):
        changed.thumbnails.contexts[-1].third[0].bias.data += 0.25
    after = codec.compress(images[0])
    assert after == other.compress(images[0]) != before
    assert torch.equal(codec.decompress(after), other.decompress(after))
    with pytest.raises(ValueError, match="model"):
        codec.decompress(before)
    codec.thumbnails = Codec.from_pretrained().thumbnails
    assert codec.compress(images[0]) == before


def test_thumbnails_and_photographs_have_networks_of_their_own(codec, cat):
    for x, model in ((cat[:, :64, :64], codec.thumbnails), (cat[:, :8, :65], codec.photographs)):
        assert codec.compress(x)[8:-4] == Codec(model).compress(x)[8:-4]


def test_bytes_do_not_depend_on_the_default_type(codec, images, float64_by_default):
    data = codec.compress(images[:3])
    assert close(codec.decompress(data), codec.preview(images[:3]))
    assert Codec.from_pretrained().compress(images[:3]) == data


# ---- effort


def test_effort_lowers_the_loss_and_decoding_is_as_before(codec, cat, monkeypatch):
    monkeypatch.setattr(module, "STEPS", (0, 120, 121))
    x, q = cat[:, 60:123, 100:171], 40
    plain, refined = (codec.compress(x, q, effort) for effort in (0, 1))

    def loss(data):
        error = (codec.decompress(data).float() - x) / 255
        return 8 * len(data) / x[0].numel() + trade(torch.tensor(float(q))) * error.square().mean()

    assert loss(refined) < 0.99 * loss(plain) and len(refined) < len(plain)
    assert codec.compress(x, q, 1) == refined  # the random rounding has a seed
    each = codec.compress_each(torch.stack([x, x.flip(2)]), q, 1)
    assert loss(each[0]) < 0.99 * loss(plain)


def test_pieces_are_refined_one_after_the_other(codec, cat, monkeypatch):
    monkeypatch.setattr(module, "STEPS", (0, 120, 121))
    monkeypatch.setattr(refining, "PIECE", 8)
    x = cat[:, 60:110, 100:171]
    sizes = [len(codec.compress(x, 40, effort)) for effort in (0, 1)]
    assert sizes[1] < sizes[0]
    monkeypatch.setattr(refining, "_anneal", lambda loss, y, *_: [level.round() for level in y])
    assert codec.compress(x, 40, 1) == codec.compress(x, 40, 0)
