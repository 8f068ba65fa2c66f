"""Latents become bytes and latents again, in hardly more bytes than their cross-entropy."""

import math

import constriction
import numpy as np
import pytest
import torch

from dcae_lib.codec import coder
from dcae_lib.codec.bitstream import CorruptStream
from dcae_lib.codec.coder import CATEGORICAL, costs, decode, encode
from dcae_lib.codec.context import RADIUS, bits, logistic_tables
from dcae_lib.codec.integer import MAX_LATENT, IntegerContext


@pytest.fixture(scope="module")
def contexts(random_context):
    return [IntegerContext(random_context(seed, spread=10.0**seed), 37) for seed in range(3)]


def rectangles(rng, N, whole=False):
    """Masks of images that cover the first rows and columns of their tile."""
    mask = torch.zeros(N, 8, 8, dtype=torch.bool)
    for part in mask:
        rows, columns = (8, 8) if whole else rng.integers(1, 9, 2)
        part[:rows, :columns] = True
    return mask


@pytest.mark.parametrize("seed", range(45))
def test_decode_undoes_encode_and_streams_are_independent(contexts, seed):
    context, largest = contexts[seed % 3], (0, 1, 9, 200, MAX_LATENT)[seed % 5]
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, rng.integers(1, 5)).tolist()
    mask = rectangles(rng, sum(sizes), whole=seed % 2 == 0)
    values = torch.from_numpy(rng.integers(-largest, largest + 1, (sum(sizes), 4, 8, 8))).float()
    values[torch.from_numpy(rng.random(values.shape) < 0.3)] = largest  # the extremes themselves
    values[torch.from_numpy(rng.random(values.shape) < 0.1)] = -largest
    y = values * mask[:, None]
    streams = encode(values, mask, sizes, context)  # latents outside the mask do not matter
    assert streams == encode(y, mask, sizes, context)
    assert torch.equal(decode(streams, mask, sizes, context), y)
    assert torch.equal(costs(y, mask, context) > 0, mask[:, None].expand_as(y))
    for stream, n, *part in zip(streams, sizes, y.split(sizes), mask.split(sizes), strict=True):
        assert encode(*part, [n], context) == [stream]
        assert torch.equal(decode([stream], part[1], [n], context), part[0])


def test_more_tiles_and_symbols_than_fit_one_batch(contexts):
    rng = np.random.default_rng(0)
    y = torch.from_numpy(rng.integers(-9, 10, (600, 4, 8, 8))).float()  # 153,600 symbols
    mask = rectangles(rng, 600, whole=True)
    assert torch.equal(decode(encode(y, mask, [599, 1], contexts[1]), mask, [599, 1], contexts[1]), y)


@pytest.mark.parametrize("residual", [RADIUS - 1, RADIUS, RADIUS + 1, -RADIUS, 500, -500])
def test_residuals_beyond_the_tables_cost_18_bits_more(residual, random_context):
    model = random_context()
    for layer in model.third:  # mean 0 and scale 1 everywhere
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    context, mask = IntegerContext(model, 0), rectangles(None, 1, whole=True)
    y = torch.zeros(1, 4, 8, 8)
    y[0, 2, 3, 4] = residual
    (stream,) = encode(y, mask, [1], context)
    assert torch.equal(decode([stream], mask, [1], context), y)
    cost = costs(y, mask, context)
    assert cost[0, 2, 3, 4] == pytest.approx(22 + 18 * (abs(residual) >= RADIUS), abs=1e-3)  # 1 of 2²² in the tail
    assert cost[0, 0, 0, 0] == pytest.approx(-math.log2(math.tanh(0.25)), abs=0.05)
    assert abs(len(stream) - cost.sum().item() / 8) < 1.5


def test_invalid_payloads_are_corrupt_or_decode_within_bounds(contexts):
    rng, corrupt, mask = np.random.default_rng(0), 0, rectangles(None, 1, whole=True)
    for k in range(60):
        stream = b"\xff" * k if k < 15 else rng.bytes(int(rng.integers(0, 200)))
        try:
            y = decode([stream], mask, [1], contexts[k % 3])
        except CorruptStream as error:
            assert str(error) == "not a valid payload for this model"
            corrupt += 1
        else:
            assert y.shape == (1, 4, 8, 8) and torch.equal(y, y.round()) and y.abs().max() <= MAX_LATENT
    assert 0 < corrupt < 60


def test_bytes_are_close_to_the_cross_entropy(sampled):
    y, mask, context, mean, log_scale = sampled
    cost = costs(y, mask, context)
    assert cost.shape == y.shape and cost.min() >= 0
    waste = torch.tensor(list(map(len, encode(y, mask, [1] * len(y), context)))) - cost.sum((1, 2, 3)) / 8
    assert ((waste > -1.5) & (waste < 5)).all() and waste.mean().abs() < 1  # at most a word, for a pending carry
    (stream,) = encode(y, mask, [len(y)], context)
    assert abs(len(stream) - cost.sum() / 8) < 0.002 * len(stream) + 5
    assert (cost.sum() / bits(y, mean, log_scale).sum() - 1).abs() < 0.02  # integers cost hardly more than floats


def read(stream, rows):
    words = np.frombuffer(stream + bytes(-len(stream) % 4), ">u4").astype(np.uint32)
    try:
        return constriction.stream.queue.RangeDecoder(words).decode(CATEGORICAL, rows)
    except AssertionError:
        return np.array([-1])


def test_streams_end_after_the_fewest_bytes():
    rng, carries, shorter = np.random.default_rng(0), 0, 0
    tables = logistic_tables().view(-1, 2 * RADIUS + 1).float().numpy()
    for k in range(2000):
        length = int(rng.integers(1, 30))
        rows = tables[rng.integers(0, 512, length) if k % 2 else np.full(length, rng.integers(0, 512))]
        symbols = (
            (rng.random((length, 1)) < rows.cumsum(1) / rows.sum(1, keepdims=True)).argmax(1),  # as the tables say
            np.full(length, 2 * RADIUS),  # the interval stays at the top
            np.zeros(length),
            rng.integers(0, 2 * RADIUS + 1, length),  # most unlikely
        )[k % 4]
        encoder = constriction.stream.queue.RangeEncoder()
        encoder.encode(symbols.astype(np.int32), CATEGORICAL, rows)
        _, (lower, width) = encoder.pos()
        carries += lower + width > 2**64
        stream, library = coder._shortest(encoder), encoder.get_compressed().astype(">u4").tobytes().rstrip(b"\0")
        assert np.array_equal(read(stream, rows), symbols)
        assert len(stream) <= len(library) and not stream.endswith(b"\0")
        assert stream == library or lower + width <= 2**64
        shorter += len(stream) < len(library)
        if 0 < len(stream) <= 2 and lower + width <= 2**64:  # no stream one byte shorter decodes to the symbols
            fewer = [b""] if len(stream) == 1 else [bytes([b]) for b in range(256)]
            assert not any(np.array_equal(read(one, rows), symbols) for one in fewer)
    assert carries > 10 and shorter > 1000
