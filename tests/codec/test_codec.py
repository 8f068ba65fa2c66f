"""Pictures of every kind and size become bytes and pictures again, the same whoever decodes them, and nothing else does."""

import copy
import pickle
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from dcae_lib import Codec, load_images, to_model, to_uint8
from dcae_lib.codec.bitstream import CorruptStream, Header, WrongModel, pack, unpack
from dcae_lib.codec.codec import SEAMLESS, as_pixels, cut, identity, join
from dcae_lib.metrics import psnr
from dcae_lib.files import resource

SHAPES = [(1, 1), (3, 50), (4, 4), (33, 31), (32, 32), (100, 64), (255, 255), (256, 256)]


@pytest.fixture(scope="module")
def codec():
    return Codec.from_pretrained()


@pytest.fixture(scope="module")
def images():
    return load_images("sample").test.images


@pytest.fixture(scope="module")
def cat():
    return pil_to_tensor(Image.open(resource("photos") / "cat.webp").convert("RGB"))


# ---- every kind of picture


def test_tensors_arrays_and_pillow_images_of_one_picture_are_one_stream(codec, images):
    x = images[3]
    data = codec.compress(x, 40)
    array = x.permute(1, 2, 0).numpy()
    assert codec.compress(array, 40) == codec.compress(np.asfortranarray(array), 40) == data
    assert codec.compress(array[:, ::-1][:, ::-1], 40) == data                      # strides below zero
    assert codec.compress(Image.fromarray(array), 40) == data
    assert codec.compress(x[:, :, :20].transpose(1, 2), 40) == codec.compress(array[:, :20].swapaxes(0, 1).copy(), 40)
    many = images[:4].permute(0, 2, 3, 1).numpy()
    assert codec.compress(many, 40) == codec.compress(images[:4], 40)
    assert codec.compress(x) == codec.compress(x, 50) == codec.compress(x, np.int64(50)) != data


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "CMYK", "YCbCr", "HSV"])
def test_pillow_images_are_taken_as_they_look(mode, codec, cat):
    image = Image.fromarray(cat[:, :40, :50].permute(1, 2, 0).numpy()).convert(mode)
    assert image.mode == mode
    assert codec.compress(image, 30) == codec.compress(np.array(image.convert("RGB")), 30)


def transparent(mode):
    """The left half is opaque and grey, the right half can be seen through."""
    image = Image.new("LA", (16, 8), (90, 255))
    image.paste((200, 0), (8, 0, 16, 8))
    image = image.convert("RGBA")
    if mode == "P":
        image = image.convert("RGB").quantize(4)
        image.info["transparency"] = image.getpixel((12, 4))
    if mode == "PA":                                        # of its own colours: older versions of Pillow dither
        opacity, image = image.getchannel("A"), image.convert("RGB").quantize(4).convert("PA")
        image.putalpha(opacity)
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA", "P"])
def test_what_can_be_seen_through_is_refused_and_lies_on_a_colour_that_is_named(mode, codec):
    with pytest.raises(ValueError, match="the image is transparent, and has no background yet; name a colour for it"):
        codec.compress(transparent(mode))
    flat = np.full((8, 16, 3), 90, np.uint8)
    flat[:, 8:] = (255, 0, 0)
    assert codec.compress(transparent(mode), 70, background="red") == codec.compress(flat, 70)
    with pytest.raises(ValueError, match="unknown color specifier: 'rouge'"):
        codec.compress(transparent(mode), background="rouge")


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_greys_of_more_than_8_bits_are_refused(mode, codec):
    with pytest.raises(ValueError, match="the image has more than 8 bits per pixel and channel; save it with 8"):
        codec.compress(Image.new(mode, (8, 8)))


