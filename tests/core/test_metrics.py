"""L1, PSNR and SSIM per image, against formulas written out in NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcae_lib import load_images, to_model
from dcae_lib.metrics import l1, psnr, ssim

patient = settings(max_examples=20)
each = pytest.mark.parametrize("metric", [l1, psnr, ssim])


def unit(x):
    """To [0, 1], clamped."""
    return (np.clip(x.double().numpy(), -1, 1) + 1) / 2


def ssim_formula(y, x):
    """Wang et al. 2004, equation 13, in a Gaussian window around every pixel, the border mirrored: [B]."""
    bell = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(bell, bell) / bell.sum() ** 2

    def windowed(v):  # weighted mean over the window around every pixel
        v = np.pad(v, ((0, 0), (0, 0), (5, 5), (5, 5)), mode="reflect")
        return (np.lib.stride_tricks.sliding_window_view(v, (11, 11), (2, 3)) * window).sum((-2, -1))

    y, x = unit(y), unit(x)
    mean_y, mean_x = windowed(y), windowed(x)
    variances = windowed(y * y) - mean_y**2 + windowed(x * x) - mean_x**2
    covariance = windowed(y * x) - mean_y * mean_x
    means = (2 * mean_y * mean_x + 1e-4) / (mean_y**2 + mean_x**2 + 1e-4)
    return (means * (2 * covariance + 9e-4) / (variances + 9e-4)).mean((1, 2, 3))


FORMULAS = {
    l1: lambda y, x: np.abs(y.double().numpy() - x.double().numpy()).mean((1, 2, 3)),
    psnr: lambda y, x: 10 * np.log10(1 / ((unit(y) - unit(x)) ** 2).mean((1, 2, 3))),
    ssim: ssim_formula,
}


@each
@patient
@given(st.integers(1, 4), st.integers(11, 24), st.integers(11, 24), st.floats(0.01, 2), st.integers(0, 1000))
def test_every_metric_is_its_formula_image_by_image(metric, N, H, W, noise, seed):
    generator = torch.Generator().manual_seed(seed)
    slopes = torch.linspace(-1, 1, W) * torch.linspace(1, -1, H)[:, None]
    x = (slopes + 0.5 * torch.randn(N, 3, H, W, generator=generator)).clamp(-1, 1)
    y = x + noise * torch.arange(1, N + 1).view(N, 1, 1, 1) / N * torch.randn(x.shape, generator=generator)
    np.testing.assert_allclose(metric(y, x).numpy(), FORMULAS[metric](y, x), rtol=0, atol=1e-4)  # y leaves [-1, 1]
    y, x = y.bfloat16(), x.bfloat16()
    assert torch.equal(metric(y, x), metric(y.float(), x.float()))  # no sums in half precision


def test_values_of_real_images_and_by_hand():
    x = to_model(load_images("sample").test.images[:8])
    y = torch.nn.functional.avg_pool2d(x, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    for metric, formula in FORMULAS.items():
        np.testing.assert_allclose(metric(y, x), formula(y, x), atol=1e-4)
    assert l1(x, x).tolist() == [0.0] * 8 and psnr(x, x).tolist() == [float("inf")] * 8
    torch.testing.assert_close(ssim(x, x), torch.ones(8))
    grey = torch.zeros(2, 3, 4, 4)  # 0.5 on [0, 1]
    off = torch.stack([grey[0] + 0.2, grey[1] - 0.02])  # by 0.1 and by 0.01
    torch.testing.assert_close(psnr(off, grey), torch.tensor([20.0, 40.0]))
    torch.testing.assert_close(l1(off, grey), torch.tensor([0.2, 0.02]))


@each
@pytest.mark.parametrize("y, x", [((2, 16, 16), (2, 16, 12)), ((1, 16, 16), (2, 16, 16)), ((16, 16), (16, 16))])
def test_other_shapes_and_bytes_are_refused(metric, y, x):
    y, x = torch.zeros(3, *y).movedim(0, -3), torch.zeros(3, *x).movedim(0, -3)
    with pytest.raises(ValueError, match=r"of one shape \[B, C, H, W\], got torch.float32 \["):
        metric(y, x)
    for pair in ((x, x.byte()), (x.byte(), x)):
        with pytest.raises(ValueError, match=r"torch.uint8 .*to_model\(x\) scales"):
            metric(*pair)


@pytest.mark.parametrize("H, W", [(10, 32), (32, 10)])
def test_ssim_refuses_images_smaller_than_its_window(H, W):
    with pytest.raises(ValueError, match=f"window of 11×11 pixels, got images of {H}×{W}"):
        ssim(torch.zeros(1, 3, H, W), torch.zeros(1, 3, H, W))
