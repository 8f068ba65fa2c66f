"""The context model sees only what is coded before, and its bits and tables are those of a logistic distribution."""

import math

import pytest
import torch

from dcae_lib.codec.context import RADIUS, TABLE_SUM, between_anchors, bits, logistic_tables


def mass(y, mean, scale):
    """The logistic distribution's mass within ½ of y, without differences: exact in both tails."""
    h, d = 0.5 / scale, min(abs(y - mean) / scale, 700)
    return math.sinh(h) / (math.cosh(h) + math.cosh(d))


@pytest.mark.parametrize("i, j", [(0, 0), (0, 3), (2, 0), (2, 3), (3, 5), (4, 6)])
@pytest.mark.parametrize("group", [0, 1, 2])
def test_latents_depend_on_exactly_the_causal_window_and_earlier_groups(i, j, group, random_context):
    y = torch.randn(2, 6, 5, 7, requires_grad=True)
    mean, log_scale = random_context(channels=6, groups=3)(y, torch.tensor([30.0, 70.0]))
    (mean + log_scale)[1, 2 * group : 2 * group + 2, i, j].sum().backward()
    seen = torch.zeros(2, 6, 5, 7, dtype=torch.bool)
    above = [(r, c) for r in (i - 2, i - 1) for c in range(j - 2, j + 3)]
    for r, c in (*above, (i, j - 2), (i, j - 1)):
        if r >= 0 and 0 <= c < 7:
            seen[1, :, r, c] = True
    seen[1, : 2 * group, i, j] = True
    assert torch.equal(y.grad != 0, seen)


def test_sites_outside_differ_from_latents_of_zero(random_context):
    for out in random_context()(torch.zeros(1, 4, 6, 7), torch.tensor([50.0])):
        assert (out[..., 0, 0] - out[..., 3, 3]).abs().min() > 1e-4
        torch.testing.assert_close(out[..., 3, 3], out[..., 4, 4])  # where the whole window is inside


def test_each_image_has_its_own_quality(random_context):
    model, y, quality = random_context(), torch.randn(3, 4, 5, 6), torch.tensor([0.0, 37.0, 100.0])
    together, alone = model(y, quality), [model(y[k : k + 1], quality[k : k + 1]) for k in range(3)]
    for out, parts in zip(together, zip(*alone)):
        torch.testing.assert_close(out, torch.cat(parts))
    assert not torch.allclose(model(y, quality.flip(0))[0], together[0])


def test_between_anchors_interpolates_linearly():
    table = torch.randn(6, 2, 3)
    quality = torch.tensor([0.0, 20, 100, 5, 10, 99])
    weights = torch.zeros(6, 6)
    for row, (k, weight) in zip(weights, [(0, 1), (1, 1), (4, 0), (0, 0.75), (0, 0.5), (4, 0.05)]):
        row[k], row[k + 1] = weight, 1 - weight
    expected = torch.einsum("qk,kab->qab", weights, table)
    torch.testing.assert_close(between_anchors(table, quality), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mean", [0.0, 0.3, -7.5, 55.0])
@pytest.mark.parametrize("log_scale", [-5.0, -3.0, 0.0, 3.0, 6.0])
def test_bits_are_minus_log2_of_the_logistic_mass(mean, log_scale):
    y = torch.arange(-60.0, 61)
    scale = math.exp(min(max(log_scale, -3), 4))
    expected = torch.tensor([-math.log2(max(mass(value, mean, scale), 1e-9)) for value in y.tolist()])
    torch.testing.assert_close(bits(y, torch.tensor(mean), torch.tensor(log_scale)), expected, rtol=1e-3, atol=2e-4)


def test_bits_have_finite_gradients_far_from_the_mean():
    inputs = [torch.tensor([value], requires_grad=True) for value in (1e4, -1e4, -3.0)]
    bits(*inputs).sum().backward()
    assert all(x.grad.isfinite().all() for x in inputs)


def test_tables_hold_the_logistic_distribution_in_positive_integers():
    tables = logistic_tables()
    assert tables.shape == (64, 8, 2 * RADIUS + 1) and tables.dtype == torch.int32 and tables.min() == 1
    assert (tables.sum(2) - TABLE_SUM).abs().max() <= 2 * RADIUS + 1  # each entry is rounded, and at least 1
    assert torch.equal(tables[:, 0], tables[:, 0].flip(1))
    for s in (0, 1, 17, 40, 63):
        scale = math.exp(-3 + 7 * s / 63)
        for eighth in range(8):
            expected = [TABLE_SUM * mass(d, eighth / 8, scale) for d in range(-RADIUS, RADIUS + 1)]
            for end, distance in ((0, RADIUS - 0.5 + eighth / 8), (-1, RADIUS - 0.5 - eighth / 8)):  # the tails
                expected[end] = TABLE_SUM / (1 + math.exp(min(distance / scale, 700)))
            expected = torch.tensor(expected, dtype=torch.float64).clamp(min=1)
            torch.testing.assert_close(tables[s, eighth].double(), expected, rtol=0, atol=0.501)