@pytest.mark.parametrize("wrong, message", [
    (torch.zeros(3, 8, 8), r"uint8, got torch.float32; to_uint8\(x\) makes them"),
    (torch.zeros(3, 8, 8, dtype=torch.int16), "uint8, got torch.int16"),
    (np.zeros((8, 8, 3)), "uint8, got (torch.)?float64"),
    (np.zeros((8, 8, 3), np.uint16), "uint8, got (torch.)?uint16"),
    (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), r"\[0, 3, 8, 8\]"),
    (torch.zeros(3, 0, 8, dtype=torch.uint8), r"\[3, 0, 8\]"),
    (torch.zeros(1, 8, 8, dtype=torch.uint8), r"three colours, got one that is \[1, 8, 8\]"),
    (torch.zeros(4, 8, 8, dtype=torch.uint8), r"\[4, 8, 8\]"),
    (torch.zeros(8, 8, dtype=torch.uint8), r"\[8, 8\]"),
    (torch.zeros(1, 1, 3, 8, 8, dtype=torch.uint8), r"\[1, 1, 3, 8, 8\]"),
    (np.zeros((8, 8), np.uint8), r"\[8, 8\]"),
    (np.zeros((8, 8, 4), np.uint8), r"\[4, 8, 8\] with colours before rows"),
    (np.zeros((3, 8, 8), np.uint8), r"\[8, 3, 8\] with colours before rows"),
    (np.zeros((0, 8, 8, 3), np.uint8), r"\[0, 3, 8, 8\]"),
    (torch.zeros((), dtype=torch.uint8), "expected a tensor"),
    (Image.new("RGB", (0, 5)), "expected a tensor"),
    (torch.zeros(1, dtype=torch.uint8).expand(3, 8193, 8192), "67 megapixels at most"),
], ids=range(17))
def test_what_is_no_picture_is_refused(wrong, message, codec):
    for compress in (codec.compress, codec.compress_each):
        with pytest.raises(ValueError, match=message):
            compress(wrong)


@pytest.mark.parametrize("wrong", [[1, 2], "cat.png", None, np.uint8(3), np.array(["a"])], ids=str)
def test_what_is_neither_a_tensor_nor_an_array_nor_a_pillow_image_is_refused_in_words(wrong, codec):
    with pytest.raises((TypeError, ValueError), match=r"expected .*(tensor|uint8)"):
        codec.compress(wrong)


def test_no_picture_is_taken_with_a_warning(codec, images, request):
    array = images[0].permute(1, 2, 0).numpy()
    fixed = array.copy()
    fixed.setflags(write=False)
    always = torch.is_warn_always_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.set_warn_always(True)                         # else torch warns once in a process
        request.addfinalizer(lambda: torch.set_warn_always(always))
        assert codec.compress(Image.fromarray(array)) == codec.compress(fixed) == codec.compress(array)


@pytest.mark.parametrize("quality", [-1, 101, 50.0, 49.5, 1e9, float("nan"), True, False, np.True_, "50", None, [50]])
def test_a_quality_that_is_no_whole_number_from_0_to_100_is_refused(quality, codec, images):
    for call in (codec.compress, codec.compress_each, codec.costs, codec.preview):
        with pytest.raises(ValueError, match="quality must be a whole number from 0 to 100, got "):
            call(images[0], quality)


# ---- there and back


def alike(one, other):
    """The same pixels, but for what floats round otherwise in another company."""
    return one.shape == other.shape and (one.int() - other.int()).abs().max() <= 1


@pytest.mark.parametrize("H, W", SHAPES)
def test_pictures_of_every_size_come_back_in_that_size_and_look_like_themselves(H, W, codec, cat):
    x = cat[:, 10 : 10 + H, 30 : 30 + W]
    y = codec.decompress(codec.compress(x, 100))
    assert y.shape == x.shape and y.dtype == torch.uint8 and y.is_contiguous()
    assert psnr(to_model(y)[None], to_model(x)[None]) > 25
    both = codec.decompress(codec.compress(torch.stack([x.flip(2), x]), 100))
    assert both.is_contiguous() and alike(both[1], y)


def test_a_batch_of_one_is_a_batch(codec, cat):
    data = codec.compress(cat[None, :, :7, :9])
    assert codec.decompress(data).shape == (1, 3, 7, 9) and codec.decompress_each([data])[0].shape == (1, 3, 7, 9)


def test_each_image_of_a_batch_is_the_stream_that_it_is_alone(codec, images, cat):
    pairs = list(zip(codec.compress_each(images[:20], 63), [codec.compress(x, 63) for x in images[:20]], strict=True))
    assert sum(one == other for one, other in pairs) >= 19  # where a latent lies between two integers, floats may round otherwise
    crops = torch.stack([cat[:, :45, k : k + 70] for k in (0, 99, 200)])
    each, batch = codec.compress_each(crops, 20), codec.compress(crops, 20)
    assert all(map(alike, codec.decompress_each(each), codec.decompress(batch)))
    assert len(batch) < sum(map(len, each))
    assert codec.compress_each(images[0], 63) == [codec.compress(images[0], 63)]


