"""A training that is killed, interrupted or out of room goes on as if nothing had happened, bit for bit."""

import errno
import hashlib
import json
import math
import multiprocessing
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jupyter_client.manager import start_new_kernel
from safetensors.torch import load_file, save
from torch import nn
from tqdm.auto import tqdm

import dcae_lib.runs.checkpoint
from dcae_lib import DCAE, TrainConfig, load_images, train
from dcae_lib.runs.checkpoint import CheckpointError, TrainingState, checkpoints, load_checkpoint, save_checkpoint
from dcae_lib.data import ImageSet, Splits
from dcae_lib.files import write_whole
from dcae_lib.training import NonFiniteLoss, Run, interrupts

patient = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])    # on a busy core

TRAIN = sys.modules["dcae_lib.training"]                     # its name in the package is that of the function

NEVER, EACH_STEP = 1e9, -1.0                                # seconds between two checkpoints

# Of a process that can import this file.
PATHS = [str(Path(__file__).parent), *filter(None, sys.path)]
FROM_HERE = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(PATHS)}


@pytest.fixture(scope="module", autouse=True)
def ctrl_c():
    """Have Ctrl-C stop Python, and what it starts, even where these tests run in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def noise(n, name, seed):
    pixels = torch.randint(256, (n, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return ImageSet(pixels, None, name, f"the hash of {name}")


PICTURES = Splits(noise(30, "noise train", 0), noise(4, "noise test", 1))
STEPS_PER_EPOCH = 8                                         # of 4 images, the last of 2

# All that has a state: dropout draws numbers, SOAP and the average remember, the last batch is short.
SETTINGS = TrainConfig(
    epochs=2, batch_size=4, device="cpu", clip=0.5, average=0.9, optimizer_args=dict(precondition_frequency=3),
    model=dict(channels=(4, 8), latent_channels=4, groups=4, dropout=0.1, stage_dropout=0.2),
)


def same(a, b):
    """Whether two dicts of tensors hold the same bits."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def outcome(run):
    """What must not depend on kills: the weights, and the history without what a clock measured."""
    timed = {"seconds", "images_per_second"}
    return run.model.state_dict(), [{k: v for k, v in row.items() if k not in timed} for row in run.history]


def written(out):
    """The same of a finished run's folder, which holds nothing else but the run."""
    assert {path.name for path in out.iterdir()} == {"README.md", "config.json", "history.json", "model.safetensors"}
    record = json.loads((out / "history.json").read_text())
    weights = load_file(out / "model.safetensors")
    return outcome(SimpleNamespace(model=SimpleNamespace(state_dict=lambda: weights), history=record["history"]))


def equal(one, other):
    return same(one[0], other[0]) and one[1] == other[1]


def steps(out):
    """The steps of the checkpoints in a run's folder, the newest first."""
    return [int(path.name[:9]) for path in checkpoints(out / "checkpoints")]


def partials(out):
    return list(out.rglob("*.partial"))


# ---- killed: workers are forked from a server that has imported all and has one thread, so that a kill is cheap


def work(out, config, save_every, place):
    """Train in a process of its own, which is killed at one of the PLACES if that is named."""
    torch.set_num_threads(1)
    if place:
        strike(*PLACES[place])
    train(config, out, PICTURES, save_every=save_every)


def strike(owner, name, nth, when):
    """Have the nth call of a function kill this process, before or after its work."""
    original, calls = getattr(owner, name), []

    def struck(*arguments, **options):
        calls.append(0)
        if len(calls) == nth and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*arguments, **options)
        if len(calls) == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, struck)


