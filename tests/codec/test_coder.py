"""Latents become bytes and latents again, in hardly more bytes than their cross-entropy."""

import math

import constriction
import numpy as np
import pytest
import torch

from dcae_lib.codec import coder, integer
from dcae_lib.codec.bitstream import CorruptStream
from dcae_lib.codec.coder import CATEGORICAL, costs, decode, encode
from dcae_lib.codec.context import RADIUS, bits
from dcae_lib.codec.integer import MAX_LATENT, IntegerContext


@pytest.fixture(scope="module")
def contexts(random_context):
    return [IntegerContext(random_context(seed, spread=10.0**seed), 37) for seed in range(3)]


@pytest.mark.parametrize("h, w", [(1, 1), (1, 7), (6, 1), (2, 3), (5, 9)])
def test_wavefront_codes_a_site_after_all_of_its_window(h, w):
    steps = coder.wavefront(h, w)
    assert len(steps) == (w + 3 * (h - 1) if w >= 3 else w * h)
    assert sorted(np.concatenate(steps)) == list(range(h * w))
    step = {divmod(site, w): k for k, sites in enumerate(steps) for site in sites.tolist()}
    for i, j in step:
        window = [(i - a, j + b) for a in (1, 2) for b in range(-2, 3)] + [(i, j - 1), (i, j - 2)]
        assert all(step[site] < step[i, j] for site in window if site in step)


@pytest.mark.parametrize("seed", range(45))
def test_decode_undoes_encode_and_streams_are_independent(contexts, seed):
    largest = (0, 1, 9, 200, MAX_LATENT)[seed % 5]
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 6, rng.integers(1, 5)).tolist()
    sizes = [tuple(rng.integers(1, 10, 2).tolist()) for _ in range(seed % 3 + 1)]
    chosen, y = contexts[: len(sizes)], []
    for size in sizes:
        level = torch.from_numpy(rng.integers(-largest, largest + 1, (sum(counts), 4, *size))).float()
        level[torch.from_numpy(rng.random(level.shape) < 0.3)] = largest  # the extremes themselves
        level[torch.from_numpy(rng.random(level.shape) < 0.1)] = -largest
        y.append(level)
    streams = encode(y, counts, chosen)
    assert all(map(torch.equal, decode(streams, counts, sizes, chosen), y))
    for stream, n, *part in zip(streams, counts, *(level.split(counts) for level in y), strict=True):
        assert encode(part, [n], chosen) == [stream]
        assert all(map(torch.equal, decode([stream], [n], sizes, chosen), part))


@pytest.mark.parametrize("shape", [(600, 4, 8, 8), (1, 4, 40, 70)])
def test_more_sites_and_symbols_than_fit_one_batch(shape, contexts, monkeypatch):
    y = torch.from_numpy(np.random.default_rng(0).integers(-9, 10, shape)).float()
    counts = [len(y) - 1, 1] if len(y) > 1 else [1]
    whole = encode([y], counts, contexts[1:2])
    monkeypatch.setattr(coder, "BATCH", 256)  # sites: bands of a few rows
    monkeypatch.setattr(coder, "CHUNK", 1000)
    assert encode([y], counts, contexts[1:2]) == whole
    assert torch.equal(decode(whole, counts, [shape[2:]], contexts[1:2])[0], y)


@pytest.mark.parametrize("residual", [RADIUS - 1, RADIUS, RADIUS + 1, -RADIUS, 500, -500])
def test_residuals_beyond_the_tables_cost_18_bits_more(residual, random_context):
    model = random_context()
    for layer in model.third:  # mean 0 and scale 1 everywhere
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    context, y = IntegerContext(model, 0), torch.zeros(1, 4, 8, 8)
    y[0, 2, 3, 4] = residual
    (stream,) = encode([y], [1], [context])
    assert torch.equal(decode([stream], [1], [(8, 8)], [context])[0], y)
    cost = costs(y, context)
    assert cost[0, 2, 3, 4] == pytest.approx(22 + 18 * (abs(residual) >= RADIUS), abs=1e-3)  # 1 of 2²² in the tail
    assert cost[0, 0, 0, 0] == pytest.approx(-math.log2(math.tanh(0.25)), abs=0.05)
    assert abs(len(stream) - cost.sum().item() / 8) < 1.5


def test_invalid_payloads_are_corrupt_or_decode_within_bounds(contexts):
    rng, corrupt = np.random.default_rng(0), 0
    for k in range(60):
        stream = b"\xff" * k if k < 15 else rng.bytes(int(rng.integers(0, 200)))
        try:
            (y,) = decode([stream], [1], [(8, 8)], contexts[k % 3 : k % 3 + 1])
        except CorruptStream as error:
            assert str(error) == "not a valid payload for this model"
            corrupt += 1
        else:
            assert y.shape == (1, 4, 8, 8) and torch.equal(y, y.round()) and y.abs().max() <= MAX_LATENT
    assert 0 < corrupt < 60


def test_bytes_are_close_to_the_cross_entropy(sampled):
    y, context, mean, log_scale = sampled
    cost = costs(y, context)
    assert cost.shape == y.shape and cost.min() >= 0
    waste = torch.tensor(list(map(len, encode([y], [1] * len(y), [context])))) - cost.sum((1, 2, 3)) / 8
    assert ((waste > -1.5) & (waste < 5)).all() and waste.mean().abs() < 1  # at most a word, for a pending carry
    (stream,) = encode([y], [len(y)], [context])
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
    tables = integer.tables()
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