def test_streams_of_mixed_sizes_and_qualities_are_read_together_as_they_are_alone(codec, images, cat):
    data = [
        codec.compress(images[1], 0), codec.compress(cat[:, :33, :31], 100), codec.compress(images[:3], 0),
        codec.compress(cat[:, :1, :1], 0), codec.compress(cat[:, 50:120, :9], 37), codec.compress(images[2], 100),
    ]
    for together, one in zip(codec.decompress_each(data), data, strict=True):
        assert alike(together, codec.decompress(one))
    assert codec.decompress_each([]) == []
    assert torch.equal(codec.decompress(memoryview(data[0])), codec.decompress(bytearray(data[0])))


def test_a_picture_of_bytes_that_no_model_expects_comes_back_too(codec):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 2, (3, 40, 40), generator=generator, dtype=torch.uint8) * 255
    for x in (noise, torch.zeros_like(noise), torch.full_like(noise, 255)):
        for q in (0, 100):
            assert codec.decompress(codec.compress(x, q)).shape == x.shape


def test_a_higher_quality_takes_more_bytes_and_gives_a_better_picture(codec, images):
    sizes, decibels = [], []
    for q in (0, 20, 40, 60, 80, 100):
        each = codec.compress_each(images[:40], q)
        sizes.append(sum(map(len, each)))
        decibels.append(psnr(to_model(torch.stack(codec.decompress_each(each))), to_model(images[:40])).mean())
    assert all(a < b for a, b in pairwise(sizes)) and all(a < b for a, b in pairwise(decibels))


@torch.no_grad()
@pytest.mark.parametrize("q", [0, 33, 100])
def test_the_decoded_picture_is_what_the_model_promises(q, codec, images):
    x = images[:20]
    promised, cost = codec.model(to_model(x), torch.full((20,), float(q)))
    each = codec.compress_each(x, q)
    y = torch.stack(codec.decompress_each(each))
    assert (psnr(to_model(y), to_model(x)) - psnr(promised, to_model(x))).abs().max() < 0.1
    assert (y.int() - to_uint8(promised).int()).abs().max() <= 1
    assert 8 * sum(len(one) - 8 for one in each) == pytest.approx(cost.sum().item(), rel=0.1)


def test_costs_are_those_of_the_sites_of_the_picture(codec, cat):
    x = cat[:, :50, :70]
    cost = codec.costs(x, 40)
    assert cost.shape == (1, 16, 13, 18) and (cost > 0).all()
    assert abs(len(codec.compress(x, 40)) - 8 - cost.sum() / 8) < 6
    batch = codec.costs(torch.stack([x, x.flip(1)]), 40)
    assert batch.shape == (2, 16, 13, 18) and torch.equal(batch[:1], cost)


def test_progress_rises_to_exactly_one(codec, cat):
    for call in (lambda told: codec.compress(cat.repeat(1, 2, 2), 0, progress=told.append),
                 lambda told: codec.decompress(codec.compress(cat[:, :9, :9]), told.append)):
        call(told := [])
        assert len(told) > 1 and told[-1] == 1 and all(0 < a < b for a, b in pairwise(told))


