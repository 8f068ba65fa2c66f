"""Operations on latents and what they measure: reach, effects, directions, levels."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..metrics import psnr
from ..model import DCAE


@torch.no_grad()
def encode_all(model: DCAE, x: Tensor) -> Tensor:
    """Encode many images, 500 at once: [N, 3, H, W] → [N, C, h, w]."""
    return torch.cat([model.encode(part.float()) for part in x.split(500)])


@torch.no_grad()
def decode_all(model: DCAE, z: Tensor) -> Tensor:
    """Decode many latents, 500 at once: [N, C, h, w] → [N, 3, H, W]."""
    return torch.cat([model.decode(part.float()) for part in z.split(500)])


def scale_channels(z: Tensor, gains: Tensor, mean: Tensor) -> Tensor:
    """Multiply each channel's distance from its mean by a gain: [..., C, h, w], [C], [C] → [..., C, h, w]."""
    mean, gains = mean[:, None, None], gains[:, None, None]
    return mean + gains * (z - mean)


@contextmanager
def frozen_norms(module: nn.Module, x: Tensor) -> Iterator[None]:
    """Freeze the statistics of every GroupNorm in a module, inside the block, at those for x.

    x is a batch of one, or as large as what follows. What remains is local: convolutions and pointwise functions.
    """
    statistics: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def freeze(norm: nn.GroupNorm, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        groups = inputs[0].reshape(len(output), norm.num_groups, -1)
        if norm not in statistics:
            var, mean = torch.var_mean(groups, dim=2, correction=0, keepdim=True)
            statistics[norm] = mean, (var + norm.eps).rsqrt()
        mean, scale = statistics[norm]
        return ((groups - mean) * scale).view_as(output) * norm.weight[:, None, None] + norm.bias[:, None, None]

    hooks = [m.register_forward_hook(freeze) for m in module.modules() if isinstance(m, nn.GroupNorm)]
    try:
        with torch.no_grad():
            module(x)
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def reach(model: DCAE, z: Tensor, sites: Tensor) -> Tensor:
    """Find the pixels that convolutions connect with sites of one latent: [C, h, w], bool [h, w] → bool [H, W]."""
    with frozen_norms(model.decoder, z[None]):
        return (model.decode(z[None]) != model.decode(z[None] + sites)).any(1)[0]


@torch.no_grad()
def effects(model: DCAE, z: Tensor) -> tuple[Tensor, Tensor]:
    """Measure what each channel contributes, averaged over many latents [N, C, h, w].

    Returns stamps [C, 3, H, W], the change in the picture, in [-1, 1] units, when the middle site rises by one standard
    deviation; and costs [C], the PSNR in dB between pictures with the channel and with its mean in its place.
    """
    N, C, h, w = z.shape
    y = decode_all(model, z)
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
    stamps, costs = [], []
    for k in range(C):
        more, less = z.clone(), z.clone()
        more[:, k, h // 2, w // 2] += std[k]
        less[:, k] = mean[k]
        stamps.append((decode_all(model, more) - y).mean(0))
        costs.append(psnr(decode_all(model, less), y.clamp(-1, 1)).mean())
    return torch.stack(stamps), torch.stack(costs)


def principal_components(z: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean [C, h, w], the n directions of most variance [n, C, h, w], of length one, and their std [n].

    z: [N, C, h, w]; directions beyond N - 1 have no variance. The largest entry of each direction is positive.
    Computed in float64; Pearson 1901.
    """
    shape = z.shape[1:]
    flat = z.flatten(1).double()
    values, vectors = torch.linalg.eigh(torch.cov(flat.T))
    values, vectors = values.flip(0)[:n].clamp(min=0), vectors.T.flip(0)[:n]
    vectors = vectors * vectors.gather(1, vectors.abs().argmax(1, keepdim=True)).sign()
    return flat.mean(0).view(shape).float(), vectors.reshape(-1, *shape).float(), values.sqrt().float()


def levels_of(z: Tensor, levels: int, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Round each channel to `levels` equally spaced values from low to high: [N, C, h, w], [C] twice.

    Returns the rounded latents and the level of each number, int64, both [N, C, h, w]; levels: at least 2.
    """
    low, high = low[:, None, None], high[:, None, None]
    step = ((high - low) / (levels - 1)).clamp(min=1e-12)
    index = ((z - low) / step).round().clamp(0, levels - 1)
    return low + index * step, index.long()


def bits_of_levels(index: Tensor, levels: int) -> Tensor:
    """Return the bits of each level in an ideal code that knows each channel's histogram: [N, C, h, w] → [C, levels].

    -log₂ of the frequency; a level that does not occur counts as occurring once. Shannon 1948, theorem 9.
    """
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=levels) for channel in index.transpose(0, 1)])
    counts = counts.clamp(min=1).double()
    return (counts.sum(1, keepdim=True) / counts).log2()
