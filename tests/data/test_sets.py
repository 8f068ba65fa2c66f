"""Pixels to floats and back, sets and their batches."""

import hashlib
from itertools import chain

import numpy as np
import pytest
import torch

from dcae_lib.data import batches, eval_batch_size, image_set, to_model, to_uint8

COUNTED = torch.arange(25, dtype=torch.uint8).view(25, 1, 1, 1).expand(25, 3, 4, 4)  # image i has the value i


def values(epoch):
    return [to_uint8(x)[:, 0, 0, 0].tolist() for x in epoch]


def drawn(seed, batch_size=8):
    return values(batches(COUNTED, batch_size, torch.Generator().manual_seed(seed)))


def test_all_256_values_survive_the_way_to_the_model():
    x = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_model(x)), x)
    assert to_model(x)[[0, 255]].tolist() == [-1, 1] and (to_model(x).diff() > 0).all()
    assert to_uint8(torch.tensor([-9.0, -1.001, 1.001, 9.0])).tolist() == [0, 0, 255, 255]


def test_only_uint8_is_taken_for_pixels():
    with pytest.raises(ValueError, match=r"expected uint8 pixels, got torch\.float32"):
        to_model(torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize("batch_size, lengths", [(1, [1] * 25), (8, [8, 8, 8, 1]), (25, [25]), (99, [25])])
def test_an_epoch_holds_every_image_once(batch_size, lengths):
    epoch = drawn(0, batch_size)
    assert list(map(len, epoch)) == lengths and sorted(chain(*epoch)) == list(range(25))


def test_the_generator_alone_decides_the_order():
    assert list(chain(*values(batches(COUNTED, 8)))) == list(range(25))
    assert drawn(1) == drawn(1) != drawn(2)


def test_batches_are_skipped_and_shared_out():
    images = image_set(COUNTED, None, "counted")
    epoch = images.batches(8, torch.Generator().manual_seed(0), skip=2, shard=lambda indices: indices[1::2])
    assert values(epoch) == [x[1::2] for x in drawn(0)[2:]]


def test_a_set_has_the_hash_of_its_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), np.uint8)
    images = image_set(torch.from_numpy(pixels).permute(0, 3, 1, 2), None, "noise")
    assert images.sha256 == hashlib.sha256(pixels.tobytes()).hexdigest() and images.images.is_contiguous()
    assert len(images) == 5 and images.to("meta").images.is_meta and images.to("meta").labels is None


@pytest.mark.parametrize("side, count", [(16, 2000), (32, 500), (100, 51), (5000, 1)])
def test_evaluation_takes_as_many_pixels_at_once(side, count):
    assert (
        eval_batch_size(image_set(torch.zeros(1, 3, 1, 1, dtype=torch.uint8).expand(1, 3, side, side), None, ""))
        == count
    )
