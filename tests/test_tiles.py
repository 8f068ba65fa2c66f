"""A picture of any size in overlapping tiles: nothing is lost but what the network loses, and no seam shows."""

import re
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torchvision.transforms.functional import pil_to_tensor

from dcae_lib import DCAE, to_model
from dcae_lib.metrics import psnr
from dcae_lib.files import resource
from dcae_lib.tiles import reconstruct

patient = settings(deadline=None, max_examples=60)          # a busy core is no failure


class Stub(nn.Module):
    """Returns its tiles, or what a function makes of them, and keeps what it saw."""

    factor = 4

    def __init__(self, function=lambda x: x):
        super().__init__()
        self.place, self.function, self.seen = nn.Parameter(torch.zeros(1)), function, []

    def forward(self, x):
        self.seen.append(x)
        return self.function(x + self.place)


def noise(H, W, seed=0):
    return torch.rand(3, H, W, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@patient
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([4, 8, 20, 32]), st.data())
def test_a_network_that_changes_nothing_gives_back_every_picture(H, W, tile, data):
    x = noise(H, W)
    y = reconstruct(Stub(), x, tile, data.draw(st.integers(1, tile // 2)))
    assert y.shape == x.shape
    torch.testing.assert_close(y, x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("H, W", [(1, 1), (1, 8000), (300, 2), (33, 65)])
def test_the_network_sees_tiles_of_its_size_and_at_most_256_at_once(H, W):
    stub = Stub()
    torch.testing.assert_close(reconstruct(stub, noise(H, W)), noise(H, W), rtol=0, atol=1e-6)
    assert all(x.shape[1:] == (3, 32, 32) and len(x) <= 256 for x in stub.seen)
    assert sum(map(len, stub.seen)) == -(-(H + 8) // 24) * -(-(W + 8) // 24)


def test_beyond_the_edges_the_picture_is_repeated():
    stub, x = Stub(), noise(3, 5)
    reconstruct(stub, x)
    rows, columns = ((torch.arange(32) - 8).clamp(0, length - 1) for length in (3, 5))
    assert torch.equal(stub.seen[0][0], x[:, rows][:, :, columns])


@pytest.mark.parametrize("tile, overlap", [(32, 8), (32, 16), (16, 1), (8, 3)])
def test_between_two_tiles_one_fades_into_the_other_in_a_straight_line(tile, overlap):
    step = tile - overlap
    stub = Stub(lambda x: torch.arange(len(x)).view(-1, 1, 1, 1).expand(x.shape) % 2 * 2.0 - 1)
    y = reconstruct(stub, noise(5, 4 * step), tile, overlap)
    assert torch.equal(y, y[:1, :1].expand_as(y))
    fade = (torch.arange(overlap) + 0.5) / overlap * 2 - 1
    row = torch.cat([torch.full((tile - 2 * overlap,), -1.0), fade, torch.full((tile - 2 * overlap,), 1.0), -fade])
    torch.testing.assert_close(y[0, 0], row.repeat(3)[:4 * step], rtol=0, atol=1e-6)


def test_the_result_is_clamped_and_has_no_gradient():
    y = reconstruct(Stub(lambda x: x * 9 + 2), torch.tensor([-1.0, 1.0]).expand(3, 40, 2))
    assert not y.requires_grad
    assert y[..., 0].allclose(torch.tensor(-1.0)) and y[..., 1].allclose(torch.tensor(1.0))


@pytest.mark.parametrize("H", [1, 16, 17, 100])
def test_progress_rises_row_by_row_to_exactly_one(H):
    told = []
    reconstruct(Stub(), noise(H, 40), after_row=told.append)
    assert len(told) == -(-(H + 8) // 24) and told[-1] == 1
    assert all(0 < a < b for a, b in pairwise(told))


@torch.no_grad()
def test_without_overlap_each_tile_stands_alone_beside_the_next():
    model, x = DCAE.from_pretrained(), noise(64, 96)
    tiles = torch.stack([x[:, r:r + 32, c:c + 32] for r in (0, 32) for c in (0, 32, 64)])
    rows = [torch.cat([*line], 2) for line in model(tiles).clamp(-1, 1).split(3)]
    torch.testing.assert_close(reconstruct(model, x, overlap=0), torch.cat(rows, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (3, 3, 8, 8), (3, 8), (8, 8), (4, 8, 8), (1, 8, 8), (3, 0, 8), (3, 8, 0)])
def test_what_is_not_one_picture_is_refused(shape):
    with pytest.raises(ValueError, match=re.escape(f"one picture [3, H, W], got shape {list(shape)}")):
        reconstruct(Stub(), torch.zeros(shape))


@pytest.mark.parametrize("tile, overlap", [(0, 0), (32, -1), (32, 17), (30, 8), (4, 3)])
def test_tiles_that_do_not_fit_are_refused(tile, overlap):
    with pytest.raises(ValueError, match=f"multiple of 4, overlap 0 to {tile // 2}; got {tile}, {overlap}"):
        reconstruct(Stub(), noise(40, 40), tile, overlap)


# ---- the recorded network


@pytest.fixture(scope="module")
def model():
    return DCAE.from_pretrained()


@pytest.fixture(scope="module")
def cat():
    return to_model(pil_to_tensor(Image.open(resource("photos") / "cat.webp").convert("RGB")))


@torch.no_grad()
def test_in_the_middle_of_a_tile_stands_what_the_network_makes_of_that_tile_alone(model, cat):
    alone = model(cat[None, :, 16:48, 40:72])[0].clamp(-1, 1)                # second row, third column
    found = reconstruct(model, cat[:, :60, :100])
    torch.testing.assert_close(found[:, 24:40, 48:64], alone[:, 8:24, 8:24], rtol=0, atol=1e-5)


@torch.no_grad()
def test_tiles_keep_more_of_a_photo_than_the_network_does_on_the_whole_and_show_no_seams(model, cat):
    x = cat[:, :300, :448]
    y = reconstruct(model, x)
    assert psnr(y[None], x[None]) > psnr(model(x[None]), x[None]) + 0.3
    error = (y - x).abs().mean(0)
    seam = torch.zeros(300, 448, dtype=torch.bool)
    for start in (*range(16, 448, 24), *range(23, 448, 24)):                # first and last pixel of each tile
        seam[:, start] = True
        seam[start:start + 1] = True
    assert error[seam].mean() < 1.15 * error[~seam].mean()
    jumps = (y[..., 1:] - y[..., :-1]).abs().mean((0, 1)) / (x[..., 1:] - x[..., :-1]).abs().mean((0, 1))
    at_seams = torch.zeros(447, dtype=torch.bool)
    at_seams[15::24] = at_seams[23::24] = True
    assert jumps[at_seams].mean() < 1.1 * jumps[~at_seams].mean()
