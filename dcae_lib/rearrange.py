"""Space to channel and back: the rearrangements under every shortcut of the DCAE."""

import torch
from torch import Tensor


def space_to_channel(x: Tensor, r: int) -> Tensor:
    """Move every r×r patch of pixels into channels. Nothing is lost: `channel_to_space` undoes it.

    x: [B, C, H, W], any dtype → [B, C·r², H/r, W/r]. Channel c·r² + i·r + j holds row i, column j of each patch of
    channel c. Raises ValueError unless H and W are multiples of r.
    Shi et al. 2016, arXiv 1609.05158, section 2.2; DC-AE, arXiv 2410.10733, section 3.2.
    """
    B, C, H, W = _shape(x)
    if H % r or W % r:
        raise ValueError(f"height and width must be multiples of {r}, got {H}×{W}; pad or crop the image first")
    x = x.view(B, C, H // r, r, W // r, r)  # rows and columns → (patch, place in the patch)
    return x.permute(0, 1, 3, 5, 2, 4).reshape(B, C * r * r, H // r, W // r)


def channel_to_space(x: Tensor, r: int) -> Tensor:
    """Lay out every run of r² channels as an r×r patch of pixels: the exact inverse of `space_to_channel`.

    x: [B, C, H, W], any dtype → [B, C/r², H·r, W·r]. Raises ValueError unless C is a multiple of r².
    Shi et al. 2016, arXiv 1609.05158, equation 4, with PyTorch's order of channels; DC-AE, section 3.2.
    """
    B, C, H, W = _shape(x)
    if C % (r * r):
        raise ValueError(f"the number of channels must be a multiple of {r}² = {r * r}, got {C}")
    x = x.view(B, C // (r * r), r, r, H, W)  # channels → (channel, row and column in the patch)
    return x.permute(0, 1, 4, 2, 5, 3).reshape(B, C // (r * r), H * r, W * r)


def average_channels(x: Tensor, out: int) -> Tensor:
    """Average runs of C/out neighbouring channels: floats [B, C, H, W] → [B, out, H, W].

    Raises ValueError unless C is a multiple of out. DC-AE, arXiv 2410.10733, section 3.2 (channel averaging).
    """
    B, C, H, W = _shape(x)
    if out < 1 or C % out:
        raise ValueError(f"{C} channels cannot be averaged into {out} equal runs; choose a divisor of {C}")
    return x.view(B, out, C // out, H, W).mean(2)


def duplicate_channels(x: Tensor, out: int) -> Tensor:
    """Repeat every channel out/C times, copies next to each other, so that `average_channels` undoes it.

    x: [B, C, H, W], any dtype → [B, out, H, W]. Raises ValueError unless out is a multiple of C.
    DC-AE, arXiv 2410.10733, section 3.2 (channel duplicating).
    """
    B, C, H, W = _shape(x)
    if out < C or out % C:
        raise ValueError(f"{C} channels cannot be duplicated into {out}; choose a multiple of {C}")
    return torch.stack([x] * (out // C), 2).flatten(1, 2)  # faster backward than expand or repeat_interleave


def _shape(x: Tensor) -> torch.Size:
    if x.ndim != 4:
        raise ValueError(f"expected images [B, C, H, W], got shape {list(x.shape)}; add an axis with x[None]")
    return x.shape
