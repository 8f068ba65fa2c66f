"""Effort: latents of one picture, refined by gradient descent through the fixed decoder and context model."""

import math
from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor
from tqdm import tqdm

from ..data import to_model
from .coder import BAR
from .model import RateModel, trade

STEPS = 0, 100, 300  # of gradient descent, by effort
PIECE, MARGIN = 128, 8  # latents along the side of the squares that are refined one after the other, and around them
HEAT = 0.7, 0.1  # of the random rounding, at the first and at the last step
LR, EPS = 0.05, 0.3  # of Adam; eps in bits per unit, so that a latent on which nothing depends stays where it is


def refine(model: RateModel, y: list[Tensor], x: Tensor, quality: Tensor, steps: int) -> list[Tensor]:
    """Return rounded latents that cost fewer bits + trade · MSE than those of the encoder, rounded.

    y: latents of each level before rounding [N, C, h, w], coarsest first; x: uint8 pixels [N, 3, H, W]; quality: [1].
    The decoder stays as it is. A square at a time: those before it are done, those after it simply rounded.
    Yang, Bamler and Mandt 2020, arXiv 2006.04240 (stochastic Gumbel annealing).
    """
    rounded, factor = [level.round() for level in y], model.autoencoder.factor
    N, _, h, w = y[-1].shape
    count = max(1, PIECE**2 // (h * w))  # small images together
    squares = list(product(range(0, N, count), range(0, h, PIECE), range(0, w, PIECE)))
    with tqdm(total=steps * len(squares), desc="refining", **BAR) as bar:
        for k, i, j in squares:
            images = slice(k, k + count)
            scales = [4**level for level in reversed(range(len(y)))]
            inner, outer = ([(images, slice(None), *_sites(i, j, m, scale)) for scale in scales] for m in (0, MARGIN))
            given, inside = [level[part] for level, part in zip(rounded, outer)], []
            for level, part, around in zip(y, inner, outer):
                mask = torch.zeros_like(level, dtype=torch.bool)
                mask[part] = True
                inside.append(mask[around])
            pixels = to_model(x[(images, slice(None), *_sites(i, j, MARGIN, 1 / factor))])

            def loss(soft, given=given, inside=inside, pixels=pixels) -> Tensor:
                latents = list(map(torch.where, inside, soft, given))
                q = quality.expand(len(pixels))
                error = (model.autoencoder.decode(model.dequantise(latents, q)) - pixels) / 2
                return model.bits(latents, latents, q).sum() + trade(quality) * error.square().sum() / 3

            refined = _anneal(loss, [level[part] for level, part in zip(y, outer)], steps, bar)
            for level, part, mask, value, before in zip(rounded, outer, inside, refined, given):
                level[part] = torch.where(mask, value.round(), before)
    return rounded


def _sites(i: int, j: int, margin: int, scale: float) -> tuple[slice, slice]:
    """Return rows and columns of a square of PIECE² latents and a margin, at a level with so many of them to a side."""
    row, column = (slice(int(max(0, k - margin) / scale), math.ceil((k + PIECE + margin) / scale)) for k in (i, j))
    return row, column


def _anneal(loss: Callable[[list[Tensor]], Tensor], y: list[Tensor], steps: int, bar: tqdm) -> list[Tensor]:
    """Lower the loss of randomly rounded latents, ever less random, by gradient descent."""
    y = [level.clone().requires_grad_() for level in y]
    noise = torch.Generator(y[0].device).manual_seed(0)
    optimizer = torch.optim.Adam(y, lr=LR, eps=EPS)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        heat, soft = HEAT[0] * (HEAT[1] / HEAT[0]) ** (step / steps), []
        for level in y:
            low = level.floor()
            part = (level - low).clamp(1e-4, 1 - 1e-4)
            lean = (part.atanh() - (1 - part).atanh()) / heat
            chance = torch.rand(level.shape, generator=noise, device=level.device).logit(1e-6)
            soft.append(low + torch.sigmoid((lean + chance) / heat))
        for level, gradient in zip(y, torch.autograd.grad(loss(soft), y)):
            level.grad = gradient
        optimizer.step()
        schedule.step()
        bar.update()
    return [level.detach() for level in y]
