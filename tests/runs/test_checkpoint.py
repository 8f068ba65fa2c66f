"""A training that is killed or out of disk resumes as if nothing had happened, bit for bit."""

import errno
import hashlib
import os
import pickle
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save
from several import CONFIG, PICTURES, equal

from dcae_lib import DCAE, load_images, train, training
from dcae_lib.runs import checkpoint
from dcae_lib.runs.checkpoint import CheckpointError, checkpoints, load_checkpoint, pack, restore, save_checkpoint
from dcae_lib.runs.progress import NonFiniteLoss

EACH_STEP = -1.0  # seconds between two checkpoints


class Stop(Exception):
    pass


def stop_after(step, out, config=CONFIG, splits=PICTURES):
    """Train until the checkpoint of a step is written."""
    save = checkpoint.Checkpoint.save

    def save_and_stop(self, state):
        save(self, state)
        if state.step == step:
            raise Stop

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(checkpoint.Checkpoint, "save", save_and_stop)
        train(config, out, splits, save_every=EACH_STEP)
    return out


def steps(out):
    """Return the steps of a run's checkpoints, the newest first."""
    return [int(path.name[:9]) for path in checkpoints(out / "checkpoints")]


def content(out):
    return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole():
    """What the same training gives in one go."""
    return train(CONFIG, splits=PICTURES)


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
    files = ["README.md", "config.json", "history.json", "model.safetensors"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == files


BFLOAT16 = dict(precision="bfloat16")


@pytest.mark.parametrize(
    "optimizer, arguments, changes",
    [
        ("SOAP", dict(max_precondition_dim=8), BFLOAT16),
        ("AdamW", {}, BFLOAT16),
        ("Adam", dict(amsgrad=True), {}),
        ("NAdam", {}, {}),
        ("SGD", {}, {}),
        ("SGD", dict(momentum=0.9), {}),
        ("RMSprop", dict(momentum=0.5, centered=True), {}),
        ("Adagrad", {}, {}),
        ("ASGD", {}, {}),
        ("Rprop", {}, {}),
    ],
)
def test_every_optimizer_resumes_bit_for_bit(optimizer, arguments, changes, tmp_path):
    config = replace(CONFIG, optimizer=optimizer, optimizer_args=arguments, lr=1e-3, epochs=1, **changes)
    out = stop_after(5, tmp_path / "run", config)
    assert equal(train(config, out, PICTURES), train(config, splits=PICTURES))


@pytest.fixture
def clock(monkeypatch):
    """A clock on which each step takes a second, and nothing else takes any time."""
    clock = SimpleNamespace(now=100.0)
    l1_loss = training.F.l1_loss

    def tick(y, x):
        clock.now += 1
        return l1_loss(y, x)

    monkeypatch.setattr(training.F, "l1_loss", tick)
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(checkpoint.time, "perf_counter", lambda: clock.now)
    return clock


@pytest.mark.parametrize("options, epochs, expected", [(dict(save_every=4.5), 2, [5, 10, 15]), ({}, 8, [61])])
def test_checkpoint_is_due_after_save_every_seconds(options, epochs, expected, clock, monkeypatch, tmp_path):
    steps, save = [], checkpoint.Checkpoint.save
    monkeypatch.setattr(checkpoint.Checkpoint, "save", lambda self, run: steps.append(run.step) or save(self, run))
    train(replace(CONFIG, epochs=epochs), tmp_path, PICTURES, **options)
    assert steps == expected


@pytest.mark.parametrize("step", [5, 8, 11])
def test_seconds_of_an_epoch_leave_out_the_stop(step, clock, tmp_path):
    out = stop_after(step, tmp_path / "run")
    clock.now = 5000.0
    for row in train(CONFIG, out, PICTURES).history:
        assert row["seconds"] == 8 and row["images_per_second"] == 30 / 8


def test_random_state_of_the_gpu_that_trains_is_kept(monkeypatch):
    asked, second = [], SimpleNamespace(type="cuda", index=1)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: asked.append(device) or torch.zeros(1))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: asked.append(device))
    monkeypatch.setattr(torch, "tensor", lambda values, device: torch.zeros(0))
    model, order = torch.nn.Linear(1, 1), torch.Generator()
    optimizer = torch.optim.SGD(model.parameters())
    state = SimpleNamespace(model=model, optimizer=optimizer, order=order, device=second, steps_per_epoch=1)
    restore(state, pack(state, order.get_state()), dict(history=[], sessions=[], seconds=0.0, losses=[]))
    assert asked == [second, second]


