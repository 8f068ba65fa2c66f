"""The context model: a probability for each latent given those coded before it, learned in floats."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

QUALITIES = range(101)
ANCHORS = 6  # qualities at which gains and biases are learned; between them they are interpolated
ROWS, COLUMNS = 3, 5  # of the causal window: two rows above the site, and two sites to its left
SITES = (ROWS - 1) * COLUMNS + COLUMNS // 2
SLOPE = 1 / 8  # of the leaky ReLUs: a shift in integers
LOG_SCALES = -3.0, 4.0  # range of a distribution's log scale

RADIUS = 64  # of the tables: a residual beyond it takes a second symbol
STEPS, SCALES = 8, 64  # fractions of an integer that a mean is rounded to; scales in the tables
TABLE_SUM = 2**22  # sums below 2²⁴ are exact in float32


class ContextModel(nn.Module):
    """Predict the mean and log scale of a logistic distribution for each latent from those coded before it.

    The channels of a site are coded in groups. A group sees a causal window of earlier sites, with a flag that is 1
    inside the image, and the groups before it at the same site. Each group has its own small network; the quality
    shifts the biases of its first layer, linearly between anchors.

    y: integers as floats, [N, C, h, w]; quality: floats in 0..100, [N] → mean and log scale, both [N, C, h, w].
    Minnen, Ballé and Toderici 2018, arXiv 1809.02736 (context); Minnen and Singh 2020, arXiv 2007.08739 (channels).
    """

    def __init__(self, channels: int = 16, groups: int = 4, hidden: int = 96, anchors: int = ANCHORS):
        super().__init__()
        self.channels, self.size = channels, channels // groups
        inputs = [SITES * (channels + 1) + g * self.size for g in range(groups)]
        self.first = nn.ModuleList(nn.Linear(i, hidden) for i in inputs)
        self.second = nn.ModuleList(nn.Linear(hidden, hidden) for _ in inputs)
        third = [nn.Linear(hidden, 2 * self.size) for _ in inputs]
        self.third = nn.ModuleList(third)
        self.quality = nn.Parameter(torch.zeros(anchors, groups, hidden))
        for layer in third:  # start with the same wide distribution everywhere
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, y: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
        N, C, h, w = y.shape
        window = windows(pad(y)).view(N * h * w, -1)
        site = y.permute(0, 2, 3, 1).reshape(N * h * w, C)
        shift = between_anchors(self.quality, quality).repeat_interleave(h * w, 0)  # [N·h·w, groups, hidden]
        out = []
        for g, (first, second, third) in enumerate(zip(self.first, self.second, self.third)):
            x = torch.cat([window, site[:, : g * self.size]], 1)
            x = F.leaky_relu(first(x) + shift[:, g], SLOPE)
            x = F.leaky_relu(second(x), SLOPE)
            out.append(third(x).view(N, h, w, 2, self.size))
        mean, log_scale = torch.cat(out, 4).permute(3, 0, 4, 1, 2)
        return mean, log_scale


def between_anchors(table: Tensor, quality: Tensor) -> Tensor:
    """Interpolate linearly between the rows of a table, evenly spaced from 0 to 100: [K, ...], [N] → [N, ...]."""
    position = quality * ((len(table) - 1) / 100)
    low = position.floor().clamp(0, len(table) - 2).long()
    return torch.lerp(table[low], table[low + 1], (position - low).view(-1, *[1] * (table.ndim - 1)))


def pad(y: Tensor) -> Tensor:
    """Add a border of zeros and a channel that is 1 inside the image: [N, C, h, w] → [N, C + 1, h + 2, w + 4]."""
    return F.pad(torch.cat([y, torch.ones_like(y[:, :1])], 1), (COLUMNS // 2, COLUMNS // 2, ROWS - 1, 0))


def windows(padded: Tensor) -> Tensor:
    """Gather the causal window before each site: [N, C + 1, h + 2, w + 4] → [N, h·w, 12·(C + 1)]."""
    N, channels = padded.shape[:2]
    patches = F.unfold(padded, (ROWS, COLUMNS)).view(N, channels, ROWS * COLUMNS, -1)
    return patches[:, :, :SITES].permute(0, 3, 2, 1).flatten(2)


def bits(y: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Return the cost of each latent in bits: -log₂ of the logistic distribution's mass within ½ of it; any shape.

    Ballé, Minnen, Singh, Hwang and Johnston 2018, arXiv 1802.01436, equation 6.
    """
    scale = log_scale.clamp(*LOG_SCALES).exp()
    residual = (y - mean).abs()  # mirrored into the left tail, where differences of sigmoids are exact
    mass = torch.sigmoid((0.5 - residual) / scale) - torch.sigmoid((-0.5 - residual) / scale)
    return -torch.log2(mass.clamp_min(1e-9))


def logistic_tables() -> Tensor:
    """Tabulate the logistic distribution in integers: int32 [64 scales, 8 fractions of the mean, 129 residuals].

    A residual is the distance from the mean rounded down; the two ends hold the tails. Each table sums to about 2²²,
    and no entry is 0.
    """
    scale = torch.linspace(*LOG_SCALES, SCALES, dtype=torch.float64).exp()[:, None, None]
    edges = torch.arange(-RADIUS, RADIUS, dtype=torch.float64) + 0.5
    fraction = torch.arange(STEPS, dtype=torch.float64)[:, None] / STEPS
    below, above = torch.sigmoid((edges - fraction) / scale), torch.sigmoid((fraction - edges) / scale)
    # Differences are exact only in the tail that is small: the upper one to the right of the mean.
    inner = torch.where(edges[1:] > fraction, above[..., :-1] - above[..., 1:], below[..., 1:] - below[..., :-1])
    mass = torch.cat([below[..., :1], inner, above[..., -1:]], 2)
    return (mass * TABLE_SUM).round().clamp(min=1).int()
