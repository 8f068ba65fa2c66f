"""Batches of thumbnails and of crops of photographs: the same after a kill, and of scaled pictures alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from dcae_lib import load_images, to_uint8
from dcae_lib.codec import photos as module
from dcae_lib.codec.photos import SHARE, SIDES, Photographs
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


@pytest.fixture
def photographs(folder):
    return Photographs(folder, load_images("sample").train)


def epoch(photographs, skip=0, seed=0):
    return list(photographs.batches(32, torch.Generator().manual_seed(seed), skip))


def test_an_epoch_holds_every_thumbnail_once_and_as_many_pixels_of_crops(photographs):
    batches = epoch(photographs)
    assert len(batches) == -(-len(photographs) // 32) and len(photographs) == SHARE * 2000
    thumbnails = torch.cat([x for x in batches if x.shape[-1] == 32])
    assert torch.equal(to_uint8(thumbnails).sum(0), photographs.thumbnails.images.sum(0))
    shapes = {tuple(x.shape) for x in batches if x.shape[-1] != 32}
    assert shapes == {(32 * 32**2 // side**2, 3, side, side) for side in SIDES}


def test_batches_depend_on_the_generator_alone_and_resume(photographs):
    batches = epoch(photographs)
    for skip in (1, 100):
        assert all(map(torch.equal, epoch(photographs, skip), batches[skip:]))
    assert not all(
        torch.equal(*pair) for pair in zip(epoch(photographs, seed=1), batches) if pair[0].shape == pair[1].shape
    )


def test_crops_are_of_photographs_scaled_down(photographs):
    slopes = []
    for x in epoch(photographs)[:60]:
        for crop in (x + 1) * 127.5:
            red, green = crop[0].diff(dim=0), crop[1].diff(dim=1).abs()
            if crop.shape[-1] == 64 and crop[2].max() < 1:  # of the smooth one
                slopes.append((red.mean().item(), green.mean().item()))
    down, across = torch.tensor(slopes).T
    assert len(slopes) > 20 and torch.allclose(down * 400, across * 600, rtol=0.15)  # both sides by the same factor
    assert down.min() > 1.2 * 255 / 400 and down.max() < 3.3 * 255 / 400  # 128 of its 400 rows are the fewest


def test_processes_take_their_parts_of_each_batch(photographs):
    shards = [lambda index, k=k: index[k::2] for k in range(2)]
    parts = [list(photographs.batches(32, torch.Generator().manual_seed(0), 0, shard)) for shard in shards]
    for whole, *halves in zip(epoch(photographs), *parts, strict=True):
        assert torch.equal(whole[0::2], halves[0]) and torch.equal(whole[1::2], halves[1])


def test_a_folder_that_holds_none_or_a_small_one_is_refused(tmp_path, monkeypatch):
    thumbnails = load_images("sample").train
    with pytest.raises(DataError, match=r"holds no photographs; .* fetches free ones"):
        Photographs(tmp_path, thumbnails)
    Image.new("RGB", (127, 500)).save(tmp_path / "small.png")
    with pytest.raises(DataError, match=r"small\.png is smaller than 128 pixels, the side of a crop"):
        epoch(Photographs(tmp_path, thumbnails))
    monkeypatch.setattr(module, "SIDES", (32, 64))
    assert epoch(Photographs(tmp_path, thumbnails))


def test_the_hash_names_photographs_and_thumbnails(folder, tmp_path, photographs):
    assert photographs.name == "sample train and 2 photographs"
    assert Photographs(folder, photographs.thumbnails).sha256 == photographs.sha256
    (tmp_path / "noise.png").write_bytes((folder / "noise.png").read_bytes())
    assert Photographs(tmp_path, photographs.thumbnails).sha256 != photographs.sha256
