"""Training is the plain loop of notebook 05, and leaves a run that can be read and looked at."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from several import CONFIG, PICTURES, same

from dcae_lib import DCAE, SOAP, Splits, to_model, to_uint8, train
from dcae_lib.config import learning_rate
from dcae_lib.data import batches
from dcae_lib.metrics import MAX_PSNR
from dcae_lib.training import keep_pictures


def plain_loop(config, images):
    """Return the model and the loss of each step, as notebook 05 writes the loop out."""
    torch.manual_seed(config.seed)
    model = DCAE(**config.model)
    optimizer = SOAP(model.parameters(), lr=config.lr, **config.optimizer_args)
    order = torch.Generator().manual_seed(config.seed)
    rate = learning_rate(config, config.epochs * math.ceil(len(images) / config.batch_size))
    losses = []
    for _ in range(config.epochs):
        for x in batches(images, config.batch_size, order):
            optimizer.param_groups[0]["lr"] = rate(len(losses))
            loss = F.l1_loss(model(x), x)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return model, losses


@pytest.mark.parametrize("changes", [{}, dict(schedule="constant", warmup=0.5, seed=5), dict(model=dict(groups=1))])
def test_train_is_the_plain_loop_bit_for_bit(changes, tmp_path):
    config = replace(CONFIG, clip=None, **changes)
    run = train(config, tmp_path, PICTURES, save_every=-1)
    model, losses = plain_loop(config, PICTURES.train.images)
    epochs = torch.tensor(losses, dtype=torch.float64).view(config.epochs, -1).mean(1).tolist()
    assert [row["train_l1"] for row in run.history] == epochs and same(run.model, model)


def test_pictures_of_some_epochs_and_the_last_are_kept(tmp_path):
    test = replace(PICTURES.test, images=PICTURES.test.images[:3])
    run = train(replace(CONFIG, epochs=7), splits=PICTURES, after_epoch=keep_pictures(tmp_path, test))
    assert sorted(path.name for path in (tmp_path / "epochs").iterdir()) == [f"0{k}.png" for k in (0, 1, 2, 3, 5, 7)]
    with torch.no_grad():
        last = to_uint8(run.model.eval()(to_model(test.images)))
    for name, images in (("00", test.images), ("07", last)):
        row = np.asarray(Image.open(tmp_path / "epochs" / f"{name}.png"))
        assert np.array_equal(row, np.hstack(images.permute(0, 2, 3, 1)))


def test_pictures_that_come_back_exactly_are_saved_too(tmp_path):
    white = replace(PICTURES.train, images=torch.full_like(PICTURES.train.images, 255))
    config = replace(CONFIG, lr=1e-9)
    run_before = DCAE.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DCAE, "forward", lambda model, x: x + 0 * run_before(model, x))
        run = train(config, tmp_path / "run", Splits(white, replace(PICTURES.test, images=white.images[:9])))
    assert run.metrics["psnr"] == MAX_PSNR and "Infinity" not in (tmp_path / "run" / "history.json").read_text()


def test_a_run_lands_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    train(replace(CONFIG, epochs=1), "~/deep/run", PICTURES)
    assert DCAE.from_pretrained("~/deep/run").config["groups"] == CONFIG.model["groups"]


def test_training_computes_in_float32_whatever_the_default_is(float64_by_default):
    assert next(train(replace(CONFIG, epochs=1), splits=PICTURES).model.parameters()).dtype == torch.float32
