"""The context model sees only what is coded before; its integers agree with it, and bytes come back as the latents they were."""

import math
from functools import lru_cache

import constriction
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcae_lib import Codec, entropy, load_images
from dcae_lib.codec.bitstream import CorruptStream
from dcae_lib.codec.context import (
    LARGEST,
    REACH,
    TABLE,
    TOTAL,
    ContextModel,
    IntegerContext,
    between_anchors,
    bits,
    logistic_tables,
)

SIDE = 8                                                    # sites in a row of a tile
patient = settings(deadline=None, max_examples=60)          # a busy core is no failure


def random_model(seed=0, channels=4, groups=2, spread=1.0):
    """One whose every input matters; `spread` is that of its means."""
    torch.manual_seed(seed)
    model = ContextModel(channels, groups, hidden=8, anchors=3)
    for layer in (*model.first, *model.second, *model.third):
        torch.nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features))
        torch.nn.init.normal_(layer.bias, std=0.5)
    for layer in model.third:
        layer.weight.data[: layer.out_features // 2] *= spread
    torch.nn.init.normal_(model.quality)
    return model


@pytest.fixture(scope="module")
def codec():
    return Codec.from_pretrained()


@pytest.fixture(scope="module")
def images():
    return load_images("sample").test.images[:200]


@pytest.fixture(scope="module", params=[0, 50, 100])
def sampled(request, codec, images):
    """Latents of the sample and the sites to code, and the context at a quality, in floats and in integers."""
    q = request.param
    with torch.no_grad():
        y, inside = codec._latents(images, q)
        mean, log_scale = codec.model.context(y, torch.full((len(y),), float(q)))
    return y, inside, mean, log_scale, codec.context(q)


# ---- the model in floats


@pytest.mark.parametrize("site", [(0, 0), (0, 3), (2, 0), (2, 3), (3, 5), (4, 6)])
@pytest.mark.parametrize("group", [0, 1, 2])
def test_a_latent_is_priced_by_the_window_before_its_site_and_the_groups_before_it_and_by_nothing_else(site, group):
    model, (i, j) = random_model(channels=6, groups=3), site
    y = torch.randn(2, 6, 5, 7, requires_grad=True)
    mean, log_scale = model(y, torch.tensor([30.0, 70.0]))
    (mean + log_scale)[1, 2 * group : 2 * group + 2, i, j].sum().backward()
    seen = torch.zeros(2, 6, 5, 7, dtype=torch.bool)
    for r, c in [(i - 2, j + k) for k in range(-2, 3)] + [(i - 1, j + k) for k in range(-2, 3)] + [(i, j - 2), (i, j - 1)]:
        if r >= 0 and 0 <= c < 7:
            seen[1, :, r, c] = True
    seen[1, : 2 * group, i, j] = True
    assert torch.equal(y.grad != 0, seen)


def test_a_site_beyond_the_edge_is_told_from_a_latent_of_zero():
    mean, log_scale = random_model()(torch.zeros(1, 4, 6, 7), torch.tensor([50.0]))
    for found in (mean, log_scale):
        assert (found[..., 0, 0] - found[..., 3, 3]).abs().min() > 1e-4
        torch.testing.assert_close(found[..., 3, 3], found[..., 4, 4])          # where all of the window is inside


def test_each_image_of_a_batch_has_its_own_quality():
    model, y = random_model(), torch.randn(3, 4, 5, 6)
    quality = torch.tensor([0.0, 37.0, 100.0])
    together, alone = model(y, quality), [model(y[k : k + 1], quality[k : k + 1]) for k in range(3)]
    for k in (0, 1):
        torch.testing.assert_close(together[k], torch.cat([one[k] for one in alone]))
    assert not torch.allclose(model(y, quality.flip(0))[0], together[0])


def test_groups_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match="groups must divide the 16 channels, got 3"):
        ContextModel(16, groups=3)