@pytest.mark.parametrize("H, W", SHAPES)
def test_tiles_lie_in_rows_repeat_the_edges_and_join_to_the_picture(H, W):
    x = torch.randint(0, 256, (2, 3, H, W), dtype=torch.uint8)
    tiles = cut(x, 32, "replicate")
    rows, columns = -(-H // 32), -(-W // 32)
    assert tiles.shape == (2 * rows * columns, 3, 32, 32) and tiles.dtype == torch.uint8
    assert torch.equal(join(tiles, 2, H, W), x)
    r, c = (torch.arange(32 * (n - 1), 32 * n).clamp(max=side - 1) for n, side in ((rows, H), (columns, W)))
    assert torch.equal(tiles[-1], x[1][:, r][:, :, c])                              # the last tile of the last image
    if columns > 1:
        assert torch.equal(tiles[1, :, 0, 0], x[0, :, 0, 32])


@pytest.mark.parametrize("edge", [1, 2])
def test_tiles_with_an_edge_show_that_much_of_their_neighbours(edge):
    x = torch.arange(2 * 13 * 9.0).view(1, 2, 13, 9)
    tiles = cut(x, 8, "replicate", edge).view(2, 2, 2, 8 + 2 * edge, 8 + 2 * edge)  # rows, columns
    for i in (0, 1):
        for j in (0, 1):
            r, c = ((torch.arange(8 + 2 * edge) - edge + 8 * n).clamp(0, last) for n, last in ((i, 12), (j, 8)))
            assert torch.equal(tiles[i, j], x[0][:, r][:, :, c])


@torch.no_grad()
@pytest.mark.parametrize("q", [0, SEAMLESS - 1, SEAMLESS, 100])
def test_a_tile_is_decoded_alone_at_high_quality_and_with_its_neighbours_nearest_latents_at_low(q, codec, cat):
    x = cat[None, :, :96, :96]
    latents, quality = codec.model.analyse(to_model(cut(x, 32, "replicate")), torch.full((9,), float(q))).round(), torch.tensor([float(q)])
    y = join(latents, 1, 24, 24)
    alone = to_uint8(codec.model.synthesise(y[..., 8:16, 8:16], quality))
    among = to_uint8(codec.model.synthesise(y[..., 7:17, 7:17], quality)[..., 4:-4, 4:-4])
    found = codec.decompress(codec.compress(x, q))[..., 32:64, 32:64]
    assert alike(found, among if q < SEAMLESS else alone) and not alike(alone, among)


@pytest.mark.parametrize("q", [10, 90])
def test_a_preview_is_what_will_be_decoded(q, codec, images, cat):
    for x in (images[0], images[:3], cat[:, :50, :41]):
        y = codec.decompress(codec.compress(x, q))
        assert alike(codec.preview(x, q), y if y.ndim == 4 else y[None])
    with pytest.raises(ValueError, match="quality must be"):
        codec.preview(images[0], 101)


def test_a_batch_is_told_from_one_image():
    x = torch.zeros(3, 4, 5, dtype=torch.uint8)
    assert [as_pixels(one, None)[1] for one in (x, x[None], x.permute(1, 2, 0).numpy())] == [False, True, False]
    assert as_pixels(x, None)[0].shape == (1, 3, 4, 5)


# ---- the same for everyone


def test_two_threads_write_the_same_bytes_and_read_the_same_latents_as_one(codec, cat, monkeypatch):
    threads, found, seen = torch.get_num_threads(), [], []
    monkeypatch.setattr(codec, "_pixels", lambda y, quality: seen.append(y) or y)
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            found.append(codec.compress(cat[:, :12, :9], 80))
            codec.decompress(found[0])
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] and seen[0].shape == (1, 16, 3, 3) and torch.equal(*seen)


# ---- another model


def test_another_process_can_be_given_the_codec(codec, images):
    assert pickle.loads(pickle.dumps(codec)).compress(images[0]) == codec.compress(images[0])


def test_any_weight_any_entry_of_a_table_and_any_setting_is_part_of_the_identity(codec):
    assert len(codec.identity) == 32 and identity(Codec.from_pretrained().model) == codec.identity
    model = copy.deepcopy(codec.model)
    assert "context.tables" in model.state_dict()
    for value in model.state_dict().values():
        for place in (0, -1):
            bits = value.view(-1).view(torch.int32)
            bits[place] ^= 1                                # the last bit of a float
            assert identity(model) != codec.identity
            bits[place] ^= 1
    assert identity(model) == codec.identity
    model.config = model.config | dict(groups=model.config["groups"] + 1)
    assert identity(model) != codec.identity


def test_streams_of_another_model_are_refused_whether_or_not_its_hash_begins_alike(codec, images):
    data, model = codec.compress(images[0]), copy.deepcopy(codec.model)
    others = {True: None, False: None}
    while None in others.values():
        model.log_gain.data[0, 0] += 0.001
        same = identity(model)[0] == codec.identity[0]
        others[same] = others[same] or copy.deepcopy(model)
    with pytest.raises(WrongModel, match="written with a model whose hash begins with"):
        Codec(others[False]).decompress(data)
    with pytest.raises(CorruptStream, match="another model wrote them"):
        Codec(others[True]).decompress(data)


def test_a_stream_is_the_header_of_the_picture_and_its_payload(codec, images):
    data = codec.compress(images[:2], 17)
    header, payload = unpack(data, codec.identity)
    assert header == Header(32, 32, 2, 17) and pack(header, payload, codec.identity) == data
    assert unpack(codec.compress(images[0], 17), codec.identity)[0] == Header(32, 32, 0, 17)
