"""Operations on latents, compared with SVD, NumPy and counting by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from dcae_lib.explore import latents


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_many_images_are_encoded_and_decoded_without_gradients(course):
    x = random(1001, 3, 4, 4)
    with torch.enable_grad():
        z = latents.encode_all(course.model, x)
        y = latents.decode_all(course.model, z)
    assert not z.requires_grad and not y.requires_grad
    torch.testing.assert_close(z, course.model.encode(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(y, course.model.decode(z), rtol=0, atol=1e-5)


def test_channels_scale_about_their_mean():
    z, mean, gains = random(5, 3, 2, 4), torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 2.0, -1.0])
    expected = torch.stack([torch.full((5, 2, 4), 1.0), 2 * z[:, 1] + 2, 1 - z[:, 2]], 1)
    torch.testing.assert_close(latents.scale_channels(z, gains, mean), expected)
    torch.testing.assert_close(latents.scale_channels(z[0], gains, mean), expected[0])


@torch.no_grad()
def test_frozen_norms_keep_the_statistics_of_their_first_input():
    norm, first, later = nn.GroupNorm(2, 4), random(1, 4, 3, 3), random(5, 4, 3, 3, seed=1)
    norm.weight[:], norm.bias[:] = random(4), random(4, seed=1)
    with latents.frozen_norms(norm, first):
        frozen = norm(later)
    groups = first.view(2, -1).double().numpy()
    scale = np.repeat((groups.var(1) + norm.eps) ** -0.5, 2) * norm.weight.numpy()
    shift = norm.bias.numpy() - np.repeat(groups.mean(1), 2) * scale
    np.testing.assert_allclose(frozen, later.numpy() * scale[:, None, None] + shift[:, None, None], atol=1e-5)


@pytest.mark.parametrize("z, error", [(torch.zeros(1, 16, 8, 8), KeyError), (torch.zeros(1, 5, 8, 8), RuntimeError)])
def test_norms_thaw_after_errors_inside_or_at_the_start(course, z, error):
    with pytest.raises(error), latents.frozen_norms(course.model.decoder, z):
        raise KeyError
    assert not any(m._forward_hooks for m in course.model.modules())


@pytest.mark.parametrize("row, column", [(0, 0), (8, 8), (7, 15), (6, 9)])
def test_sites_reach_20_pixels_before_and_23_after(course, row, column):
    """Four convolutions, 3×3: 4 sites. Two transposed, from i to 2i - 1 … 2i + 2: 3 before, 6 after. The head: 1."""
    sites, expected = torch.zeros(16, 16, dtype=torch.bool), torch.zeros(64, 64, dtype=torch.bool)
    sites[row, column] = True
    expected[max(0, 4 * row - 20) : 4 * row + 24, max(0, 4 * column - 20) : 4 * column + 24] = True
    assert torch.equal(latents.reach(course.model, random(16, 16, 16), sites), expected)


@torch.no_grad()
def test_effects_are_stamps_and_costs_of_losing_a_channel(course):
    z = course.z[:5].clone()
    z[:, 11] = 0.5  # carries nothing
    stamps, costs = latents.effects(course.model, z)
    assert stamps.shape == (16, 3, 32, 32) and (stamps[11] == 0).all() and costs[11] == torch.inf
    for k in (0, 6, 15):
        values, more, less = z[:, k].double().numpy(), z.clone(), z.clone()
        more[:, k, 4, 4] += values.std(ddof=1)
        less[:, k] = values.mean()
        y, with_more, with_less = (course.model.decode(v).double().numpy() for v in (z, more, less))
        np.testing.assert_allclose(stamps[k], (with_more - y).mean(0), atol=1e-5)
        errors = ((np.clip(with_less, -1, 1) - np.clip(y, -1, 1)) ** 2).mean((1, 2, 3)) / 4
        assert costs[k] == pytest.approx((-10 * np.log10(errors)).mean(), abs=1e-3)


@pytest.mark.parametrize("N", [9, 200])
@pytest.mark.parametrize("offset", [0, 3000])
def test_principal_components_are_those_of_an_svd(N, offset):
    z = random(N, 2, 3, 4) * torch.linspace(0.1, 2, 24).view(2, 3, 4) + offset
    mean, axes, std = latents.principal_components(z, 5)
    flat = z.double().numpy().reshape(N, -1)
    _, values, vectors = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    signs = np.sign(vectors[np.arange(len(vectors)), np.abs(vectors).argmax(1)])
    np.testing.assert_allclose(mean.flatten(), flat.mean(0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(std, values[:5] / np.sqrt(N - 1), rtol=1e-5)
    np.testing.assert_allclose(axes.flatten(1), (vectors * signs[:, None])[:5], atol=1e-5)
    assert latents.principal_components(z[:2], 5)[2][1:].abs().max() < 1e-5  # 0 without variance, and not NaN


@pytest.mark.parametrize("levels", [2, 3, 300])
def test_numbers_go_to_the_nearest_level_of_their_channel(levels):
    z, low, high = 3 * random(2, 4, 4, 4), torch.tensor([-1.0, -5, 0, 0.3]), torch.tensor([1.0, 0.5, 4, 0.3])
    values, index = latents.levels_of(z, levels, low, high)
    assert index.dtype == torch.int64 and 0 <= index.min() and index.max() < levels
    for k in range(4):  # some numbers lie outside; the last channel has room for one value
        grid = np.linspace(low[k].item(), high[k].item(), levels)
        np.testing.assert_allclose(values[:, k], grid[index[:, k]], atol=1e-5)
        nearest = np.abs(z[:, k].double().numpy()[..., None] - grid).min(-1)
        np.testing.assert_allclose((values - z)[:, k].abs(), nearest, atol=1e-5)


def test_bits_of_a_level_are_minus_log2_of_its_frequency():
    index = torch.tensor([[0, 0, 0, 0, 0, 0, 3], [1, 1, 1, 2, 2, 3, 0]]).T.reshape(7, 2, 1, 1)
    expected = -np.log2([[6 / 9, 1 / 9, 1 / 9, 1 / 9], [1 / 7, 3 / 7, 2 / 7, 1 / 7]])  # absent levels count once
    np.testing.assert_allclose(latents.bits_of_levels(index, 4), expected)
