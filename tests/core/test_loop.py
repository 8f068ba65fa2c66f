"""The training loop: runs repeat, learn, call their hooks in order, and score the model on the test images."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from several import CONFIG, PICTURES, equal, l1_task, noise, same, weights

from dcae_lib import DCAE, Splits, TrainConfig, evaluate, load_images, metrics, to_model
from dcae_lib.config import learning_rate
from dcae_lib.loop import Hook, fit


def run(config=CONFIG, splits=PICTURES, hooks=()):
    return fit(l1_task(config), config, splits, hooks)


class At(Hook):
    """Call a function with the run in one place."""

    def __init__(self, place, call):
        setattr(self, place, call)


def test_seed_gives_the_same_weights_bit_for_bit():
    first = run()
    torch.rand(7)  # what came before does not matter
    assert equal(first, run())


@pytest.mark.parametrize("part", ["initial weights", "order", "dropout"])
def test_another_seed_changes_the(part):
    batch, dropout = (4, 0.0) if part == "order" else (30, 0.5)  # in a batch of all images there is no order
    config = replace(CONFIG, batch_size=batch, model=CONFIG.model | dict(dropout=dropout, stage_dropout=None))
    task, start = l1_task(config), DCAE(**config.model)
    if part == "initial weights":
        config = replace(config, lr=1e-12)
    else:
        task = task._replace(build=lambda: copy.deepcopy(start))
    one, other = (weights(fit(task, replace(config, seed=seed), PICTURES)) for seed in (0, 1))
    assert (one - other).abs().max() > 1e-4  # far more than the order of a sum would make


def test_hook_that_sets_evaluation_mode_changes_nothing():
    assert equal(run(hooks=[At("after_step", lambda state: len(state.losses) == 8 and state.model.eval())]), run())


def test_loss_falls_and_reconstructions_improve():
    corners = (replace(part, images=part.images[:200, :, :16, :16]) for part in load_images("sample"))
    splits = Splits(*corners)
    state = run(TrainConfig(epochs=4, batch_size=20, lr=4e-3), splits)
    first, *_, last = state.history
    assert last["train_l1"] < 0.7 * first["train_l1"] and last["psnr"] > first["psnr"] + 2
    assert [row["epoch"] for row in state.history] == [1, 2, 3, 4]
    assert evaluate(state.model, splits.test) == state.metrics


def test_optimizer_gets_its_arguments_and_each_learning_rate():
    rates = []
    hook = At("after_step", lambda state: rates.append(state.optimizer.param_groups[0]["lr"]))
    config = replace(CONFIG, warmup=0.25, optimizer="SGD", optimizer_args=dict(momentum=0.9))
    assert run(config, hooks=[hook]).optimizer.defaults["momentum"] == 0.9
    assert rates == [learning_rate(config, 16)(step) for step in range(16)]


def test_longer_gradients_are_cut_to_clip_and_shorter_ones_kept():
    def note(optimizer, *_):
        lengths.append(torch.cat([p.grad.flatten() for p in optimizer.param_groups[0]["params"]]).norm().item())

    lengths: list[float] = []
    hook = At("start", lambda state: state.optimizer.register_step_pre_hook(note))
    config = replace(CONFIG, optimizer="SGD", optimizer_args={}, lr=1e-3)
    free, cut, loose = (run(replace(config, clip=clip), hooks=[hook]) for clip in (None, 0.05, 1e6))
    assert min(lengths[:16]) > 0.06 and lengths[16:32] == pytest.approx([0.05] * 16, rel=1e-3)
    assert same(free.model, loose.model) and not same(free.model, cut.model)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precision_is_that_of_training_steps_alone(precision):
    def note(module, _, y):
        types.add((module.training, y.dtype, module.weight.dtype))

    types: set[tuple] = set()
    hook = At("start", lambda state: state.model.encoder.stem.register_forward_hook(note))
    state = run(replace(CONFIG, precision=precision), hooks=[hook])
    assert types == {(True, getattr(torch, precision), torch.float32), (False, torch.float32, torch.float32)}
    assert state.history[-1]["l1"] == pytest.approx(run().history[-1]["l1"], rel=0.05)


class Noted(Hook):
    """Notes which hook was called in which place, and raises an error in one of them."""

    def __init__(self, name, calls, breaks=None):
        def note(state, place):
            calls.append(f"{place} {name}")
            assert place != breaks, "an error"

        for place in ("start", "after_step", "after_epoch", "end"):
            setattr(self, place, lambda state, place=place: note(state, place))


def test_hooks_are_called_in_order_and_end_in_reverse():
    calls: list[str] = []
    run(replace(CONFIG, batch_size=15), hooks=[Noted("a", calls), Noted("b", calls)])
    epoch = ["after_step a", "after_step b"] * 2 + ["after_epoch a", "after_epoch b"]
    assert calls == ["start a", "start b", *epoch, *epoch, "end b", "end a"]


@pytest.mark.parametrize("place", ["start", "after_step", "after_epoch", "end"])
def test_all_hooks_that_started_end_after_an_error_in(place):
    calls: list[str] = []
    with pytest.raises(AssertionError, match="an error"):
        run(hooks=[Noted("a", calls), Noted("b", calls, place), Noted("c", calls)])
    ends = ["end b", "end a"] if place == "start" else ["end c", "end b", "end a"]
    assert [call for call in calls if call.startswith("end")] == calls[-len(ends) :] == ends


def test_evaluate_is_a_mean_over_single_images():
    torch.manual_seed(0)
    model, images, graphs, rows = DCAE(dropout=0.5, zero_init=False).train(), noise(23, "test"), [], []
    handle = model.register_forward_hook(lambda _, __, y: graphs.append(y.requires_grad))
    score = evaluate(model, images, batch_size=5)
    assert model.training and graphs == [False] * 5
    handle.remove()
    model.eval()
    for x in to_model(images.images).split(1):
        y = model(x).detach()
        rows.append([metrics.l1(y, x).item(), metrics.psnr(y, x).item(), metrics.ssim(y, x).item()])
    l1, psnr, ssim = np.mean(rows, 0)
    assert score == pytest.approx(dict(l1=l1, l1_01=l1 / 2, psnr=psnr, ssim=ssim), rel=1e-5)
    assert evaluate(model, images) == pytest.approx(score, rel=1e-5) and not model.training