@pytest.fixture(scope="module")
def start():
    """Start a worker, which is a process that has imported all already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dcae_lib.training", "hypothesis", "jupyter_client.manager", "pytest"])
    started = []

    def start(out, config=SETTINGS, save_every=EACH_STEP, place=None, target=work):
        process = context.Process(target=target, args=(out, config, save_every, place))
        process.start()
        started.append(process)
        return process

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")                # read by the server, when the first worker starts it
        yield start
    for process in started:
        process.kill()
        process.join()


def ended(process):
    process.join(60)
    return process.exitcode


def wait_until(condition, process, pause=0.001):
    end = time.monotonic() + 60
    while not condition():
        assert process.is_alive() and time.monotonic() < end
        time.sleep(pause)


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """What a run of SETTINGS in one go leaves, with other settings if some are named; each is run once."""
    runs = {}

    def whole(config=SETTINGS):
        if repr(config) not in runs:
            out = tmp_path_factory.mktemp("whole") / "run"
            assert ended(start(out, config, NEVER)) == 0
            runs[repr(config)] = written(out)
        return runs[repr(config)]

    return whole


def test_twenty_kills_at_random_change_no_bit_of_the_weights_and_nothing_in_the_history(start, whole, tmp_path):
    out, chance, long = tmp_path / "run", random.Random(0), replace(SETTINGS, epochs=40)        # 320 steps
    marks = sorted(chance.sample(range(1, 140), 20))        # a worker that has come so far, and saved, is killed
    for mark in marks:
        before = steps(out)[:1]
        worker = start(out, long, save_every=chance.choice([EACH_STEP, 0.02, 0.05]))
        wait_until(lambda: steps(out)[:1] > max(before, [mark - 1]), worker)        # noqa: B023
        time.sleep(chance.uniform(0, 0.05))                 # one or two steps, each with or without a checkpoint
        if chance.random() < 0.3:
            wait_until(lambda: partials(out), worker, pause=0)      # a write that has begun
        worker.kill()
        assert ended(worker) == -signal.SIGKILL
    assert ended(start(out, long)) == 0
    assert equal(written(out), whole(long))
    sessions = json.loads((out / "history.json").read_text())["sessions"]
    assert len(sessions) == 21 and sessions[-1]["step"] >= marks[-1]


N = SETTINGS.epochs * STEPS_PER_EPOCH
PLACES = {
    "the first checkpoint is not whole": (os, "fsync", 1, "before"),
    "the second checkpoint is not whole": (os, "fsync", 2, "before"),
    "a checkpoint has no name yet": (os, "replace", 5, "before"),
    "a third checkpoint is there": (os, "replace", 5, "after"),
    "the oldest checkpoint is gone": (Path, "unlink", 3, "after"),
    "the last step of an epoch is saved": (os, "replace", STEPS_PER_EPOCH, "after"),
    "the epoch is evaluated": (TRAIN, "evaluate", 1, "after"),
    "the next epoch has begun": (DCAE, "train", 4, "after"),
    "all steps are done": (TRAIN, "evaluate", SETTINGS.epochs, "before"),
    "one file of the run has its name and the others have not": (os, "replace", N + 2, "before"),
    "the run is written": (TRAIN, "save_run", 1, "after"),
    "one of the last checkpoints is gone": (Path, "unlink", N - 2 + 1, "after"),
    "the checkpoints are gone": (Path, "rmdir", 1, "before"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_kill_loses_nothing_and_leaves_nothing_behind_when(place, start, whole, tmp_path):
    out = tmp_path / "run"
    assert ended(start(out, place=place)) == -signal.SIGKILL
    before = steps(out)
    assert len(before) <= 3
    if before:
        load_checkpoint(out / "checkpoints")
        assert steps(out) == before                         # none is damaged
    assert ended(start(out)) == 0
    assert equal(written(out), whole())
    sessions = json.loads((out / "history.json").read_text())["sessions"]
    assert [session["step"] for session in sessions] == [0] * bool(before) + before[:1] or [0]


def test_a_kill_and_a_half_written_file_come_one_after_the_other_at_every_write(start, whole, tmp_path):
    config, out = replace(SETTINGS, epochs=1), tmp_path / "run"
    for nth in range(STEPS_PER_EPOCH - 1):                  # the first write of each start, and one more each time
        assert ended(start(out, config, place="the second checkpoint is not whole")) == -signal.SIGKILL
        assert steps(out)[0] == nth + 1 and len(partials(out)) == 1
    assert ended(start(out, config)) == 0
    assert equal(written(out), whole(config))


@pytest.fixture(scope="module")
def command(folder):
    """The command that trains on a folder of images, for some seconds, and a process that runs it."""
    options = ["--epochs", "72", "--batch-size", "1", "--device", "cpu", "--dataset", str(folder)]
    small = '{"channels": [4, 8], "latent_channels": 4, "groups": 4, "dropout": 0.1}'

    @contextmanager
    def command(out):
        process = subprocess.Popen(
            [sys.executable, "-m", "dcae_lib.training", "--out", str(out), "--model", small, *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    command.config = TrainConfig.preset(
        "tuned", epochs=72, batch_size=1, device="cpu", dataset=str(folder), model=json.loads(small)
    )
    return command


def under_way(process):
    """Read what a command says until it trains, then let it go on for a part of that."""
    said = b""
    while b"training:" not in said:
        said += process.stderr.read1()
        assert process.poll() is None, said
    time.sleep(random.Random(process.args[4]).uniform(0.5, 1.0))


def on_a_folder(out, config, save_every, place):
    torch.set_num_threads(1)
    train(config, out)


@pytest.fixture(scope="module")
def interrupted(command, tmp_path_factory):
    """The folder of a command that got a Ctrl-C, its exit code, and what it said."""
    out = tmp_path_factory.mktemp("interrupted") / "run"
    with command(out) as process:
        under_way(process)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    return out, process.returncode, stdout.decode(), stderr.decode()


def test_ctrl_c_ends_the_command_with_130_one_line_and_a_checkpoint(interrupted):
    out, code, stdout, stderr = interrupted
    assert code == 130 and stdout == ""
    *bar, line = stderr.rstrip("\n").splitlines()           # the bar ends in a line of its own
    assert re.fullmatch(r"interrupted in epoch \d+; the same command goes on from there", line)
    assert all(re.match("training: |$", part) for part in "\n".join(bar).split("\r")[1:]) and "Traceback" not in stderr
    assert len(steps(out)) == 1 and steps(out)[0] > 0 and partials(out) == []


def test_the_command_after_ctrl_c_and_a_kill_ends_with_the_weights_of_one_without(
    interrupted, command, start, tmp_path
):
    out = shutil.copytree(interrupted[0], tmp_path / "run")
    (before,) = steps(out)
    with command(out) as process:
        under_way(process)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert steps(out)[0] == before
    with command(out) as process:
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
    assert b"psnr" in stdout and b"Warning" not in stderr
    assert ended(start(tmp_path / "whole", command.config, target=on_a_folder)) == 0
    assert same(load_file(out / "model.safetensors"), load_file(tmp_path / "whole" / "model.safetensors"))
    sessions = json.loads((out / "history.json").read_text())["sessions"]
    assert [session["step"] for session in sessions] == [0, before]
    assert not (out / "checkpoints").exists()


# ---- stopped in this process, after the checkpoint of a step


class Stop(Exception):
    pass


def stop_after(step, out, config=SETTINGS, splits=PICTURES, **options):
    """Train until the checkpoint of a step is written."""
    save = TrainingState.save

    def save_and_stop(self, at):
        save(self, at)
        if at == step:
            raise Stop

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(TrainingState, "save", save_and_stop)
        train(config, out, splits, **dict(save_every=EACH_STEP) | options)
    return out


@pytest.fixture(scope="module")
def here():
    """What SETTINGS give in one go in this process, with as many threads as it has."""
    return outcome(train(SETTINGS, splits=PICTURES))


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory):
    return stop_after(11, tmp_path_factory.mktemp("stopped") / "run")


@pytest.fixture
def stopped(stopped_once, tmp_path):
    """The folder of a run that was stopped in its second epoch, with the checkpoints of steps 11 and 10."""
    return shutil.copytree(stopped_once, tmp_path / "run")


@pytest.mark.parametrize("step", [1, 7, 8, 9, 15, 16])      # epochs end at 8 and 16
def test_wherever_a_run_stops_it_goes_on_bit_for_bit_and_says_where(step, here, tmp_path):
    out = stop_after(step, tmp_path / "run")
    torch.rand(7)                                           # what comes between does not matter
    run = train(SETTINGS, out, PICTURES)
    assert equal(outcome(run), here) and equal(written(out), here)
    assert [session["step"] for session in run.sessions] == [0, step]
    assert set(run.sessions[1]) == {"step", "processes", "revision", "versions", "hardware", "threads"}


def test_a_run_that_stops_at_every_step_is_the_same_too(here, tmp_path):
    for step in range(1, N + 1):
        stop_after(step, tmp_path / "run")
    run = train(SETTINGS, tmp_path / "run", PICTURES)
    assert equal(outcome(run), here)
    assert [session["step"] for session in run.sessions] == [0, *range(1, N + 1)]


PLAIN, HALF = dict(average=None, clip=None), dict(precision="bfloat16")


@pytest.mark.parametrize("optimizer, arguments, changes", [
    ("SOAP", {}, PLAIN), ("SOAP", dict(max_precondition_dim=8), HALF),
    ("AdamW", {}, PLAIN), ("AdamW", {}, HALF), ("Adam", dict(amsgrad=True), PLAIN), ("NAdam", {}, PLAIN),
    ("NAdam", {}, HALF),
    ("SGD", {}, PLAIN), ("SGD", dict(momentum=0.9), PLAIN), ("SGD", dict(momentum=0.9), HALF),
    ("RMSprop", dict(momentum=0.5, centered=True), PLAIN), ("Adagrad", {}, PLAIN),
    *([("Adafactor", {}, PLAIN)] if hasattr(torch.optim, "Adafactor") else []),             # torch 2.4 has none
    ("ASGD", {}, HALF), ("Rprop", {}, HALF),
], ids=str)
def test_every_optimizer_goes_on_bit_for_bit(optimizer, arguments, changes, tmp_path):
    config = replace(SETTINGS, optimizer=optimizer, optimizer_args=arguments, lr=1e-3, epochs=1, **changes)
    out = stop_after(5, tmp_path / "run", config)
    assert equal(outcome(train(config, out, PICTURES)), outcome(train(config, splits=PICTURES)))


def test_checkpoints_change_nothing_and_the_settings_of_their_times_are_no_part_of_a_training(here, tmp_path):
    stop_after(3, tmp_path / "run")
    assert equal(outcome(train(SETTINGS, tmp_path / "run", PICTURES, save_every=EACH_STEP)), here)


@pytest.fixture
def clock(monkeypatch):
    """A clock on which each step takes a second, and nothing else takes any time."""
    clock = SimpleNamespace(now=100.0)
    l1_loss = torch.nn.functional.l1_loss

    def tick(y, x):
        clock.now += 1
        return l1_loss(y, x)

    monkeypatch.setattr(TRAIN.F, "l1_loss", tick)
    monkeypatch.setattr(dcae_lib.runs.checkpoint, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(TRAIN, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def saved_steps(monkeypatch):
    steps, save = [], TrainingState.save
    monkeypatch.setattr(TrainingState, "save", lambda self, step: steps.append(step) or save(self, step))
    return steps


def test_a_checkpoint_is_written_when_the_last_one_is_older_than_save_every(clock, monkeypatch, tmp_path):
    steps = saved_steps(monkeypatch)
    train(SETTINGS, tmp_path / "run", PICTURES, save_every=4.5)
    assert steps == [5, 10, 15]


def test_a_checkpoint_is_written_once_a_minute_if_nothing_is_said(clock, monkeypatch, tmp_path):
    steps = saved_steps(monkeypatch)
    train(replace(SETTINGS, epochs=16), tmp_path / "run", PICTURES)     # 128 seconds
    assert steps == [61, 122]


@pytest.mark.parametrize("step", [5, 8, 11])
def test_the_seconds_of_an_epoch_are_those_of_its_steps_before_and_after_a_stop(step, clock, tmp_path):
    out = stop_after(step, tmp_path / "run")
    clock.now = 5000.0
    for row in train(SETTINGS, out, PICTURES).history:
        assert row["seconds"] == 8 and row["images_per_second"] == 30 / 8


def test_the_bar_goes_on_where_the_run_stopped(stopped, monkeypatch):
    bars = []

    class Noted(tqdm):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            bars.append((self, self.n))

    monkeypatch.setattr(TRAIN, "tqdm", Noted)
    train(SETTINGS, stopped, PICTURES)
    ((bar, begun),) = bars
    assert (begun, bar.n, bar.total) == (11, 16, 16)


# ---- two are kept


def test_the_newest_two_are_kept_sorted_by_step_and_deleted_at_the_end(monkeypatch, tmp_path):
    seen, save = [], TrainingState.save
    monkeypatch.setattr(TrainingState, "save", lambda self, step: (save(self, step), seen.append(steps(tmp_path))))
    train(SETTINGS, tmp_path, PICTURES, save_every=EACH_STEP)
    assert seen == [[1], *([step, step - 1] for step in range(2, N + 1))]
    assert not (tmp_path / "checkpoints").exists()


def test_names_sort_by_step(tmp_path):
    for step in (9, 10, 99, 100, 123456789):
        path = save_checkpoint(tmp_path, step, {"x": torch.tensor(step)}, {})
        assert checkpoints(tmp_path)[0] == path
    assert steps(tmp_path.parent / tmp_path.name / "..") == []
    assert [int(path.name[:9]) for path in checkpoints(tmp_path)] == [123456789, 100]
    tensors, _ = load_checkpoint(tmp_path)
    assert tensors["x"] == 123456789


def test_other_files_in_the_folder_are_no_checkpoints_and_stay(here, stopped):
    others = ["notes.txt", "000000099-0123456789abcdef.damaged", "model.safetensors", "1-0123456789abcdef.safetensors"]
    for name in others:
        (stopped / "checkpoints" / name).write_text("mine")
    assert steps(stopped) == [11, 10]
    assert equal(outcome(train(SETTINGS, stopped, PICTURES, save_every=EACH_STEP)), here)
    assert sorted(path.name for path in (stopped / "checkpoints").iterdir()) == sorted(others)


def test_a_folder_that_is_not_there_holds_no_checkpoints(tmp_path):
    assert checkpoints(tmp_path / "nowhere") == [] and load_checkpoint(tmp_path / "nowhere") is None


# ---- damaged


def cut(data, end):
    return data[:end]


def flip(data, byte, bit=3):
    damaged = bytearray(data)
    damaged[byte] ^= 1 << bit
    return bytes(damaged)


def in_header(data, text):
    return flip(data, data.index(text) + 1)


DAMAGES = {
    "emptied": partial(cut, end=0),
    "cut within its first number": partial(cut, end=5),
    "cut within its header": partial(cut, end=200),
    "cut in the middle": lambda data: data[: len(data) // 2],
    "cut by one byte": partial(cut, end=-1),
    "longer by one byte": lambda data: data + b"\0",
    "flipped in its first number": partial(flip, byte=0),
    "flipped in its record": partial(in_header, text=b"losses"),
    "flipped in a name": partial(in_header, text=b"encoder.stem"),
    "flipped in a shape": partial(in_header, text=b'"shape":['),
    "flipped in its first tensor": lambda data: flip(data, 8 + int.from_bytes(data[:8], "little")),
    "flipped in its last bit": partial(flip, byte=-1, bit=0),
    "full of zeros": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_one_before_is_used_and_a_warning_names_the_newest_if_that_is(damage, here, stopped):
    newest, _ = checkpoints(stopped / "checkpoints")
    damaged = DAMAGES[damage](newest.read_bytes())
    newest.write_bytes(damaged)
    with pytest.warns(UserWarning, match="is damaged") as warned:
        run = train(SETTINGS, stopped, PICTURES)
    aside = newest.with_suffix(".damaged")
    (message,) = [str(one.message) for one in warned]
    assert message == f"the checkpoint {newest.name} is damaged; it is passed over and kept as {aside}"
    assert warned[0].filename == __file__                   # the line that called train
    assert [session["step"] for session in run.sessions] == [0, 10]
    assert equal(outcome(run), here)
    assert list((stopped / "checkpoints").iterdir()) == [aside] and aside.read_bytes() == damaged


def test_the_training_begins_anew_with_two_warnings_if_both_are_damaged(here, stopped):
    both = checkpoints(stopped / "checkpoints")
    for path in both:
        path.write_bytes(cut(path.read_bytes(), 1000))
    with pytest.warns(UserWarning, match="is damaged") as warned:
        run = train(SETTINGS, stopped, PICTURES)
    assert [str(one.message).split()[2] for one in warned] == [path.name for path in both]
    assert [session["step"] for session in run.sessions] == [0]
    assert equal(outcome(run), here)
    assert sorted((stopped / "checkpoints").iterdir()) == sorted(path.with_suffix(".damaged") for path in both)


def test_a_checkpoint_under_the_name_of_another_is_damaged(stopped):
    newest, before = checkpoints(stopped / "checkpoints")
    shutil.copy(before, newest)
    with pytest.warns(UserWarning, match=newest.name):
        assert json.dumps(load_checkpoint(stopped / "checkpoints")[1]["losses"]).count(",") == 10 - 8 - 1


@pytest.fixture(scope="module")
def one_checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    path = save_checkpoint(folder, 7, {"x": torch.arange(9.0), "empty": torch.ones(0)}, dict(text="grüße"))
    return path, path.read_bytes()


@patient
@given(st.data())
def test_one_flipped_bit_or_a_cut_anywhere_is_damage(one_checkpoint, data):
    path, content = one_checkpoint
    at = data.draw(st.integers(0, len(content) - 1))
    path.write_bytes(data.draw(st.sampled_from([content[:at], flip(content, at, data.draw(st.integers(0, 7)))])))
    with pytest.warns(UserWarning, match="is damaged"):
        assert load_checkpoint(path.parent) is None
    path.with_suffix(".damaged").unlink()


# ---- of another training


@pytest.mark.parametrize("changes, message", [
    (dict(lr=0.5), "lr was 0.01, is 0.5"),
    (dict(seed=7, epochs=3), "epochs was 2, is 3; seed was 0, is 7"),
    (dict(model=SETTINGS.model | dict(dropout=0.25)), "dropout was 0.1, is 0.25"),
    (dict(model=SETTINGS.model | dict(channels=(4, 16))), r"channels was \[4, 8\], is \[4, 16\]"),
    (dict(model=SETTINGS.model | dict(up_kernel=2)), "up_kernel was None, is 2"),
    (dict(optimizer_args={}), "precondition_frequency was 3, is None"),
    (dict(optimizer="AdamW", optimizer_args={}), "optimizer was SOAP, is AdamW; precondition_frequency was 3, is None"),
    (dict(average=None), "average was 0.9, is None"),
    (dict(clip=None), "clip was 0.5, is None"),
    (dict(precision="bfloat16"), "precision was float32, is bfloat16"),
    (dict(schedule="constant"), "schedule was cosine, is constant"),
])
def test_another_config_is_refused_with_what_differs_and_nothing_is_lost(changes, message, stopped):
    before = {path: path.read_bytes() for path in stopped.rglob("*.*")}
    with pytest.raises(ValueError, match=rf"holds checkpoints of another training \({message}\)\. Write to"):
        train(replace(SETTINGS, **changes), stopped, PICTURES)
    assert {path: path.read_bytes() for path in stopped.rglob("*.*")} == before


@pytest.mark.parametrize("part, changes, message", [
    ("train", dict(sha256="another"), "noise train was 30 images, SHA-256 the hash of noise train, is 30 images, SHA-256 another"),
    ("test", dict(sha256="another"), "noise test was 4 images, SHA-256 the hash of noise test, is 4 images, SHA-256 another"),
    ("test", dict(name="faces"), "faces was None, is 4 images, SHA-256 the hash of noise test; noise test was 4 images, .*, is None"),
])
def test_other_data_are_refused_with_what_differs(part, changes, message, stopped):
    splits = PICTURES._replace(**{part: replace(getattr(PICTURES, part), **changes)})
    with pytest.raises(ValueError, match=rf"of another training \({message}\)\. "):
        train(SETTINGS, stopped, splits)
    assert steps(stopped) == [11, 10]


def test_a_part_of_the_same_data_is_other_data(stopped):
    part = PICTURES._replace(train=replace(PICTURES.train, images=PICTURES.train.images[:20]))
    with pytest.raises(ValueError, match="of another training"):
        train(SETTINGS, stopped, part)


def test_a_config_may_name_its_data_set_by_a_path(folder, tmp_path):
    config = replace(SETTINGS, dataset=folder, epochs=1)
    stopped = stop_after(2, tmp_path / "run", config, load_images(folder))
    assert train(config, stopped).sessions[-1]["step"] == 2


def test_another_name_of_the_device_is_no_difference(here, stopped):
    assert equal(outcome(train(replace(SETTINGS, device="cpu:0"), stopped, PICTURES)), here)


def test_the_command_line_says_what_differs_and_shows_no_traceback(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(TRAIN, "keep_memory", lambda: None)
    config = TrainConfig.preset("tuned", dataset=str(folder), device="cpu", batch_size=4)
    stop_after(1, tmp_path / "run", config, load_images(folder))
    options = ["--dataset", str(folder), "--device", "cpu", "--batch-size", "5", "--out", str(tmp_path / "run")]
    assert TRAIN.main(options) == 1
    assert "of another training (batch_size was 4, is 5). Write to another folder, or " in capsys.readouterr().err


# ---- no room


def no_room(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_no_room_is_said_with_what_is_still_there_and_nothing_is_lost(name, here, stopped, monkeypatch):
    names = ", ".join(path.name for path in checkpoints(stopped / "checkpoints"))
    with monkeypatch.context() as patch, pytest.raises(CheckpointError) as caught:
        patch.setattr(os, name, no_room)
        train(SETTINGS, stopped, PICTURES, save_every=EACH_STEP)
    assert str(caught.value) == (
        f"the checkpoint of step 12 could not be written to {stopped / 'checkpoints'}: No space left on device. "
        f"Whole checkpoints there: {names}. Make room or choose another folder; "
        "the same training goes on from the last one"
    )
    assert steps(stopped) == [11, 10] and partials(stopped) == []
    assert equal(outcome(train(SETTINGS, stopped, PICTURES)), here)


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO])
def test_why_a_checkpoint_could_not_be_written_is_said(error, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CheckpointError, match=rf": {os.strerror(error)}\. Whole checkpoints there: none\."):
        save_checkpoint(tmp_path / "new", 1, {}, {})
    assert list((tmp_path / "new").iterdir()) == []


def test_a_file_in_place_of_the_folder_is_said(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(CheckpointError, match=r"File exists\. Whole checkpoints there: none"):
        train(SETTINGS, tmp_path, PICTURES, save_every=EACH_STEP)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


# What a worker is told to do in a file system of its own, 300 KB small: a namespace of mounts that ends with it.
SMALL_DISK = """
import os, subprocess, sys
from dataclasses import replace
from pathlib import Path

