"""Training repeats bit for bit, learns, stops on NaN, never makes a step wait, and leaves a record."""

import json
import math
import os
import platform
import re
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from dcae_lib import DCAE, SOAP, Splits, TrainConfig, evaluate, load_images, metrics, to_model, train
from dcae_lib.runs.checkpoint import _pack, _unpack
from dcae_lib.data import batches, best_device
from dcae_lib.scale.parallel import StoppedElsewhere, World
from dcae_lib.training import PRESETS, NonFiniteLoss, learning_rate, main, status


@pytest.fixture(scope="module")
def sample():
    return load_images("sample")


def few(sample, n, tests=20, side=32):
    """The first images of the sample, cut to a corner."""
    return Splits(
        *(
            replace(images, images=images.images[:count, :, :side, :side], labels=None)
            for images, count in zip(sample, (n, tests))
        )
    )


def config(**changes):
    return TrainConfig(**dict(epochs=2, batch_size=16, device="cpu") | changes)


def same_weights(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values()))


# ---- repeats


@pytest.mark.parametrize("model", [{}, dict(dropout=0.1, stage_dropout=0.3)])
def test_one_seed_gives_the_same_weights_bit_for_bit_and_another_seed_others(model, sample):
    splits = few(sample, 56)                                # the last batch of an epoch is half a batch
    runs = []
    for seed in (3, 3, 4):
        torch.rand(7)                                       # what came before does not matter
        runs.append(train(config(seed=seed, model=model), splits=splits))
    first, again, other = runs
    assert same_weights(first.model, again.model)
    assert not same_weights(first.model, other.model)
    for one, two in zip(first.history, again.history):
        timed = {"seconds", "images_per_second"}
        assert {k: v for k, v in one.items() if k not in timed} == {k: v for k, v in two.items() if k not in timed}


def test_another_seed_means_other_initial_weights(sample):
    splits = few(sample, 16)
    runs = [train(config(epochs=1, lr=1e-12, seed=seed), splits=splits) for seed in (0, 1)]
    assert not torch.allclose(*(run.model.encoder.stem.weight for run in runs))


@pytest.mark.parametrize("batch_size, model", [(8, {}), (32, dict(dropout=0.5))], ids=["order", "dropout"])
def test_another_seed_means_another_order_and_other_dropout(batch_size, model, sample, monkeypatch):
    start = DCAE(**model).state_dict()                      # both runs begin here
    monkeypatch.setattr(DCAE, "to", lambda self, device: self.load_state_dict(start) and self)
    splits = few(sample, 32)                                # in one batch of 32 there is no order
    runs = [train(config(batch_size=batch_size, seed=seed, model=model), splits=splits) for seed in (0, 1)]
    weights = [torch.cat([p.flatten() for p in run.model.parameters()]) for run in runs]
    assert (weights[0] - weights[1]).abs().max() > 1e-4     # far more than the order of a sum would make


def test_a_look_at_the_model_after_an_epoch_changes_nothing(sample):
    settings, splits = config(model=dict(dropout=0.3)), few(sample, 32)
    looked = train(settings, splits=splits, after_epoch=lambda run: run.model.eval())
    assert same_weights(looked.model, train(settings, splits=splits).model)


# ---- learns


def test_the_loss_falls_and_reconstructions_get_better(sample):
    run = train(config(epochs=6, batch_size=20, lr=4e-3), splits=few(sample, 200))
    first, last = run.history[0], run.history[-1]
    assert last["train_l1"] < 0.6 * first["train_l1"]
    assert last["psnr"] > first["psnr"] + 3
    assert run.metrics == {name: last[name] for name in ("l1", "l1_01", "psnr", "ssim")}


@pytest.mark.parametrize("optimizer, lr, arguments", [("SGD", 0.05, dict(momentum=0.9)), ("Adam", 1e-3, {})])
def test_any_optimizer_of_torch_serves_by_name(optimizer, lr, arguments, sample):
    seen = []

    def look(run):
        seen.append(run.history[-1]["train_l1"])

    settings = config(epochs=3, optimizer=optimizer, lr=lr, optimizer_args=arguments)
    train(settings, splits=few(sample, 64), after_epoch=look)
    assert seen[-1] < 0.9 * seen[0]


