"""The context model in integers: the same probabilities on every machine, or bytes could not be decoded."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .context import COLUMNS, LOG_SCALES, RADIUS, ROWS, SCALES, SITES, SLOPE, STEPS, ContextModel, windows

WEIGHT_BITS, ACTIVATION_BITS = 12, 8  # fraction bits
MAX_LATENT = 2**15 - 1
MAX_ACTIVATION = 2**20  # in units of 2⁻⁸


class IntegerContext:
    """A context model at one quality; exact for any machine, batch and number of threads.

    The integers are stored in float64, whose sums and products are exact below 2⁵³ in any order. Weights are rounded
    to 12 fraction bits, activations to 8.
    Ballé, Johnston and Minnen 2019, "Integer networks for data compression with latent-variable models".
    """

    def __init__(self, model: ContextModel, quality: int):
        self.channels, self.size, self.tables = model.channels, model.size, tables()
        position = quality * (len(model.quality) - 1)  # in hundredths of the distance between two anchors
        low = min(position // 100, len(model.quality) - 2)
        part = position - 100 * low
        anchors = _fixed(model.quality, WEIGHT_BITS)
        shifts = torch.floor((anchors[low] * (100 - part) + anchors[low + 1] * part) / 100)
        bits = WEIGHT_BITS + ACTIVATION_BITS
        self.groups = []
        for first, second, third, shift in zip(model.first, model.second, model.third, shifts):
            weight, bias = _layer(first, WEIGHT_BITS)
            self.groups.append([(weight, bias + shift), _layer(second, bits), _layer(third, bits)])
            for (weight, bias), largest in zip(self.groups[-1], (MAX_LATENT, MAX_ACTIVATION, MAX_ACTIVATION)):
                if not (weight.abs().sum(0) * largest + bias.abs() < 2**53).all():
                    raise ValueError("the context model has a weight that is not finite, or too large for exact sums")
        inputs = SITES * (self.channels + 1)
        self.look = torch.cat([group[0][0][:inputs] for group in self.groups], 1)  # what all groups do with a window
        self.groups = [[(first[inputs:], bias), *rest] for (first, bias), *rest in self.groups]

    def seen(self, window: Tensor) -> tuple[Tensor, ...]:
        """Return what the first layer of each group makes of windows: float64 [M, 12·(C + 1)] → [M, hidden] each."""
        return (window @ self.look).chunk(len(self.groups), 1)

    def __call__(self, group: int, seen: Tensor, site: Tensor) -> tuple[Tensor, Tensor]:
        """Predict one group: what it has `seen`, earlier groups at the site [M, group · size] → two int64 [M, size].

        The results are the mean in eighths and the index of the scale.
        """
        (first, bias1), (second, bias2), (third, bias3) = self.groups[group]
        x = _leaky(seen + site @ first + bias1, WEIGHT_BITS - ACTIVATION_BITS)
        x = _leaky(x @ second + bias2, WEIGHT_BITS)
        mean, log_scale = torch.floor((x @ third + bias3) / 2**WEIGHT_BITS).split(self.size, 1)
        one, (low, high) = 2**ACTIVATION_BITS, LOG_SCALES
        mean = torch.floor((mean * STEPS + one // 2) / one).clamp(-MAX_LATENT * STEPS, MAX_LATENT * STEPS)
        span = int(high - low) * one
        scale = torch.floor(((log_scale - int(low) * one) * (SCALES - 1) + span // 2) / span).clamp(0, SCALES - 1)
        return mean.long(), scale.long()

    def predict(self, padded: Tensor) -> tuple[Tensor, Tensor]:
        """Predict all latents at once, as the encoder can: float64 [N, C + 1, h + 2, w + 4] → two int64 [N, h·w, C]."""
        N = len(padded)
        seen = self.seen(windows(padded).flatten(0, 1))
        site = padded[:, :-1, ROWS - 1 :, COLUMNS // 2 : -(COLUMNS // 2)].permute(0, 2, 3, 1).reshape(-1, self.channels)
        groups = [self(g, part, site[:, : g * self.size]) for g, part in enumerate(seen)]
        mean, scale = (torch.cat(parts, 1).view(N, -1, self.channels) for parts in zip(*groups))
        return mean, scale


@cache
def tables() -> np.ndarray:
    """Load what `logistic_tables` made once, since another machine might round it differently: a row for each table."""
    stored = load_file(Path(__file__).with_name("tables.safetensors"))["tables"]
    return stored.view(-1, 2 * RADIUS + 1).float().numpy()


def _fixed(x: Tensor, bits: int) -> Tensor:
    """Round to so many fraction bits: integers in float64."""
    return torch.round(x.detach().cpu().double() * 2**bits)


def _layer(layer: nn.Module, bits: int) -> tuple[Tensor, Tensor]:
    """Return the transposed weight of a linear layer, and its bias with so many fraction bits."""
    weight, bias = layer.parameters()
    return _fixed(weight.T, WEIGHT_BITS), _fixed(bias, bits)


def _leaky(x: Tensor, shift: int) -> Tensor:
    """Divide by 2^shift, and by 8 below zero, each time rounding down."""
    x = torch.floor(x / 2**shift)
    return torch.where(x < 0, torch.floor(x * SLOPE), x).clamp(-MAX_ACTIVATION, MAX_ACTIVATION)
