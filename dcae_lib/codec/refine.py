"""Effort: latents of one picture, refined by gradient descent through the fixed decoder and context model."""

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..data import to_model
from .context import bits
from .model import RateModel, trade

STEPS = 0, 100, 400  # of gradient descent, by effort
PIECE, MARGIN = 64, 8  # latents along the side of the squares that are refined one after the other, and around them
HEAT = 0.5, 0.1  # of the random rounding, at the first and at the last step
LR, EPS = 0.05, 0.3  # of Adam; eps in bits per unit, so that a latent on which nothing depends stays where it is
BAR: dict = dict(delay=2, leave=False, disable=None)  # of tqdm: after two seconds, and only in a terminal


def refine(model: RateModel, y: Tensor, x: Tensor, quality: Tensor, steps: int) -> Tensor:
    """Return rounded latents that cost fewer bits + trade · MSE than those of the encoder, rounded.

    y: latents before rounding [N, C, h, w]; x: uint8 pixels [N, 3, f·h, f·w]; quality: [1]. What the decoder does
    is as before. A square at a time, with those before it as they are, and those after it simply rounded.
    Yang, Bamler and Mandt 2020, arXiv 2006.04240 (stochastic Gumbel annealing).
    """
    rounded, f = y.round(), model.autoencoder.factor
    H, W = y.shape[2:]
    images = range(0, len(y), count := max(1, PIECE**2 // (H * W)))  # small ones together
    squares = list(product(images, range(0, H, PIECE), range(0, W, PIECE)))
    bar = tqdm(total=steps * len(squares), desc="refining", **BAR)
    for k, i, j in squares:
        above, before = min(i, MARGIN), min(j, MARGIN)
        top, bottom, left, right = i - above, min(i + PIECE + MARGIN, H), j - before, min(j + PIECE + MARGIN, W)
        inside = slice(k, k + count), slice(None), slice(i, i + PIECE), slice(j, j + PIECE)
        fixed = rounded[k : k + count, :, top:bottom, left:right].clone()
        pixels = to_model(x[k : k + count, :, top * f : bottom * f, left * f : right * f])
        rounded[inside] = _anneal(
            model, y[inside], fixed, (above, before), pixels, quality.expand(len(fixed)), steps, bar
        )
    bar.close()
    return rounded


def _anneal(
    model: RateModel,
    y: Tensor,
    fixed: Tensor,
    corner: tuple[int, int],
    x: Tensor,
    quality: Tensor,
    steps: int,
    bar: tqdm,
) -> Tensor:
    """Refine the latents y that stand at a corner of `fixed` ones, whose pixels are x."""
    (top, left), (h, w), noise = corner, y.shape[2:], torch.Generator(y.device).manual_seed(0)
    fixed[:, :, top : top + h, left : left + w] = 0
    place = left, fixed.shape[3] - left - w, top, fixed.shape[2] - top - h
    y = y.clone().requires_grad_()
    optimizer = torch.optim.Adam([y], lr=LR, eps=EPS)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        heat = HEAT[0] * (HEAT[1] / HEAT[0]) ** (step / steps)
        low = y.floor()
        part = (y - low).clamp(1e-4, 1 - 1e-4)
        lean = (part.atanh() - (1 - part).atanh()) / heat
        chance = torch.rand(y.shape, generator=noise, device=y.device).logit(1e-6)
        latents = fixed + F.pad(low + torch.sigmoid((lean + chance) / heat), place)
        error = (model.synthesise(latents, quality) - x) / 2
        loss = bits(latents, *model.context(latents, quality)).sum() + trade(quality[0]) * error.square().sum() / 3
        (y.grad,) = torch.autograd.grad(loss, y)
        optimizer.step()
        schedule.step()
        bar.update()
    return y.detach().round()