# ---- two are kept, and other files


def test_two_newest_checkpoints_and_other_files_are_kept(tmp_path):
    others = ["notes.txt", "000000099-0123456789abcdef.damaged", "model.safetensors", "1-0123456789abcdef.safetensors"]
    for name in others:
        (tmp_path / name).write_text("mine")
    for step in (9, 10, 99, 100, 123456789):
        path = save_checkpoint(tmp_path, step, {"x": torch.tensor(step)}, {})
        assert checkpoints(tmp_path)[0] == path and path.name.startswith(f"{step:09d}-")
    assert [int(path.name[:9]) for path in checkpoints(tmp_path)] == [123456789, 100]
    assert sorted(path.name for path in tmp_path.iterdir() if path not in checkpoints(tmp_path)) == sorted(others)
    assert checkpoints(tmp_path / "nowhere") == []


def test_tensors_of_any_form_and_the_record_come_back(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    tensors = dict(whole=base, turned=base.mT, cut=base[:, 1:], repeated=base[0].expand(5, 4), none=torch.zeros(0))
    tensors |= {str(kind): base.to(kind) for kind in (torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool)}
    tensors |= dict(parameter=torch.nn.Parameter(base), nan=torch.tensor(float("nan")), scalar=torch.tensor(7))
    record = dict(text="grüße", numbers=[0.1, 1e-300, 3], nothing=None)
    path = save_checkpoint(tmp_path, 1, tensors, record)
    loaded, read = load_checkpoint(path)
    path.write_bytes(bytes(path.stat().st_size))  # what was loaded lives on when the file is overwritten
    assert read == record and loaded.keys() == tensors.keys()
    for name, x in tensors.items():
        assert loaded[name].dtype == x.dtype and torch.equal(loaded[name].nan_to_num(), x.nan_to_num())


class Trap:
    def __reduce__(self):
        return pytest.fail, ("a pickle was opened",)


@pytest.mark.parametrize("data", [pickle.dumps(Trap()), save(dict(x=torch.ones(3)))], ids=["pickle", "safetensors"])
def test_another_file_under_a_valid_name_is_refused_unopened(data, stopped):
    path = stopped / "checkpoints" / f"000000012-{hashlib.sha256(data).hexdigest()[:16]}.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{path.name} is not a checkpoint of dcae_lib; delete it"):
        train(CONFIG, stopped, PICTURES)


# ---- damaged


def flip(data, byte, bit=3):
    damaged = bytearray(data)
    damaged[byte] ^= 1 << bit
    return bytes(damaged)


DAMAGES = {
    "emptied": lambda data: b"",
    "cut": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "flipped in the length of its header": partial(flip, byte=0),
    "flipped in its record": lambda data: flip(data, data.index(b"losses")),
    "flipped in its last bit": partial(flip, byte=-1, bit=0),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_is_named_and_the_one_before_used(damage, whole, stopped):
    newest, _ = checkpoints(stopped / "checkpoints")
    newest.write_bytes(DAMAGES[damage](newest.read_bytes()))
    with pytest.warns(UserWarning, match="is damaged") as warned:
        run = train(CONFIG, stopped, PICTURES)
    aside = newest.with_suffix(".damaged")
    assert [str(one.message) for one in warned] == [f"the checkpoint {newest.name} is damaged; it was renamed to {aside}"]
    assert [session["step"] for session in run.sessions] == [0, 10] and equal(run, whole)


def test_training_starts_over_if_both_checkpoints_are_damaged(whole, stopped):
    both = checkpoints(stopped / "checkpoints")
    for path in both:
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="is damaged") as warned:
        run = train(CONFIG, stopped, PICTURES)
    assert [str(one.message).split()[2] for one in warned] == [path.name for path in both]
    assert [session["step"] for session in run.sessions] == [0] and equal(run, whole)


