"""The blocks of the DCAE: a convolution unit, a residual block, a stage, and down and up blocks on shortcuts."""

from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .rearrange import average_channels, channel_to_space, duplicate_channels, space_to_channel

# The shortcuts take a factor of 4 out of each side. When the channels double on the way down (and halve on the
# way up), as in the default model, the way down is one pooling over runs of pixels, and the way up is copies of
# columns, rows and channels. Written so, both run faster than the chain of operations that defines them
# (bench/shortcuts.py measures it). Widths that the fused forms do not cover go through the chain itself.


def pool_down(x: Tensor, out: int) -> Tensor:
    """space_to_channel(2) → average_channels(out) → AvgPool 2, without parameters.

    x: [B, C, H, W] → [B, out, H/4, W/4], H and W multiples of 4, 4·C a multiple of out. With out = 2·C,
    channels 2c and 2c + 1 hold the means of the even and of the odd rows of each 4×4 patch of channel c.
    The source document, "Down block".
    """
    B, C, H, W = x.shape
    _check_sides(H, W)
    if out != 2 * C:
        return F.avg_pool2d(average_channels(space_to_channel(x, 2), out), 2)
    x = x.reshape(B, C * H // 4, 2, 2 * W)                  # two rows: (even row, odd row) of the upper, lower half
    return _rows_to_channels(F.avg_pool2d(x, (2, 4)).view(B, C, H // 4, 2, W // 4))


def pool_up(x: Tensor, out: int) -> Tensor:
    """channel_to_space(2) → nearest Upsample 2 → duplicate_channels(out), without parameters.

    x: [B, C, H, W] → [B, out, 4·H, 4·W], C a multiple of 4, out a multiple of C/4. Channels 4k … 4k + 3 become
    the four quadrants of each 4×4 patch. The source document, "Up block".
    """
    B, C, H, W = x.shape
    if out * 4 % C:
        raise ValueError(f"{C // 4} channels cannot be duplicated into {out}; choose a multiple of {C // 4}")
    x = channel_to_space(x, 2)
    # Copies by torch.stack, whose gradient is a sum of tensors; that of repeat or expand is a slower reduction.
    x = torch.stack([x] * 2, -1).flatten(-2)                # columns, then rows, then channels
    x = torch.stack([x] * 2, -2).flatten(-3, -2)
    return torch.stack([x] * (out * 4 // C), 2).flatten(1, 2)


def direct_down(x: Tensor, out: int) -> Tensor:
    """space_to_channel(4) → average_channels(out): the shortcut of DC-AE for a factor of 4.

    x: [B, C, H, W] → [B, out, H/4, W/4], H and W multiples of 4, 16·C a multiple of out. With out = 2·C,
    channels 2c and 2c + 1 hold the means of the upper and of the lower half of each 4×4 patch of channel c.
    DC-AE, arXiv 2410.10733, section 3.2, figure 4.
    """
    B, C, H, W = x.shape
    _check_sides(H, W)
    if out != 2 * C:
        return average_channels(space_to_channel(x, 4), out)
    return _rows_to_channels(F.avg_pool2d(x, (2, 4)).view(B, C, H // 4, 2, W // 4))


def direct_up(x: Tensor, out: int) -> Tensor:
    """duplicate_channels(16·out) → channel_to_space(4): the shortcut of DC-AE, which `direct_down` undoes.

    x: [B, C, H, W] → [B, out, 4·H, 4·W], 16·out a multiple of C.
    DC-AE, arXiv 2410.10733, section 3.2, figure 4.
    """
    B, C, H, W = x.shape
    if C != 2 * out:
        return channel_to_space(duplicate_channels(x, 16 * out), 4)
    x = x.view(B, out, 2, H, W).transpose(2, 3)
    x = torch.stack([x] * 4, -1).flatten(-2)                # columns: [B, out, H, half, 4·W], then rows
    return torch.stack([x] * 2, -2).reshape(B, out, 4 * H, 4 * W)


def _check_sides(H: int, W: int) -> None:
    if H % 4 or W % 4:
        raise ValueError(f"height and width must be multiples of 4, got {H}×{W}; pad or crop the image first")


def _rows_to_channels(x: Tensor) -> Tensor:
    """[B, C, H, 2, W] → [B, 2·C, H, W]."""
    B, C, H, two, W = x.shape
    return x.transpose(2, 3).reshape(B, two * C, H, W)


SHORTCUTS = {"pool": (pool_down, pool_up), "direct": (direct_down, direct_up), "none": (None, None)}


class NormActConv(nn.Sequential):
    """GroupNorm → SiLU → Conv 3×3 → Dropout: [B, i, H, W] → [B, o, H/stride, W/stride].

    GroupNorm has gcd(groups, i) groups. The source document, "convolution unit".
    """

    def __init__(self, i: int, o: int, stride: int = 1, groups: int = 8, dropout: float = 0.0):
        super().__init__(
            nn.GroupNorm(gcd(groups, i), i), nn.SiLU(), nn.Conv2d(i, o, 3, stride, padding=1), nn.Dropout(dropout)
        )


class NormActUp(nn.Sequential):
    """GroupNorm → SiLU → ConvTranspose stride 2 → Dropout: [B, i, H, W] → [B, o, 2·H, 2·W]; kernel 2, 3 or 4."""

    def __init__(self, i: int, o: int, kernel: int = 4, groups: int = 8, dropout: float = 0.0):
        conv = nn.ConvTranspose2d(i, o, kernel, 2, padding=(kernel - 1) // 2, output_padding=kernel % 2)
        super().__init__(nn.GroupNorm(gcd(groups, i), i), nn.SiLU(), conv, nn.Dropout(dropout))


def zero_(unit: nn.Module) -> None:
    """Set the convolution of a unit to zero, so that the branch that it ends starts as nothing."""
    for parameter in unit.get_submodule("2").parameters():
        nn.init.zeros_(parameter)


class ResidualBlock(nn.Module):
    """Two units plus identity, or plus a 1×1 convolution where the width changes: [B, i, H, W] → [B, o, H, W].

    With zero_init the second convolution starts at zero, so that the block starts as its shortcut.
    He et al. 2016, arXiv 1603.05027 (pre-activation); Goyal et al. 2017, arXiv 1706.02677, section 5.1 (zero init).
    """

    def __init__(self, i: int, o: int, groups: int = 8, dropout: float = 0.0, zero_init: bool = True):
        super().__init__()
        self.branch = nn.Sequential(
            NormActConv(i, o, groups=groups, dropout=dropout), NormActConv(o, o, groups=groups, dropout=dropout)
        )
        self.shortcut = nn.Identity() if i == o else nn.Conv2d(i, o, 1)
        if zero_init:
            zero_(self.branch[-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.branch(x)


class MiddleStage(nn.Module):
    """Two residual blocks plus one unit around both: [B, i, H, W] → [B, o, H, W].

    The inner width is the larger of i and o. `stage_dropout` is the rate of the unit around the stage.
    The source document, "middle stage".
    """

    def __init__(
        self, i: int, o: int, groups: int = 8, dropout: float = 0.0, stage_dropout: float = 0.0, zero_init: bool = True
    ):
        super().__init__()
        mid = max(i, o)
        self.branch = nn.Sequential(
            ResidualBlock(i, mid, groups, dropout, zero_init), ResidualBlock(mid, o, groups, dropout, zero_init)
        )
        self.shortcut = NormActConv(i, o, groups=groups, dropout=stage_dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.branch(x)


class _Resample(nn.Module):
    """A branch of two units that changes the side by a factor of 4, plus a shortcut without parameters."""

    def __init__(self, branch: nn.Sequential, shortcut, o: int, zero_init: bool):
        super().__init__()
        self.branch, self.shortcut, self.o = branch, shortcut, o
        if zero_init and shortcut:                          # without a shortcut, zero would leave nothing at all
            zero_(branch[-1])

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        return y + self.shortcut(x, self.o) if self.shortcut else y


class DownBlock(_Resample):
    """Two units of stride 2 plus the shortcut: [B, i, H, W] → [B, o, H/4, W/4], H and W multiples of 4.

    shortcut: "pool", "direct" or "none". With zero_init the block starts as its shortcut, bit for bit.
    DC-AE, arXiv 2410.10733, section 3.2; the source document, "Down block".
    """

    def __init__(
        self, i: int, o: int, shortcut: str = "pool", groups: int = 8, dropout: float = 0.0, zero_init: bool = True
    ):
        branch = nn.Sequential(
            NormActConv(i, o, 2, groups, dropout), NormActConv(o, o, 2, groups, dropout)
        )
        super().__init__(branch, SHORTCUTS[shortcut][0], o, zero_init)


class UpBlock(_Resample):
    """Two transposed units of stride 2 plus the shortcut: [B, i, H, W] → [B, o, 4·H, 4·W].

    shortcut, zero_init: as in `DownBlock`; kernel: 2, 3 or 4, of the transposed convolutions. 4 is the smallest
    whose stamps overlap and still cover every pixel equally (notebook 02), and the best in the sweep of bench/sweep.py.
    DC-AE, arXiv 2410.10733, section 3.2; the source document, "Up block".
    """

    def __init__(
        self,
        i: int,
        o: int,
        shortcut: str = "pool",
        kernel: int = 4,
        groups: int = 8,
        dropout: float = 0.0,
        zero_init: bool = True,
    ):
        branch = nn.Sequential(
            NormActUp(i, o, kernel, groups, dropout), NormActUp(o, o, kernel, groups, dropout)
        )
        super().__init__(branch, SHORTCUTS[shortcut][1], o, zero_init)
