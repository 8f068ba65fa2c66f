"""Training for rate and distortion: the loss, the scores, and runs that resume bit for bit."""

import hashlib
import json
import math
import os
import re
import signal
from dataclasses import replace

import pytest
import torch

from dcae_lib import DCAE, Splits, TrainConfig, load_images, to_model, to_uint8
from dcae_lib.codec import train as module
from dcae_lib.codec.model import RateModel
from dcae_lib.codec.train import PRESET, SCORED, START, STATISTICS, estimate, rate_distortion, trade, train_codec
from dcae_lib.course import measured
from dcae_lib.metrics import MAX_PSNR, psnr

SCORES = {f"{kind}_{q}" for kind in ("bpp", "psnr") for q in SCORED}


def few(count, tests=10):
    """Return splits of 16×16 crops of the sample."""
    counts = zip(load_images("sample"), (count, tests))
    return Splits(*(replace(part, images=part.images[:n, :, :16, :16], labels=None) for part, n in counts))


def config(**changes):
    return TrainConfig(**PRESET | dict(epochs=2, batch_size=16, device="cpu", model=dict(hidden=(8, 8))) | changes)


def same_weights(a, b):
    return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


@pytest.mark.parametrize("name", ["photographs", "thumbnails"])
def test_the_shipped_codec_started_from_these_weights(name):
    weights = (START / "model.safetensors").read_bytes()
    assert measured("history", name)["start"] == hashlib.sha256(weights).hexdigest()


def test_trade_is_exponential_from_40_to_9000():
    torch.testing.assert_close(trade(torch.tensor([0.0, 50.0, 100.0])), torch.tensor([40.0, 600.0, 9000.0]))
    assert trade(torch.arange(101.0)).log().diff().std() < 1e-5


def test_loss_weighs_bits_and_mse_by_quality(monkeypatch):
    quality = torch.tensor([0, 50, 100])
    monkeypatch.setattr(torch, "randint", lambda high, size, device: {(101, (3,)): quality}[high, size])
    x = torch.zeros(3, 3, 8, 8)
    y, cost = torch.full_like(x, 0.2), torch.full((3,), 32.0)  # 0.1 on [0, 1]; 32 bits for 64 pixels
    each = [(0.5 + weight * 0.01) / math.sqrt(weight / 600) for weight in (40, 600, 9000)]
    assert rate_distortion(lambda *_: (y, cost), x).item() == pytest.approx(sum(each) / 3, rel=1e-5)


@torch.no_grad()
def test_estimate_averages_over_images_of_bytes(monkeypatch):
    torch.manual_seed(0)
    model, images = RateModel(hidden=(8, 8)).train(), few(1, tests=7).test
    monkeypatch.setattr(module, "eval_batch_size", lambda images: 3)
    scores = estimate(model, images)
    assert model.training and set(scores) == SCORES
    model.eval()
    for q in SCORED:
        pairs = []
        for x in to_model(images.images).split(1):
            y, cost = model(x, torch.tensor([float(q)]))
            pairs.append((cost.sum().item() / 256, psnr(to_model(to_uint8(y)), x).item()))
        bpp, decibel = torch.tensor(pairs).mean(0).tolist()
        assert scores[f"bpp_{q}"] == pytest.approx(bpp, rel=1e-3)
        assert scores[f"psnr_{q}"] == pytest.approx(decibel, abs=0.02)


def test_estimate_rounds_pictures_to_bytes():
    model = RateModel(hidden=(8, 8))
    model.forward = lambda x, quality: (x + 0.003, torch.zeros(len(x)))  # less than half a step of a byte
    assert estimate(model, few(1).test)["psnr_20"] == MAX_PSNR


def test_training_starts_from_the_recorded_network_and_learns(tmp_path, images):
    start = RateModel(**DCAE.from_pretrained(START).config)
    start.start_from(DCAE.from_pretrained(START), to_model(load_images("sample").train.images[:STATISTICS]))
    first = train_codec(config(epochs=1, lr=1e-12, warmup=0.0), splits=few(64)).model.autoencoder
    for name, value in first.state_dict().items():
        torch.testing.assert_close(value, start.autoencoder.state_dict()[name], rtol=0, atol=1e-5)
    run = train_codec(config(epochs=4), tmp_path, few(64))
    assert set(run.metrics) == SCORES and run.history[-1]["train_loss"] < 0.9 * run.history[0]["train_loss"]
    assert same_weights(RateModel.from_pretrained(tmp_path), run.model.half()) and run.model.config["hidden"] == (8, 8)
    record, text = json.loads((tmp_path / "history.json").read_text()), (tmp_path / "README.md").read_text()
    assert record["history"] == run.history and len(record["start"]) == 64
    assert f"{record['parameters']:,} parameters" in text and "for 4 epochs" in text
    assert f"psnr_50 {run.metrics['psnr_50']:.4f}" in text
    code = re.search(r"```python\n(.*?)```", text, re.S)[1].replace('"this folder"', repr(str(tmp_path)))
    exec(code, names := dict(image=images[0]))  # the card's example works
    assert names["codec"].decompress(names["data"]).shape == (3, 32, 32)


@pytest.mark.slow
def test_interrupted_training_resumes_bit_for_bit(tmp_path, monkeypatch, request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background processes
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    whole, calls = train_codec(config(), splits=few(56)), []

    def interrupting(model, x):
        calls.append(0)
        if len(calls) == 6:  # the second step of the second epoch
            os.kill(os.getpid(), signal.SIGINT)
        return rate_distortion(model, x)

    monkeypatch.setattr(module, "rate_distortion", interrupting)
    run = train_codec(config(), tmp_path, few(56))
    assert run.stop and len(run.history) == 1 and not (tmp_path / "model.safetensors").exists()
    torch.rand(7)  # the global generator's state does not matter
    run = train_codec(config(), tmp_path, few(56))
    assert not run.stop and len(calls) == 8 and same_weights(run.model, whole.model)
    assert [row["train_loss"] for row in run.history] == [row["train_loss"] for row in whole.history]
