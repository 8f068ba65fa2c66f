"""A training that is killed or out of disk resumes as if nothing had happened, bit for bit."""

import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from several import CONFIG, PICTURES, equal

from dcae_lib import DCAE, load_images, train, training
from dcae_lib.runs import checkpoint
from dcae_lib.runs.checkpoint import checkpoints, load_checkpoint, save_checkpoint

EACH_STEP = -1.0  # seconds between two checkpoints


def stop_after(step, out, config=CONFIG, splits=PICTURES):
    """Train until the checkpoint of a step is written."""
    save = checkpoint.Checkpoint.save

    def save_and_stop(self, state):
        save(self, state)
        if state.step == step:
            raise EOFError

    with pytest.MonkeyPatch.context() as patch, pytest.raises(EOFError):
        patch.setattr(checkpoint.Checkpoint, "save", save_and_stop)
        train(config, out, splits, save_every=EACH_STEP)
    return out


def steps(folder):
    return [int(path.name[:9]) for path in checkpoints(folder)]


def content(out):
    return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory):
    return stop_after(11, tmp_path_factory.mktemp("stopped") / "run")


@pytest.fixture
def stopped(stopped_once, tmp_path):
    """The folder of a run that stopped in its second epoch, with the checkpoints of steps 11 and 10."""
    return shutil.copytree(stopped_once, tmp_path / "run")


# ---- resumes


def test_run_stopped_after_every_step_ends_with_the_same_bits(whole, tmp_path):
    for step in range(1, 17):
        stop_after(step, tmp_path / "run")
        torch.rand(7)  # what comes between does not matter
    run = train(CONFIG, tmp_path / "run", PICTURES)
    assert equal(run, whole) and [session["step"] for session in run.sessions] == [0, *range(1, 17)]
    assert not (tmp_path / "run" / "checkpoints").exists()


ARGUMENTS = dict(SOAP=dict(max_precondition_dim=8), Adam=dict(amsgrad=True), RMSprop=dict(momentum=0.5, centered=True))


@pytest.mark.parametrize("name", [*ARGUMENTS, "AdamW", "NAdam", "SGD", "Adagrad", "ASGD", "Rprop"])
def test_every_optimizer_resumes_bit_for_bit(name, tmp_path):
    changes = dict(optimizer=name, optimizer_args=ARGUMENTS.get(name, {}), lr=1e-3, epochs=1, precision="bfloat16")
    config = replace(CONFIG, **changes)
    assert equal(train(config, stop_after(5, tmp_path, config), PICTURES), train(config, splits=PICTURES))


@pytest.fixture
def clock(monkeypatch):
    """A clock on which each step takes a second, and nothing else takes any time."""
    clock, l1_loss = SimpleNamespace(now=100.0), training.F.l1_loss

    def tick(y, x):
        clock.now += 1
        return l1_loss(y, x)

    monkeypatch.setattr(training.F, "l1_loss", tick)
    for name in ("monotonic", "perf_counter"):
        monkeypatch.setattr(checkpoint.time, name, lambda: clock.now)
    return clock


@pytest.mark.parametrize("options, expected", [(dict(save_every=4.5), [5, 10, 15, 20]), ({}, [61])])
def test_checkpoint_is_due_after_save_every_seconds(options, expected, clock, monkeypatch, tmp_path):
    saved, save = [], checkpoint.Checkpoint.save
    monkeypatch.setattr(checkpoint.Checkpoint, "save", lambda self, run: saved.append(run.step) or save(self, run))
    train(replace(CONFIG, epochs=3 if options else 8), tmp_path, PICTURES, **options)
    assert saved == expected


def test_seconds_of_an_epoch_leave_out_the_stop(clock, tmp_path):
    out = stop_after(11, tmp_path)
    clock.now = 5000.0
    for row in train(CONFIG, out, PICTURES).history:
        assert row["seconds"] == 8 and row["images_per_second"] == 30 / 8


# ---- the files


def test_two_newest_checkpoints_and_other_files_are_kept(tmp_path):
    others = ["000000099-0123456789abcdef.damaged", "1-0123456789abcdef.safetensors", "model.safetensors"]
    for name in others:
        (tmp_path / name).write_text("mine")
    for step in (9, 10, 99, 100, 123456789):
        assert save_checkpoint(tmp_path, step, {"x": torch.tensor(step)}, {}) == checkpoints(tmp_path)[0]
    assert steps(tmp_path) == [123456789, 100] and checkpoints(tmp_path / "nowhere") == []
    assert sorted(path.name for path in tmp_path.iterdir() if path not in checkpoints(tmp_path)) == others


