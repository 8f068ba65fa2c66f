"""Distance of a reconstruction from its image: L1, PSNR and SSIM, one number per image."""

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 11  # pixels, of SSIM
MAX_PSNR = 100.0  # dB; what an exact image counts in a mean, since JSON has no infinity


def l1(y: Tensor, x: Tensor) -> Tensor:
    """Mean absolute difference per image, on the scale of the inputs: floats [B, C, H, W] twice → [B]."""
    _check(y, x)
    return (y.float() - x.float()).abs().mean((1, 2, 3))


def psnr(y: Tensor, x: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB per image, pixels in [-1, 1], y clamped to that: [B, C, H, W] twice → [B].

    10·log₁₀(1 / MSE) on [0, 1]; infinite for equal images. The mean of these is what the course reports; pooling
    the error over a set first reads lower.
    """
    _check(y, x)
    return -10 * (_unit(y) - _unit(x)).square().mean((1, 2, 3)).log10()


def ssim(y: Tensor, x: Tensor) -> Tensor:
    """Structural similarity per image, 1 for equal images; pixels in [-1, 1], y clamped: [B, C, H, W] twice → [B].

    Gaussian window of 11 pixels, sigma 1.5; ValueError for smaller images. Wang et al. 2004, section III.B.
    """
    _check(y, x)
    if min(x.shape[2:]) < WINDOW:
        raise ValueError(f"SSIM has a window of {WINDOW}×{WINDOW} pixels, got images of {x.shape[2]}×{x.shape[3]}")
    y, x, rows, columns = _unit(y), _unit(x), _blur(x.shape[2], x.device), _blur(x.shape[3], x.device)
    mean_y, mean_x, yy, xx, yx = rows.mT @ torch.stack([y, x, y * y, x * x, y * x]) @ columns
    means, squares = mean_y * mean_x, mean_y**2 + mean_x**2
    structure = (2 * (yx - means) + 9e-4) / (yy + xx - squares + 9e-4)
    return (structure * (2 * means + 1e-4) / (squares + 1e-4)).mean((1, 2, 3))


def _blur(size: int, device: torch.device) -> Tensor:
    """Return the window as a matrix, [size, size], the border mirrored; cheaper than convolutions."""
    bell = torch.exp(-((torch.arange(WINDOW).float() - WINDOW // 2) ** 2) / (2 * 1.5**2))
    each = F.pad(torch.eye(size, dtype=bell.dtype)[:, None], (WINDOW // 2, WINDOW // 2), mode="reflect")
    return F.conv1d(each, (bell / bell.sum())[None, None])[:, 0].to(device)


def _unit(x: Tensor) -> Tensor:
    return (x.float().clamp(-1, 1) + 1) / 2


def _check(y: Tensor, x: Tensor) -> None:
    if y.shape != x.shape or x.ndim != 4 or not (y.is_floating_point() and x.is_floating_point()):
        found = f"{y.dtype} {list(y.shape)} and {x.dtype} {list(x.shape)}"
        raise ValueError(f"expected floats of one shape [B, C, H, W], got {found}; to_model(x) scales uint8 pixels")