from dcae_lib import train
from dcae_lib.runs.checkpoint import CheckpointError, load_checkpoint
from test_checkpoint import EACH_STEP, PICTURES, SETTINGS, equal, outcome, partials, steps, stop_after

out = Path(sys.argv[1]) / "run"
stop_after(11, out)
filler = out / "filler"
with open(filler, "wb", buffering=0) as file:
    try:
        while True:
            file.write(bytes(4096))
    except OSError:
        pass
for remount in ("rw", "ro"):
    subprocess.run(["mount", "-o", f"remount,{remount}", sys.argv[1]], check=True)
    try:
        train(SETTINGS, out, PICTURES, save_every=EACH_STEP)
    except CheckpointError as error:
        print(error, file=sys.stderr)
    assert steps(out) == [11, 10] and partials(out) == []
subprocess.run(["mount", "-o", "remount,rw", sys.argv[1]], check=True)
filler.unlink()
assert equal(outcome(train(SETTINGS, out, PICTURES)), outcome(train(SETTINGS, splits=PICTURES)))
"""


def test_a_disk_that_is_really_full_or_read_only_loses_nothing(tmp_path):
    unshare = ["unshare", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("a file system of its own needs unshare and the right to use it")
    mount = f"mount -t tmpfs -o size=1100k none {tmp_path} && exec '{sys.executable}' -c \"$0\" {tmp_path}"
    done = subprocess.run(
        [*unshare, "sh", "-c", mount, SMALL_DISK], capture_output=True, text=True, timeout=120,
        env=FROM_HERE,
    )
    assert done.returncode == 0, done.stderr
    full, read_only = [line for line in done.stderr.splitlines() if "could not be written" in line]
    assert "No space left on device. Whole checkpoints there: 000000011-" in full
    assert "Read-only file system. Whole checkpoints there: 000000011-" in read_only


def in_small_files(out, config, save_every, place):
    """Train where no file may be larger than 10 KB: a real error in the middle of a write."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    try:
        work(out, config, save_every, place)
    except CheckpointError as error:
        sys.exit(40 if "File too large. Whole checkpoints there: 000000011-" in str(error) else str(error))


