"""How far a reconstruction is from its image: L1, PSNR and SSIM, one number per image; and one codec from another."""

from typing import cast

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

WINDOW = 11  # pixels, of SSIM


def l1(y: Tensor, x: Tensor) -> Tensor:
    """Mean absolute difference per image, on the scale of the inputs: floats [B, C, H, W] twice → [B]. ValueError for others."""
    _check(y, x)
    return (y.float() - x.float()).abs().mean((1, 2, 3))


def psnr(y: Tensor, x: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB per image, pixels in [-1, 1], y clamped to that: [B, C, H, W] twice → [B].

    10·log₁₀(1 / MSE) on [0, 1]; infinite for equal images. The mean of these is what the course reports; pooling
    the error over a set first reads lower. ValueError for other shapes and for what is not floats.
    """
    _check(y, x)
    return peak_signal_noise_ratio(_unit(y), _unit(x), data_range=1.0, reduction="none", dim=(1, 2, 3))


def ssim(y: Tensor, x: Tensor) -> Tensor:
    """Structural similarity per image, 1 for equal images; pixels in [-1, 1], y clamped: [B, C, H, W] twice → [B].

    Gaussian window of 11 pixels, sigma 1.5; ValueError for smaller images, other shapes and what is not floats.
    Wang et al. 2004, section III.B.
    """
    _check(y, x)
    if min(x.shape[2:]) < WINDOW:
        raise ValueError(
            f"SSIM looks through a window of {WINDOW}×{WINDOW} pixels, got images of {x.shape[2]}×{x.shape[3]}"
        )
    return cast(
        Tensor,
        structural_similarity_index_measure(
            _unit(y), _unit(x), sigma=1.5, kernel_size=WINDOW, data_range=1.0, reduction="none"
        ),
    )


def bd_rate(curve: list[tuple[float, float]], reference: list[tuple[float, float]], low: float, high: float) -> float:
    """How many percent more bits a codec needs than a reference for the same quality, averaged from low to high.

    A curve: pairs of bits and quality, such as bits per pixel and dB. Averages the difference of the logarithms of the
    bits, linear between points. ValueError for a curve that does not reach from low to high.
    Bjøntegaard 2001, VCEG-M33 (who fits a cubic polynomial).
    """
    at = np.linspace(low, high, 201)
    logs = []
    for points in (curve, reference):
        bits, quality = np.array(sorted(points, key=lambda point: point[1])).T
        if quality[0] > low or quality[-1] < high:
            raise ValueError(
                f"a curve from {quality[0]:.2f} to {quality[-1]:.2f} cannot be compared from {low} to {high}"
            )
        logs.append(np.interp(at, quality, np.log(bits)))
    return 100 * float(np.exp(np.mean(logs[0] - logs[1])) - 1)


def _unit(x: Tensor) -> Tensor:
    return (x.float().clamp(-1, 1) + 1) / 2


def _check(y: Tensor, x: Tensor) -> None:
    if y.shape != x.shape or x.ndim != 4:
        raise ValueError(f"expected two batches of one shape [B, C, H, W], got {list(y.shape)} and {list(x.shape)}")
    if not (torch.is_floating_point(y) and torch.is_floating_point(x)):
        raise ValueError(f"expected floats in [-1, 1], got {y.dtype} and {x.dtype}; to_model(x) scales uint8 pixels")
