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
    model = RateModel(hidden=[8, 8])
    model.log_gain.data += 2 * torch.rand_like(model.log_gain)
    model.log_inverse.data -= 2 * torch.rand_like(model.log_inverse)
    return model


@pytest.fixture(scope="module")
def x(images):
    return to_model(images[:6])


@torch.no_grad()
def test_evaluation_rounds_latents_and_prices_them(model, x):
    model.eval()
    y, (picture, cost) = model.quantise(model.autoencoder.encode(x), QUALITY), model(x, QUALITY)
    assert [level.shape for level in y] == [(6, 16, 2, 2), (6, 16, 8, 8)] and all(level.abs().max() > 2 for level in y)
    y = [level.round() for level in y]
    torch.testing.assert_close(picture, model.autoencoder.decode(model.dequantise(y, QUALITY)))
    prices = [bits(level, *context(level, QUALITY)) for context, level in zip(model.contexts, y)]
    torch.testing.assert_close(cost, sum(price.sum((1, 2, 3)) for price in prices))


@torch.no_grad()
def test_training_adds_noise_to_the_price_alone(model, x, monkeypatch):
    model.eval()
    latents, expected = model.quantise(model.autoencoder.encode(x), QUALITY), model(x, QUALITY)[0]
    priced, seen = [], []
    monkeypatch.setattr(module, "bits", lambda y, mean, log_scale: priced.append(y) or bits(y, mean, log_scale))
    for context in model.contexts:
        context.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    picture, cost = model.train()(x, QUALITY)
    assert torch.allclose(picture, expected, atol=1e-5) and not torch.allclose(cost, model(x, QUALITY)[1])
    for level, price, given in zip(latents, priced, seen):
        noise = price - level
        assert torch.allclose(given, level.round())
        assert -0.5 <= noise.min() < -0.48 and 0.48 < noise.max() <= 0.5 and abs(noise.mean()) < 0.04


@torch.no_grad()
@pytest.mark.parametrize("h, w", [(8, 8), (5, 7), (1, 1), (4, 9)])
def test_rounded_levels_give_back_the_latents_up_to_half_a_step(h, w, model):
    z, quality = 3 * torch.randn(2, 16, h, w), torch.tensor([0.0, 90.0])
    model.log_inverse.data = -model.log_gain.data
    for branch in (model.down[0].branch, model.up[0].branch):  # what they say is subtracted and added again
        torch.nn.init.normal_(branch[-1][2].weight, std=0.1)
    y = model.quantise(z, quality)
    assert [level.shape[2:] for level in y] == [(-(-h // 4), -(-w // 4)), (h, w)]
    step = 1 / torch.stack([model.log_gain[-1, 0], model.log_gain[-1, 4:].mean(0)]).exp()[:, :, None, None]
    error = model.dequantise([level.round() for level in y], quality) - z
    assert (error[0].abs() <= 0.51 * step[0]).all() and error.abs().max() > 0.1


@torch.no_grad()
def test_smooth_regions_are_left_to_the_coarse_level():
    model, rows = RateModel(hidden=(8, 8)), torch.linspace(-1, 1, 32)[None, None, :, None].expand(1, 16, 32, 32)
    coarse, fine = model.quantise(rows.clone(), torch.tensor([0.0]))
    assert (fine.round()[:, :, 4:-4] == 0).all() and coarse.round().abs().max() > 0


@torch.no_grad()
def test_gains_of_a_quality_lie_on_lines_between_anchors(model):
    z = torch.randn(1, 16, 4, 4)
    coarse = [model.quantise(z, torch.tensor([q]))[0] for q in (0.0, 10.0, 20.0)]
    torch.testing.assert_close(coarse[1], (coarse[0] * coarse[2]).sqrt() * coarse[0].sign())
    torch.testing.assert_close(coarse[0], model.down[0](z) * model.log_gain[0, 0].exp()[:, None, None])


def test_picture_and_price_send_gradients_to_every_weight(model, x):
    for p in model.parameters():  # some branches start at zero
        p.data += 0.01 * torch.randn_like(p)
    for output, unused in ((0, {"contexts"}), (1, {"decoder"})):
        model.zero_grad()
        model.train()(x, QUALITY)[output].square().mean().backward()
        for name, p in model.named_parameters():
            reached = p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0
            assert reached != bool(unused & set(name.split("."))), name


@torch.no_grad()
def test_norms_start_with_the_mean_statistics_of_the_pictures(x):
    torch.manual_seed(0)
    start = DCAE(groups=1)
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
    (tmp_path / "config.json").write_text('{"latent_channels": 6}')
    with pytest.raises(ValueError, match=r"cannot be loaded"):
        RateModel.from_pretrained(tmp_path)