def test_a_write_that_fails_half_way_leaves_what_was_there(start, stopped):
    assert ended(start(stopped, target=in_small_files)) == 40
    assert steps(stopped) == [11, 10] and partials(stopped) == []
    assert load_checkpoint(stopped / "checkpoints")


@pytest.fixture
def finished(tmp_path):
    """The folder of a finished run, and what lies in it."""
    train(replace(SETTINGS, epochs=1), tmp_path / "run", PICTURES)
    return tmp_path / "run", content(tmp_path / "run")


WIDER = SETTINGS.model | dict(channels=(8, 16))


def content(out):
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


@pytest.mark.parametrize("nth", [1, 2])
def test_no_room_for_a_model_leaves_the_one_that_was_there(nth, finished, monkeypatch):
    out, before = finished
    monkeypatch.setattr(os, "fsync", nth_fails(nth))
    with pytest.raises(OSError, match="No space left"):
        DCAE(**WIDER).save_pretrained(out)
    assert content(out) == before


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_no_room_for_a_run_leaves_the_one_that_was_there(nth, finished, monkeypatch):
    out, before = finished
    monkeypatch.setattr(os, "fsync", nth_fails(nth))
    with pytest.raises(OSError, match="No space left"):
        train(replace(SETTINGS, model=WIDER), out, PICTURES)
    assert content(out) == before


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_no_room_for_a_run_leaves_whole_files_and_the_checkpoints_to_write_it_again(nth, finished, here, monkeypatch):
    out, _ = finished
    stop_after(11, out)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "fsync", nth_fails(nth))
        train(SETTINGS, out, PICTURES)
    assert partials(out) == [] and steps(out) == [11, 10]
    DCAE.from_pretrained(out)
    json.loads((out / "history.json").read_text())
    assert equal(outcome(train(SETTINGS, out, PICTURES)), here) and equal(written(out), here)