def test_between_anchors_lie_straight_lines_and_at_anchors_the_anchors():
    table = torch.randn(6, 2, 3)
    torch.testing.assert_close(between_anchors(table, torch.tensor([0.0, 20, 40, 60, 80, 100])), table, rtol=0, atol=1e-6)
    found = between_anchors(table, torch.tensor([5.0, 10.0, 99.0]))
    expected = torch.stack([0.75 * table[0] + 0.25 * table[1], (table[0] + table[1]) / 2, 0.05 * table[4] + 0.95 * table[5]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def mass(y, mean, scale):
    """Of the logistic distribution within ½ of y, without differences: exact in both tails."""
    h, d = 0.5 / scale, min(abs(y - mean) / scale, 700)
    return math.sinh(h) / (math.cosh(h) + math.cosh(d))


@patient
@given(st.integers(-60, 60), st.floats(-60, 60), st.floats(-5, 6))
def test_bits_are_minus_the_logarithm_of_the_mass_of_a_logistic_distribution(y, mean, log_scale):
    found = bits(torch.tensor(float(y)), torch.tensor(mean), torch.tensor(log_scale)).item()
    scale = math.exp(min(max(log_scale, -3), 4))
    assert found == pytest.approx(-math.log2(max(mass(y, mean, scale), 1e-9)), rel=1e-3, abs=2e-4)


@pytest.mark.parametrize("mean", [0.0, 0.3, -7.5])
@pytest.mark.parametrize("log_scale", [-3.0, 0.0, 3.0])
def test_the_shares_of_all_integers_sum_to_one(mean, log_scale):
    y = torch.arange(-600.0, 601)
    share = 2 ** -bits(y, torch.tensor(mean), torch.tensor(log_scale)).double()
    assert share.sum().item() == pytest.approx(1, abs=1e-5)


def test_bits_have_finite_gradients_far_from_the_mean():
    y, mean, scale = (torch.tensor([v], requires_grad=True) for v in (1e4, -1e4, -3.0))
    bits(y, mean, scale).sum().backward()
    assert all(v.grad.isfinite().all() for v in (y, mean, scale))


# ---- the model in integers


def test_integers_say_nearly_what_the_floats_say(sampled):
    y, inside, mean, log_scale, context = sampled
    found_mean, found_scale = context.everywhere(y, inside)
    assert (found_mean / 8 - mean.permute(0, 2, 3, 1)).abs().max() < 0.2
    assert (found_scale - (log_scale.permute(0, 2, 3, 1).clamp(-3, 4) + 3) * 9).abs().max() < 1
    assert abs((found_mean / 8 - mean.permute(0, 2, 3, 1)).mean()) < 0.01       # rounded, and not down


def same(one, other):
    return all(map(torch.equal, one, other))


def test_integers_depend_on_no_batch_no_order_and_no_thread(sampled):
    y, inside, *_, context = sampled
    y, inside = (torch.cat([part, part])[:256] for part in (y, inside))
    found = context.everywhere(y, inside)
    for size in (1, 7):
        parts = [context.everywhere(*part) for part in zip(y[:70].split(size), inside[:70].split(size))]
        assert same([torch.cat(part) for part in zip(*parts)], [part[:70] for part in found])
    order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    assert same(context.everywhere(y[order], inside[order]), [part[order] for part in found])


def test_integers_are_the_same_on_two_threads_as_on_one(codec, images):
    y, inside = codec._latents(images, 60)
    before, here = entropy.windows(entropy.pad(y, inside))[:, -1], y[..., -1, -1]   # few calls, of what threads share
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            found.append(codec.context(60)(3, before, here[:, :12]))
    finally:
        torch.set_num_threads(threads)
    assert same(*found)


@pytest.mark.parametrize("quality", [0, 1, 49, 50, 51, 99, 100])
def test_between_anchors_the_biases_of_integers_are_those_of_floats(quality):
    model = random_model()
    moved = between_anchors(model.quality, torch.tensor([float(quality)]))[0]
    for (bias, found) in zip(moved + torch.stack([layer.bias for layer in model.first]), IntegerContext(model, quality).groups):
        assert (found[0][1] / 2**12 - bias).abs().max() < 2 / 2**12


def whole(values, bits):
    """Python's integers, which have no largest: rounded to so many fraction bits."""
    return [whole(value, bits) for value in values] if isinstance(values, list) else round(values * 2**bits)


def layer_by_hand(x, weight, bias, shift, leaky=True):
    """Rounded down, and again below zero, as the docstrings say it."""
    out = [sum(w * v for w, v in zip(row, x)) + b >> shift for row, b in zip(whole(weight.tolist(), 12), bias)]
    return [v >> 3 if v < 0 and leaky else v for v in out]


@pytest.mark.parametrize("quality", [0, 33, 50, 100])
def test_the_integers_are_those_of_whole_number_arithmetic(quality):
    model, rng = random_model(spread=3.0), np.random.default_rng(quality)
    x = rng.integers(-300, 301, (20, entropy.SITES * 5 + 2))
    mean, scale = IntegerContext(model, quality)(1, *torch.from_numpy(x).float().split([entropy.SITES * 5, 2], 1))
    low = min(quality // 50, 1)                             # of three anchors
    below, above = (whole(model.quality[k, 1].tolist(), 12) for k in (low, low + 1))
    moved = [(a * (50 - quality + 50 * low) + b * (quality - 50 * low)) // 50 for a, b in zip(below, above)]
    first, second, third = model.first[1], model.second[1], model.third[1]
    for row, found in zip(x.tolist(), torch.cat([mean, scale], 1).tolist()):
        y = layer_by_hand(row, first.weight, [a + b for a, b in zip(whole(first.bias.tolist(), 12), moved)], 4)
        y = layer_by_hand(y, second.weight, whole(second.bias.tolist(), 20), 12)
        y = layer_by_hand(y, third.weight, whole(third.bias.tolist(), 20), 12, leaky=False)
        scales = [min(max(((v + 3 * 256) * 63 + 7 * 128) // (7 * 256), 0), 63) for v in y[2:]]
        assert found == [(v * 8 + 128) // 256 for v in y[:2]] + scales


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e13])
@pytest.mark.parametrize("name", ["first.0.weight", "second.1.bias", "third.0.weight", "quality"])
def test_weights_that_have_no_exact_sums_are_refused(name, value):
    model = random_model()
    dict(model.named_parameters())[name].data.view(-1)[0] = value
    with pytest.raises(ValueError, match="a weight that is not finite, or too large for exact sums"):
        IntegerContext(model, 0)


def test_means_and_scales_stay_within_the_tables_whatever_the_network_says():
    model = random_model()
    for layer in model.third:
        layer.bias.data.copy_(torch.tensor([1e5, -1e5, 1e5, -1e5]))
    y, inside = torch.zeros(1, 4, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool)
    mean, scale = IntegerContext(model, 0).everywhere(y, inside)
    assert mean.unique().tolist() == [-8 * LARGEST, 8 * LARGEST] and scale.unique().tolist() == [0, 63]


# ---- the tables


def test_the_tables_hold_the_logistic_distribution_in_whole_numbers_of_one_or_more():
    tables = logistic_tables()
    assert tables.shape == (64, 8, 2 * REACH + 1) and tables.dtype == torch.int32 and tables.min() == 1
    assert (tables.sum(2) - TOTAL).abs().max() <= 2 * REACH + 1         # each share is rounded, and is 1 at least
    for s in (0, 1, 17, 40, 63):
        scale = math.exp(-3 + 7 * s / 63)
        for eighth in range(8):
            expected = [TOTAL * mass(d, eighth / 8, scale) for d in range(-REACH, REACH + 1)]
            for end, away in ((0, REACH - 0.5 + eighth / 8), (-1, REACH - 0.5 - eighth / 8)):       # with all that is farther
                expected[end] = TOTAL / (1 + math.exp(min(away / scale, 700)))
            torch.testing.assert_close(tables[s, eighth].double(), torch.tensor(expected).double().clamp(min=1), rtol=0, atol=0.501)


def test_the_tables_are_symmetric_about_a_mean_and_fall_on_both_sides_of_it():
    tables = logistic_tables()
    assert torch.equal(tables[:, 0], tables[:, 0].flip(1))
    for eighth in range(1, 8):                              # about the mean between two integers
        assert torch.equal(tables[:, eighth, 2:-1], tables[:, 8 - eighth, 2:-1].flip(1))
    for eighth in range(8):
        middle = REACH + (eighth + 3) // 8 if eighth != 4 else REACH
        inner = tables[:, eighth, 1:-1].diff(dim=1)
        assert (inner[:, : middle - 1] >= 0).all() and (inner[:, middle:] <= 0).all()
    assert (tables[:, 0, REACH].diff() < 0).all()           # the wider, the less likely the middle


# ---- to bytes and back


@lru_cache(3)
def context_of(seed):
    return IntegerContext(random_model(seed, spread=10.0**seed), 37)


def rectangles(rng, N, whole):
    """The sites that an image covers of its tile: rows and columns from the first on."""
    inside = torch.zeros(N, SIDE, SIDE, dtype=torch.bool)
    for part in inside:
        rows, columns = (SIDE, SIDE) if whole else rng.integers(1, SIDE + 1, 2)
        part[:rows, :columns] = True
    return inside


@patient
@given(
    st.integers(0, 2),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.sampled_from([0, 1, 9, 200, LARGEST]),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_latents_of_any_size_in_any_partition_come_back_and_each_stream_stands_alone(model, sizes, largest, whole, seed):
    context, rng, N = context_of(model), np.random.default_rng(seed), sum(sizes)
    inside = rectangles(rng, N, whole)
    y = torch.from_numpy(rng.integers(-largest, largest + 1, (N, 4, SIDE, SIDE))).float()
    y[torch.from_numpy(rng.random(y.shape) < 0.3)] = largest                        # and the ends themselves
    y[torch.from_numpy(rng.random(y.shape) < 0.1)] = -largest
    y *= inside[:, None]
    streams = entropy.encode(y, inside, sizes, context)
    assert len(streams) == len(sizes) and all(type(stream) is bytes for stream in streams)
    assert torch.equal(entropy.decode(streams, inside, sizes, context), y)
    for stream, n, *part in zip(streams, sizes, y.split(sizes), inside.split(sizes)):
        assert entropy.encode(*part, [n], context) == [stream]
    k = int(rng.integers(len(sizes)))
    assert torch.equal(entropy.decode([streams[k]], inside.split(sizes)[k], [sizes[k]], context), y.split(sizes)[k])


def test_latents_outside_are_not_coded():
    context, inside = context_of(0), rectangles(np.random.default_rng(0), 5, whole=False)
    y = torch.randint(-3, 4, (5, 4, SIDE, SIDE)).float()
    streams = entropy.encode(y, inside, [2, 3], context)
    assert streams == entropy.encode(y * inside[:, None], inside, [2, 3], context)
    assert torch.equal(entropy.decode(streams, inside, [2, 3], context), y * inside[:, None])


def test_more_tiles_than_go_at_once_and_more_symbols_than_are_written_at_once_come_back():
    context, rng = context_of(1), np.random.default_rng(0)
    y = torch.from_numpy(rng.integers(-9, 10, (600, 4, SIDE, SIDE))).float()        # 153,600 symbols
    inside = rectangles(rng, 600, whole=True)
    streams = entropy.encode(y, inside, [599, 1], context)
    assert torch.equal(entropy.decode(streams, inside, [599, 1], context), y)


@pytest.mark.parametrize("away", [REACH - 1, REACH, REACH + 1, -REACH, 500, -500])
def test_what_is_far_from_its_mean_comes_back_and_costs_18_bits_more(away):
    model = random_model()
    for layer in model.third:                               # mean 0, scale 1, whatever was before
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    context, inside = IntegerContext(model, 0), rectangles(None, 1, whole=True)
    y = torch.zeros(1, 4, SIDE, SIDE)
    y[0, 2, 3, 4] = away
    (stream,) = entropy.encode(y, inside, [1], context)
    assert torch.equal(entropy.decode([stream], inside, [1], context), y)
    cost = entropy.costs(y, inside, context)
    assert cost[0, 2, 3, 4] == pytest.approx(22 + 18 * (abs(away) >= REACH), abs=1e-3)      # the tail is 1 of 2²² parts
    assert cost[0, 0, 0, 0] == pytest.approx(-math.log2(math.tanh(0.25)), abs=0.05)
    assert abs(len(stream) - cost.sum().item() / 8) < 1.5


def test_progress_rises_to_exactly_one():
    told, inside = [], torch.ones(1, 2, 3, dtype=torch.bool)
    entropy.decode([b""], inside, [1], context_of(0), told.append)
    assert told == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1]) and told[-1] == 1


def test_bytes_that_no_encoder_wrote_are_latents_in_bounds_or_corrupt():
    rng, corrupt = np.random.default_rng(0), 0
    inside = rectangles(rng, 1, whole=True)
    for k in range(60):
        stream = b"\xff" * k if k < 15 else rng.bytes(int(rng.integers(0, 200)))
        try:
            y = entropy.decode([stream], inside, [1], context_of(k % 3))
        except CorruptStream as error:
            assert "none that the model could have written" in str(error)
            corrupt += 1
        else:
            assert y.shape == (1, 4, SIDE, SIDE) and torch.equal(y, y.round()) and y.abs().max() <= LARGEST
    assert corrupt


# ---- what the coder wastes


def written(symbols, rows):
    """An encoder that has been given these."""
    encoder = constriction.stream.queue.RangeEncoder()
    encoder.encode(symbols.astype(np.int32), TABLE, rows)
    return encoder


def read(stream, rows):
    words = np.frombuffer(stream + bytes(-len(stream) % 4), ">u4").astype(np.uint32)
    try:
        return constriction.stream.queue.RangeDecoder(words).decode(TABLE, rows)
    except AssertionError:
        return np.array([-1])


def test_the_fewest_bytes_say_the_same_and_are_never_more_than_the_library_would_write():
    rng, tables, carries, shorter = np.random.default_rng(0), logistic_tables().view(-1, 2 * REACH + 1).float().numpy(), 0, 0
    for k in range(4000):
        length = int(rng.integers(1, 30))
        rows = tables[rng.integers(0, 512, length) if k % 2 else np.full(length, rng.integers(0, 512))]
        symbols = (
            (rng.random((length, 1)) < rows.cumsum(1) / rows.sum(1, keepdims=True)).argmax(1),      # as the tables say
            np.full(length, 2 * REACH),                     # the last of all: the interval stays at the top
            np.zeros(length),
            rng.integers(0, 2 * REACH + 1, length),         # most unlikely
        )[k % 4]
        encoder = written(symbols, rows)
        _, (lower, width) = encoder.pos()
        carries += lower + width > 2**64
        stream, whole = entropy._shortest(encoder), encoder.get_compressed().astype(">u4").tobytes().rstrip(b"\0")
        assert np.array_equal(read(stream, rows), symbols)
        assert len(stream) <= len(whole) and not stream.endswith(b"\0")
        shorter += len(stream) < len(whole)
        if 0 < len(stream) <= 2 and lower + width <= 2**64:                         # one byte less can say it in no way
            fewer = [b""] if len(stream) == 1 else [bytes([b]) for b in range(256)]
            assert not any(np.array_equal(read(one, rows), symbols) for one in fewer)
    assert carries > 20 and shorter > 2000


def test_the_bytes_are_hardly_more_than_the_cross_entropy(sampled):
    y, inside, mean, log_scale, context = sampled
    cost = entropy.costs(y, inside, context)
    assert cost.shape == y.shape and cost.min() >= 0
    streams = entropy.encode(y, inside, [1] * len(y), context)
    length, cost_each = torch.tensor([len(one) for one in streams]), cost.sum((1, 2, 3)) / 8
    assert ((length - cost_each > -1.5) & (length - cost_each < 5)).all()           # at most a word, where a carry was to come
    assert length.sum() <= 1.02 * cost_each.sum() + 2.5 * len(y)
    assert (length - cost_each).mean().abs() < 1
    (one,) = entropy.encode(y, inside, [len(y)], context)
    assert abs(len(one) - cost.sum() / 8) < 0.002 * len(one) + 5
    assert (cost.sum() / bits(y, mean, log_scale).sum() - 1).abs() < 0.02           # and the integers cost hardly more than floats


def test_costs_of_sites_that_are_not_coded_are_zero():
    context, inside = context_of(0), rectangles(np.random.default_rng(1), 3, whole=False)
    cost = entropy.costs(torch.zeros(3, 4, SIDE, SIDE), inside, context)
    assert torch.equal(cost > 0, inside[:, None].expand_as(cost))
