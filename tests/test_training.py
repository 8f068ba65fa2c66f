"""Training is the plain loop of notebook 05, and leaves a run that can be read and looked at."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from several import CONFIG, PICTURES, equal, same

from dcae_lib import DCAE, SOAP, TrainConfig, load_images, to_model, to_uint8, train
from dcae_lib.config import learning_rate
from dcae_lib.data import batches
from dcae_lib.runs.progress import NonFiniteLoss
from dcae_lib.training import images_of, keep_pictures


def plain_loop(config, images):
    """What notebook 05 writes out: return the model and the loss of each step."""
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
    state = train(config, tmp_path, PICTURES, save_every=-1)
    model, losses = plain_loop(config, PICTURES.train.images)
    assert same(state.model.state_dict(), model.state_dict())
    epochs = torch.tensor(losses, dtype=torch.float64).view(config.epochs, -1).mean(1).tolist()
    assert [row["train_l1"] for row in state.history] == epochs


def test_after_epoch_is_called_with_the_run_after_each_epoch(tmp_path):
    seen: list[float] = []
    run = train(CONFIG, tmp_path, PICTURES, lambda run: seen.append(run.metrics["psnr"]))
    assert seen == [row["psnr"] for row in run.history] and equal(run, train(CONFIG, splits=PICTURES))


def test_finished_run_is_replaced_by_the_next(tmp_path):
    for seed in (0, 1):
        run = train(replace(CONFIG, epochs=1, seed=seed), tmp_path, PICTURES)
        assert same(DCAE.from_pretrained(tmp_path).state_dict(), run.model.state_dict())


def test_nan_loss_is_refused_with_advice_and_leaves_no_run(tmp_path):
    config = replace(CONFIG, lr=1e30, clip=None, optimizer="SGD", optimizer_args={})
    message = r"the (loss|test l1) became (nan|inf) (at|after) step \d+; lower the learning rate, warm up for longer, or look"
    with pytest.raises(NonFiniteLoss, match=message):
        train(config, tmp_path, PICTURES)
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize("crop, message", [((30,), "multiples of 4, 11 or more, got 30"), ((32, 8), "got 8")])
def test_crops_that_do_not_fit_the_model_are_refused(crop, message):
    with pytest.raises(ValueError, match=message):
        train(replace(CONFIG, crop=crop), splits=PICTURES)


def test_images_come_from_memory_or_as_a_stream(folder):
    assert images_of(TrainConfig(dataset=str(folder))).train.sha256 == load_images(folder).train.sha256
    assert not hasattr(images_of(TrainConfig(dataset=str(folder), crop=12), 0).train, "images")
    with pytest.raises(ValueError, match="--workers read images while the network trains: add --crop"):
        images_of(TrainConfig(dataset=str(folder)), 2)


def test_pictures_of_some_epochs_and_the_last_are_kept(tmp_path):
    test = replace(PICTURES.test, images=PICTURES.test.images[:3])
    run = train(replace(CONFIG, epochs=7), splits=PICTURES, after_epoch=keep_pictures(tmp_path, test))
    folder = tmp_path / "epochs"
    assert sorted(path.name for path in folder.iterdir()) == [f"{epoch:02d}.png" for epoch in (0, 1, 2, 3, 5, 7)]
    with torch.no_grad():
        last = to_uint8(run.model.eval()(to_model(test.images)))
    for name, images in (("00", test.images), ("07", last)):
        assert np.array_equal(np.asarray(Image.open(folder / f"{name}.png")), np.hstack(images.permute(0, 2, 3, 1)))
