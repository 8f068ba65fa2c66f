"""L1, PSNR and SSIM per image, against formulas written out in NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcae_lib import load_images, metrics, to_model

patient = settings(deadline=None, max_examples=20)          # a busy core is no failure


def noisy(N=4, H=32, W=32, noise=0.3, seed=0):
    """Reconstructions, which leave [-1, 1] here and there, and their pictures, of slopes and texture."""
    generator = torch.Generator().manual_seed(seed)
    slopes = torch.linspace(-1, 1, W) * torch.linspace(1, -1, H)[:, None]
    x = (slopes + 0.5 * torch.randn(N, 3, H, W, generator=generator)).clamp(-1, 1)
    strength = noise * torch.arange(1, N + 1).view(N, 1, 1, 1) / N          # another error in every image
    return x + strength * torch.randn(x.shape, generator=generator), x


# ---- the formulas, in float64


def unit(x):
    """To [0, 1], clamped."""
    return (np.clip(x.double().numpy(), -1, 1) + 1) / 2


def psnr_formula(y, x):
    return 10 * np.log10(1 / ((unit(y) - unit(x)) ** 2).mean((1, 2, 3)))


def ssim_formula(y, x):
    """Wang et al. 2004, equation 13, in a Gaussian window around every pixel, the border mirrored: [B]."""
    bell = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(bell, bell) / bell.sum() ** 2

    def windowed(v):                                        # weighted mean over the window around every pixel
        v = np.pad(v, ((0, 0), (0, 0), (5, 5), (5, 5)), mode="reflect")
        return (np.lib.stride_tricks.sliding_window_view(v, (11, 11), (2, 3)) * window).sum((-2, -1))

    y, x = unit(y), unit(x)
    mean_y, mean_x = windowed(y), windowed(x)
    variances = windowed(y * y) - mean_y**2 + windowed(x * x) - mean_x**2
    covariance = windowed(y * x) - mean_y * mean_x
    C1, C2 = 0.01**2, 0.03**2
    quality = (2 * mean_y * mean_x + C1) * (2 * covariance + C2) / ((mean_y**2 + mean_x**2 + C1) * (variances + C2))
    return quality.mean((1, 2, 3))


@patient
@given(st.integers(1, 4), st.integers(11, 24), st.integers(11, 24), st.floats(0.01, 2), st.integers(0, 1000))
def test_every_metric_is_its_formula_image_by_image(N, H, W, noise, seed):
    y, x = noisy(N, H, W, noise, seed)
    for metric, formula, tolerance in [
        (metrics.l1, lambda y, x: np.abs(y.double().numpy() - x.double().numpy()).mean((1, 2, 3)), 1e-5),
        (metrics.psnr, psnr_formula, 1e-4),
        (metrics.ssim, ssim_formula, 1e-4),
    ]:
        values = metric(y, x)
        assert values.shape == (N,)
        np.testing.assert_allclose(values.numpy(), formula(y, x), rtol=0, atol=tolerance)


def test_on_real_images_too():
    x = to_model(load_images("sample").test.images[:8])
    y = torch.nn.functional.avg_pool2d(x, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    np.testing.assert_allclose(metrics.psnr(y, x), psnr_formula(y, x), atol=1e-4)
    np.testing.assert_allclose(metrics.ssim(y, x), ssim_formula(y, x), atol=1e-4)


def test_a_psnr_by_hand():
    x = torch.zeros(2, 3, 4, 4)                             # mid-grey is 0.5 on [0, 1]
    y = torch.stack([x[0] + 0.2, x[1] - 0.02])              # off by 0.1 and by 0.01
    torch.testing.assert_close(metrics.psnr(y, x), torch.tensor([20.0, 40.0]))
    torch.testing.assert_close(metrics.l1(y, x), torch.tensor([0.2, 0.02]))


def test_the_mean_of_psnr_over_images_is_above_the_psnr_of_the_pooled_error():
    y, x = noisy(noise=1.0)
    pooled = 10 * np.log10(1 / ((unit(y) - unit(x)) ** 2).mean())
    assert metrics.psnr(y, x).mean() > pooled + 0.5


def test_equal_images_have_no_error_infinite_psnr_and_ssim_1():
    _, x = noisy()
    assert metrics.l1(x, x).tolist() == [0.0] * 4
    assert metrics.psnr(x, x).tolist() == [float("inf")] * 4
    torch.testing.assert_close(metrics.ssim(x, x), torch.ones(4))


@pytest.mark.parametrize("metric", [metrics.l1, metrics.psnr, metrics.ssim])
def test_a_batch_of_one_gives_a_batch_of_one(metric):
    y, x = noisy()
    alone = torch.cat([metric(y[k : k + 1], x[k : k + 1]) for k in range(4)])
    assert metric(y[:1], x[:1]).shape == (1,)
    torch.testing.assert_close(alone, metric(y, x))


@pytest.mark.parametrize("metric", [metrics.psnr, metrics.ssim])
def test_what_leaves_the_range_is_clamped(metric):
    y, x = noisy(noise=1.0)
    assert y.abs().max() > 1.5
    assert torch.equal(metric(y, x), metric(y.clamp(-1, 1), x))
    assert torch.equal(metric(x, y), metric(x, y.clamp(-1, 1)))


def test_l1_is_not_clamped():
    x = torch.ones(1, 3, 4, 4)
    assert metrics.l1(x + 1, x).tolist() == [1.0]


@pytest.mark.parametrize("metric", [metrics.l1, metrics.psnr, metrics.ssim])
def test_half_precision_is_compared_in_float32(metric):
    y, x = (v.bfloat16() for v in noisy())
    assert torch.equal(metric(y, x), metric(y.float(), x.float()))


@pytest.mark.parametrize("metric", [metrics.l1, metrics.psnr, metrics.ssim])
@pytest.mark.parametrize("y, x, message", [
    (torch.zeros(2, 3, 16, 16), torch.zeros(2, 3, 16, 12), r"of one shape .*\[2, 3, 16, 16\] and \[2, 3, 16, 12\]"),
    (torch.zeros(1, 3, 16, 16), torch.zeros(2, 3, 16, 16), "two batches of one shape"),     # these would broadcast
    (torch.zeros(3, 16, 16), torch.zeros(3, 16, 16), r"two batches of one shape \[B, C, H, W\]"),
    (torch.zeros(2, 3, 16, 16), torch.zeros(2, 3, 16, 16).byte(), r"torch.uint8; to_model\(x\) scales"),
    (torch.zeros(2, 3, 16, 16).byte(), torch.zeros(2, 3, 16, 16), r"torch.uint8 and .*to_model\(x\) scales"),
])
def test_what_cannot_be_compared_is_refused(metric, y, x, message):
    with pytest.raises(ValueError, match=message):
        metric(y, x)


@pytest.mark.parametrize("H, W", [(10, 32), (32, 10)])
def test_ssim_refuses_images_smaller_than_its_window(H, W):
    x = torch.zeros(1, 3, H, W)
    with pytest.raises(ValueError, match=f"window of 11×11 pixels, got images of {H}×{W}"):
        metrics.ssim(x, x)
