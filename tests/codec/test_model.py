"""The codec's model: what training sees is what coding does, and a training that was stopped goes on as if it had not been."""

import json
import math
import os
import re
import signal
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from dcae_lib import DCAE, Splits, TrainConfig, load_images, rate, to_model, to_uint8
from dcae_lib.codec.context import bits
from dcae_lib.metrics import psnr
from dcae_lib.model import save_pretrained
from dcae_lib.codec.model import SCORED, RateModel, estimate, main, rate_distortion, trade, train_rate


@pytest.fixture(scope="module")
def sample():
    return load_images("sample")


@pytest.fixture
def model():
    """An untrained one, small, whose latents are several integers apart."""
    torch.manual_seed(0)
    model = RateModel(dict(hidden=8))
    model.log_gain.data += 2 * torch.rand_like(model.log_gain)
    model.log_inverse.data -= 2 * torch.rand_like(model.log_inverse)
    return model


@pytest.fixture
def x(sample):
    return to_model(sample.test.images[:6])


QUALITY = torch.tensor([0.0, 10, 37, 50, 99, 100])


def few(sample, n, tests=10, side=16):
    return Splits(*(replace(part, images=part.images[:count, :, :side, :side], labels=None) for part, count in zip(sample, (n, tests))))


def config(**changes):
    return TrainConfig(**rate.PRESET | dict(epochs=2, batch_size=16, device="cpu", model=dict(hidden=8)) | changes)


def same_weights(a, b):
    return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


# ---- forward


@torch.no_grad()
def test_in_evaluation_the_latents_are_rounded_and_priced_as_they_are(model, x):
    model.eval()
    latent, cost = model.analyse(x, QUALITY), model(x, QUALITY)[1]
    y = latent.round()
    assert y.shape == cost.shape == (6, 16, 8, 8) and y.abs().max() > 2
    torch.testing.assert_close(model(x, QUALITY)[0], model.synthesise(y, QUALITY))
    torch.testing.assert_close(cost, bits(y, *model.context(y, QUALITY)))
    assert torch.equal(model(x, QUALITY)[1], cost) and (cost > 0).all()


@torch.no_grad()
def test_in_training_noise_is_in_the_price_alone(model, x):
    model.train()
    (picture, cost), (again, other) = model(x, QUALITY), model(x, QUALITY)
    assert torch.equal(picture, again) and not torch.allclose(cost, other)
    torch.testing.assert_close(picture, model.eval()(x, QUALITY)[0])
    model.train()
    latent, seen = model.analyse(x, QUALITY), []
    model.synthesise = lambda y, q: seen.append(y)
    context = model.context.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    noisy, original = [], rate.bits
    try:
        rate.bits = lambda y, mean, log_scale: noisy.append(y) or original(y, mean, log_scale)
        model(x, QUALITY)
    finally:
        rate.bits = original
        context.remove()
    noise = noisy[0] - latent
    assert len(seen) == 2 and all(torch.allclose(y, latent.round()) for y in seen)         # by the decoder, by the context
    assert -0.5 <= noise.min() < -0.49 and 0.49 < noise.max() <= 0.5 and abs(noise.mean()) < 0.02


