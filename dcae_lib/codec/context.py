"""What the next latents probably are, given those before them: a context model that learns in floats and codes in integers."""

from collections.abc import Callable, Sequence

import constriction
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .bitstream import CorruptStream

QUALITIES = range(101)
ROWS, COLUMNS = 3, 5                                        # the window: two rows above, and two sites to the left
SITES = (ROWS - 1) * COLUMNS + COLUMNS // 2
SLOPE = 1 / 8                                               # of the leaky ReLUs: a shift, in integers
LOG_SCALES = -3.0, 4.0                                      # bounds of the logarithm of a distribution's scale

# The same model in integers.
WEIGHT_BITS, ACTIVATION_BITS = 12, 8                        # fraction bits
LARGEST = 2**15 - 1                                         # of a latent
ACTIVE = 2**20                                              # of an activation, in units of 1 / 256
STEPS, SCALES = 8, 64                                       # steps of a mean between two integers; scales in the tables
REACH = 64                                                  # of the tables: what is farther from the mean takes two symbols
TOTAL = 2**22                                               # of a table: sums below 2²⁴ are exact in float32

TABLE = constriction.stream.model.Categorical(perfect=False)
FAR_BITS = 18                                               # of how far beyond the reach: more than 2 · LARGEST + REACH
FAR = constriction.stream.model.Uniform(2**FAR_BITS)


class ContextModel(nn.Module):
    """The mean and the scale of a logistic distribution for each latent, from those that are coded before it.

    Sites are coded row by row. At each, the channels come in groups: a group sees the window of sites before, where
    each also says whether it is inside, and the groups before it at this site. One small network per group; the quality
    moves the biases of its first layer, linearly between anchors.

    y: integers as floats, [N, C, h, w]; quality: floats in 0..100, [N] → mean and log scale, both [N, C, h, w].
    Minnen, Ballé and Toderici 2018, arXiv 1809.02736 (context); Minnen and Singh 2020, arXiv 2007.08739 (channels).
    """

    tables: Tensor

    def __init__(self, channels: int = 16, groups: int = 4, hidden: int = 96, anchors: int = 6):
        super().__init__()
        if channels % groups:
            raise ValueError(f"groups must divide the {channels} channels, got {groups}")
        self.channels, self.size = channels, channels // groups
        inputs = [SITES * (channels + 1) + g * self.size for g in range(groups)]
        self.first = nn.ModuleList(nn.Linear(i, hidden) for i in inputs)
        self.second = nn.ModuleList(nn.Linear(hidden, hidden) for _ in inputs)
        third = [nn.Linear(hidden, 2 * self.size) for _ in inputs]
        self.third = nn.ModuleList(third)
        self.quality = nn.Parameter(torch.zeros(anchors, groups, hidden))
        self.register_buffer("tables", logistic_tables())   # stored, since another machine might round them otherwise
        for layer in third:                                 # to begin with, the same wide distribution everywhere
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


