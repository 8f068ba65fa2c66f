"""Pictures of any size through a network that was trained on small ones: cut into tiles, or blended."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TILE, OVERLAP = 32, 8  # bench/photos.py compares them with others


def cut(x: Tensor, side: int, mode: str) -> Tensor:
    """Cut images, padded to whole tiles by a mode of F.pad: [B, C, H, W] → [B·rows·columns, C, side, side]."""
    padding = (0, -x.shape[3] % side, 0, -x.shape[2] % side)
    if any(padding):
        x = F.pad(x.float(), padding, mode=mode).to(x.dtype)  # in floats: F.pad refuses bytes
    return _windows(x, side, side)


@torch.no_grad()
def reconstruct(model: nn.Module, x: Tensor, tile=TILE, overlap=OVERLAP, after_row=None) -> Tensor:
    """Encode and decode a picture of any size in tiles of the size that the model knows: [3, H, W] → [3, H, W].

    Each tile stands alone, so the norms see what they saw in training. Neighbours fade into each other in a seam
    `overlap` pixels wide; beyond its edges the picture is repeated. `after_row` is called with the fraction completed.
    Pixels in [-1, 1], on any device. The model must be in evaluation mode.
    """
    if x.ndim != 3 or x.shape[0] != 3 or not x.numel():
        raise ValueError(f"expected one picture [3, H, W], got shape {list(x.shape)}")
    H, W = x.shape[1:]
    step = tile - overlap
    right, below = (overlap + -(side + overlap) % step for side in (W, H))
    padded = F.pad(x[None], (overlap, right, overlap, below), mode="replicate")

    ramp = ((torch.arange(tile, device=x.device) + 0.5) / overlap).clamp(max=1)
    weight = (ramp * ramp.flip(0))[:, None] * (ramp * ramp.flip(0))  # sums to one where tiles overlap
    device = next(model.parameters()).device
    y = torch.zeros_like(padded)
    for top in range(0, padded.shape[2] - overlap, step):
        band = slice(top, top + tile)
        tiles = _windows(padded[:, :, band], tile, step)
        tiles = torch.cat([model(part.to(device)).to(x.device) for part in tiles.split(256)]).clamp(-1, 1)
        y[:, :, band] += F.fold((tiles * weight).flatten(1).T[None], (tile, padded.shape[3]), tile, stride=step)
        if after_row:
            after_row((top + step) / (padded.shape[2] - overlap))
    return y[0, :, overlap : overlap + H, overlap : overlap + W]


def piecewise(network: Callable[[Tensor], Tensor], x: Tensor, side: int, margin: int) -> Tensor:
    """Apply a convolutional network to images in squares, each with a margin around it: [B, C, H, W] → [B, D, h, w].

    That is what it makes of the whole images, without a seam, if it reaches no further than the margin and no norm
    looks at all of the picture. Sides and margin are multiples of the factor by which the network shrinks.
    """
    batches = []
    for images in x.split(max(1, side**2 // x[0, 0].numel())):  # small ones together
        rows = []
        for top in range(0, x.shape[2], side):
            row = []
            for left in range(0, x.shape[3], side):
                above, before = min(top, margin), min(left, margin)
                piece = images[:, :, top - above : top + side + margin, left - before : left + side + margin]
                y = network(piece)
                scale = y.shape[3] / piece.shape[3]
                first, second = (slice(int(k * scale), int((k + side) * scale)) for k in (above, before))
                row.append(y[:, :, first, second])
            rows.append(torch.cat(row, 3))
        batches.append(torch.cat(rows, 2))
    return torch.cat(batches)


def _windows(x: Tensor, size: int, step: int) -> Tensor:
    """Squares of size² pixels, one every `step`: [B, C, H, W] → [B·rows·columns, C, size, size]."""
    return x.unfold(2, size, step).unfold(3, size, step).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