@torch.no_grad()
def test_a_gain_multiplies_each_channel_before_rounding_and_another_one_after_it(model, x):
    latent = model.autoencoder.encode(x)
    expected = latent * torch.stack([model.log_gain[k] for k in (0, 5)]).exp()[[0] * 3 + [1] * 3][:, :, None, None]
    torch.testing.assert_close(model.analyse(x, torch.tensor([0.0] * 3 + [100] * 3)), expected)
    halfway = model.autoencoder.decode(latent * ((model.log_inverse[0] + model.log_inverse[1]) / 2).exp()[:, None, None])
    torch.testing.assert_close(model.synthesise(latent, torch.full((6,), 10.0)), halfway, rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_weight(model, x):
    for p in model.parameters():                            # without zeros, that begin some branches, all have a part
        p.data += 0.01 * torch.randn_like(p)
    y, cost = model.train()(x, QUALITY)
    (y.square().mean() + cost.mean()).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0, name


def test_both_the_picture_and_the_price_move_encoder_and_gain(model, x):
    for pick in (0, 1):
        model.zero_grad()
        model.train()(x, QUALITY)[pick].square().mean().backward()
        assert model.log_gain.grad.abs().max() > 0 and model.autoencoder.encoder.stem.weight.grad.abs().max() > 0
        assert (model.context.third[0].weight.grad is not None) == (pick == 1)


# ---- the loss


def test_the_trade_goes_from_40_to_9000_by_the_same_factor_at_each_step():
    found = trade(torch.tensor([0.0, 50.0, 100.0]))
    torch.testing.assert_close(found, torch.tensor([40.0, 600.0, 9000.0]))
    assert trade(torch.arange(101.0)).log().diff().std() < 1e-5


def test_the_loss_is_bits_per_pixel_and_trade_times_mse_with_less_weight_at_higher_quality(monkeypatch):
    quality = torch.tensor([0, 50, 100])
    monkeypatch.setattr(torch, "randint", lambda high, size, device: quality if (high, size) == (101, (3,)) else None)
    x = torch.zeros(3, 3, 8, 8)
    y, cost = torch.full_like(x, 0.2), torch.full((3, 16, 2, 2), 0.5)               # 0.1 on [0, 1]; 32 bits for 64 pixels
    found = rate_distortion(lambda *_: (y, cost), x)
    each = [(0.5 + lam * 0.01) / math.sqrt(lam / 600) for lam in (40, 600, 9000)]
    assert found.item() == pytest.approx(sum(each) / 3, rel=1e-5)


def test_the_loss_draws_qualities_from_0_to_100_for_each_image_and_is_finite(model, x):
    drawn, forward = [], model.forward
    model.forward = lambda x, q: drawn.append(q) or forward(x, q)
    for _ in range(40):
        loss = rate_distortion(model, x)
        assert loss.isfinite() and loss.ndim == 0 and loss.requires_grad
    q = torch.cat(drawn)
    assert q.shape == (240,) and len(q.unique()) > 60 and q.min() >= 0 and q.max() <= 100 and torch.equal(q, q.round())


def test_the_estimate_is_a_loop_over_images_and_qualities(model, sample):
    images = few(sample, 1, tests=7).test
    model.train()
    found = estimate(model, images, batch_size=3)
    assert model.training and set(found) == {f"{name}_{q}" for name in ("bpp", "psnr") for q in SCORED}
    model.eval()
    for q in SCORED:
        pairs = []
        for one in images.images:
            x = to_model(one[None])
            with torch.no_grad():
                y, cost = model(x, torch.tensor([float(q)]))
            pairs.append((cost.sum().item() / 256, psnr(to_model(to_uint8(y)), x).item()))
        bpp, decibel = (sum(column) / 7 for column in zip(*pairs))
        assert found[f"bpp_{q}"] == pytest.approx(bpp, rel=1e-3) and found[f"psnr_{q}"] == pytest.approx(decibel, abs=0.02)


def test_the_estimate_compares_pictures_in_bytes(model, sample):
    model.forward = lambda x, quality: (x + 0.003, torch.zeros(len(x), 1, 1, 1))    # less than half a step of a byte
    assert estimate(model, few(sample, 1).test)["psnr_0"] == math.inf


def test_the_shipped_weights_take_more_bits_for_better_pictures(sample):
    found = estimate(RateModel.from_pretrained(), replace(sample.test, images=sample.test.images[:50]))
    for name in ("bpp", "psnr"):
        values = [found[f"{name}_{q}"] for q in SCORED]
        assert all(0 < a < b for a, b in pairwise(values))


# ---- to a folder and back


def test_a_model_comes_back_from_its_folder_as_it_was(model, x, tmp_path):
    save_pretrained(model, tmp_path)
    again = RateModel.from_pretrained(tmp_path)
    assert not again.training and again.config == model.config and same_weights(again, model)
    with torch.no_grad():
        assert all(map(torch.equal, again(x, QUALITY), model.eval()(x, QUALITY)))


@pytest.mark.parametrize("damage, message", [
    (dict(model=b"damaged"), "cannot be loaded"),
    (dict(config=b"{"), "cannot be loaded"),
    (dict(config=b"[1]"), "cannot be loaded"),
    (dict(config=b'{"colour": 1}'), "cannot be loaded.*colour"),
    (dict(config=b'{"context": {"hidden": 9}}'), "cannot be loaded.*size mismatch"),
    (dict(config=b'{"context": {"groups": 5}}'), "cannot be loaded.*groups must divide the 16 channels"),
])
def test_a_folder_that_does_not_fit_is_refused(damage, message, model, tmp_path):
    save_pretrained(model, tmp_path)
    files = dict(model="model.safetensors", config="config.json")
    for name, content in damage.items():
        (tmp_path / files[name]).write_bytes(content)
    with pytest.raises(ValueError, match=f"(?s)the model in {tmp_path} {message}"):
        RateModel.from_pretrained(tmp_path)
    for name in damage:
        (tmp_path / files[name]).unlink()
    with pytest.raises(FileNotFoundError, match=f"holds no {files[name]}"):
        RateModel.from_pretrained(tmp_path)


# ---- training


def test_a_training_begins_as_the_recorded_network_and_lowers_the_loss(sample, tmp_path):
    splits, start = few(sample, 64), DCAE.from_pretrained()
    first = train_rate(config(epochs=1, lr=1e-12, warmup=0.0), splits=splits).model.autoencoder
    assert first.config == start.config
    for name, value in first.state_dict().items():
        torch.testing.assert_close(value, start.state_dict()[name], rtol=0, atol=1e-6)
    run = train_rate(config(epochs=4), tmp_path, splits)
    assert run.metrics == {f"{kind}_{q}": run.history[-1][f"{kind}_{q}"] for q in SCORED for kind in ("bpp", "psnr")}
    assert run.history[-1]["train_loss"] < 0.9 * run.history[0]["train_loss"]
    assert same_weights(RateModel.from_pretrained(tmp_path), run.model) and run.model.config["context"] == dict(hidden=8)
    record = json.loads((tmp_path / "history.json").read_text())
    assert record["history"] == run.history and record["parameters"] == sum(p.numel() for p in run.model.parameters())
    assert set(run.history[0]) == {"epoch", "train_loss", "seconds", "images_per_second"} | {f"{k}_{q}" for k in ("bpp", "psnr") for q in SCORED}
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "history.json", "model.safetensors", "README.md"}
    card = (tmp_path / "README.md").read_text()
    assert f"{record['parameters']:,} parameters" in card and "Trained on" in card and "for 4 epochs" in card
    for q in SCORED:
        assert f"{run.history[-1][f'psnr_{q}']:.2f} dB at {run.history[-1][f'bpp_{q}']:.3f}" in card
    code = re.search(r"```python\n(.*?)```", card, re.S)[1].replace('"this folder"', repr(str(tmp_path)))
    exec(code, names := dict(image=sample.test.images[0]))  # what it shows can be run
    assert names["codec"].decompress(names["data"]).shape == (3, 32, 32)