def pad(y: Tensor, inside: Tensor | None = None) -> Tensor:
    """Latents within a border of zeros, and a channel that is one inside: [N, C, h, w] → [N, C + 1, h + 2, w + 4].

    inside: [N, h, w], true at the sites that are coded; without it, all are.
    """
    inside = torch.ones_like(y[:, :1]) if inside is None else inside[:, None].to(y.dtype)
    return F.pad(torch.cat([y * inside, inside], 1), (COLUMNS // 2, COLUMNS // 2, ROWS - 1, 0))


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


# ---- the same in integers


class IntegerContext:
    """The context model at one quality, in integers: one answer on every machine, for any batch, on any number of threads.

    The integers are held in float64, where sums and products are exact below 2⁵³, in whatever order they are taken.
    Weights are rounded to 12 fraction bits, activations to 8.
    Ballé, Johnston and Minnen 2019, "Integer networks for data compression with latent-variable models".
    """

    def __init__(self, model: ContextModel, quality: int):
        self.channels, self.size = model.channels, model.size
        self.tables = model.tables.cpu().view(-1, 2 * REACH + 1).float().numpy()        # a row for each scale and eighth
        place = quality * (len(model.quality) - 1)          # in hundredths of the way between two anchors
        low = min(place // 100, len(model.quality) - 2)
        part = place - 100 * low
        anchors = _fixed(model.quality, WEIGHT_BITS)
        moved = torch.floor((anchors[low] * (100 - part) + anchors[low + 1] * part) / 100)
        self.groups = []
        for first, second, third, shift in zip(model.first, model.second, model.third, moved):
            bits = WEIGHT_BITS + ACTIVATION_BITS
            weight, bias = _layer(first, WEIGHT_BITS)
            self.groups.append([(weight, bias + shift), _layer(second, bits), _layer(third, bits)])
            for (weight, bias), largest in zip(self.groups[-1], (LARGEST, ACTIVE, ACTIVE)):
                if not (weight.abs().sum(0) * largest + bias.abs() < 2**53).all():
                    raise ValueError("the context model has a weight that is not finite, or too large for exact sums")

    def __call__(self, group: int, before: Tensor, here: Tensor) -> tuple[Tensor, Tensor]:
        """One group's distributions: windows [M, 204], the groups before it here [M, group · size] → int64 [M, size] twice.

        Both index the tables: the mean in eighths, and the scale.
        """
        (first, bias1), (second, bias2), (third, bias3) = self.groups[group]
        x = _leaky(torch.cat([before, here], 1).double() @ first + bias1, WEIGHT_BITS - ACTIVATION_BITS)
        x = _leaky(x @ second + bias2, WEIGHT_BITS)
        mean, log_scale = torch.floor((x @ third + bias3) / 2**WEIGHT_BITS).split(self.size, 1)
        one, (low, high) = 2**ACTIVATION_BITS, LOG_SCALES
        mean = torch.floor((mean * STEPS + one // 2) / one).clamp(-LARGEST * STEPS, LARGEST * STEPS)
        span = int(high - low) * one
        scale = torch.floor(((log_scale - int(low) * one) * (SCALES - 1) + span // 2) / span).clamp(0, SCALES - 1)
        return mean.long(), scale.long()

    def everywhere(self, y: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale of all latents that are known: [N, C, h, w], [N, h, w] → int64 [N, h, w, C] twice."""
        N, C, h, w = y.shape
        before = windows(pad(y, inside)).flatten(0, 1)
        here = y.permute(0, 2, 3, 1).reshape(-1, C)
        found = [self(g, before, here[:, : g * self.size]) for g in range(len(self.groups))]
        mean, scale = (torch.cat(parts, 1).view(N, h, w, C) for parts in zip(*found))
        return mean, scale


def _fixed(x: Tensor, bits: int) -> Tensor:
    """Rounded to so many fraction bits: integers in float64."""
    return torch.round(x.detach().cpu().double() * 2**bits)


def _layer(layer: nn.Module, bits: int) -> tuple[Tensor, Tensor]:
    """The weight of a linear layer, turned, and its bias with so many fraction bits."""
    weight, bias = layer.parameters()
    return _fixed(weight.T, WEIGHT_BITS), _fixed(bias, bits)


def _leaky(x: Tensor, shift: int) -> Tensor:
    """Divided by a power of two and rounded down, and again by eight below zero."""
    x = torch.floor(x / 2**shift)
    return torch.where(x < 0, torch.floor(x * SLOPE), x).clamp(-ACTIVE, ACTIVE)


def logistic_tables() -> Tensor:
    """The share of each distance from the mean rounded down, for each scale and eighth: int32 [64, 8, 129], sums near 2²².

    The two ends hold all that is farther; nothing has a share of 0.
    """
    scale = torch.linspace(*LOG_SCALES, SCALES, dtype=torch.float64).exp()[:, None, None]
    edges = torch.arange(-REACH, REACH, dtype=torch.float64) + 0.5
    offsets = torch.arange(STEPS, dtype=torch.float64)[:, None] / STEPS
    below, above = torch.sigmoid((edges - offsets) / scale), torch.sigmoid((offsets - edges) / scale)   # each exact in its tail
    steps = torch.where(edges[1:] > offsets, above[..., :-1] - above[..., 1:], below[..., 1:] - below[..., :-1])
    share = torch.cat([below[..., :1], steps, above[..., -1:]], 2)
    return (share * TOTAL).round().clamp(min=1).int()


# ---- symbols to bytes and back


def encode(y: Tensor, inside: Tensor, sizes: list[int], context: IntegerContext) -> list[bytes]:
    """Latents to bytes: integers [N, C, h, w] and the sites to code [N, h, w] → a stream for the first sizes[0] tiles, and so on.

    A stream goes site by site and group by group through all its tiles.
    """
    arrays = [coded(*part, context) for part in zip(y.split(256), inside.split(256))]
    symbol, row, excess = (np.concatenate(parts) for parts in zip(*arrays))
    out, start = [], 0
    for n in sizes:
        tiles = slice(start, start + n)
        start += n
        mask = inside[tiles].permute(1, 2, 0)[:, :, None, :, None].expand(-1, -1, len(context.groups), -1, context.size).numpy()
        # [n, h, w, C] → [h, w, groups, n, size], those that are coded
        order = (part[tiles].reshape(n, *inside.shape[1:], -1, context.size).transpose(1, 2, 3, 0, 4)[mask]
                 for part in (symbol, row, excess))
        out.append(_write(mask.sum((3, 4)).cumsum(), context.tables, *order))
    return out


def coded(y: Tensor, inside: Tensor, context: IntegerContext) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each latent as a symbol of 0..128, the row of the tables that has its probability, and how far beyond the reach it is.

    Integers [N, C, h, w], [N, h, w] → [N, h, w, C] three times.
    """
    mean, scale = context.everywhere(y, inside)
    away = y.permute(0, 2, 3, 1).long() - (mean // STEPS)
    symbol = away.clamp(-REACH, REACH) + REACH
    row = scale * STEPS + mean % STEPS
    excess = (away.abs() - REACH).clamp(min=0)
    return symbol.numpy().astype(np.uint8), row.numpy().astype(np.int16), excess.numpy().astype(np.int32)


def costs(y: Tensor, inside: Tensor, context: IntegerContext) -> Tensor:
    """What each latent costs in bits, by the tables: integers [N, C, h, w], [N, h, w] → [N, C, h, w], 0 where none is coded."""
    symbol, row, _ = coded(y, inside, context)
    bits = np.log2(context.tables.sum(1))[row] - np.log2(context.tables[row, symbol])
    bits += FAR_BITS * ((symbol == 0) | (symbol == 2 * REACH))
    return torch.from_numpy(bits).permute(0, 3, 1, 2) * inside[:, None]


def _write(ends: np.ndarray, tables: np.ndarray, symbol: np.ndarray, row: np.ndarray, excess: np.ndarray) -> bytes:
    """Symbols in order, and after each block that holds some at the reach, how far beyond it they are."""
    encoder = constriction.stream.queue.RangeEncoder()
    far = np.flatnonzero((symbol == 0) | (symbol == 2 * REACH))
    stops = np.unique(ends[np.searchsorted(ends, far, side="right")])
    start = 0
    for stop in [*stops, len(symbol)]:
        for k in range(start, stop, 2**15):                 # so that their tables take 17 MB at most
            part = slice(k, min(k + 2**15, stop))
            encoder.encode(symbol[part].astype(np.int32), TABLE, tables[row[part]])
        more = excess[far[(far >= start) & (far < stop)]]
        if len(more):
            encoder.encode(more, FAR)
        start = stop
    return _shortest(encoder)


def _shortest(encoder: constriction.stream.queue.RangeEncoder) -> bytes:
    """The fewest bytes that say the same, when zeros follow: any number of the coder's last interval will do."""
    words = encoder.get_compressed().astype(">u4").tobytes()
    whole, (lower, width) = encoder.pos()
    if lower + width <= 2**64:                              # else a carry is still to come: what the library ends with
        for k in range(1, 9):
            unit = 2 ** (64 - 8 * k)
            point = -(-lower // unit) * unit
            if point < lower + width and point < 2**64:
                words = words[: 4 * whole] + point.to_bytes(8, "big")[:k]
                break
    return words.rstrip(b"\0")


def decode(
    streams: Sequence[bytes],
    inside: Tensor,
    sizes: list[int],
    context: IntegerContext,
    progress: Callable[[float], None] | None = None,
) -> Tensor:
    """What `encode` was given, as float32, zero at sites that are not coded. CorruptStream for bytes that cannot be its own."""
    words = (np.frombuffer(stream + bytes(-len(stream) % 4), ">u4").astype(np.uint32) for stream in streams)
    decoders = [constriction.stream.queue.RangeDecoder(part) for part in words]
    N, h, w = inside.shape
    size, last_tiles = context.size, np.cumsum(sizes)
    padded = pad(torch.zeros(N, context.channels, h, w), inside)
    sites = inside.any(0).nonzero().tolist()
    for done, (i, j) in enumerate(sites, 1):
        tiles = inside[:, i, j].nonzero()[:, 0]
        ends = np.searchsorted(tiles.numpy(), last_tiles) * size            # of each stream's symbols at this site
        parts = [slice(a, b) for a, b in zip([0, *ends.tolist()], ends.tolist())]
        before = windows(padded[tiles, :, i : i + ROWS, j : j + COLUMNS])[:, 0]
        for g in range(len(context.groups)):
            mean, scale = context(g, before, padded[tiles, : g * size, i + 2, j + 2])
            rows = context.tables[(scale * STEPS + mean % STEPS).numpy().ravel()]
            try:
                away = np.concatenate([decoder.decode(TABLE, rows[part]) for decoder, part in zip(decoders, parts)]) - REACH
                far = np.abs(away) == REACH
                if far.any():
                    more = np.concatenate([decoder.decode(FAR, int(far[part].sum())) for decoder, part in zip(decoders, parts)])
                    away[far] += np.sign(away[far]) * more
            except AssertionError as error:                 # the coder's way to say so
                raise CorruptStream("the coded latents are none that the model could have written") from error
            y = torch.from_numpy(away).view(-1, size) + mean // STEPS
            padded[tiles, g * size : (g + 1) * size, i + 2, j + 2] = y.clamp(-LARGEST, LARGEST).float()
        if progress:
            progress(done / len(sites))
    return padded[:, :-1, ROWS - 1 :, COLUMNS // 2 : COLUMNS // 2 + w]
