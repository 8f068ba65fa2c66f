"""A progress bar, and a stop at the first loss, gradient or test metric that is not finite."""

import math
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from several import CONFIG, PICTURES, l1_task, noise

from dcae_lib import Splits
from dcae_lib.loop import Hook, SingleProcess, evaluate, fit
from dcae_lib.runs.progress import Progress
from dcae_lib.scale.parallel import Processes

SGD = replace(CONFIG, optimizer="SGD", optimizer_args={}, clip=None)


def run(config=CONFIG, splits=PICTURES, loss=None, hooks=(), parallel=SingleProcess()):  # noqa: B008
    task = l1_task(config)
    return fit(task._replace(loss=loss) if loss else task, config, splits, [*hooks, Progress(parallel)])


class Breaks(Hook):
    """Breaks a weight after a step, and counts the steps and epochs."""

    def __init__(self, step):
        self.step, self.steps, self.epochs = step, 0, 0

    def after_step(self, state):
        self.steps += 1
        if state.step == self.step:
            next(state.model.parameters()).data.fill_(math.nan)

    def after_epoch(self, state):
        self.epochs += 1


@pytest.mark.parametrize("images, step, epochs", [(240, 60, 0), (60, 37, 1)])  # between two reads, in the second epoch
def test_nan_loss_stops_within_50_steps_and_names_its_step(images, step, epochs):
    breaks, splits = Breaks(step), Splits(noise(images, "train"), PICTURES.test)
    with pytest.raises(FloatingPointError, match=f"the loss became nan at step {step + 1}"):
        run(replace(SGD, epochs=3, batch_size=2), splits, hooks=[breaks])
    assert breaks.steps <= step + 50 and breaks.epochs == epochs


def test_nan_test_metric_after_the_last_step_stops_the_run():
    with pytest.raises(FloatingPointError, match="the test l1 became nan after step 16"):
        run(hooks=[Breaks(16)])


@pytest.mark.parametrize("config, message", [(CONFIG, "a gradient"), (SGD, "the loss became nan at step 2")])
def test_nan_gradient_under_a_finite_loss_stops_the_run(config, message):
    def loss(model, x):
        y = model(x)
        y.register_hook(lambda slope: slope * math.inf)
        return F.l1_loss(y, x)

    with pytest.raises(FloatingPointError, match=message):
        run(config, loss=loss)


# Each of these reads a value of a tensor in Python, and so waits for the device.
READS = ("item", "tolist", "cpu", "numpy", "__float__", "__int__", "__bool__", "__index__", "__array__")


def test_steps_wait_for_the_device_once_in_50(monkeypatch):
    def noted(name):
        original = getattr(torch.Tensor, name)
        return lambda self, *arguments, **options: reads.append(name) or original(self, *arguments, **options)

    reads: list[str] = []
    for name in READS:
        monkeypatch.setattr(torch.Tensor, name, noted(name))
    # 151 steps of SGD, since SOAP and Adam read their own step counters, which live on the CPU.
    state = run(replace(SGD, epochs=1, batch_size=2), Splits(noise(302, "train"), PICTURES.test))
    seen = len(reads)
    evaluate(state.model, PICTURES.test)
    evaluation = len(reads) - seen
    assert seen == 4 + 2 + evaluation + 1  # after steps 50, 100, 150 and 151; the mean loss; the metrics


def test_bar_shows_the_loss_and_continues_after_a_resume(capsys):
    class Resumes(Hook):
        def start(self, state):
            state.step, state.losses = 3, list(torch.ones(3))

    run(hooks=[Resumes()])
    said = capsys.readouterr().err
    assert " 0/16" not in said and " 3/16" in said
    assert re.search(r" 16/16 \[.*, l1 0\.\d{4}, [\d,]+ images/s\]\n$", said)
    run(parallel=Processes(1, 2))
    assert capsys.readouterr().err == ""
