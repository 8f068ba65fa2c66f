"""The command `dcae`: what it trains, verifies and says, and the status with which it ends."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import dcae_lib.__main__ as command
from dcae_lib import DCAE, TrainConfig, load_images
from dcae_lib.codec.train import PRESET
from dcae_lib.files import resource
from dcae_lib.runs.checkpoint import checkpoints

SMALL = '{"channels": [4, 8], "latent_channels": 4, "groups": 4, "dropout": 0.1}'


@pytest.fixture
def train(folder, tmp_path):
    """Run `dcae train` in this process, on a small model and few images, and return its status."""
    given = f"train --out {tmp_path / 'run'} --dataset {folder} --device cpu --epochs 1 --model".split()
    return lambda *options: command.main([*given, SMALL, *map(str, options)])


def recorded(out):
    return json.loads((out / "history.json").read_text())


# ---- train


def test_train_writes_a_run_and_says_how_good_it_is(train, tmp_path, capsys):
    assert train() == 0
    out, said = tmp_path / "run", capsys.readouterr()
    assert re.fullmatch(rf"{out}: l1 [\d.]+, l1_01 [\d.]+, psnr [\d.]+, ssim -?[\d.]+\n", said.out)
    assert "training: 100%" in said.err and [path.name for path in sorted((out / "epochs").iterdir())][1:] == ["01.png"]
    assert DCAE.from_pretrained(out).config["channels"] == (4, 8)


@pytest.mark.parametrize("preset", ["tuned", "document"])
def test_train_takes_a_preset_and_changes_to_it(preset, train, folder, tmp_path):
    options = "--lr 0.002 --warmup 0.5 --seed 9 --batch-size 8 --precision bfloat16 --crop 12 16 --workers 0"
    changes = dict(lr=0.002, warmup=0.5, seed=9, batch_size=8, precision="bfloat16", crop=(12, 16), epochs=1)
    changes |= dict(device="cpu", dataset=str(folder), model=json.loads(SMALL))
    assert train(*options.split(), *([] if preset == "tuned" else ["--preset", preset])) == 0
    assert recorded(tmp_path / "run")["config"] == json.loads(json.dumps(asdict(TrainConfig.preset(preset, **changes))))


def test_finished_run_is_not_replaced_by_other_settings(train, tmp_path, capsys):
    assert train() == 0
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    assert train("--epochs", 2) == 1
    assert "holds a finished training with other settings (epochs was 1, is 2). Write to" in capsys.readouterr().err
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights
    assert train() == 0  # the same again is the same


def test_option_that_cannot_be_read_is_refused_with_the_usage(train, capsys):
    with pytest.raises(SystemExit, match="2"):
        train("--model", "{groups: 8}")
    said = capsys.readouterr().err
    assert said.startswith("usage: dcae train") and "argument --model: invalid JSON value: '{groups: 8}'" in said


IMPOSSIBLE = [
    (["--optimizer", "AdamX"], "optimizer must be SOAP or a name in torch.optim"),
    (["--device", "abacus"], "device 'abacus' cannot be used"),
    (["--crop", 30], "height and width must be multiples of 4, got 30×30"),
    (["--dataset", "no/such/folder"], 'no/such/folder is not a folder; load_images takes "sample"'),
    (["--model", '{"colour": 1}'], "unexpected keyword argument 'colour'"),
    (["--lr", "1e30", "--optimizer", "SGD"], "lower the learning rate"),
    (["--out", __file__], "test_command.py"),
]


@pytest.mark.parametrize("options, message", IMPOSSIBLE)
def test_what_cannot_be_trained_is_said_in_one_line(options, message, train, capsys):
    assert train(*options) == 1
    said = capsys.readouterr()
    assert said.out == "" and message in said.err.splitlines()[-1] and "Traceback" not in said.err


INTERRUPTED = "interrupted; every file is complete, and a training resumes from its last checkpoint"
STOPS = [
    ("images_of", KeyboardInterrupt(), 130, INTERRUPTED),
    ("train", KeyboardInterrupt(), 130, INTERRUPTED),
]


@pytest.mark.parametrize("name, error, code, message", STOPS)
def test_stop_before_or_in_the_training_is_said(name, error, code, message, train, monkeypatch, capsys):
    def stop(*arguments):
        raise error

    monkeypatch.setattr(command, name, stop)
    assert train() == code and capsys.readouterr().err.startswith(message)


def start(out, folder):
    """Start the command in a process, for some seconds of training, and wait until it trains."""
    options = f"-m dcae_lib train --out {out} --dataset {folder} --epochs 72 --batch-size 1 --model".split()
    environment = os.environ | dict(OMP_NUM_THREADS="1", PYTHONPATH=str(Path(__file__).parents[1]))
    output = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process = subprocess.Popen([sys.executable, *options, SMALL], env=environment, **output)
    said = b""
    while b"images/s" not in said:
        said += process.stderr.read1()
        assert process.poll() is None, said
    return process


@pytest.mark.slow
def test_ctrl_c_and_a_kill_do_not_change_the_weights(folder, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert start(whole, folder).communicate(timeout=600)[0].startswith(f"{whole}: l1 ".encode())
    process = start(out, folder)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == 130 and stdout == b"" and b"Traceback" not in stderr
    assert re.search(rb"\ninterrupted in epoch \d+; the same command resumes there\n$", stderr)
    (saved,) = checkpoints(out / "checkpoints")
    process = start(out, folder)
    process.kill()
    assert process.wait(600) == -signal.SIGKILL and checkpoints(out / "checkpoints") == [saved]
    stdout, stderr = start(out, folder).communicate(timeout=600)
    assert stdout.startswith(f"{out}: l1 ".encode()) and b"Warning" not in stderr
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, out))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert [session["step"] for session in recorded(out)["sessions"]] == [0, int(saved.name[:9])]


# ---- train-codec


@pytest.mark.parametrize("options, changes", [("", {}), ("--dataset sample --seed 3", dict(dataset="sample", seed=3))])
def test_train_codec_trains_its_preset_with_changes(options, changes, run, monkeypatch, capsys):
    asked, done = [], SimpleNamespace(stop=False, metrics=dict(bpp_0=0.25, psnr_0=26.0))
    monkeypatch.setattr(command, "train_codec", lambda *given: asked.append(given[:2]) or done)
    monkeypatch.setattr(command, "codec_images", lambda config: None)
    assert command.main(["train-codec", "--out", "somewhere", *options.split()]) == 0
    assert asked == [(TrainConfig(**PRESET | dict(dataset="cifar10") | changes), "somewhere")]
    assert capsys.readouterr().out == "somewhere: bpp_0 0.2500, psnr_0 26.0000\n"
    assert command.main(["train-codec", "--out", str(run), *options.split()]) == 1
    assert "holds a finished training with other settings" in capsys.readouterr().err


# ---- verify


def test_verify_prints_what_was_recorded_and_measured(run, capsys):
    before = {path: path.read_bytes() for path in run.iterdir()}
    assert command.main(["verify", str(run), "--device", "cpu"]) == 0
    assert re.fullmatch(r"(\w+ +recorded (-?\d+\.\d{6}), measured \2\n){4}", capsys.readouterr().out)
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_verify_measures_a_codec_by_its_own_scores(run, monkeypatch):
    shutil.copy(resource("thumbnails") / "config.json", run)
    model, asked = torch.nn.Linear(1, 1), []
    monkeypatch.setattr(command.RateModel, "from_pretrained", lambda folder: model)
    monkeypatch.setattr(command, "compare", lambda *arguments: asked.append(arguments) or {})
    command.verify(run)
    ((record, test, *rest),) = asked
    assert record == recorded(run) and rest == [model, command.estimate, 5e-3]
    assert test.sha256 == load_images(record["config"]["dataset"]).test.sha256


def change_a_weight(run):
    data, bias = (run / "model.safetensors").read_bytes(), load_file(run / "model.safetensors")["decoder.head.2.bias"]
    (run / "model.safetensors").write_bytes(data.replace(bias.numpy().tobytes(), (bias + 0.1).numpy().tobytes()))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "history.json"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:100])])
def test_verify_names_the_folder_of_a_missing_or_damaged_file(damage, name, run, capsys):
    damage(run / name)
    assert command.main(["verify", str(run)]) == 1
    said = capsys.readouterr()
    assert said.out == "" and str(run) in said.err and "Traceback" not in said.err


def test_verify_says_what_does_not_fit(run, monkeypatch, capsys):
    change_a_weight(run)
    assert command.main(["verify", str(run)]) == 1
    assert "the weights do not give the recorded metrics:\nl1     recorded 0." in capsys.readouterr().err
    assert command.main(["verify", str(run), "--device", "abacus"]) == 1
    assert "device 'abacus' cannot be used" in capsys.readouterr().err
    monkeypatch.setattr(command, "read_record", lambda _: recorded(run) | dict(config=dict(dataset="no/such/folder")))
    assert command.main(["verify", str(run)]) == 1
    assert capsys.readouterr().err.startswith("no/such/folder is not a folder; load_images takes ")