def nth_fails(nth):
    calls, fsync = [], os.fsync

    def fail(number):
        calls.append(0)
        (no_room if len(calls) == nth else fsync)(number)

    return fail


# ---- a file is written whole


def test_a_file_gets_its_name_once_all_of_it_is_on_the_disk(tmp_path, monkeypatch):
    path, events, fsync, rename = tmp_path / "file", [], os.fsync, os.replace
    path.write_bytes(b"old")

    def noted(number):
        events.append(("synced", os.fstat(number).st_size, path.read_bytes()))
        fsync(number)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "replace", lambda *arguments: events.append("named") or rename(*arguments))
    write_whole({path: bytes(100)})
    assert events[:2] == [("synced", 100, b"old"), "named"]
    assert path.read_bytes() == bytes(100) and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.EIO, "broken"), MemoryError])
def test_a_write_that_is_broken_off_leaves_the_old_file_and_nothing_else(name, error, tmp_path, monkeypatch):
    def fail(*arguments):
        raise error

    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(os, name, fail)
    with pytest.raises(error if isinstance(error, type) else type(error)):
        write_whole({tmp_path / "file": b"new"})
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_two_processes_that_write_the_same_file_do_not_mix(tmp_path, monkeypatch):
    path, rename = tmp_path / "file", os.replace

    def another_process_writes_first(*arguments):
        monkeypatch.setattr(os, "replace", rename)
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 77)
            write_whole({path: b"another's"})
        assert path.read_bytes() == b"another's"
        rename(*arguments)

    monkeypatch.setattr(os, "replace", another_process_writes_first)
    write_whole({path: b"ours"})
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"ours"]


