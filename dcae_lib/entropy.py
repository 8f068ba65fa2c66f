"""What the next latents probably are, given those before them: a context model that learns in floats and codes in integers."""


import torch
import torch.nn.functional as F
from torch import Tensor, nn

QUALITIES = range(101)
ROWS, COLUMNS = 3, 5                                        # the window: two rows above, and two sites to the left
SITES = (ROWS - 1) * COLUMNS + COLUMNS // 2
SLOPE = 1 / 8                                               # of the leaky ReLUs: a shift, in integers
LOG_SCALES = -3.0, 4.0                                      # bounds of the logarithm of a distribution's scale

# In integers: fraction bits of weights and of activations, steps in a mean, and the number of scales in the tables.
WEIGHT_BITS, ACTIVATION_BITS, MEAN_STEPS, SCALES = 12, 8, 8, 64
LARGEST = 2**15 - 1                                         # of a latent
REACH = 64                                                  # latents that far from their mean are coded in two steps
TOTAL = 2**22                                               # of each table: sums of that size are exact in float32


class ContextModel(nn.Module):
    """The mean and the scale of a logistic distribution for each latent, from those that are coded before it.

    Sites are coded row by row. At each, the channels come in groups: a group sees the window of sites before, where
    each also says whether it is inside, and the groups before it at this site. One small network per group; the quality
    moves the biases of its first layer, linearly between anchors.

    y: integers as floats, [N, C, h, w]; quality: floats in 0..100, [N] → mean and log scale, both [N, C, h, w].
    Minnen, Ballé and Toderici 2018, arXiv 1809.02736 (context); Minnen and Singh 2020, arXiv 2007.08739 (channels).
    """

    def __init__(self, channels: int = 16, groups: int = 4, hidden: int = 96, anchors: int = 6):
        super().__init__()
        if channels % groups:
            raise ValueError(f"groups must divide the {channels} channels, got {groups}")
        self.channels, self.size = channels, channels // groups
        inputs = [SITES * (channels + 1) + g * self.size for g in range(groups)]
        self.first = nn.ModuleList(nn.Linear(i, hidden) for i in inputs)
        self.second = nn.ModuleList(nn.Linear(hidden, hidden) for _ in inputs)
        self.third = nn.ModuleList(nn.Linear(hidden, 2 * self.size) for _ in inputs)
        self.quality = nn.Parameter(torch.zeros(anchors, groups, hidden))
        for layer in self.third:                            # to begin with, the same wide distribution everywhere
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, y: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
        N, C, h, w = y.shape
        before = windows(pad(y)).view(N * h * w, -1)
        here = y.permute(0, 2, 3, 1).reshape(N * h * w, C)
        moved = between_anchors(self.quality, quality).repeat_interleave(h * w, 0)      # [N·h·w, groups, hidden]
        out = []
        for g, (first, second, third) in enumerate(zip(self.first, self.second, self.third)):
            x = torch.cat([before, here[:, : g * self.size]], 1)
            x = F.leaky_relu(first(x) + moved[:, g], SLOPE)
            x = F.leaky_relu(second(x), SLOPE)
            out.append(third(x).view(N, h, w, 2, self.size))
        mean, log_scale = torch.cat(out, 4).permute(3, 0, 4, 1, 2)
        return mean, log_scale


def between_anchors(table: Tensor, quality: Tensor) -> Tensor:
    """Linear between the rows of a table, which stand at equal distances from 0 to 100: [K, ...], [N] → [N, ...]."""
    place = quality * ((len(table) - 1) / 100)
    low = place.floor().clamp(0, len(table) - 2).long()
    return torch.lerp(table[low], table[low + 1], (place - low).view(-1, *[1] * (table.ndim - 1)))


def pad(y: Tensor) -> Tensor:
    """Latents with a border of zeros as wide as the window, and a channel that is one inside: [N, C, h, w] → [N, C + 1, h + 2, w + 4]."""
    y = torch.cat([y, torch.ones_like(y[:, :1])], 1)
    return F.pad(y, (COLUMNS // 2, COLUMNS // 2, ROWS - 1, 0))


def windows(padded: Tensor) -> Tensor:
    """What lies before each site in its window: [N, C + 1, h + 2, w + 4] → [N, h·w, (C + 1)·12]."""
    N, channels = padded.shape[:2]
    patches = F.unfold(padded, (ROWS, COLUMNS)).view(N, channels, ROWS * COLUMNS, -1)
    return patches[:, :, :SITES].permute(0, 3, 1, 2).flatten(2)


def bits(y: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """What each latent costs, in bits: minus log₂ of the logistic distribution's mass within ½ of it; any shape.

    Ballé, Minnen, Singh, Hwang and Johnston 2018, arXiv 1802.01436, equation 6.
    """
    scale = log_scale.clamp(*LOG_SCALES).exp()
    away = (y - mean).abs()                                 # the left tail: there, differences of sigmoids are exact
    return -torch.log2((torch.sigmoid((0.5 - away) / scale) - torch.sigmoid((-0.5 - away) / scale)).clamp_min(1e-9))
