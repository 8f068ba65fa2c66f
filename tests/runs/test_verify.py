"""Trained weights are held against their record, and whatever does not fit is said in a sentence."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcae_lib import DCAE, TrainConfig, evaluate, load_images, train
from dcae_lib.files import resource
from dcae_lib.runs.verify import TOLERANCE, main, verify

SMALL = dict(channels=(4, 8), latent_channels=4, groups=4)
METRICS = ["l1", "l1_01", "psnr", "ssim"]


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A run on a copy of the pictures, in `<here>/run` and `<here>/pictures`."""
    here = tmp_path_factory.mktemp("trained")
    shutil.copytree(folder, here / "pictures")
    config = TrainConfig(dataset=str(here / "pictures"), epochs=2, batch_size=6, device="cpu", average=0.5, model=SMALL)
    train(config, here / "run")
    return here


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run."""
    return shutil.copytree(trained / "run", tmp_path / "run")


def record(run, change=lambda record: None):
    """Write the history anew after a change, and the model with the hash of that, as if they had been recorded so."""
    record = json.loads((run / "history.json").read_text())
    change(record)
    text = json.dumps(record).encode()
    (run / "history.json").write_bytes(text)
    DCAE.from_pretrained(run).save_pretrained(run, history_sha256=hashlib.sha256(text).hexdigest())


def refused(run, capsys):
    """What the command says when it refuses, which is no traceback."""
    assert main([str(run), "--device", "cpu"]) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err and "Traceback" not in said.err
    return said.err


def test_a_run_gives_what_it_recorded(run):
    scores = verify(run, "cpu")
    recorded = json.loads((run / "history.json").read_text())["history"][-1]
    assert scores == {name: (recorded[name], recorded[name]) for name in METRICS}


def test_the_last_epoch_counts_and_each_metric_is_found_anew_on_the_test_images(run):
    test = load_images(json.loads((run / "history.json").read_text())["config"]["dataset"]).test
    found = evaluate(DCAE.from_pretrained(run), test)
    record(run, lambda record: record["history"][0].update(dict.fromkeys(METRICS, 0.0)))
    assert {name: value for name, (_, value) in verify(run).items()} == found


def test_the_command_prints_what_was_recorded_and_what_was_found(run, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "dcae_lib.runs.verify", "run"], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0 and done.stderr == ""
    last = json.loads((run / "history.json").read_text())["history"][-1]
    expected = "\n".join(f"{name:6} recorded {last[name]:.6f}, found {last[name]:.6f}" for name in METRICS)
    assert done.stdout == expected + "\n"


def test_without_a_folder_the_recorded_run_is_verified(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(sys.modules["dcae_lib.runs.verify"], "verify", lambda *arguments: asked.append(arguments) or {})
    assert main([]) == 0 and main(["elsewhere", "--device", "cpu"]) == 0
    assert asked == [(resource("recorded"), None), (Path("elsewhere"), "cpu")]


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("change", [TOLERANCE * 2, -TOLERANCE * 2, float("nan")])
def test_a_metric_that_is_recorded_otherwise_is_refused_with_both_numbers(name, change, run, capsys):
    def falsify(record):
        record["history"][-1][name] += change

    record(run, falsify)
    said = refused(run, capsys)
    assert said.startswith(f"the weights in {run} do not give what is recorded:\n")
    last = json.loads((run / "history.json").read_text())["history"][-1]
    assert f"{name:6} recorded {last[name]:.6f}, found {last[name] - change:.6f}\n" in said or change != change


@pytest.mark.parametrize("change", [TOLERANCE / 2, -TOLERANCE / 2])
def test_what_another_processor_rounds_otherwise_is_within_the_tolerance(change, run):
    def nudge(record):
        for name in METRICS:
            record["history"][-1][name] += change

    record(run, nudge)
    for recorded, found in verify(run).values():
        assert recorded - found == pytest.approx(change)


def test_a_changed_weight_is_refused(run, capsys):
    model = DCAE.from_pretrained(run)
    list(model.parameters())[-1].data[0] += 0.01            # of the last bias
    record(run)
    sha256 = header(run)["history_sha256"]
    model.save_pretrained(run, history_sha256=sha256)
    assert "do not give what is recorded:\nl1     recorded 0." in refused(run, capsys)


def header(run):
    data = (run / "model.safetensors").read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]


def test_the_weights_carry_the_hash_of_their_history(run):
    assert header(run) == {"history_sha256": hashlib.sha256((run / "history.json").read_bytes()).hexdigest()}


def test_a_changed_history_is_refused(run, capsys):
    history = (run / "history.json").read_bytes()
    (run / "history.json").write_bytes(history.replace(b'"epochs": 2', b'"epochs": 3'))
    said = f"the weights in {run} were not saved with the history.json that lies beside them\n"
    assert refused(run, capsys) == said


def test_weights_that_name_no_history_are_refused(run, capsys):
    DCAE.from_pretrained(run).save_pretrained(run)
    assert "were not saved with the history.json that lies beside them" in refused(run, capsys)


def test_another_config_of_the_same_shapes_is_refused(run, capsys):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | dict(shortcut="direct")))
    assert "do not give what is recorded" in refused(run, capsys)


def test_another_data_set_is_refused_with_both_hashes(trained, run, tmp_path, capsys):
    pictures = shutil.copytree(trained / "pictures", tmp_path / "pictures")
    for path in pictures.iterdir():
        Image.fromarray(np.asarray(Image.open(path)) ^ 1).save(path)
    record(run, lambda record: record["config"].update(dataset=str(pictures)))
    recorded = json.loads((run / "history.json").read_text())["data"]["pictures test"]
    said = refused(run, capsys)
    assert said == f"pictures test has SHA-256 {load_images(pictures).test.sha256}, the record says {recorded}\n"


def test_a_data_set_that_is_not_recorded_is_refused(run, capsys):
    record(run, lambda record: record.update(data={}))
    assert "the record says None" in refused(run, capsys)


def test_a_data_set_that_is_gone_is_named(run, capsys):
    record(run, lambda record: record["config"].update(dataset="no/such/folder"))
    assert refused(run, capsys).startswith("no/such/folder is not a folder; load_images takes ")


@pytest.mark.parametrize("name", ["history.json", "config.json", "model.safetensors"])
def test_a_missing_file_is_named(name, run, capsys):
    (run / name).unlink()
    said = refused(run, capsys)
    assert name in said and str(run) in said


def test_a_folder_that_is_not_there_is_named(tmp_path, capsys):
    assert str(tmp_path / "nowhere") in refused(tmp_path / "nowhere", capsys)


@pytest.mark.parametrize("name", ["history.json", "config.json", "model.safetensors"])
@pytest.mark.parametrize("kept", [slice(0), slice(0, 100), slice(1, None)])
def test_a_damaged_file_is_refused(name, kept, run, capsys):
    (run / name).write_bytes((run / name).read_bytes()[kept])
    assert str(run) in refused(run, capsys)


@pytest.mark.parametrize("change", [
    lambda record: record.pop("config"), lambda record: record.update(history=[]),
    lambda record: record.update(data=None),
])
def test_a_record_in_which_something_is_missing_is_refused_in_a_sentence(change, run, capsys):
    record(run, change)
    assert str(run) in refused(run, capsys)


def test_a_device_that_is_not_there_is_named(run, capsys):
    assert main([str(run), "--device", "abacus"]) == 1
    assert "device 'abacus' cannot be used" in capsys.readouterr().err


def test_a_look_changes_nothing(run):
    before = {path: path.read_bytes() for path in run.iterdir()}
    verify(run)
    assert {path: path.read_bytes() for path in run.iterdir()} == before
