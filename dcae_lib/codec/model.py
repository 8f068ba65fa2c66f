"""The codec's network: a DCAE whose latents become a pyramid, are rounded, and priced by context models."""

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import NormActConv, zero_
from ..model import DCAE, load_pretrained
from .context import ANCHORS, ContextModel, between_anchors, bits


class ScaleShift(nn.Module):
    """A scale and a shift per channel: [N, C, H, W] → [N, C, H, W]. A GroupNorm whose statistics are constants."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias[:, None, None], x, self.weight[:, None, None])


class Down(nn.Module):
    """Means of 4×4 sites, after a branch that starts at zero: [N, C, h, w] → [N, C, ⌈h/4⌉, ⌈w/4⌉]."""

    def __init__(self, channels: int):
        super().__init__()
        self.branch = _branch(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, -x.shape[3] % 4, 0, -x.shape[2] % 4), mode="replicate")
        return F.avg_pool2d(x + self.branch(x), 4)


class Up(nn.Module):
    """Straight lines between sites, then a branch that starts at zero: [N, C, h, w] → [N, C, 4·h, 4·w]."""

    def __init__(self, channels: int):
        super().__init__()
        self.branch = _branch(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=4, mode="bilinear")
        return x + self.branch(x)


def _branch(channels: int) -> nn.Sequential:
    branch = nn.Sequential(NormActConv(channels, 2 * channels), NormActConv(2 * channels, channels))
    zero_(branch[-1])
    return branch


class RateModel(nn.Module):
    """One model for all qualities, numbers from 0 to 100, and for pictures of all sizes.

    The latents of the DCAE become a pyramid. Means of 4×4 sites are rounded and coded first; what they say about the
    finer level is subtracted from it, and the rest is rounded and coded. So a smooth region costs little: all of its
    finer latents are zero. Burt and Adelson 1983, "The Laplacian pyramid as a compact image code".

    The quality sets a gain per level and channel before rounding and another one after it, both exponentials of lines
    between anchors, and shifts the biases of the context models. Cui et al. 2021, arXiv 2003.02012 (gains).

    The norms measure nothing: a GroupNorm would make every pixel depend on the whole picture, and a large picture
    could not be computed in pieces.

    hidden    hidden units of the context model of each level, the finest first
    **model   arguments of DCAE
    """

    stored = torch.float16  # the type of the weights in files, half as long; `dcae verify` compares the scores

    def __init__(self, hidden: tuple[int, ...] = (96, 48), **model):
        super().__init__()
        self.autoencoder = DCAE(**model)
        self.config = dict(hidden=hidden, **self.autoencoder.config)
        channels, coarse = self.autoencoder.config["latent_channels"], range(len(hidden) - 1)
        self.contexts = nn.ModuleList(ContextModel(channels, hidden=n) for n in reversed(hidden))
        self.down, self.up = (nn.ModuleList(kind(channels) for _ in coarse) for kind in (Down, Up))
        # From 0.4 to 20 times the latents of the L1-trained network, close to where training ends; coarse means finer.
        start = torch.linspace(-0.9, 3.0, ANCHORS)[None, :, None].repeat(len(hidden), 1, channels)
        start[:-1] += 1
        self.log_gain, self.log_inverse = nn.Parameter(start), nn.Parameter(-start)
        for unit in [*self.modules()]:
            for name, norm in unit.named_children():
                if isinstance(norm, nn.GroupNorm):
                    unit.register_module(name, ScaleShift(norm.num_channels))

    @torch.no_grad()
    def start_from(self, model: DCAE, x: Tensor) -> None:
        """Take over a DCAE with one group per norm, and as constants its norms' statistics on pictures [N, 3, H, W]."""
        weights = model.state_dict()

        def keep(name: str, norm: nn.GroupNorm, inputs: tuple[Tensor]) -> None:
            variance, mean = torch.var_mean(inputs[0], (1, 2, 3), correction=0)
            weights[f"{name}.weight"] = norm.weight / (variance.mean() + norm.eps).sqrt()
            weights[f"{name}.bias"] = norm.bias - weights[f"{name}.weight"] * mean.mean()

        norms = {name: norm for name, norm in model.named_modules() if isinstance(norm, nn.GroupNorm)}
        hooks = [norm.register_forward_pre_hook(partial(keep, name)) for name, norm in norms.items()]
        model(x)
        for hook in hooks:
            hook.remove()
        self.autoencoder.load_state_dict(weights)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "RateModel":
        """Load the weights in a folder; see `Codec.from_pretrained`."""
        return load_pretrained(cls, folder)

    def quantise(self, z: Tensor, quality: Tensor) -> list[Tensor]:
        """Latents of the encoder [N, C, h, w] and qualities, [N] or [1] → latents of each level, coarsest first.

        They are not rounded, but each level knows the rounded ones of those before it.
        """
        levels = [z]
        for down in self.down:
            levels.insert(0, down(levels[0]))
        y, known = [], torch.zeros(())
        for k, level in enumerate(levels):
            known = self._expand(k, known, level)
            y.append((level - known) * self._gain(self.log_gain, k, quality))
            known = known + _round(y[k]) * self._gain(self.log_inverse, k, quality)
        return y

    def dequantise(self, y: list[Tensor], quality: Tensor) -> Tensor:
        """Rounded latents of each level and qualities [N] or [1] → latents for the decoder, [N, C, h, w]."""
        known = torch.zeros(())
        for k, level in enumerate(y):
            known = self._expand(k, known, level) + level * self._gain(self.log_inverse, k, quality)
        return known

    def _expand(self, k: int, known: Tensor, level: Tensor) -> Tensor:
        return self.up[k - 1](known)[:, :, : level.shape[2], : level.shape[3]] if k else known.to(level)

    def _gain(self, table: Tensor, k: int, quality: Tensor) -> Tensor:
        return between_anchors(table[k], quality).exp()[:, :, None, None]

    def bits(self, y: list[Tensor], context: list[Tensor], quality: Tensor) -> Tensor:
        """Return the bits that the latents y of each level cost, given `context` ones and qualities [N]: [N]."""
        levels = zip(self.contexts, y, context)
        return torch.stack([bits(part, *model(given, quality)).sum((1, 2, 3)) for model, part, given in levels]).sum(0)

    def forward(self, x: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
        """Return the reconstructed pixels [N, 3, H, W] and what each picture costs in bits [N]; quality: [N].

        Rounding has no gradient: the decoder and the context see rounded latents and pass gradients straight through.
        In training the price is that of latents with uniform noise one rounding step wide, otherwise of rounded ones.
        Ballé, Laparra and Simoncelli 2017, arXiv 1611.01704 (noise); Minnen and Singh 2020, arXiv 2007.08739 (both).
        """
        y = self.quantise(self.autoencoder.encode(x), quality)
        rounded = [_round(level) for level in y]
        priced = [level + torch.rand_like(level) - 0.5 for level in y] if self.training else rounded
        return self.autoencoder.decode(self.dequantise(rounded, quality)), self.bits(priced, rounded, quality)


def _round(y: Tensor) -> Tensor:
    return y + (y.round() - y).detach()


def trade(quality: Tensor) -> Tensor:
    """Return the weight of an MSE of 1, on [0, 1], against one bit per pixel: 40 at quality 0, 9,000 at 100."""
    return 40 * 225 ** (quality / 100)
