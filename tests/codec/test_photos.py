"""Batches of crops of photographs: the same after a kill, and of scaled pictures alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from dcae_lib.codec import photos as module
from dcae_lib.codec.photos import SIDES, Photographs, photographs
from dcae_lib.data import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two photographs, one of them smooth: rows rise from 0 to 255 in red, columns in green."""
    folder = tmp_path_factory.mktemp("photographs")
    rows, columns = np.meshgrid(np.linspace(0, 255, 400), np.linspace(0, 255, 600), indexing="ij")
    smooth = np.stack([rows, columns, np.zeros_like(rows)], 2).astype(np.uint8)
    Image.fromarray(smooth).save(folder / "smooth.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8)).save(folder / "noise.png")
    return folder


@pytest.fixture(autouse=True)
def short_epochs(monkeypatch):
    monkeypatch.setattr(module, "EPOCH", 32 * 100)


def epoch(source, skip=0, seed=0, shard=None):
    return list(Photographs(source).batches(32, torch.Generator().manual_seed(seed), skip, shard))


def test_batches_have_as_many_pixels_in_crops_of_either_side(folder):
    batches = epoch(folder)
    assert len(batches) == 100 and len(Photographs(folder)) == 3200
    assert {tuple(x.shape) for x in batches} == {(32 * 32**2 // side**2, 3, side, side) for side in SIDES}


def test_batches_depend_on_the_generator_alone_and_resume(folder):
    batches = epoch(folder)
    assert all(map(torch.equal, epoch(folder, skip=7), batches[7:]))
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(epoch(folder, seed=1), batches))


def test_crops_are_of_photographs_scaled_down(folder):
    slopes = []
    for x in epoch(folder)[:60]:
        for crop in (x + 1) * 127.5:
            red, green = crop[0].diff(dim=0), crop[1].diff(dim=1).abs()
            if crop.shape[-1] == 64 and crop[2].max() < 1:  # of the smooth one
                slopes.append((red.mean().item(), green.mean().item()))
    down, across = torch.tensor(slopes).T
    assert len(slopes) > 20 and torch.allclose(down * 400, across * 600, rtol=0.15)  # both sides by the same factor
    assert down.min() > 1.2 * 255 / 400 and down.max() < 3.3 * 255 / 400  # 128 of its 400 rows are the fewest


def test_processes_take_their_parts_of_each_batch(folder):
    halves = [epoch(folder, shard=lambda index, k=k: index[k::2]) for k in range(2)]
    for whole, *parts in zip(epoch(folder), *halves, strict=True):
        assert torch.equal(whole[0::2], parts[0]) and torch.equal(whole[1::2], parts[1])


def test_a_folder_that_holds_none_or_a_small_one_is_refused(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"holds no photographs; .* fetches free ones"):
        Photographs(tmp_path)
    Image.new("RGB", (127, 500)).save(tmp_path / "small.png")
    with pytest.raises(DataError, match=r"small\.png is smaller than 128 pixels, the side of a crop"):
        epoch(tmp_path)
    monkeypatch.setattr(module, "SIDES", (32, 64))
    assert epoch(tmp_path)


def test_the_hash_names_the_photographs(folder, tmp_path):
    train, test = photographs(folder)
    assert train.name == "2 photographs" and train.sha256 == photographs(folder).train.sha256
    assert test.images.shape == (3, 3, 256, 256) and test.name == "photographs of the course"
    (tmp_path / "noise.png").write_bytes((folder / "noise.png").read_bytes())
    assert Photographs(tmp_path).sha256 != train.sha256
