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

import numpy as np
import pytest
import torch
from PIL import Image
from tqdm.auto import tqdm

from dcae_lib import DCAE, SOAP, Splits, TrainConfig, evaluate, load_images, metrics, to_model, train
from dcae_lib.train import NonFiniteLoss, learning_rate, main


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

    monkeypatch.setattr(sys.modules["dcae_lib.train"], "SOAP", Noted)
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
    monkeypatch.setattr(sys.modules["dcae_lib.train"], "tqdm", partial(tqdm, disable=True))
    settings = config(epochs=3, batch_size=2, optimizer="Watched", optimizer_args=dict(break_at=72))
    with pytest.raises(NonFiniteLoss, match="at step 73;"):
        train(settings, splits=few(sample, 60, side=16))


def test_a_run_that_breaks_at_its_very_last_step_is_stopped_too(sample, watched, tmp_path):
    settings = config(epochs=1, batch_size=2, optimizer="Watched", optimizer_args=dict(break_at=6))
    with pytest.raises(NonFiniteLoss, match="the test L1 is nan after the last step; lower the learning rate"):
        train(settings, tmp_path, few(sample, 12, side=16))
    assert list(tmp_path.iterdir()) == []


def test_soap_stops_a_run_at_the_step_whose_gradient_is_no_number_and_the_step_is_named(sample, monkeypatch):
    l1_loss = torch.nn.functional.l1_loss
    calls = []

    def broken(y, x):
        calls.append(0)
        return l1_loss(y, x) * (math.nan if len(calls) == 3 else 1)

    monkeypatch.setattr(sys.modules["dcae_lib.train"].F, "l1_loss", broken)
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
    with pytest.raises(NonFiniteLoss, match="the loss is finite, but a gradient held a NaN or an infinity.*; lower the"):
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
    assert len(reads) == 1
    reads.clear()
    # SGD, since Adam's own step counters are tensors that live on the CPU and are read there.
    train(config(epochs=1, batch_size=2, optimizer="SGD"), splits=splits)
    assert len(reads) == 4 + 1                              # and one for the evaluation


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


# ---- the command line


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twenty images of one size."""
    folder = tmp_path_factory.mktemp("pictures")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    for k, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{k}.png")
    return folder


def command(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "dcae_lib.train", *map(str, arguments)],
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


def test_the_command_line_says_what_is_wrong_with_a_data_set_and_shows_no_traceback(tmp_path):
    done = command("--dataset", "no/such/folder", "--out", "run", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    message = 'no/such/folder is not a folder; load_images takes "sample", "cifar10" or a folder of images\n'
    assert done.stderr == message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments, message", [
    (["--epochs", "0"], "epochs and batch_size must be 1 or more"),
    (["--lr", "0"], "lr must be above 0"),
    (["--optimizer", "AdamX"], "optimizer must be SOAP or a name in torch.optim"),
    (["--device", "abacus"], "device 'abacus' cannot be used"),
])
def test_the_command_line_says_which_argument_cannot_be(arguments, message, folder, tmp_path, capsys):
    assert main([*arguments, "--dataset", str(folder), "--out", str(tmp_path / "run")]) == 1
    assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_found_out_before_training(folder, tmp_path, capsys):
    (tmp_path / "run").write_text("a file")
    assert main(["--dataset", str(folder), "--out", str(tmp_path / "run"), "--epochs", "100000"]) == 1
    assert "run" in capsys.readouterr().err