def test_soap_is_the_optimizer_if_none_is_named_and_takes_its_arguments(sample, monkeypatch):
    made = []

    class Noted(SOAP):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(self.defaults)

    monkeypatch.setattr(sys.modules["dcae_lib.config"], "SOAP", Noted)
    train(config(epochs=1, optimizer_args=dict(precondition_frequency=3)), splits=few(sample, 16, side=16))
    assert [(one["lr"], one["precondition_frequency"]) for one in made] == [(TrainConfig().lr, 3)]


class Watched(torch.optim.SGD):
    """Notes its learning rate at each step, and breaks a weight at the step that it is told."""

    def __init__(self, parameters, lr, break_at=None):
        super().__init__(parameters, lr)
        self.break_at, self.rates = break_at, []
        Watched.last = self

    def step(self):
        self.rates.append(self.param_groups[0]["lr"])
        super().step()
        if len(self.rates) == self.break_at:
            self.param_groups[0]["params"][0].data.fill_(math.nan)


@pytest.fixture
def watched(monkeypatch):
    monkeypatch.setattr(torch.optim, "Watched", Watched, raising=False)
    return Watched


def test_the_learning_rate_rises_over_the_warm_up_and_falls_on_a_cosine_to_nothing(sample, watched):
    train(config(epochs=4, batch_size=2, lr=0.1, warmup=0.25, optimizer="Watched"), splits=few(sample, 9, side=16))
    rates = watched.last.rates                              # 4 epochs of 5 steps, so the warm-up is 5 steps
    assert rates[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert rates[5:] == pytest.approx([0.05 * (1 + math.cos(math.pi * k / 15)) for k in range(15)])


@pytest.mark.parametrize("steps, warmup", [(1, 0.0), (1, 1.0), (7, 0.0), (7, 1.0), (100, 0.05)])
def test_the_learning_rate_is_above_0_at_every_step_and_reaches_its_height(steps, warmup):
    rates = [learning_rate(config(lr=0.3, warmup=warmup), steps)(step) for step in range(steps)]
    assert all(0 < rate <= 0.3 for rate in rates) and max(rates) == 0.3


def test_a_constant_learning_rate_stays_where_the_warm_up_left_it():
    rate = learning_rate(config(lr=0.3, warmup=0.25, schedule="constant"), 8)
    assert [rate(step) for step in range(8)] == [0.15] + 7 * [0.3]


# ---- is the plain loop


def plain_loop(settings, splits, clip=None, average=1, optimizer=SOAP):
    """What notebook 05 writes out; returns the losses of each step, the weights, and their running mean."""
    torch.manual_seed(settings.seed)
    model = DCAE(**settings.model)
    optimizer = optimizer(model.parameters(), lr=settings.lr)
    order = torch.Generator().manual_seed(settings.seed)
    images, losses, mean = splits.train.images, [], None
    rate = learning_rate(settings, settings.epochs * math.ceil(len(images) / settings.batch_size))
    for _ in range(settings.epochs):
        for x in batches(images, settings.batch_size, order):
            optimizer.param_groups[0]["lr"] = rate(len(losses))
            loss = F.l1_loss(model(x), x)
            loss.backward()
            if clip:
                length = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
                for p in model.parameters():
                    p.grad *= min(1.0, clip / length)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            weights = [p.detach().clone() for p in model.parameters()]
            mean = weights if mean is None else [average * m + (1 - average) * w for m, w in zip(mean, weights)]
    return losses, model, mean


def epochs(losses, count):
    """The mean loss of each epoch."""
    parts = [losses[k : k + len(losses) // count] for k in range(0, len(losses), len(losses) // count)]
    return [sum(part) / len(part) for part in parts]


def close(one, other):
    """Weights that differ by the rounding of a sum at most."""
    return all(torch.allclose(p, q, rtol=1e-4, atol=1e-5) for p, q in zip(one, other))


@pytest.mark.parametrize("changes", [{}, dict(model=dict(dropout=0.1)), dict(schedule="constant", warmup=0.5, seed=5)])
def test_the_plain_loop_gives_the_same_losses_and_weights_bit_for_bit(changes, sample):
    settings, splits = config(lr=3e-3, **changes), few(sample, 40, side=16)         # 3 steps each, the last of 8
    run = train(settings, splits=splits)
    losses, model, _ = plain_loop(settings, splits)
    assert [row["train_l1"] for row in run.history] == epochs(losses, 2)
    assert same_weights(run.model, model)


def test_gradients_longer_than_clip_are_cut_to_it_and_shorter_ones_are_left(sample):
    settings, splits = config(epochs=3, optimizer="SGD", lr=0.1), few(sample, 48, side=16)
    runs = {clip: train(replace(settings, clip=clip), splits=splits) for clip in (None, 0.05, 1e6)}
    losses, model, _ = plain_loop(settings, splits, clip=0.05, optimizer=torch.optim.SGD)
    assert [row["train_l1"] for row in runs[0.05].history] == pytest.approx(epochs(losses, 3), rel=1e-4)
    assert close(runs[0.05].model.parameters(), model.parameters())
    assert not close(runs[0.05].model.parameters(), runs[None].model.parameters())
    assert same_weights(runs[1e6].model, runs[None].model)


class Lengths(torch.optim.SGD):
    """Notes how long the gradient of all weights together is."""

    seen: list[float] = []

    def step(self):
        grads = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
        self.seen.append(torch.cat(grads).norm().item())
        super().step()


def test_the_optimizer_meets_no_gradient_longer_than_clip(sample, monkeypatch):
    monkeypatch.setattr(torch.optim, "Lengths", Lengths, raising=False)
    splits, lengths = few(sample, 48, side=16), {}
    for clip in (None, 0.05):
        Lengths.seen.clear()
        train(config(optimizer="Lengths", lr=1e-3, clip=clip), splits=splits)
        lengths[clip] = list(Lengths.seen)
    assert min(lengths[None]) > 0.06
    assert lengths[0.05] == pytest.approx([0.05] * 6, rel=1e-3)


def test_the_average_is_a_running_mean_that_starts_at_the_first_weights(sample, tmp_path):
    settings, splits = config(epochs=2, average=0.7), few(sample, 64, side=16)
    run = train(settings, tmp_path, splits)
    losses, model, mean = plain_loop(settings, splits, average=0.7)
    assert [row["train_l1"] for row in run.history] == epochs(losses, 2)            # it changes nothing of the training
    assert close(run.model.parameters(), mean)
    assert not close(run.model.parameters(), model.parameters())
    assert same_weights(DCAE.from_pretrained(tmp_path), run.model)
    assert evaluate(run.model, splits.test) == run.metrics


def test_the_average_of_one_step_is_its_weights(sample):
    settings, splits = config(epochs=1, average=0.99, optimizer="SGD"), few(sample, 16, side=16)
    averaged, last = (train(one, splits=splits).model for one in (settings, replace(settings, average=None)))
    assert same_weights(averaged, last)


def test_after_an_epoch_the_run_holds_the_average_of_so_far(sample):
    settings, splits, looks = config(average=0.7), few(sample, 64, side=16), []

    def look(run):
        looks.append([p.detach().clone() for p in run.model.parameters()])
        assert evaluate(run.model, splits.test) == run.metrics

    train(settings, splits=splits, after_epoch=look)
    _, _, mean = plain_loop(settings, splits, average=0.7)
    assert close(looks[1], mean) and not close(looks[0], mean)


# ---- bfloat16


@pytest.fixture
def types():
    """The number types that convolutions gave, {while training: types}, and those of their weights."""
    seen = {True: set(), False: set(), "weights": set()}

    def note(module, _, y):
        if isinstance(module, nn.Conv2d):
            seen[module.training].add(y.dtype)
            seen["weights"].add(module.weight.dtype)

    handle = nn.modules.module.register_module_forward_hook(note)
    yield seen
    handle.remove()


def test_bfloat16_is_that_of_the_training_steps_alone(sample, types):
    train(config(epochs=1, precision="bfloat16"), splits=few(sample, 32, side=16))
    assert types == {True: {torch.bfloat16}, False: {torch.float32}, "weights": {torch.float32}}


def test_float32_is_so_throughout(sample, types):
    train(config(epochs=1), splits=few(sample, 32, side=16))
    assert types == {True: {torch.float32}, False: {torch.float32}, "weights": {torch.float32}}


def test_bfloat16_learns_as_float32_does_and_not_bit_for_bit(sample):
    splits = few(sample, 96, side=16)
    exact, rough = (
        train(config(epochs=4, lr=3e-3, precision=kind), splits=splits) for kind in ("float32", "bfloat16")
    )
    for one, other in zip(exact.history, rough.history):
        assert one["train_l1"] != other["train_l1"]
        assert one["train_l1"] == pytest.approx(other["train_l1"], rel=0.05)
        assert one["psnr"] == pytest.approx(other["psnr"], abs=0.7)


# ---- presets


def test_the_preset_document_is_what_the_document_says():
    document = TrainConfig.preset("document")
    assert (document.optimizer, document.lr, document.batch_size) == ("SOAP", 5e-4, 512)
    assert document.optimizer_args == dict(betas=(0.95, 0.95), weight_decay=0.01, precondition_frequency=10)
    assert (document.schedule, document.warmup, document.epochs) == ("constant", 0.0, 40)
    assert document.model == dict(dropout=0.01, stage_dropout=0.05, groups=32)
    assert (document.clip, document.average, document.precision) == (None, None, "float32")
    rate = learning_rate(document, 40 * 98)
    assert {rate(step) for step in range(40 * 98)} == {5e-4}


def test_the_document_trains_the_form_of_its_model_with_soap(sample):
    run = train(TrainConfig.preset("document", epochs=1, device="cpu"), splits=few(sample, 20, side=16))
    assert run.model.config | dict(groups=32, dropout=0.01, stage_dropout=0.05, shortcut="pool") == run.model.config
    norms = [module for module in run.model.modules() if isinstance(module, nn.GroupNorm)]
    assert norms and all(norm.num_groups == norm.num_channels for norm in norms)    # one channel per group


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_takes_changes_and_makes_a_model_that_trains(name, sample):
    settings = TrainConfig.preset(name, epochs=1, seed=3, device="cpu", batch_size=8)
    assert asdict(settings) == asdict(TrainConfig.preset(name)) | dict(epochs=1, seed=3, device="cpu", batch_size=8)
    run = train(settings, splits=few(sample, 16, side=16))
    assert sum(p.numel() for p in run.model.parameters()) <= 96_019


def test_a_change_of_the_model_keeps_what_the_preset_says_of_the_rest():
    assert TrainConfig.preset("tuned", model=dict(channels=[16, 32, 64])).model == dict(groups=1, channels=[16, 32, 64])
    assert TrainConfig.preset("document", model=dict(groups=8)).model == dict(dropout=0.01, stage_dropout=0.05, groups=8)


def test_a_preset_that_is_changed_in_place_does_not_change_the_next_one():
    TrainConfig.preset("document").model["dropout"] = 0.5
    TrainConfig.preset("document").optimizer_args["weight_decay"] = 0.5
    try:
        test_the_preset_document_is_what_the_document_says()
    finally:
        PRESETS["document"]["model"]["dropout"] = PRESETS["document"]["optimizer_args"]["weight_decay"] = 0.01


def test_another_name_of_a_preset_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match="preset must be one of tuned, document, got 'Tuned'"):
        TrainConfig.preset("Tuned")


def test_a_change_that_cannot_be_is_refused_on_a_preset_too():
    with pytest.raises(ValueError, match="schedule must be one of cosine, constant, got 'linear'"):
        TrainConfig.preset("document", schedule="linear")


# ---- stops


@pytest.mark.parametrize("images, break_at, epoch", [
    (240, 60, 1),                                           # within an epoch, between two looks
    (60, 37, 2),                                            # in the second epoch of 30 steps each
    (60, 30, 2),                                            # the last step of an epoch breaks the first of the next
])
def test_a_loss_that_is_no_number_stops_the_run_within_50_steps_and_names_its_step(
    images, break_at, epoch, sample, watched, tmp_path
):
    ended = []
    settings = config(epochs=3, batch_size=2, optimizer="Watched", optimizer_args=dict(break_at=break_at))
    with pytest.raises(NonFiniteLoss, match=rf"the loss became nan at step {break_at + 1}; lower the learning rate"):
        train(settings, tmp_path / "out", few(sample, images, side=16), after_epoch=ended.append)
    assert len(watched.last.rates) <= break_at + 50
    assert len(ended) == epoch - 1
    assert list((tmp_path / "out").iterdir()) == []


def test_the_step_is_named_without_a_progress_bar_too(sample, watched, monkeypatch):
    monkeypatch.setattr(sys.modules["dcae_lib.training"], "tqdm", partial(tqdm, disable=True))
    settings = config(epochs=3, batch_size=2, optimizer="Watched", optimizer_args=dict(break_at=72))
    with pytest.raises(NonFiniteLoss, match="at step 73;"):
        train(settings, splits=few(sample, 60, side=16))


def test_a_run_that_breaks_at_its_very_last_step_is_stopped_too(sample, watched, tmp_path):
    settings = config(epochs=1, batch_size=2, optimizer="Watched", optimizer_args=dict(break_at=6))
    with pytest.raises(NonFiniteLoss, match="the test l1 is nan after the last step; lower the learning rate"):
        train(settings, tmp_path, few(sample, 12, side=16))
    assert list(tmp_path.iterdir()) == []


def test_soap_stops_a_run_at_the_step_whose_gradient_is_no_number_and_the_step_is_named(sample, monkeypatch):
    l1_loss = torch.nn.functional.l1_loss
    calls = []

    def broken(y, x):
        calls.append(0)
        return l1_loss(y, x) * (math.nan if len(calls) == 3 else 1)

    monkeypatch.setattr(sys.modules["dcae_lib.training"].F, "l1_loss", broken)
    with pytest.raises(NonFiniteLoss, match="the loss became nan at step 3; lower the learning rate"):
        train(config(batch_size=2), splits=few(sample, 16, side=16))
    assert len(calls) == 3


def test_a_gradient_that_breaks_under_a_finite_loss_is_named_too(sample, monkeypatch):
    class Breaks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, slope):
            return slope * math.inf

    monkeypatch.setattr(DCAE, "forward", lambda self, x: self.decode(Breaks.apply(self.encode(x))))
    with pytest.raises(NonFiniteLoss, match=r"the loss is finite, but a gradient held a NaN or an infinity.*; lower the"):
        train(config(batch_size=2), splits=few(sample, 16, side=16))


# ---- does not wait


READS = ("item", "tolist", "cpu", "numpy", "__float__", "__int__", "__bool__", "__index__", "__array__")


@pytest.fixture
def reads(monkeypatch):
    """The names of the methods by which Python has read values of a tensor; on a GPU each waits for the device."""
    seen = []

    def noted(name):
        original = getattr(torch.Tensor, name)

        def read(self, *arguments, **options):
            seen.append(name)
            return original(self, *arguments, **options)

        return read

    for name in READS:
        monkeypatch.setattr(torch.Tensor, name, noted(name))
    return seen


def test_the_losses_are_read_once_in_50_steps_and_nothing_else_is(sample, reads):
    splits = few(sample, 302, tests=4, side=16)             # 151 steps: four looks, the last at the end of the epoch
    evaluate(DCAE(), splits.test)
    assert reads == ["cpu", "tolist"]                       # which waits once: the second reads what has come
    reads.clear()
    # SGD, since Adam's own step counters are tensors that live on the CPU and are read there.
    train(config(epochs=1, batch_size=2, optimizer="SGD"), splits=splits)
    assert len(reads) == 4 + 2                              # and those of the evaluation


# ---- evaluates


def test_evaluate_is_a_loop_over_images(sample):
    torch.manual_seed(0)
    model, images = DCAE(dropout=0.5, zero_init=False).train(), few(sample, 1, tests=23).test
    score = evaluate(model, images, batch_size=5)
    assert model.training
    model.eval()
    rows = []
    for k in range(23):
        x = to_model(images.images[k : k + 1])
        with torch.no_grad():
            y = model(x)
        rows.append([metrics.l1(y, x).item(), metrics.psnr(y, x).item(), metrics.ssim(y, x).item()])
    l1, psnr, ssim = np.mean(rows, 0)
    assert score == pytest.approx(dict(l1=l1, l1_01=l1 / 2, psnr=psnr, ssim=ssim), rel=1e-5)
    assert evaluate(model, images) == pytest.approx(score, rel=1e-5)
    assert not model.training


def test_evaluate_keeps_no_graph(sample):
    model, graphs = DCAE(), []
    model.register_forward_hook(lambda _, __, y: graphs.append(y.requires_grad))
    evaluate(model, few(sample, 1).test, batch_size=10)
    assert graphs == [False, False]


# ---- refuses


@pytest.mark.parametrize("changes, message", [
    (dict(epochs=0), "epochs and batch_size must be 1 or more, got 0 and 64"),
    (dict(batch_size=0), "epochs and batch_size must be 1 or more, got 40 and 0"),
    (dict(lr=0.0), "lr must be above 0"),
    (dict(lr=-1e-3), "lr must be above 0"),
    (dict(lr=math.nan), "lr must be above 0"),
    (dict(warmup=-0.1), r"warmup in \[0, 1\], got 0.01 and -0.1"),
    (dict(warmup=1.1), r"warmup in \[0, 1\]"),
    (dict(optimizer="AdamX"), "must be SOAP or a name in torch.optim, such as AdamW, got 'AdamX'"),
    (dict(optimizer="adamw"), "must be SOAP or a name in torch.optim"),
    (dict(optimizer="lr_scheduler"), "must be SOAP or a name in torch.optim"),       # a module, no class
    (dict(optimizer=""), "must be SOAP or a name in torch.optim"),
    (dict(optimizer="LBFGS"), "LBFGS and SparseAdam need another loop or other gradients"),
    (dict(crop="96"), "crop must be in whole pixels, 1 or more, got '96'"),
    (dict(crop=(96, 1.5)), "crop must be in whole pixels"),
    (dict(model=[1]), r"model must name arguments of DCAE\(\.\.\.\), as in \{'groups': 8\}, got \[1\]"),
    (dict(clip=0.0), "clip must be above 0, or None, got 0.0"),
    (dict(clip=-1.0), "clip must be above 0, or None"),
    (dict(clip=math.nan), "clip must be above 0, or None, got nan"),
    (dict(average=0.0), "average must be between 0 and 1, or None, got 0.0"),
    (dict(average=1.0), "average must be between 0 and 1, or None, got 1.0"),
    (dict(average=-0.5), "average must be between 0 and 1"),
    (dict(average=math.nan), "average must be between 0 and 1"),
    (dict(schedule="linear"), "schedule must be one of cosine, constant, got 'linear'"),
    (dict(schedule=None), "schedule must be one of cosine, constant, got None"),
    (dict(precision="float16"), "precision must be one of float32, bfloat16, got 'float16'"),
])
def test_a_config_that_cannot_be_is_refused_when_it_is_made(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**changes)


# ---- leaves a record


def test_a_run_leaves_the_model_and_a_history_with_config_data_versions_and_every_epoch(sample, tmp_path):
    settings, splits, epochs = config(epochs=3, model=dict(channels=(8, 16))), few(sample, 32), []
    run = train(settings, tmp_path / "new" / "run", splits, after_epoch=lambda run: epochs.append(len(run.history)))
    assert epochs == [1, 2, 3]

    out = tmp_path / "new" / "run"
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors", "history.json", "README.md"}
    assert same_weights(DCAE.from_pretrained(out), run.model)

    record = json.loads((out / "history.json").read_text())
    assert record["config"] == json.loads(json.dumps(asdict(settings)))
    assert record["data"] == {"sample train": sample.train.sha256, "sample test": sample.test.sha256}
    assert record["parameters"] == sum(p.numel() for p in run.model.parameters())
    (session,) = record["sessions"]
    assert session["step"] == 0 and session["threads"] == torch.get_num_threads()
    assert session["versions"]["python"] == platform.python_version()
    assert session["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert session["hardware"] and re.match(r"[0-9a-f]{40}|dcae_lib |unknown", session["revision"])
    assert record["history"] == run.history
    assert [row["epoch"] for row in run.history] == [1, 2, 3]
    assert set(run.history[0]) == {
        "epoch", "train_l1", "l1", "l1_01", "psnr", "ssim", "seconds", "images_per_second",
    }
    assert evaluate(run.model, splits.test) == run.metrics


def test_the_card_says_what_the_weights_are_how_good_and_how_to_load_and_verify_them(sample, tmp_path):
    run = train(config(epochs=1), tmp_path, few(sample, 16, side=16))
    card = (tmp_path / "README.md").read_text()
    for words in ("96,019 parameters", "Trained on sample for 1 epochs", "DCAE.from_pretrained(", "dcae_lib.runs.verify"):
        assert words in card
    for name, value in run.metrics.items():
        assert f"{name} {value:.4f}" in card
    code = re.search(r"```python\n(.*?)```", card, re.S)[1].replace('"this folder"', repr(str(tmp_path)))
    names = dict(x=torch.zeros(1, 3, 8, 8))
    exec(code, names)                                       # what it shows can be run
    assert names["latent"].shape == (1, 16, 2, 2)


def test_a_run_has_no_metrics_before_its_first_epoch_is_complete_and_says_so():
    run = sys.modules["dcae_lib.training"].Run(config(), DCAE(), [], [])
    with pytest.raises(RuntimeError, match="no epoch of this run is complete: there are no metrics yet"):
        run.metrics                                         # noqa: B018
    run.history.append(dict(epoch=1, train_l1=0.3, l1=0.2, l1_01=0.1, psnr=20.0, ssim=0.5, seconds=1.0))
    assert run.metrics == dict(l1=0.2, l1_01=0.1, psnr=20.0, ssim=0.5)


# ---- the command line


def command(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "dcae_lib.training", *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_the_command_line_trains_and_says_how_well(folder, tmp_path):
    options = ["--epochs", 1, "--batch-size", 4, "--device", "cpu"]
    done = command("--dataset", folder, "--out", "run", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"run: l1 [\d.]+, l1_01 [\d.]+, psnr [\d.]+, ssim -?[\d.]+\n", done.stdout)
    assert "Warning" not in done.stderr and "Traceback" not in done.stderr
    record = json.loads((tmp_path / "run" / "history.json").read_text())
    assert record["config"]["batch_size"] == 4 and len(record["history"]) == 1
    DCAE.from_pretrained(tmp_path / "run")


SMALL = '{"channels": [4, 8], "latent_channels": 4}'


def recorded(out):
    return json.loads((out / "history.json").read_text())["config"]


def test_the_command_line_takes_a_preset_and_changes_on_top_of_it(folder, tmp_path):
    options = "--epochs 1 --batch-size 8 --lr 0.002 --warmup 0.5 --seed 9 --device cpu".split()
    out = ["--out", str(tmp_path / "run"), "--dataset", str(folder)]
    assert main([*out, "--preset", "document", "--precision", "bfloat16", *options]) == 0
    document = TrainConfig.preset("document")
    changed = dict(epochs=1, batch_size=8, lr=0.002, warmup=0.5, seed=9, device="cpu", precision="bfloat16")
    wanted = asdict(document) | changed | dict(dataset=str(folder))
    assert recorded(tmp_path / "run") == json.loads(json.dumps(wanted))


def test_the_command_line_takes_the_tuned_preset_if_none_is_named_and_a_model_as_json(folder, tmp_path):
    options = ["--epochs", "1", "--batch-size", "8", "--optimizer", "AdamW", "--device", "cpu", "--model", SMALL]
    assert main(["--out", str(tmp_path / "run"), "--dataset", str(folder), *options]) == 0
    settings, tuned = recorded(tmp_path / "run"), asdict(TrainConfig.preset("tuned"))
    assert settings["model"] == tuned["model"] | json.loads(SMALL)
    assert all(settings[name] == tuned[name] for name in ("lr", "schedule", "warmup", "clip", "average", "seed"))
    assert DCAE.from_pretrained(tmp_path / "run").config["channels"] == (4, 8)


def test_a_finished_training_is_not_replaced_by_one_with_other_settings(folder, tmp_path, capsys):
    options = ["--out", str(tmp_path / "run"), "--dataset", str(folder), "--device", "cpu", "--model", SMALL, "--epochs"]
    assert main([*options, "1"]) == 0
    weights = DCAE.from_pretrained(tmp_path / "run").state_dict()
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    assert main([*options, "2"]) == 1
    said = capsys.readouterr().err
    assert "holds a finished training with other settings (epochs was 1, is 2). Write to another folder" in said
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()} == before
    assert main([*options, "1"]) == 0                       # the same again makes the same
    again = DCAE.from_pretrained(tmp_path / "run").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in weights.items())
    (tmp_path / "run" / "history.json").write_text("{")
    assert main([*options, "1"]) == 1
    assert "history.json is not the record of a training; write to another folder" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--preset", "Tuned"], ["--model", "{channels"], ["--epochs", "many"], []])
def test_the_command_line_refuses_what_it_cannot_read_with_its_usage(arguments, capsys):
    out = ["--out", "nowhere"] if arguments else []
    with pytest.raises(SystemExit) as ended:
        main([*out, *arguments])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("usage: dcae train")
    assert "error: argument " + arguments[0] in said if arguments else "required: --out" in said


@pytest.mark.parametrize("model, message", [
    ("3", "model must name arguments of DCAE"),
    ('{"colour": 1}', "unexpected keyword argument 'colour'"),
    ('{"dropout": 2}', r"a dropout rate must be in [0, 1), got 2"),
    ('{"shortcut": "long"}', "shortcut must be one of"),
])
def test_the_command_line_says_which_model_cannot_be(model, message, folder, tmp_path, capsys):
    assert main(["--dataset", str(folder), "--out", str(tmp_path / "run"), "--device", "cpu", "--model", model]) == 1
    assert message in capsys.readouterr().err


def test_the_command_line_says_what_is_wrong_with_a_data_set_and_shows_no_traceback(tmp_path):
    missing = str(Path("no/such/folder"))
    done = command("--dataset", missing, "--out", "run", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    message = f'{missing} is not a folder; load_images takes "sample", "cifar10" or a folder of images\n'
    assert done.stderr == message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments, message", [
    (["--epochs", "0"], "epochs and batch_size must be 1 or more"),
    (["--lr", "0"], "lr must be above 0"),
    (["--optimizer", "AdamX"], "optimizer must be SOAP or a name in torch.optim"),
    (["--device", "abacus"], "device 'abacus' cannot be used"),
    (["--precision", "float64"], "precision must be one of float32, bfloat16, got 'float64'"),
])
def test_the_command_line_says_which_argument_cannot_be(arguments, message, folder, tmp_path, capsys):
    assert main([*arguments, "--dataset", str(folder), "--out", str(tmp_path / "run")]) == 1
    assert message in capsys.readouterr().err


def test_the_command_line_says_what_is_no_json(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--model", "{groups: 8}", "--out", str(tmp_path / "run")])
    assert "argument --model: '{groups: 8}' is not JSON (Expecting property name" in capsys.readouterr().err


def test_images_that_cannot_be_scored_are_refused_before_the_training(tmp_path, capsys):
    for k in range(20):
        Image.new("RGB", (8, 12), (k, k, k)).save(tmp_path / f"{k}.png")
    assert main(["--dataset", str(tmp_path), "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert "the side of an image must be a multiple of 4 and at least 11 pixels, got 8" in said and "training:" not in said


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has names of files that are no text")
def test_a_folder_whose_name_is_no_text_is_trained_on_to_the_end(folder, tmp_path):
    strange = tmp_path / os.fsdecode(b"k\xe9")
    strange.symlink_to(folder)
    assert main(["--dataset", str(strange), "--out", str(tmp_path / "run"), "--epochs", "1"]) == 0
    assert r"k\udce9" in (tmp_path / "run" / "README.md").read_text()


def test_what_the_exchange_between_gpus_refuses_in_all_processes_is_said(monkeypatch, capsys):
    def refused():
        try:
            raise torch.distributed.DistBackendError("NCCL error: Duplicate GPU detected\nat NCCLUtils.hpp")
        except torch.distributed.DistBackendError as error:
            raise StoppedElsewhere("another process stopped, and says why") from error

    monkeypatch.setenv("RANK", "1")
    assert status(refused, str) == 1
    assert capsys.readouterr().err == "process 1: NCCL error: Duplicate GPU detected\n"


def test_a_checkpoint_keeps_the_random_state_of_the_gpu_that_trains(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device="cuda": asked.append(device) or torch.zeros(1))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device="cuda": asked.append(device))
    model, second = nn.Linear(1, 1), torch.device("cuda", 1)
    optimizer = torch.optim.SGD(model.parameters())
    _unpack(_pack({"model": model}, optimizer, second), {"model": model}, optimizer, second)
    assert asked == [second, second]


def test_the_environment_names_a_device_and_an_argument_another(monkeypatch):
    monkeypatch.setenv("DCAE_DEVICE", "abacus")
    with pytest.raises(ValueError, match="device 'abacus' of DCAE_DEVICE cannot be used"):
        best_device()
    with pytest.raises(ValueError, match="not on 'abacus'"):
        World(1, 2).own_device(None)
    assert best_device("cpu") == World(1, 2).own_device("cpu") == torch.device("cpu")


def test_a_folder_that_cannot_be_written_is_found_out_before_training(folder, tmp_path, capsys):
    (tmp_path / "run").write_text("a file")
    assert main(["--dataset", str(folder), "--out", str(tmp_path / "run"), "--epochs", "100000"]) == 1
    assert "run" in capsys.readouterr().err