def test_a_training_that_is_interrupted_goes_on_to_the_same_weights_bit_for_bit(sample, tmp_path, monkeypatch, request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)               # what runs in the background ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    splits, calls = few(sample, 56), []
    whole = train_rate(config(), splits=splits)

    def stopped(model, x):
        calls.append(0)
        if len(calls) == 6:                                 # the second step of the second epoch
            os.kill(os.getpid(), signal.SIGINT)
        return rate_distortion(model, x)

    monkeypatch.setattr(rate, "rate_distortion", stopped)
    run = train_rate(config(), tmp_path, splits)
    assert run.interrupted and len(run.history) == 1 and not (tmp_path / "model.safetensors").exists()
    torch.rand(7)                                           # what came between does not matter
    run = train_rate(config(), tmp_path, splits)
    assert not run.interrupted and len(calls) == 8 and same_weights(run.model, whole.model)
    assert [row["train_loss"] for row in run.history] == [row["train_loss"] for row in whole.history]
    assert not (tmp_path / "checkpoints").exists()


# ---- the command line


def test_the_command_trains_and_says_how_well_and_an_interrupted_one_how_to_go_on(folder, tmp_path, monkeypatch, capsys):
    out = ["--out", str(tmp_path / "run"), "--dataset", str(folder), "--epochs", "1", "--device", "cpu", "--seed", "3"]
    assert main(out) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path / 'run'}: ") and said.count(" dB at ") == len(SCORED)
    settings = json.loads((tmp_path / "run" / "history.json").read_text())["config"]
    assert settings["seed"] == 3 and settings["epochs"] == 1 and settings["lr"] == rate.PRESET["lr"]
    monkeypatch.setattr(rate, "train_rate", lambda *_: SimpleNamespace(interrupted=True, history=[1, 2]))
    assert main(out) == 130 and "interrupted in epoch 3; the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize("arguments, message", [
    (["--dataset", "no/such/folder"], "no/such/folder is not a folder"),
    (["--device", "abacus"], "device 'abacus' cannot be used"),
    (["--epochs", "0"], "epochs and batch_size must be 1 or more"),
])
def test_the_command_says_what_cannot_be(arguments, message, folder, tmp_path, capsys):
    assert main(["--out", str(tmp_path / "run"), "--dataset", str(folder), *arguments]) == 1
    said = capsys.readouterr()
    assert message in said.err and said.out == "" and not (tmp_path / "run").exists()
