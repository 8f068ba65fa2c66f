"""A record is read with its own weights only, and measured metrics are compared with it."""

import hashlib
import json
from dataclasses import replace
from functools import partial

import pytest

from dcae_lib import DCAE, evaluate, load_images
from dcae_lib.model import pretrained_files
from dcae_lib.runs.verify import compare, read_record, table

METRICS = ["l1", "l1_01", "psnr", "ssim"]


def rewrite(run, change=lambda record: None):
    """Write the history anew after a change, and the model with its hash, as if the run had recorded it so."""
    record = json.loads((run / "history.json").read_text())
    change(record)
    history = json.dumps(record).encode()
    files = pretrained_files(DCAE.from_pretrained(run), history_sha256=hashlib.sha256(history).hexdigest())
    for name, data in {**files, "history.json": history}.items():
        (run / name).write_bytes(data)


def parts(run):
    """Return the record, the test images and the model of a run."""
    record = read_record(run)
    return record, load_images(record["config"]["dataset"]).test, DCAE.from_pretrained(run)


def test_weights_give_the_metrics_of_the_last_epoch(run):
    rewrite(run, lambda record: record["history"][0].update(dict.fromkeys(METRICS, 0.0)))
    record, test, model = parts(run)
    last = record["history"][-1]
    scores = compare(record, test, model, evaluate, 0.0)
    assert scores == {name: (last[name], last[name]) for name in METRICS}
    assert table(scores).splitlines()[2] == f"psnr   recorded {last['psnr']:.6f}, measured {last['psnr']:.6f}"


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("change", [0.9e-4, -0.9e-4, 1.1e-4, -1.1e-4, float("nan")])
def test_metric_beyond_the_tolerance_is_refused_with_both_numbers(name, change, run):
    record, test, model = parts(run)
    measured = record["history"][-1][name]
    record["history"][-1][name] += change
    check = partial(compare, record, test, model, evaluate, 1e-4)
    if abs(change) < 1e-4:
        assert check()[name] == (measured + change, measured)
        return
    with pytest.raises(ValueError, match="the weights do not give the recorded metrics:\nl1     recorded") as refused:
        check()
    assert f"{name:6} recorded {measured + change:.6f}, measured {measured:.6f}" in str(refused.value)


@pytest.mark.parametrize("data", [{}, {"pictures0 test": "another"}])
def test_other_test_images_are_refused_with_both_hashes(data, run):
    record, test, model = parts(run)
    test = replace(test, name="pictures0 test")
    message = f"pictures0 test has SHA-256 {test.sha256}, the record says {data.get(test.name)}"
    with pytest.raises(ValueError, match=message):
        compare(record | dict(data=data), test, model, evaluate, 1e-4)


def test_changed_history_and_weights_without_one_are_refused(run):
    history = (run / "history.json").read_bytes()
    (run / "history.json").write_bytes(history.replace(b'"epochs": 2', b'"epochs": 3'))
    message = f"the weights in {run} were not saved with the history.json beside them"
    with pytest.raises(ValueError, match=message):
        read_record(run)
    rewrite(run)
    assert read_record(run)["config"]["epochs"] == 3
    (run / "model.safetensors").write_bytes(pretrained_files(DCAE.from_pretrained(run))["model.safetensors"])
    with pytest.raises(ValueError, match=message):
        read_record(run)


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.pop("config"),
        lambda record: record["config"].pop("dataset"),
        lambda record: record.update(history=[]),
        lambda record: record.pop("data"),
    ],
)
def test_record_in_which_something_is_missing_is_refused(change, run):
    rewrite(run, change)
    with pytest.raises(ValueError, match=r"history\.json is not the record of a training: "):
        read_record(run)