def test_what_a_kill_left_of_a_write_is_deleted_by_the_next_start(stopped):
    left = stopped / "checkpoints" / "000000012-0123456789abcdef.safetensors.77.partial"
    left.write_bytes(b"half")
    stop_after(12, stopped)
    assert not left.exists() and steps(stopped) == [12, 11]


@pytest.mark.parametrize("name", ["film.mkv.partial", "checkpoints/notes.partial"])
def test_a_file_of_another_program_that_is_partial_too_is_left_alone(name, stopped):
    (stopped / name).write_text("a download")
    train(SETTINGS, stopped, PICTURES)
    assert (stopped / name).exists()


# ---- Ctrl-C


def press(*at):
    """An `after_epoch` that presses Ctrl-C after the epochs named."""
    return lambda run: [signal.raise_signal(signal.SIGINT) for epoch in at if len(run.history) == epoch]


def test_ctrl_c_ends_the_step_saves_and_returns_the_run_so_far_and_the_same_call_goes_on(here, tmp_path):
    run = train(SETTINGS, tmp_path, PICTURES, press(1))
    assert run.interrupted and len(run.history) == 1 and run.metrics["psnr"] == here[1][0]["psnr"]
    assert steps(tmp_path) == [9] and [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
    again = train(SETTINGS, tmp_path, PICTURES)
    assert not again.interrupted and equal(outcome(again), here)


def test_ctrl_c_without_a_folder_returns_the_run_so_far(here):
    run = train(SETTINGS, splits=PICTURES, after_epoch=press(1))
    assert run.interrupted and outcome(run)[1] == here[1][:1]


def press_in(owner, name, nth, monkeypatch):
    """Press Ctrl-C in the nth call of a function."""
    original, calls = getattr(owner, name), []

    def pressed(*arguments, **options):
        calls.append(0)
        if len(calls) == nth:
            signal.raise_signal(signal.SIGINT)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, pressed)


