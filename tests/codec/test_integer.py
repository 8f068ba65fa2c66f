"""The integers are close to the floats, exact in whole-number arithmetic, and the same in any batch on any thread."""

import math

import numpy as np
import pytest
import torch

from dcae_lib.codec.context import SITES, logistic_tables, pad
from dcae_lib.codec.integer import MAX_LATENT, IntegerContext, tables


def equal(one, other):
    return all(map(torch.equal, one, other))


def test_integers_are_close_to_the_floats(sampled):
    y, context, mean, log_scale = sampled
    eighths, scale = context.predict(pad(y).double())
    error = eighths / 8 - mean.flatten(2).mT
    assert error.abs().max() < 0.2 and abs(error.mean()) < 0.01  # rounded, not truncated
    assert (scale - (log_scale.flatten(2).mT.clamp(-3, 4) + 3) * 9).abs().max() < 1


def test_integers_do_not_depend_on_batch_or_order(sampled):
    y, context, *_ = sampled
    padded = pad(y).double()
    out = context.predict(padded)
    for size in (1, 7):
        parts = [context.predict(part) for part in padded[:70].split(size)]
        assert equal([torch.cat(part) for part in zip(*parts)], [part[:70] for part in out])
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    assert equal(context.predict(padded[order]), [part[order] for part in out])


def test_integers_do_not_depend_on_threads(sampled, one_thread):
    y, context, *_ = sampled
    padded = pad(y).double()
    alone = context.predict(padded)
    torch.set_num_threads(2)
    assert equal(context.predict(padded), alone)


def fixed(values, bits):
    """Round to so many fraction bits, in Python's integers, which do not overflow."""
    return [fixed(value, bits) for value in values] if isinstance(values, list) else round(values * 2**bits)


def layer_by_hand(x, weight, bias, shift, leaky=True):
    out = [sum(w * v for w, v in zip(row, x)) + b >> shift for row, b in zip(fixed(weight.tolist(), 12), bias)]
    return [v >> 3 if v < 0 and leaky else v for v in out]


@pytest.mark.parametrize("quality", [0, 33, 50, 100])
def test_integers_are_those_of_whole_number_arithmetic(quality, random_context):
    model = random_context(spread=3.0)
    x = np.random.default_rng(quality).integers(-300, 301, (20, SITES * 5 + 2))
    context, (window, site) = (
        IntegerContext(model, quality),
        torch.from_numpy(x).double().split([SITES * 5, 2], 1),
    )
    mean, scale = context(1, context.seen(window)[1], site)
    low = min(quality // 50, 1)  # of three anchors
    below, above = (fixed(model.quality[k, 1].tolist(), 12) for k in (low, low + 1))
    shift = [(a * (50 - quality + 50 * low) + b * (quality - 50 * low)) // 50 for a, b in zip(below, above)]
    first, second, third = model.first[1], model.second[1], model.third[1]
    for row, out in zip(x.tolist(), torch.cat([mean, scale], 1).tolist()):
        y = layer_by_hand(row, first.weight, [a + b for a, b in zip(fixed(first.bias.tolist(), 12), shift)], 4)
        y = layer_by_hand(y, second.weight, fixed(second.bias.tolist(), 20), 12)
        y = layer_by_hand(y, third.weight, fixed(third.bias.tolist(), 20), 12, leaky=False)
        scales = [min(max(((v + 3 * 256) * 63 + 7 * 128) // (7 * 256), 0), 63) for v in y[2:]]
        assert out == [(v * 8 + 128) // 256 for v in y[:2]] + scales


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e13])
@pytest.mark.parametrize("name", ["first.0.weight", "second.1.bias", "third.0.weight", "quality"])
def test_weights_without_exact_sums_are_refused(name, value, random_context):
    model = random_context()
    dict(model.named_parameters())[name].data.view(-1)[0] = value
    with pytest.raises(ValueError, match="a weight that is not finite, or too large for exact sums"):
        IntegerContext(model, 0)


def test_means_and_scales_stay_within_the_tables(random_context):
    model = random_context()
    for layer in model.third:
        layer.bias.data.copy_(torch.tensor([1e5, -1e5, 1e5, -1e5]))
    mean, scale = IntegerContext(model, 0).predict(pad(torch.zeros(1, 4, 2, 2)).double())
    assert mean.unique().tolist() == [-8 * MAX_LATENT, 8 * MAX_LATENT] and scale.unique().tolist() == [0, 63]


def test_the_stored_tables_are_those_of_the_logistic_distribution():
    assert np.abs(tables().reshape(64, 8, -1) - logistic_tables().numpy()).max() <= 1  # rounded on another machine
