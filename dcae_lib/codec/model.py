"""The codec's network: a DCAE whose latents are scaled, rounded and priced by a context model."""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ..files import plain, resource
from ..model import DCAE, load_pretrained
from .context import ContextModel, between_anchors, bits


class ScaleShift(nn.Module):
    """A scale and a shift per channel: [N, C, H, W] → [N, C, H, W]. A GroupNorm whose statistics are constants."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias[:, None, None], x, self.weight[:, None, None])


class RateModel(nn.Module):
    """One model for all qualities, numbers from 0 to 100, and for pictures of all sizes.

    Its norms measure nothing: a GroupNorm would make every pixel depend on the whole picture, and a large picture
    could not be computed in pieces.

    The quality sets a gain per channel before rounding and another one after it, both exponentials of lines between
    anchors, and shifts the biases of the context model.
    Cui et al. 2021, arXiv 2003.02012 (gains).

    context   arguments of ContextModel
    **model   arguments of DCAE
    """

    def __init__(self, context: dict | None = None, **model):
        super().__init__()
        self.autoencoder = DCAE(**model)
        for unit in [*self.autoencoder.modules()]:
            for name, norm in unit.named_children():
                if isinstance(norm, nn.GroupNorm):
                    unit.register_module(name, ScaleShift(norm.num_channels))
        channels = self.autoencoder.config["latent_channels"]
        self.context = ContextModel(channels, **(context or {}))
        # From 0.4 to 20 times the latents of the L1-trained network, close to where training ends.
        start = torch.linspace(-0.9, 3.0, len(self.context.quality))[:, None].repeat(1, channels)
        self.log_gain = nn.Parameter(start)
        self.log_inverse = nn.Parameter(-start)
        self.config = dict(context=plain(context or {}), **self.autoencoder.config)

    @torch.no_grad()
    def start_from(self, model: DCAE, x: Tensor) -> None:
        """Take over the weights of a DCAE, its norms with their mean statistics on pictures x: [N, 3, H, W]."""
        weights = model.state_dict()

        def keep(name: str, norm: nn.GroupNorm, inputs: tuple[Tensor]) -> None:
            groups = inputs[0].unflatten(1, (norm.num_groups, -1)).flatten(2)
            size = norm.num_channels // norm.num_groups
            mean, variance = (
                part.mean(0).repeat_interleave(size) for part in (groups.mean(2), groups.var(2, correction=0))
            )
            weights[f"{name}.weight"] = norm.weight / (variance + norm.eps).sqrt()
            weights[f"{name}.bias"] = norm.bias - weights[f"{name}.weight"] * mean

        norms = {name: norm for name, norm in model.named_modules() if isinstance(norm, nn.GroupNorm)}
        hooks = [norm.register_forward_pre_hook(partial(keep, name)) for name, norm in norms.items()]
        model(x)
        for hook in hooks:
            hook.remove()
        self.autoencoder.load_state_dict(weights)

    @classmethod
    def from_pretrained(cls, folder: str | Path | None = None) -> "RateModel":
        """Load the weights in a folder, by default the shipped ones; see `Codec.from_pretrained`."""
        return load_pretrained(cls, resource("codec_weights") if folder is None else folder)

    def analyse(self, x: Tensor, quality: Tensor) -> Tensor:
        """Pixels in [-1, 1], [N, 3, H, W], and qualities, floats [N] or [1] → latents before rounding, [N, C, h, w]."""
        return self.autoencoder.encode(x) * _gain(self.log_gain, quality)

    def synthesise(self, y: Tensor, quality: Tensor) -> Tensor:
        """Rounded latents [N, C, h, w] and qualities [N] or [1] → pixels [N, 3, H, W], not clamped."""
        return self.autoencoder.decode(y * _gain(self.log_inverse, quality))

    def forward(self, x: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
        """Return the reconstructed pixels [N, 3, H, W] and each latent's cost in bits [N, C, h, w]; quality: [N].

        Rounding has no gradient: the decoder and the context see rounded latents and pass gradients straight through.
        In training the price is that of latents with uniform noise one rounding step wide, otherwise of rounded ones.
        Ballé, Laparra and Simoncelli 2017, arXiv 1611.01704 (noise); Minnen and Singh 2020, arXiv 2007.08739 (both).
        """
        y = self.analyse(x, quality)
        rounded = y + (y.round() - y).detach()
        priced = y + torch.rand_like(y) - 0.5 if self.training else rounded
        return self.synthesise(rounded, quality), bits(priced, *self.context(rounded, quality))


def trade(quality: Tensor) -> Tensor:
    """Return the weight of an MSE of 1, on [0, 1], against one bit per pixel: 40 at quality 0, 9,000 at 100."""
    return 40 * 225 ** (quality / 100)


def _gain(table: Tensor, quality: Tensor) -> Tensor:
    return between_anchors(table, quality).exp()[:, :, None, None]