def test_ctrl_c_before_the_first_epoch_is_complete_returns_a_run_without_metrics(monkeypatch, tmp_path):
    press_in(TRAIN.F, "l1_loss", 3, monkeypatch)
    run = train(SETTINGS, tmp_path, PICTURES)
    assert run.interrupted and run.history == [] and steps(tmp_path) == [3]
    with pytest.raises(RuntimeError, match=r"no epoch of this run is complete: there are no metrics yet; evaluate\("):
        run.metrics                                         # noqa: B018


@pytest.mark.parametrize("owner, name, nth, step", [
    (TRAIN.F, "l1_loss", 8, 8),                             # the last step of an epoch
    (TRAIN.F, "l1_loss", 16, 16),                           # the last of all
    (os, "fsync", 1, 6),                                    # in a write
    (Path, "unlink", 1, 16),                                # after one
    (TrainingState, "due", 3, 4),
])
def test_ctrl_c_is_never_without_a_checkpoint(owner, name, nth, step, here, clock, monkeypatch, tmp_path):
    press_in(owner, name, nth, monkeypatch)
    run = train(SETTINGS, tmp_path, PICTURES, save_every=4.5)
    assert run.interrupted and steps(tmp_path)[0] == step
    assert equal(outcome(train(SETTINGS, tmp_path, PICTURES)), here)


def test_ctrl_c_after_the_last_epoch_comes_too_late_and_the_run_is_written(here, tmp_path):
    run = train(SETTINGS, tmp_path, PICTURES, press(2))
    assert not run.interrupted and equal(written(tmp_path), here)


