"""A picture of any size in overlapping tiles: nothing is lost but what the network loses, and no seam shows."""

import re
from itertools import pairwise

import pytest
import torch
from harness import join
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dcae_lib import DCAE, to_model
from dcae_lib.data import read_picture
from dcae_lib.files import resource
from dcae_lib.metrics import psnr
from dcae_lib.tiles import cut, piecewise, reconstruct

patient = settings(max_examples=60)


class Stub(nn.Module):
    def __init__(self, function=lambda x: x):
        super().__init__()
        self.place, self.function, self.seen = nn.Parameter(torch.zeros(1)), function, []

    def forward(self, x):
        self.seen.append(x)
        return self.function(x + self.place)


def noise(H, W, seed=0):
    return torch.rand(3, H, W, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@patient
@given(st.integers(1, 2), st.integers(1, 90), st.integers(1, 90), st.sampled_from([8, 32]))
def test_tiles_join(B, H, W, side):
    x = (torch.stack([noise(H, W, k) for k in range(B)]) * 99 + 99).byte()
    tiles = cut(x, side, "replicate")
    assert tiles.dtype == x.dtype and tiles.shape[1:] == (3, side, side)
    assert torch.equal(join(tiles, B, H, W), x)


@patient
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([4, 8, 20, 32]), st.data())
def test_a_network_that_changes_nothing_gives_the_picture_back(H, W, tile, data):
    x, told = noise(H, W), []
    overlap = data.draw(st.integers(0, tile // 2))
    y = reconstruct(Stub(), x, tile, overlap, told.append)
    assert not y.requires_grad
    torch.testing.assert_close(y, x, rtol=0, atol=1e-6)
    assert len(told) == -(-(H + overlap) // (tile - overlap)) and told[-1] == 1
    assert all(0 < a < b for a, b in pairwise(told))


@pytest.mark.parametrize("H, W", [(1, 1), (1, 8000), (3, 5), (33, 65)])
def test_the_network_sees_at_most_256_tiles_edges_repeated(H, W):
    stub, x = Stub(), noise(H, W)
    reconstruct(stub, x)
    assert all(tiles.shape[1:] == (3, 32, 32) and len(tiles) <= 256 for tiles in stub.seen)
    assert sum(map(len, stub.seen)) == -(-(H + 8) // 24) * -(-(W + 8) // 24)
    rows, columns = ((torch.arange(32) - 8).clamp(0, length - 1) for length in (H, W))
    assert torch.equal(stub.seen[0][0], x[:, rows][:, :, columns])


@pytest.mark.parametrize("tile, overlap", [(32, 8), (32, 16), (16, 1), (8, 3)])
def test_tiles_fade_into_each_other_in_a_straight_line(tile, overlap):
    step = tile - overlap
    stub = Stub(lambda x: torch.arange(len(x)).view(-1, 1, 1, 1).expand(x.shape) % 2 * 8.0 - 4)  # clamped to ±1
    y = reconstruct(stub, noise(5, 4 * step), tile, overlap)
    assert torch.equal(y, y[:1, :1].expand_as(y))
    fade = (torch.arange(overlap) + 0.5) / overlap * 2 - 1
    row = torch.cat([torch.full((tile - 2 * overlap,), -1.0), fade, torch.full((tile - 2 * overlap,), 1.0), -fade])
    torch.testing.assert_close(y[0, 0], row.repeat(3)[: 4 * step], rtol=0, atol=1e-6)


def test_pictures_and_tiles_that_do_not_fit_are_refused():
    for shape in [(1, 3, 8, 8), (3, 8), (4, 8, 8), (1, 8, 8), (3, 0, 8), (3, 8, 0)]:
        with pytest.raises(ValueError, match=re.escape(f"one picture [3, H, W], got shape {list(shape)}")):
            reconstruct(Stub(), torch.zeros(shape))


@torch.no_grad()
def test_photo_tiles_beat_the_whole_photo_and_show_no_seams():
    model = DCAE.from_pretrained()
    x = to_model(read_picture(resource("photos") / "cat.webp"))[:, :300, :448]
    y = reconstruct(model, x)
    alone = model(x[None, :, 16:48, 40:72])[0].clamp(-1, 1)  # second row, third column: in the middle it stands alone
    torch.testing.assert_close(y[:, 24:40, 48:64], alone[:, 8:24, 8:24], rtol=0, atol=1e-5)
    assert psnr(y[None], x[None]) > psnr(model(x[None]), x[None]) + 0.3
    error, seam = (y - x).abs().mean(0), torch.zeros(300, 448, dtype=torch.bool)
    for start in (*range(16, 448, 24), *range(23, 448, 24)):  # first and last pixel of each tile
        seam[:, start] = seam[start : start + 1] = True
    assert error[seam].mean() < 1.15 * error[~seam].mean()
    jumps = y.diff(dim=2).abs().mean((0, 1)) / x.diff(dim=2).abs().mean((0, 1))
    at_seams = torch.isin(torch.arange(447) % 24, torch.tensor([15, 23]))
    assert jumps[at_seams].mean() < 1.1 * jumps[~at_seams].mean()


@pytest.mark.parametrize("H, W, side", [(40, 24, 8), (40, 24, 16), (8, 8, 64), (16, 48, 16)])
def test_piecewise_equals_the_network_on_the_whole(H, W, side):
    torch.manual_seed(0)
    down = torch.nn.Conv2d(3, 4, 3, 2, padding=1, dtype=torch.float64)
    up = torch.nn.ConvTranspose2d(3, 2, 4, 2, padding=1, dtype=torch.float64)
    calls, x = [], torch.randn(3, 3, H, W, dtype=torch.float64)
    for network in (down, up):
        y = piecewise(lambda part, network=network: calls.append(part.shape) or network(part), x, side, 4)
        torch.testing.assert_close(y, network(x))
    assert max(shape[2] * shape[3] for shape in calls) <= (side + 8) ** 2