def test_tensors_of_any_form_and_the_record_come_back(tmp_path):
    x = torch.arange(12.0).view(3, 4)
    tensors = dict(whole=x, turned=x.mT, cut=x[:, 1:], repeated=x[0].expand(5, 4), none=torch.zeros(0), scalar=x.sum())
    tensors |= dict(double=x.double(), half=x.bfloat16(), bytes=x.byte(), parameter=torch.nn.Parameter(x), nan=x / 0)
    record = dict(text="grüße", numbers=[0.1, 1e-300, 3], nothing=None)
    path = save_checkpoint(tmp_path, 1, tensors, record)
    loaded, read = load_checkpoint(path)
    path.write_bytes(bytes(path.stat().st_size))  # what was loaded lives on when the file is overwritten
    assert read == record and loaded.keys() == tensors.keys()
    for name, x in tensors.items():
        assert loaded[name].dtype == x.dtype and torch.equal(loaded[name].nan_to_num(), x.nan_to_num())


# ---- another training


OTHERS = [
    (dict(seed=7, epochs=3), {}, "epochs was 2, is 3; seed was 0, is 7"),
    (dict(model=CONFIG.model | dict(channels=(4, 16))), {}, r"model was {.*\[4, 8\].*}, is {.*\[4, 16\].*}"),
    (dict(optimizer_args={}, clip=None), {}, "optimizer_args was {.* 3.*}, is {}; clip was 0.5, is None"),
    ({}, dict(sha256="X"), "noise test was 4 images, SHA-256 the hash of noise test, is 4 images, SHA-256 X"),
    ({}, dict(images=PICTURES.test.images[:3]), "noise test was 4 images, .*, is 3 images, .*"),
    ({}, dict(name="faces"), "noise test was 4 images, .*, is None; faces was None, is 4 images, .*"),
]


@pytest.mark.parametrize("settings, images, message", OTHERS)
def test_another_training_is_refused_with_what_differs(settings, images, message, stopped):
    before, splits = content(stopped), PICTURES._replace(test=replace(PICTURES.test, **images))
    with pytest.raises(ValueError, match=rf"holds checkpoints of another training \({message}\)\. Write to"):
        train(replace(CONFIG, **settings), stopped, splits)
    assert content(stopped) == before


def test_device_and_the_type_of_a_path_are_no_difference(folder, tmp_path):
    config = replace(CONFIG, dataset=folder, epochs=1)
    out = stop_after(2, tmp_path, config, load_images(folder))
    assert train(replace(config, dataset=str(folder), device="cpu:0"), out).sessions[-1]["step"] == 2


# ---- no room, and no numbers


def full_from(nth, function):
    """Return the function, with a full disk from its nth call on."""
    calls = []

    def call(*arguments):
        calls.append(0)
        if len(calls) >= nth:
            raise OSError(28, "No space left on device")
        return function(*arguments)

    return call


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_full_disk_stops_the_run_and_keeps_its_checkpoints(name, whole, stopped, monkeypatch):
    before = content(stopped)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left on device"):
        patch.setattr(os, name, full_from(1, getattr(os, name)))
        train(CONFIG, stopped, PICTURES, save_every=EACH_STEP)
    assert content(stopped) == before and equal(train(CONFIG, stopped, PICTURES), whole)


@pytest.mark.parametrize("nth", [1, 4])
def test_full_disk_at_the_end_leaves_the_old_run(nth, whole, tmp_path, monkeypatch):
    train(replace(CONFIG, epochs=1), tmp_path, PICTURES)
    finished = content(tmp_path)
    stop_after(11, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "fsync", full_from(nth, os.fsync))
        train(CONFIG, tmp_path, PICTURES)
    assert finished.items() <= content(tmp_path).items() and steps(tmp_path / "checkpoints") == [11, 10]
    assert equal(train(CONFIG, tmp_path, PICTURES), whole) and DCAE.from_pretrained(tmp_path)


@pytest.mark.parametrize("optimizer", ["SOAP", "SGD"])
def test_run_with_a_nan_loss_is_never_saved(optimizer, monkeypatch, tmp_path):
    calls, l1_loss = [], training.F.l1_loss
    factors = [1.0] * 11 + [float("nan")] * 5
    monkeypatch.setattr(training.F, "l1_loss", lambda y, x: calls.append(0) or l1_loss(y, x) * factors[len(calls) - 1])
    with pytest.raises(FloatingPointError, match="the loss became nan at step 12; lower the learning rate"):
        train(replace(CONFIG, optimizer=optimizer, optimizer_args={}), tmp_path, PICTURES, save_every=EACH_STEP)
    assert steps(tmp_path / "checkpoints") == [11, 10]