def test_the_second_ctrl_c_stops_at_once(tmp_path):
    reached = []

    def twice(run):
        signal.raise_signal(signal.SIGINT)
        reached.append(1)
        signal.raise_signal(signal.SIGINT)
        reached.append(2)

    with pytest.raises(KeyboardInterrupt):
        train(SETTINGS, tmp_path, PICTURES, twice)
    assert reached == [1]
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def handler():
    """A handler of Ctrl-C that was there before."""
    def handler(number, frame):
        raise AssertionError("this Ctrl-C is the training's")

    before = signal.signal(signal.SIGINT, handler)
    yield handler
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("how, error", [
    (lambda run: None, None), (press(1), None), (press(1, 1), KeyboardInterrupt),
    (lambda run: 1 / 0, ZeroDivisionError),
], ids=["done", "interrupted", "interrupted twice", "failed"])
def test_the_handler_from_before_is_back_when_the_training_is(how, error, handler):
    with pytest.raises(error) if error else nullcontext():
        train(SETTINGS, splits=PICTURES, after_epoch=how)
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_ctrl_c_that_is_ignored_is_ignored_in_training_too():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert not train(SETTINGS, splits=PICTURES, after_epoch=press(1)).interrupted
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("name", ["load_images", "evaluate", "save_run"])
def test_ctrl_c_ends_the_command_with_130_and_without_a_traceback_at_any_time(name, folder, tmp_path, monkeypatch):
    def pressed_twice(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(TRAIN, name, pressed_twice)
    try:
        code = TRAIN.main(["--dataset", str(folder), "--out", str(tmp_path / "run"), "--epochs", "1"])
    except KeyboardInterrupt:                               # which would end all tests
        code = "a traceback"
    assert code == 130


def test_the_handler_from_before_is_back_after_a_loss_that_is_no_number(handler):
    with pytest.raises(NonFiniteLoss):
        train(replace(SETTINGS, lr=1e30, clip=None, optimizer="SGD", optimizer_args={}), splits=PICTURES)
    assert signal.getsignal(signal.SIGINT) is handler


def in_thread(function):
    """What a function returns in a thread of its own."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join(60)
    return results[0]


def test_training_in_another_thread_works_and_leaves_signals_alone(here, handler, tmp_path):
    seen = []
    note = lambda run: seen.append(signal.getsignal(signal.SIGINT))     # noqa: E731
    run = in_thread(lambda: train(SETTINGS, tmp_path, PICTURES, note, save_every=EACH_STEP))
    assert equal(outcome(run), here) and not run.interrupted
    assert seen == [handler, handler]


def test_interrupts_notes_what_comes_and_nothing_after_it():
    with interrupts() as seen:
        assert not seen
        signal.raise_signal(signal.SIGINT)
        assert seen == [signal.SIGINT]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert seen == [signal.SIGINT]


def in_script(out, config, save_every, place):
    """A script that trains, and says by its exit code whether the run was interrupted."""
    before = signal.getsignal(signal.SIGINT)
    run = train(config, out, PICTURES, save_every=save_every)
    sys.exit(41 if run.interrupted and isinstance(run, Run) and signal.getsignal(signal.SIGINT) is before else 42)


def test_a_script_that_gets_a_ctrl_c_goes_on_after_the_training_and_saves(start, tmp_path):
    script = start(tmp_path, replace(SETTINGS, epochs=1000), 0.01, target=in_script)
    wait_until(lambda: steps(tmp_path), script)
    os.kill(script.pid, signal.SIGINT)
    assert ended(script) == 41
    assert steps(tmp_path) and partials(tmp_path) == []


NOTEBOOK = """
from dataclasses import replace
from dcae_lib import train
from test_checkpoint import PICTURES, SETTINGS
run = train(replace(SETTINGS, epochs=1000), "run", PICTURES, lambda run: print("an epoch", flush=True))
"""


def test_the_stop_button_of_a_notebook_returns_the_run_and_the_next_cell_works(tmp_path):
    kernel, client = start_new_kernel(cwd=tmp_path, env=FROM_HERE)
    try:
        cell = client.execute(NOTEBOOK)
        while "an epoch" not in (message := client.get_iopub_msg(timeout=60)["content"]).get("text", ""):
            assert "ename" not in message, message
        kernel.interrupt_kernel()
        assert reply(client, cell)["status"] == "ok"
        asked = dict(run="run.interrupted, len(run.history) > 0, next(run.model.parameters()).isfinite().all().item()")
        answer = reply(client, client.execute("1 + 1", user_expressions=asked))
        assert answer["status"] == "ok"
        assert answer["user_expressions"]["run"]["data"]["text/plain"] == "(True, True, True)"
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)
    assert steps(tmp_path / "run")


def reply(client, cell):
    while (message := client.get_shell_msg(timeout=60))["parent_header"]["msg_id"] != cell:
        pass
    return message["content"]


# ---- nothing is unpickled


@pytest.fixture
def no_pickle(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("something is unpickled")

    for place, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(place, name, refuse)


def test_a_run_goes_on_without_a_pickle(no_pickle, here, stopped):
    assert equal(outcome(train(SETTINGS, stopped, PICTURES, save_every=EACH_STEP)), here)


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_under_the_name_of_a_checkpoint_is_passed_over_and_not_opened(here, stopped, tmp_path):
    trap = stopped / "checkpoints" / "000000012-0123456789abcdef.safetensors"
    trap.write_bytes(pickle.dumps(Trap(tmp_path / "opened")))
    with pytest.warns(UserWarning, match=trap.name):
        assert equal(outcome(train(SETTINGS, stopped, PICTURES)), here)
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize("content", [pickle.dumps([1, 2]), save(dict(x=torch.ones(3)))], ids=["pickle", "safetensors"])
def test_what_has_the_hash_in_its_name_and_is_no_checkpoint_is_passed_over_too(content, here, stopped):
    path = stopped / "checkpoints" / f"000000012-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=path.name):
        assert equal(outcome(train(SETTINGS, stopped, PICTURES)), here)


# ---- what is saved comes back


NUMBERS = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
]

FORMS = {
    "whole": lambda x: x,
    "a parameter": lambda x: nn.Parameter(x) if x.is_floating_point() else x,
    "turned": lambda x: x.mT if x.ndim > 1 else x,
    "cut": lambda x: x[..., 1:] if x.ndim else x,
    "every second": lambda x: x[::2] if x.ndim else x,
    "repeated": lambda x: x.expand(3, *x.shape),
}


@st.composite
def tensors(draw):
    """Any bits in any form: of some type and shape, perhaps none, turned, cut or repeated as views are."""
    kind, shape = draw(st.sampled_from(NUMBERS)), draw(st.lists(st.integers(0, 4), max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    content = torch.randint(256, (math.prod(shape) * kind.itemsize,), generator=generator)
    content = content > 127 if kind == torch.bool else content.to(torch.uint8).view(kind)
    return FORMS[draw(st.sampled_from(sorted(FORMS)))](content.reshape(shape))


def bits(x):
    """The numbers as bytes: no two NaNs are equal."""
    return torch.empty(x.numel(), dtype=x.dtype).copy_(x.detach().reshape(-1)).view(torch.uint8).tolist()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8,
)


@patient
@given(
    st.dictionaries(st.text("aé/._0 ", min_size=1), tensors(), min_size=1, max_size=4), st.dictionaries(st.text(), values),
    st.integers(0, 10**9 - 1),
)
def test_tensors_and_record_come_back_bit_for_bit(tmp_path_factory, saved, record, step):
    folder = tmp_path_factory.mktemp("round") / "new"
    path = save_checkpoint(folder, step, saved, record)
    assert list(folder.iterdir()) == [path] and path.name.startswith(f"{step:09d}-")
    loaded, read = load_checkpoint(folder)
    assert read == record and loaded.keys() == saved.keys()
    for name, x in saved.items():
        assert (loaded[name].dtype, loaded[name].shape, bits(loaded[name])) == (x.dtype, x.shape, bits(x))
    shutil.rmtree(folder)


def test_tensors_that_share_a_buffer_are_saved_each(tmp_path):
    base = torch.arange(12.0)
    save_checkpoint(tmp_path, 1, dict(all=base, half=base[6:], rows=base.view(3, 4), turned=base.view(3, 4).mT), {})
    loaded, _ = load_checkpoint(tmp_path)
    assert torch.equal(loaded["half"], base[6:]) and torch.equal(loaded["turned"], base.view(3, 4).mT)
    loaded["half"].zero_()
    assert torch.equal(loaded["all"], base) and torch.equal(loaded["rows"], base.view(3, 4))


def test_a_checkpoint_that_is_loaded_lives_on_when_its_file_is_overwritten(tmp_path):
    path = save_checkpoint(tmp_path, 1, dict(x=torch.arange(1000.0)), {})
    loaded, _ = load_checkpoint(tmp_path)
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(loaded["x"], torch.arange(1000.0))
