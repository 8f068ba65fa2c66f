"""A picture of any size through a network that was trained on small ones: overlapping tiles, blended."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .model import DCAE

TILE, OVERLAP = 32, 8  # bench/photos.py compares them with others


@torch.no_grad()
def reconstruct(
    model: DCAE,
    x: Tensor,
    tile: int = TILE,
    overlap: int = OVERLAP,
    after_row: Callable[[float], None] | None = None,
) -> Tensor:
    """Encode and decode a picture of any size in tiles of the size that the model knows: [3, H, W] → [3, H, W].

    Each tile stands alone, so the norms see what they saw in training. Neighbours share a seam `overlap` pixels wide
    in which one fades into the other (without overlap they stand side by side); the picture's edges are repeated
    outwards, as far as the tiles reach.
    `after_row` is told the share that is done, in (0, 1]. Pixels in [-1, 1], on any device; the result is where x was.
    The model must be in evaluation mode. ValueError for another shape, or a tile or overlap that does not fit.
    """
    if x.ndim != 3 or x.shape[0] != 3 or not x.numel():
        raise ValueError(f"expected one picture [3, H, W], got shape {list(x.shape)}")
    if tile < 1 or tile % model.factor or not 0 <= overlap <= tile // 2:
        raise ValueError(f"tile must be a multiple of {model.factor}, overlap 0 to {tile // 2}; got {tile}, {overlap}")
    H, W = x.shape[1:]
    step = tile - overlap
    rows, columns = (-(-(side + overlap) // step) for side in (H, W))
    Hp, Wp = rows * step + overlap, columns * step + overlap
    padded = F.pad(x[None], (overlap, Wp - W - overlap, overlap, Hp - H - overlap), mode="replicate")[0]

    # Where two tiles overlap, their weights are a rising and a falling ramp, and sum to one.
    ramp = ((torch.arange(tile, device=x.device) + 0.5) / overlap).clamp(max=1)
    weight = (ramp * ramp.flip(0))[:, None] * (ramp * ramp.flip(0))
    device = next(model.parameters()).device
    y = torch.zeros_like(padded)
    for row in range(rows):
        band = slice(row * step, row * step + tile)
        tiles = padded[:, band].unfold(2, tile, step).permute(2, 0, 1, 3)  # [columns, 3, tile, tile]
        tiles = torch.cat([model(part.to(device)).to(x.device) for part in tiles.split(256)]).clamp(-1, 1)
        y[:, band] += F.fold((tiles * weight).flatten(1).T[None], (tile, Wp), tile, stride=step)[0]
        if after_row:
            after_row((row + 1) / rows)
    return y[:, overlap : overlap + H, overlap : overlap + W]


def cut(x: Tensor, side: int, mode: str, edge: int = 0) -> Tensor:
    """Tiles of images that are first padded to whole ones: [B, C, H, W] → [B·rows·columns, C, side, side].

    With an edge, each tile is larger by it on all sides, and shows that much of its neighbours.
    """
    B, C, H, W = x.shape
    padding = (edge, -W % side + edge, edge, -H % side + edge)
    if any(padding):  # in floats: padding knows no bytes
        x = F.pad(x.float(), padding, mode=mode).to(x.dtype)
    x = x.unfold(2, side + 2 * edge, side).unfold(3, side + 2 * edge, side)  # [B, C, rows, columns, side, side]
    return x.permute(0, 2, 3, 1, 4, 5).reshape(-1, C, side + 2 * edge, side + 2 * edge)


def join(tiles: Tensor, B: int, H: int, W: int) -> Tensor:
    """Undo `cut`, padding included: [B·rows·columns, C, side, side] → [B, C, H, W]."""
    C, side = tiles.shape[1:3]
    rows, columns = -(-H // side), -(-W // side)
    x = tiles.view(B, rows, columns, C, side, side).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(B, C, rows * side, columns * side)[:, :, :H, :W]
