"""The codec's network: training sees rounded latents and noisy prices, coding rounded ones alone."""

import json

import pytest
import torch
from safetensors.torch import save_file

from dcae_lib import DCAE, to_model
from dcae_lib.codec import model as module
from dcae_lib.codec.context import bits
from dcae_lib.codec.model import RateModel

QUALITY = torch.tensor([0.0, 10, 37, 50, 99, 100])


@pytest.fixture
def model():
    """A small untrained model whose latents span several integers."""
    torch.manual_seed(0)
    model = RateModel(dict(hidden=8))
    model.log_gain.data += 2 * torch.rand_like(model.log_gain)
    model.log_inverse.data -= 2 * torch.rand_like(model.log_inverse)
    return model


@pytest.fixture(scope="module")
def x(images):
    return to_model(images[:6])


@torch.no_grad()
def test_evaluation_rounds_latents_and_prices_them(model, x):
    model.eval()
    y, (picture, cost) = model.analyse(x, QUALITY).round(), model(x, QUALITY)
    assert y.shape == cost.shape == (6, 16, 8, 8) and y.abs().max() > 2 and (cost > 0).all()
    torch.testing.assert_close(picture, model.synthesise(y, QUALITY))
    torch.testing.assert_close(cost, bits(y, *model.context(y, QUALITY)))


@torch.no_grad()
def test_training_adds_noise_to_the_price_alone(model, x, monkeypatch):
    model.eval()
    latent, expected = model.analyse(x, QUALITY), model(x, QUALITY)[0]
    priced, seen = [], []
    monkeypatch.setattr(module, "bits", lambda y, mean, log_scale: priced.append(y) or bits(y, mean, log_scale))
    model.context.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    picture, cost = model.train()(x, QUALITY)
    noise = priced[0] - latent
    assert torch.allclose(picture, expected, atol=1e-5) and torch.allclose(seen[0], latent.round())
    assert -0.5 <= noise.min() < -0.49 and 0.49 < noise.max() <= 0.5 and abs(noise.mean()) < 0.02
    assert not torch.allclose(cost, model(x, QUALITY)[1])


@torch.no_grad()
def test_gains_scale_each_channel_before_and_after_rounding(model, x):
    latent = model.autoencoder.encode(x)
    expected = latent * model.log_gain[[0, 0, 0, 5, 5, 5]].exp()[:, :, None, None]
    torch.testing.assert_close(model.analyse(x, torch.tensor([0.0] * 3 + [100] * 3)), expected)
    halfway = model.autoencoder.decode(latent * model.log_inverse[:2].mean(0).exp()[:, None, None])
    torch.testing.assert_close(model.synthesise(latent, torch.tensor([10.0])), halfway, rtol=1e-4, atol=1e-5)


def test_picture_and_price_send_gradients_to_every_weight(model, x):
    for p in model.parameters():  # some branches start at zero
        p.data += 0.01 * torch.randn_like(p)
    for output, unused in ((0, {"context"}), (1, {"decoder", "log_inverse"})):
        model.zero_grad()
        model.train()(x, QUALITY)[output].square().mean().backward()
        for name, p in model.named_parameters():
            reached = p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0
            assert reached != bool(unused & set(name.split("."))), name


@torch.no_grad()
def test_norms_start_with_the_mean_statistics_of_the_pictures(x):
    torch.manual_seed(0)
    start = DCAE(groups=2)
    for p in start.parameters():
        p.data += 0.1 * torch.randn_like(p)
    model = RateModel(**start.config)
    model.start_from(start, x[:1].expand(3, -1, -1, -1))  # the statistics of all pictures are the mean ones
    assert not any(isinstance(module, torch.nn.GroupNorm) for module in model.modules())
    torch.testing.assert_close(model.autoencoder(x[:1]), start(x[:1]), rtol=1e-3, atol=1e-3)
    assert (model.autoencoder(x[1:]) - start(x[1:])).abs().max() > 0.01
    other = torch.cat([x[1:, :, :, :24], 0 * x[1:, :, :, 24:]], 3)
    torch.testing.assert_close(model.autoencoder.encode(other)[..., 0], model.autoencoder.encode(x[1:])[..., 0])  # far


def test_saved_models_load_as_they_were(model, tmp_path):
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(model.config))
    loaded = RateModel.from_pretrained(tmp_path)
    assert not loaded.training and loaded.config == model.config
    assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))
    (tmp_path / "config.json").write_text('{"context": {"groups": 5}}')
    with pytest.raises(ValueError, match=r"(?s)cannot be loaded.*groups must divide the 16 channels"):
        RateModel.from_pretrained(tmp_path)
