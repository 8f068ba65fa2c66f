"""The blocks of the DCAE: a convolution unit, a residual block, a stage, and down and up blocks with shortcuts."""

from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .rearrange import average_channels, channel_to_space, duplicate_channels, space_to_channel


def pool_down(x: Tensor, out: int) -> Tensor:
    """Shrink by 4 without parameters: space_to_channel(2) → average_channels(out) → AvgPool 2.

    x: [B, C, H, W] → [B, out, H/4, W/4], H and W multiples of 4, 4·C a multiple of out. With out = 2·C,
    channels 2c and 2c + 1 hold the means of the even and of the odd rows of each 4×4 patch of channel c.
    A two-step form of the shortcut of DC-AE, arXiv 2410.10733, section 3.2.
    """
    B, C, H, W = x.shape
    if H % 4 or W % 4:
        raise ValueError(f"height and width must be multiples of 4, got {H}×{W}; pad or crop the image first")
    if out != 2 * C:
        return F.avg_pool2d(average_channels(space_to_channel(x, 2), out), 2)
    # The same means in the order of memory that a CPU trains in, channels last, where this is faster (bench/train.py).
    x = F.avg_pool2d(x, (1, 4)).permute(0, 2, 3, 1)  # means of runs of four columns: [B, H, W/4, C]
    x = x.reshape(B, H // 4, 2, 2, W // 4, C).mean(2)  # of even rows and of odd rows: [B, H/4, 2, W/4, C]
    return x.permute(0, 1, 3, 4, 2).reshape(B, H // 4, W // 4, out).permute(0, 3, 1, 2)


def pool_up(x: Tensor, out: int) -> Tensor:
    """Grow by 4 without parameters: channel_to_space(2) → nearest Upsample 2 → duplicate_channels(out).

    x: [B, C, H, W] → [B, out, 4·H, 4·W], C a multiple of 4, out a multiple of C/4. Channels 4k … 4k + 3 become
    the four quadrants of each 4×4 patch. A two-step form of the shortcut of DC-AE, arXiv 2410.10733, section 3.2.
    """
    B, C, H, W = x.shape
    if C % 4 or out * 4 % C:
        return duplicate_channels(channel_to_space(x, 2), out)  # raises the error
    x = x.permute(0, 2, 3, 1).reshape(B, H, W, C // 4, 2, 2).permute(0, 1, 4, 2, 5, 3)  # [B, H, row, W, column, C/4]
    x = torch.stack([x] * (out * 4 // C), -1).reshape(B, 2 * H, 2 * W, out).permute(0, 3, 1, 2)
    return F.interpolate(x, scale_factor=2)


def direct_down(x: Tensor, out: int) -> Tensor:
    """Shrink by 4 as in DC-AE: space_to_channel(4) → average_channels(out).

    x: [B, C, H, W] → [B, out, H/4, W/4], H and W multiples of 4, 16·C a multiple of out. With out = 2·C,
    channels 2c and 2c + 1 hold the means of the upper and of the lower half of each 4×4 patch of channel c.
    DC-AE, arXiv 2410.10733, section 3.2, figure 4.
    """
    return average_channels(space_to_channel(x, 4), out)


def direct_up(x: Tensor, out: int) -> Tensor:
    """Grow by 4 as in DC-AE: duplicate_channels(16·out) → channel_to_space(4), which `direct_down` undoes.

    x: [B, C, H, W] → [B, out, 4·H, 4·W], 16·out a multiple of C. DC-AE, arXiv 2410.10733, section 3.2, figure 4.
    """
    return channel_to_space(duplicate_channels(x, 16 * out), 4)


SHORTCUTS = {"pool": (pool_down, pool_up), "direct": (direct_down, direct_up), "none": (None, None)}


class NormActConv(nn.Sequential):
    """GroupNorm (gcd(groups, i) groups) → SiLU → Conv 3×3 → Dropout: [B, i, H, W] → [B, o, H/stride, W/stride]."""

    def __init__(self, i: int, o: int, stride: int = 1, groups: int = 8, dropout: float = 0.0):
        conv = nn.Conv2d(i, o, 3, stride, padding=1)
        super().__init__(nn.GroupNorm(gcd(groups, i), i), nn.SiLU(), conv, nn.Dropout(dropout))


class NormActUp(nn.Sequential):
    """GroupNorm → SiLU → ConvTranspose stride 2 → Dropout: [B, i, H, W] → [B, o, 2·H, 2·W]; kernel 2, 3 or 4."""

    def __init__(self, i: int, o: int, kernel: int = 4, groups: int = 8, dropout: float = 0.0):
        conv = nn.ConvTranspose2d(i, o, kernel, 2, padding=(kernel - 1) // 2, output_padding=kernel % 2)
        super().__init__(nn.GroupNorm(gcd(groups, i), i), nn.SiLU(), conv, nn.Dropout(dropout))


def zero_(unit: nn.Module) -> None:
    """Set the convolution of a unit to zero, so that the branch it ends adds nothing at first."""
    for parameter in unit.get_submodule("2").parameters():
        nn.init.zeros_(parameter)


class ResidualBlock(nn.Module):
    """Two units plus identity, or plus a 1×1 convolution where the width changes: [B, i, H, W] → [B, o, H, W].

    With zero_init the second convolution starts at zero, so that the block starts as its shortcut.
    He et al. 2016, arXiv 1603.05027 (pre-activation); Goyal et al. 2017, arXiv 1706.02677, section 5.1 (zero init).
    """

    def __init__(self, i: int, o: int, groups: int = 8, dropout: float = 0.0, zero_init: bool = True):
        super().__init__()
        self.branch = nn.Sequential(NormActConv(i, o, 1, groups, dropout), NormActConv(o, o, 1, groups, dropout))
        self.shortcut = nn.Identity() if i == o else nn.Conv2d(i, o, 1)
        if zero_init:
            zero_(self.branch[-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.branch(x)


class MiddleStage(nn.Module):
    """Two residual blocks plus one unit around both: [B, i, H, W] → [B, o, H, W].

    The inner width is the larger of i and o. stage_dropout: rate of the unit around both; None: as dropout.
    """

    def __init__(self, i: int, o: int, groups=8, dropout=0.0, stage_dropout=None, zero_init=True):
        super().__init__()
        mid = max(i, o)
        self.branch = nn.Sequential(
            ResidualBlock(i, mid, groups, dropout, zero_init), ResidualBlock(mid, o, groups, dropout, zero_init)
        )
        self.shortcut = NormActConv(i, o, 1, groups, dropout if stage_dropout is None else stage_dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.branch(x)


class _Resample(nn.Module):
    """A branch of two units that changes the side by a factor of 4, plus a shortcut without parameters."""

    def __init__(self, branch: nn.Sequential, shortcut, o: int, zero_init: bool):
        super().__init__()
        self.branch, self.shortcut, self.o = branch, shortcut, o
        if zero_init and shortcut:  # without a shortcut, zero would leave nothing at all
            zero_(branch[-1])

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        return y + self.shortcut(x, self.o) if self.shortcut else y


class DownBlock(_Resample):
    """Two units of stride 2 plus the shortcut: [B, i, H, W] → [B, o, H/4, W/4], H and W multiples of 4.

    shortcut: "pool", "direct" or "none". With zero_init the block starts as its shortcut, bit for bit.
    """

    def __init__(self, i: int, o: int, shortcut="pool", groups=8, dropout=0.0, zero_init=True):
        branch = nn.Sequential(NormActConv(i, o, 2, groups, dropout), NormActConv(o, o, 2, groups, dropout))
        super().__init__(branch, SHORTCUTS[shortcut][0], o, zero_init)


class UpBlock(_Resample):
    """Two transposed units of stride 2 plus the shortcut: [B, i, H, W] → [B, o, 4·H, 4·W].

    shortcut, zero_init: as in `DownBlock`; kernel: 2, 3 or 4, of the transposed convolutions. 4 is the smallest
    whose stamps overlap and still cover every pixel equally (notebook 02), and the best in the sweep of bench/sweep.py.
    """

    def __init__(self, i: int, o: int, shortcut="pool", kernel=4, groups=8, dropout=0.0, zero_init=True):
        branch = nn.Sequential(NormActUp(i, o, kernel, groups, dropout), NormActUp(o, o, kernel, groups, dropout))
        super().__init__(branch, SHORTCUTS[shortcut][1], o, zero_init)