# ---- of another training


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(seed=7, epochs=3), "epochs was 2, is 3; seed was 0, is 7"),
        (dict(model=CONFIG.model | dict(channels=(4, 16))), r"channels was \[4, 8\], is \[4, 16\]"),
        (dict(model=CONFIG.model | dict(up_kernel=2)), "up_kernel was None, is 2"),
        (dict(optimizer="AdamW", optimizer_args={}), "optimizer was SOAP, is AdamW; precondition_frequency was 3, is None"),
        (dict(clip=None), "clip was 0.5, is None"),
    ],
)
def test_another_config_is_refused_with_what_differs(changes, message, stopped):
    before = content(stopped)
    with pytest.raises(ValueError, match=rf"holds checkpoints of another training \({message}\)\. Write to"):
        train(replace(CONFIG, **changes), stopped, PICTURES)
    assert content(stopped) == before


@pytest.mark.parametrize(
    "part, changes, message",
    [
        ("test", dict(sha256="X"), "noise test was 4 images, SHA-256 the hash of noise test, is 4 images, SHA-256 X"),
        ("train", dict(images=PICTURES.train.images[:20]), "noise train was 30 images, .*, is 20 images, .*"),
        ("test", dict(name="faces"), "noise test was 4 images, .*, is None; faces was None, is 4 images, .*"),
    ],
)
def test_other_data_is_refused_with_what_differs(part, changes, message, stopped):
    splits = PICTURES._replace(**{part: replace(getattr(PICTURES, part), **changes)})
    with pytest.raises(ValueError, match=rf"of another training \({message}\)\. "):
        train(CONFIG, stopped, splits)
    assert steps(stopped) == [11, 10]


def test_device_and_the_type_of_a_path_are_no_difference(folder, tmp_path):
    config = replace(CONFIG, dataset=folder, epochs=1)
    out = stop_after(2, tmp_path / "run", config, load_images(folder))
    assert train(replace(config, dataset=str(folder), device="cpu:0"), out).sessions[-1]["step"] == 2


# ---- no room, and no numbers


def no_room(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def nth_has_no_room(function, nth):
    calls = []
    return lambda *arguments: calls.append(0) or (no_room if len(calls) == nth else function)(*arguments)


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_full_disk_is_named_with_what_is_kept(name, whole, stopped, monkeypatch):
    before = content(stopped)
    kept = ", ".join(path.name for path in checkpoints(stopped / "checkpoints"))
    with monkeypatch.context() as patch, pytest.raises(CheckpointError) as caught:
        patch.setattr(os, name, no_room)
        train(CONFIG, stopped, PICTURES, save_every=EACH_STEP)
    assert str(caught.value) == (
        f"the checkpoint of step 12 could not be written to {stopped / 'checkpoints'}: No space left on device. "
        f"Checkpoints there: {kept}. Free some space or choose another folder; the same training resumes from the last one"
    )
    assert content(stopped) == before and equal(train(CONFIG, stopped, PICTURES), whole)


@pytest.mark.parametrize("nth", [1, 4])
def test_full_disk_at_the_end_leaves_the_old_run(nth, whole, tmp_path, monkeypatch):
    train(replace(CONFIG, epochs=1), tmp_path, PICTURES)
    finished = content(tmp_path)
    stop_after(11, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "fsync", nth_has_no_room(os.fsync, nth))
        train(CONFIG, tmp_path, PICTURES)
    assert finished.items() <= content(tmp_path).items() and steps(tmp_path) == [11, 10]
    assert equal(train(CONFIG, tmp_path, PICTURES), whole) and DCAE.from_pretrained(tmp_path)


def test_file_in_place_of_the_folder_is_refused_before_training(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(OSError, match=str(tmp_path)):
        train(replace(CONFIG, epochs=10**6), tmp_path, PICTURES)


@pytest.mark.parametrize("optimizer", ["SOAP", "SGD"])
def test_run_with_a_nan_loss_is_never_saved(optimizer, monkeypatch, tmp_path):
    calls, l1_loss = [], training.F.l1_loss
    monkeypatch.setattr(
        training.F, "l1_loss", lambda y, x: calls.append(0) or l1_loss(y, x) * (float("nan") if len(calls) == 12 else 1)
    )
    config = replace(CONFIG, optimizer=optimizer, optimizer_args={})
    with pytest.raises(NonFiniteLoss, match="the loss became nan at step 12; lower the learning rate"):
        train(config, tmp_path, PICTURES, save_every=EACH_STEP)
    assert steps(tmp_path) == [11, 10]
