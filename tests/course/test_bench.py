"""Benchmarks: they write what notebooks and README read, and the recorded results keep their bars."""

import json
import os
import sys

import explore
import gpu
import harness
import photographs
import photos
import pytest
import runs
import sizes
import soap
import step
import stream
import sweep
import torch
import train

from dcae_lib import DCAE
from dcae_lib.course import measured
from dcae_lib.data.cifar10 import SHA256

pytestmark = pytest.mark.slow  # they measure


@pytest.fixture(autouse=True)
def threads():
    """Restore the number of threads, which the benchmarks set for their process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(module, out, *arguments):
    module.main([*arguments, "--out", str(out)])
    return json.loads(out.read_text())


def test_tasks_take_turns_and_every_other_round_goes_backwards():
    order = []
    found = harness.in_turns({"a": 1, "b": 2}, 2, lambda task: order.append(task) or len(order))
    assert order == [1, 2, 2, 1, 1, 2]
    assert found == {"a": [4, 5], "b": [3, 6]}
    assert harness.ratio([2, 4, 9], [1, 2, 3]) == 2


def test_a_sweep_trains_each_change_once_and_resumes(tmp_path):
    arguments = ["--dataset", "sample", "--epochs", "1", "--images", "64", "--first"]
    first = run(sweep, tmp_path / "sweep.json", *arguments, "2")
    record = run(sweep, tmp_path / "sweep.json", *arguments, "3")
    assert record["rows"][:2] == first["rows"] and record["base"] == sweep.BASE
    assert sorted(row["change"].get("seed", 0) for row in record["rows"]) == [0, 1, 2]


def test_training_is_not_far_slower_than_the_plain_loop(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # the other tests use the other core
    small = ("--dataset", "sample", "--rounds", "2", "--steps", "8", "--images", "500")
    rows = run(train, tmp_path / "train.json", *small)["rows"]
    times = {row["loop"]: row["times_reader"] for row in rows}
    assert set(times) == {row["loop"] for row in measured("train")["rows"]} - {"reader, threads: 2"}
    assert times["reader, threads: 1"] == 1
    assert times["ours, float32"] > 0.16  # recorded: ten times that


def test_parts_of_a_step_are_recorded_and_are_less_than_the_step(tmp_path):
    rows = run(step, tmp_path / "step.json", "--rounds", "1")["rows"]
    assert [list(row) for row in rows] == [list(row) for row in measured("step")["rows"]]
    for row in rows:
        assert row["gflop"] == pytest.approx(1.617, abs=1e-3)  # 32 images of 8.57 million multiply-adds, three passes
        assert 0 < row["convolutions"] and 0 < row["floor"] < row["step"]


def test_measuring_on_a_gpu_runs_on_a_cpu_too(tmp_path):
    options = ("--device", "cpu", "--smoke", "--runs", str(tmp_path / "runs"), "--skip", "float32, compiled")
    record = run(gpu, tmp_path / "gpu.json", *options)
    recorded = measured("gpu")
    assert list(record) == [name for name in recorded if name != "float32, compiled"]
    assert [name for name, found in record.items() if isinstance(found, str) and "Error" in found] == []
    assert all(found.keys() <= recorded[name].keys() for name, found in record.items() if isinstance(found, dict))


def test_a_step_of_soap_is_compared_with_adamw(tmp_path, monkeypatch):
    monkeypatch.setattr(soap, "find_spec", lambda name: None)  # heavyball compiles for a minute
    rows = run(soap, tmp_path / "soap.json", "--rounds", "1", "--models", "DCAE")["rows"]
    times = {(row["frequency"], row["implementation"]): row["milliseconds"] for row in rows}
    names = ("torch AdamW", "torch AdamW, fused", "ours", "pytorch_optimizer")
    assert set(times) == {(k, name) for k in (10, 1) for name in names}
    for row in (row for row in rows if row["implementation"] == "ours"):
        k = row["frequency"]
        assert row["times_adamw"] == pytest.approx(times[k, "ours"] / times[k, "torch AdamW"], abs=0.01)
        assert row["times_adamw"] <= 20  # loose, for a busy machine


def test_an_explorer_answers_within_ten_times_its_bar(tmp_path):
    record = run(explore, tmp_path / "explore.json", "--rounds", "5", "--no-browser")
    assert max(record["compute_ms"].values()) < 300 and record["upload_seconds"] < 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="shared memory is counted on Linux only")
def test_photographs_are_compared_at_equal_quality(tmp_path, monkeypatch):
    monkeypatch.setattr(photographs, "photographs", lambda: {"cat": harness.photo("cat")[:, :192, :192]})
    monkeypatch.setattr(photographs, "QUALITIES", {"WebP": range(0, 98, 14)})
    record = run(photographs, tmp_path / "photographs.json", "curves")
    ours, webp = (record["curves"]["cat"][name] for name in ("DCAE 0", "WebP"))
    assert all(point["bpp"] == 8 * point["bytes"] / 192**2 for point in ours + webp)
    rate = record["bd_rate"]["psnr"]["DCAE 0"]["WebP"]
    assert rate["cat"] == rate["mean"] and -60 < rate["mean"] < 60


def test_memory_does_not_grow_while_images_are_streamed(tmp_path):
    # Batches of 3 MB: kept, those of an epoch would be 190.
    stream.write(tmp_path, 4500)
    found = stream.in_process((str(tmp_path / "files"), "1"))
    assert found["images"] == 2 * 4050 and found["mebibytes"] < 130


def test_recorded_sweep_holds_every_change():
    done = [row["change"] for row in measured("sweep")["rows"]]
    assert [change for change in json.loads(json.dumps(sweep.CHANGES)) if done.count(change) != 1] == []


# An hour each without a GPU: the README says how many seeds there are.
RECORDED = [name for name in runs.RUNS if not name.startswith("seed-") or (runs.folder(name) / "history.json").exists()]


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_run_has_the_listed_settings_and_committed_code(name):
    assert runs.recorded(name), f"{name} is missing with these settings: python bench/runs.py {name}"
    record = json.loads((runs.folder(name) / "history.json").read_text())
    assert [row["epoch"] for row in record["history"]] == list(range(1, record["config"]["epochs"] + 1))
    assert record["parameters"] <= 96_019
    assert record["data"] == {"cifar10 train": SHA256["train_images"], "cifar10 test": SHA256["test_images"]}
    assert all(len(session["revision"]) == 40 for session in record["sessions"])


def test_recorded_soap_keeps_its_bars():
    record = measured("soap")
    rows = {(row["model"], row["frequency"], row["implementation"]): row for row in record["rows"]}
    assert record["threads"] == 1
    for frequency, bar in ((10, 1.5), (1, 3.8)):
        assert rows["DCAE", frequency, "ours"]["times_adamw"] <= bar
        assert rows["DCAE", frequency, "pytorch_optimizer"]["times_ours"] >= 1.8
        assert rows["DCAE", frequency, "heavyball"]["times_ours"] >= 2.0


def test_shipped_weights_reproduce_the_recorded_photos():
    model, rows = DCAE.from_pretrained(), measured("photos")["rows"]
    recorded = {row["photo"]: row["psnr"] for row in rows if row["model"] == "full"}
    assert photos.measure(model, photos.whole_tiles("cat")) == pytest.approx(recorded["cat"], abs=0.01)
    recorded = measured("sizes")["models"]["the course's weights"]["psnr"]
    for name, found in sizes.measure(model).items():
        assert found == pytest.approx(recorded[name], abs=0.01)
    # Overlapping tiles are the best way for every photo and network.
    assert {row["groups"] for row in rows} == {1, 8, 32}
    assert all(row["psnr"]["32/8"] > max(row["psnr"]["whole"], row["psnr"]["tiles"]) for row in rows)


CONSTANT = {"ab12yz ab3456yz": 4, "abab ababab": 4, "abc xyz": 0, "a1c2e a3c4e": 3}  # no byte counts twice


@pytest.mark.parametrize("files, count", CONSTANT.items())
def test_constant_bytes_are_aligned_at_start_or_end(files, count):
    assert harness.constant_bytes(files.encode().split()) == count
