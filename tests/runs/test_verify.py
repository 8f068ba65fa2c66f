"""A record is read with its own weights only, and measured metrics are compared with it."""

import hashlib
import json

import pytest

from dcae_lib import DCAE, evaluate, load_images
from dcae_lib.model import pretrained_files
from dcae_lib.runs.record import compare, read_record, table

METRICS = ["l1", "l1_01", "psnr", "ssim"]


def rewrite(run, change=lambda record: None):
    """Write the history anew after a change, and the model with its hash, as if the run had recorded it so."""
    record = json.loads((run / "history.json").read_text())
    change(record)
    history = json.dumps(record).encode()
    files = pretrained_files(DCAE.from_pretrained(run), history_sha256=hashlib.sha256(history).hexdigest())
    for name, data in {**files, "history.json": history}.items():
        (run / name).write_bytes(data)


def check(run, **record):
    """Compare a run with its record, in which some entries are replaced."""
    record = read_record(run) | record
    return compare(record, load_images(record["config"]["dataset"]).test, DCAE.from_pretrained(run), evaluate, 1e-4)


def test_weights_give_the_metrics_of_the_last_epoch(run):
    rewrite(run, lambda record: record["history"][0].update(dict.fromkeys(METRICS, 0.0)))
    last = read_record(run)["history"][-1]
    scores = check(run)
    for name in METRICS:
        assert scores[name] == pytest.approx((last[name], last[name]), abs=1e-6)
    assert table(scores).splitlines()[2] == f"psnr   recorded {last['psnr']:.6f}, measured {last['psnr']:.6f}"


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("change", [0.9e-4, -0.9e-4, 1.1e-4, -1.1e-4, float("nan")])
def test_metric_beyond_the_tolerance_is_refused_with_both_numbers(name, change, run):
    rewrite(run, lambda record: record["history"][-1].update({name: record["history"][-1][name] + change}))
    recorded = read_record(run)["history"][-1][name]
    if abs(change) < 1e-4:
        assert check(run)[name] == (recorded, pytest.approx(recorded - change))
    else:
        message = rf"the weights do not give the recorded metrics:(?s:.)*{name} +recorded {recorded:.6f}"
        with pytest.raises(ValueError, match=message):
            check(run)


def test_other_test_images_are_refused_with_both_hashes(run):
    with pytest.raises(ValueError, match=r"test has SHA-256 [0-9a-f]{64}, the record says None"):
        check(run, data={"another test": "its hash"})


def test_record_of_other_weights_is_refused(run):
    message = f"the weights in {run} were not saved with the history.json beside them"
    history = (run / "history.json").read_bytes()
    (run / "history.json").write_bytes(history.replace(b'"epochs": 2', b'"epochs": 3'))
    with pytest.raises(ValueError, match=message):
        read_record(run)
    rewrite(run)
    assert read_record(run)["config"]["epochs"] == 3
    (run / "model.safetensors").write_bytes(pretrained_files(DCAE.from_pretrained(run))["model.safetensors"])
    with pytest.raises(ValueError, match=message):  # these name no history
        read_record(run)
