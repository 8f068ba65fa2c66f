"""What is done to latents and read from them, against SVD, automatic differentiation, NumPy and counting by hand."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dcae_lib import DCAE, latents, load_images, to_model

patient = settings(deadline=None, max_examples=30)          # a busy core is no failure


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model():
    return DCAE.from_pretrained()


@pytest.fixture(scope="module")
def x():
    return to_model(load_images().test.images[:40])


@pytest.fixture(scope="module")
@torch.no_grad()
def z(model, x):
    return model.encode(x)


# ---- moved latents


@pytest.mark.parametrize("batch_size", [1, 7, 500])
def test_many_images_are_encoded_and_decoded_in_batches_of_any_size_without_a_gradient(model, x, z, batch_size):
    found = latents.encode_all(model, x[:10], batch_size)
    assert not found.requires_grad
    torch.testing.assert_close(found, z[:10], rtol=0, atol=1e-5)
    found = latents.decode_all(model, z[:10], batch_size)
    assert not found.requires_grad
    torch.testing.assert_close(found, model.decode(z[:10]).detach(), rtol=0, atol=1e-5)


def test_a_gain_scales_the_distance_of_its_channel_from_the_mean():
    z, mean, gains = random(5, 3, 2, 4), torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 2.0, -1.0])
    moved = latents.scale_channels(z, gains, mean)
    expected = torch.stack([torch.full((5, 2, 4), 1.0), 2 * z[:, 1] + 2, 1 - z[:, 2]], 1)
    torch.testing.assert_close(moved, expected)
    torch.testing.assert_close(latents.scale_channels(z[0], gains, mean), expected[0])
    torch.testing.assert_close(latents.scale_channels(z, torch.ones(3), mean), z)


def test_a_walk_takes_so_many_standard_deviations_along_each_axis():
    mean, axes, std = random(3, 2, 4), random(2, 3, 2, 4, seed=1), torch.tensor([0.5, 3.0])
    moved = latents.along(mean, axes, std, torch.tensor([2.0, -1.0]))
    torch.testing.assert_close(moved, mean + axes[0] - 3 * axes[1])
    assert torch.equal(latents.along(mean, axes, std, torch.zeros(2)), mean)


# ---- one place


class Affine(nn.Module):
    """What is left of a norm with fixed statistics."""

    def __init__(self, norm, x):
        super().__init__()
        groups = x.view(norm.num_groups, -1)
        scale = (groups.var(1, unbiased=False) + norm.eps).sqrt().reciprocal()
        scale, shift = (v.repeat_interleave(norm.num_channels // norm.num_groups) for v in (scale, -groups.mean(1) * scale))
        self.scale, self.shift = norm.weight * scale, norm.weight * shift + norm.bias

    def forward(self, x):
        return x * self.scale[:, None, None] + self.shift[:, None, None]


@torch.no_grad()
def without_norms(decoder, z):
    """A copy whose norms are multiplications and additions, with the statistics that they have for z [1, C, h, w]."""
    decoder = deepcopy(decoder)
    norms = {name: norm for name, norm in decoder.named_modules() if isinstance(norm, nn.GroupNorm)}
    seen = {}
    hooks = [norm.register_forward_hook(lambda norm, i, _: seen.update({norm: i[0]})) for norm in norms.values()]
    decoder(z)
    for hook in hooks:
        hook.remove()
    for name, norm in norms.items():
        parent, _, last = name.rpartition(".")
        setattr(decoder.get_submodule(parent), last, Affine(norm, seen[norm]))
    return decoder


@torch.no_grad()
def test_frozen_norms_are_multiplications_and_additions(model, z):
    frozen = without_norms(model.decoder, z[:1])
    with latents.frozen_norms(model.decoder, z[:1]):
        torch.testing.assert_close(model.decode(z[:9]), frozen(z[:9]), rtol=0, atol=2e-4)
        alone = model.decode(z[:1])
    torch.testing.assert_close(alone, model.decode(z[:1]), rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_change_stays_local_only_while_the_norms_are_frozen(model):
    z = random(1, 16, 16, 16)
    moved, before = z.clone(), model.decode(z)
    moved[:, :, :2, :2] += 1
    with latents.frozen_norms(model.decoder, z):
        change = model.decode(moved) - model.decode(z)
    assert (change[..., 28:, :] == 0).all() and (change[..., 28:] == 0).all()      # 23 pixels further than site 1: below
    assert (change[..., 4:24, 4:24].abs().amax(1) > 0).all()
    assert ((model.decode(moved) - before)[..., 40:, 40:] != 0).float().mean() > 0.9


@pytest.mark.parametrize("fails", [False, True])
def test_the_norms_thaw_at_the_end_even_after_an_exception(model, z, fails):
    before = model.decode(z[1:2])
    with pytest.raises(KeyError) if fails else torch.no_grad(), latents.frozen_norms(model.decoder, z[:1]):
        assert not torch.equal(model.decode(z[1:2]), before)
        if fails:
            raise KeyError
    assert torch.equal(model.decode(z[1:2]), before)
    assert not any(m._forward_hooks for m in model.modules())


def test_an_input_that_does_not_fit_leaves_no_norm_frozen(model):
    with pytest.raises(RuntimeError), latents.frozen_norms(model.decoder, torch.zeros(1, 5, 8, 8)):
        pass
    assert not any(m._forward_hooks for m in model.modules())


SITES = [[(0, 0)], [(4, 3)], [(7, 7)], [(0, 6), (6, 0)], []]


@pytest.mark.parametrize("sites", SITES)
def test_the_reach_is_where_the_derivative_by_the_sites_is_not_zero(model, z, sites):
    chosen = torch.zeros(8, 8, dtype=torch.bool)
    for site in sites:
        chosen[site] = True
    decoder = without_norms(model.decoder, z[3:4]).double()
    for norm in decoder.modules():
        if isinstance(norm, Affine):
            norm.scale, norm.shift = norm.scale.double(), norm.shift.double()
    direction = random(1, 16, 8, 8).double() * chosen
    _, derivative = torch.func.jvp(decoder, (z[3:4].double(), ), (direction, ))
    assert torch.equal(latents.reach(model, z[3], chosen), (derivative != 0).any(1)[0])


@pytest.mark.parametrize("row, column", [(0, 0), (8, 8), (7, 15), (6, 9)])
def test_a_site_reaches_20_pixels_before_and_23_after_its_first(model, row, column):
    """Four convolutions, 3×3: 4 sites. Two transposed, from i to 2i - 1 … 2i + 2: 3 before, 6 after. The head: 1."""
    sites = torch.zeros(16, 16, dtype=torch.bool)
    sites[row, column] = True
    expected = torch.zeros(64, 64, dtype=torch.bool)
    expected[max(0, 4 * row - 20):4 * row + 24, max(0, 4 * column - 20):4 * column + 24] = True
    assert torch.equal(latents.reach(model, random(16, 16, 16), sites), expected)


@torch.no_grad()
def test_the_effect_of_a_channel_is_its_stamp_and_what_it_costs_to_lose_it(model, z):
    z = z[:5].clone()
    z[:, 11] = 0.5                                          # carries nothing
    stamps, costs = latents.effects(model, z)
    assert stamps.shape == (16, 3, 32, 32) and costs.shape == (16,)
    assert (stamps[11] == 0).all() and costs[11] == torch.inf
    for k in (0, 6, 15):
        values = z[:, k].double().numpy()
        found, decibels = [], []
        for latent in z:
            more, less = latent.clone(), latent.clone()
            more[k, 4, 4] += values.std(ddof=1)
            less[k] = values.mean()
            y, with_more, with_less = (model.decode(v[None])[0].double().numpy() for v in (latent, more, less))
            found.append(with_more - y)
            decibels.append(-10 * np.log10(((np.clip(with_less, -1, 1) - np.clip(y, -1, 1)) ** 2).mean() / 4))
        np.testing.assert_allclose(stamps[k], np.mean(found, 0), atol=1e-5)
        assert costs[k] == pytest.approx(np.mean(decibels), abs=1e-3)


# ---- many latents


@pytest.mark.parametrize("N", [9, 200])
@pytest.mark.parametrize("offset", [0, 3000])
def test_principal_components_are_those_of_a_singular_value_decomposition(N, offset):
    z = random(N, 2, 3, 4) * torch.linspace(0.1, 2, 24).view(2, 3, 4) + offset
    mean, axes, std = latents.principal_components(z, 5)
    flat = z.double().numpy().reshape(N, -1)
    _, values, vectors = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    signs = np.sign(vectors[np.arange(len(vectors)), np.abs(vectors).argmax(1)])
    np.testing.assert_allclose(mean.flatten(), flat.mean(0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(std, values[:5] / np.sqrt(N - 1), rtol=1e-5)
    np.testing.assert_allclose(axes.flatten(1), (vectors * signs[:, None])[:5], atol=1e-5)
    assert mean.shape == (2, 3, 4) and axes.shape == (5, 2, 3, 4)


def test_directions_without_variance_have_a_standard_deviation_of_zero_and_not_nan():
    z = random(30, 1, 1, 1) * torch.ones(1, 2, 2, 2)
    assert latents.principal_components(z, 8)[2][1:].abs().max() < 1e-6


def test_the_mean_of_a_class_is_that_of_its_members():
    z, labels = random(7, 2, 3), torch.tensor([2, 0, 1, 2, 0, 2, 2])
    means = latents.class_means(z, labels)
    expected = np.stack([z.numpy()[labels.numpy() == k].mean(0) for k in range(3)])
    np.testing.assert_allclose(means, expected, rtol=1e-5)


def ridge_accuracy(x, labels, x_test, labels_test):
    """One D×D system per ridge, whatever N is."""
    x, x_test = (v.double().numpy().reshape(len(v), -1) for v in (x, x_test))
    x, x_test = (x - x.mean(0)) / x.std(ddof=1), (x_test - x.mean(0)) / x.std(ddof=1)
    y, order = np.eye(int(labels.max()) + 1)[labels], torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    kept, held = order[: len(x) * 4 // 5].numpy(), order[len(x) * 4 // 5:].numpy()

    def accuracy(ridge, x, y, x_to, labels_to):
        a, b = x - x.mean(0), y - y.mean(0)
        weight = np.linalg.solve(a.T @ a + ridge * len(a) * np.eye(a.shape[1]), a.T @ b)
        return float((((x_to - x.mean(0)) @ weight + y.mean(0)).argmax(1) == labels_to.numpy()).mean())

    tried = {10.0**k: accuracy(10.0**k, x[kept], y[kept], x[held], labels[held]) for k in range(-3, 4)}
    return accuracy(max(tried, key=tried.get), x, y, x_test, labels_test)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("N, shape", [(60, (4, 5, 10)), (100, (10, 3, 3)), (300, (20,))], ids=["wide", "between", "tall"])
def test_the_probe_is_ridge_regression_whether_examples_or_features_are_more(N, shape, seed):
    centres, labels = random(4, *shape, seed=seed), torch.arange(N + 200) % 13 % 9 % 4          # of unlike sizes
    x = 0.5 * centres[labels] + 3 * random(N + 200, *shape, seed=seed + 10) + 5
    split = x[:N], labels[:N], x[N:], labels[N:]
    found = latents.linear_probe(*split)
    assert found == pytest.approx(ridge_accuracy(*split), abs=1e-9)
    assert 0.2 < found < 1


@pytest.mark.parametrize("N, D", [(40, 90), (200, 12)])
def test_the_probe_finds_every_class_that_a_plane_separates_and_none_in_noise(N, D):
    labels = torch.arange(2 * N) % 3
    x = random(2 * N, D)
    assert latents.linear_probe(x[:N], labels[:N], x[N:], labels[N:]) < 0.6
    x[:, :3] += 20 * torch.eye(3)[labels]
    assert latents.linear_probe(x[:N], labels[:N], x[N:], labels[N:]) == 1


# ---- fewer values


def test_one_level_or_one_latent_is_refused():
    with pytest.raises(ValueError, match="levels must be 2 or more, got 1"):
        latents.levels_of(random(2, 3, 4, 4), 1, torch.zeros(3), torch.ones(3))
    with pytest.raises(ValueError, match="two latents"):
        latents.principal_components(random(1, 3, 4, 4), 2)


@patient
@given(st.integers(2, 300), st.integers(0, 1000))
def test_each_number_goes_to_the_nearest_level_of_its_channel(levels, seed):
    z = 3 * random(2, 3, 4, 4, seed=seed)
    low, high = torch.tensor([-1.0, -5.0, 0.0]), torch.tensor([1.0, 0.5, 4.0])        # some numbers lie outside
    values, index = latents.levels_of(z, levels, low, high)
    assert index.dtype == torch.int64 and 0 <= index.min() and index.max() < levels
    for k in range(3):
        grid = np.linspace(low[k].item(), high[k].item(), levels)
        np.testing.assert_allclose(values[:, k], grid[index[:, k]], atol=1e-5)
        nearest = np.abs(z[:, k].double().numpy()[..., None] - grid).min(-1)
        np.testing.assert_allclose((values - z)[:, k].abs(), nearest, atol=1e-5)


def test_a_channel_that_is_constant_stays_as_it_is():
    z = torch.full((2, 1, 3, 3), 0.3)
    values, index = latents.levels_of(z, 8, *z.new_tensor([[0.3], [0.3]]))
    assert torch.equal(values, z) and (index == 0).all()


@patient
@given(st.integers(2, 9), st.integers(0, 1000))
def test_the_bits_of_all_numbers_are_the_entropy_of_their_channel(levels, seed):
    index = torch.randint(levels, (6, 2, 5, 5), generator=torch.Generator().manual_seed(seed))
    index[0, :, :, :2] = torch.arange(10).view(5, 2) % levels                 # every level occurs
    bits = latents.bits_of_levels(index, levels)
    assert bits.shape == (2, levels)
    for k in range(2):
        shares = np.bincount(index[:, k].flatten(), minlength=levels) / 150
        assert bits[k][index[:, k]].mean() == pytest.approx(-(shares * np.log2(shares)).sum())


def test_a_level_that_does_not_occur_costs_as_much_as_one_that_occurs_once():
    index = torch.tensor([0, 0, 0, 0, 0, 0, 3]).view(7, 1, 1, 1)
    np.testing.assert_allclose(latents.bits_of_levels(index, 4), [-np.log2([6 / 9, 1 / 9, 1 / 9, 1 / 9])])
