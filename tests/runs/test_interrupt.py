"""The first Ctrl-C ends the step and keeps the run; the second stops at once; afterwards all is as before."""

import os
import signal
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest
from several import CONFIG, PICTURES, equal

from dcae_lib import train, training
from dcae_lib.runs.checkpoint import checkpoints

pytestmark = pytest.mark.slow  # signals


def ctrl_c(run=None):
    signal.raise_signal(signal.SIGINT)


@pytest.fixture
def previous():
    """A handler that was there before the training."""

    def handler(number, frame):
        raise AssertionError("this Ctrl-C is the training's")

    before = signal.signal(signal.SIGINT, handler)
    yield handler
    signal.signal(signal.SIGINT, before)


PLACES = [
    (training.F, "l1_loss", 3, 3),
    (training.F, "l1_loss", 8, 8),  # the last step of an epoch
    (training.F, "l1_loss", 16, 16),  # the last of all
    (os, "fsync", 2, 3),  # while the checkpoint of step 2 is written
    (Path, "unlink", 1, 4),  # after that of step 3
]


@pytest.mark.parametrize("owner, name, nth, step", PLACES)
def test_ctrl_c_ends_the_step_and_the_same_call_resumes(owner, name, nth, step, whole, monkeypatch, tmp_path):
    original, calls = getattr(owner, name), []

    def pressed(*arguments, **options):
        calls.append(0)
        if len(calls) == nth:
            ctrl_c()
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, pressed)
    run = train(CONFIG, tmp_path, PICTURES, save_every=-1)
    assert run.stop and run.step == step and len(run.history) == (step - 1) // 8
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
    assert int(checkpoints(tmp_path / "checkpoints")[0].name[:9]) == step
    again = train(CONFIG, tmp_path, PICTURES)
    assert not again.stop and equal(again, whole)


def test_ctrl_c_after_the_last_epoch_is_too_late(whole, tmp_path):
    run = train(CONFIG, tmp_path, PICTURES, lambda run: len(run.history) == 2 and ctrl_c())
    assert not run.stop and equal(run, whole) and (tmp_path / "model.safetensors").exists()


def twice(run):
    ctrl_c()
    ctrl_c()
    raise AssertionError("the second Ctrl-C comes before this")


ENDS = [(lambda run: None, None), (ctrl_c, None), (twice, KeyboardInterrupt), (lambda run: 1 / 0, ZeroDivisionError)]


@pytest.mark.parametrize("after_epoch, error", ENDS, ids=["done", "stopped", "pressed twice", "failed"])
def test_previous_handler_is_back_after_a_run_is(after_epoch, error, previous):
    with pytest.raises(error) if error else nullcontext():
        assert train(CONFIG, splits=PICTURES, after_epoch=after_epoch).stop == (after_epoch is ctrl_c)
    assert signal.getsignal(signal.SIGINT) is previous


def test_ignored_ctrl_c_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert not train(CONFIG, splits=PICTURES, after_epoch=ctrl_c).stop
    finally:
        signal.signal(signal.SIGINT, before)


def test_training_in_another_thread_leaves_signals_alone(whole, previous):
    seen, runs = [], []

    def work():
        runs.append(train(CONFIG, None, PICTURES, lambda run: seen.append(signal.getsignal(signal.SIGINT))))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(120)
    assert seen == [previous] * 2 and equal(runs[0], whole)


def test_stop_that_another_hook_asks_for_is_kept():
    assert train(CONFIG, splits=PICTURES, after_epoch=lambda run: setattr(run, "stop", True)).step == 9
