"""The fused shortcuts keep their promise of speed, and the benchmarks write what they say."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "data")]

import explore  # noqa: E402
import make_photos  # noqa: E402
import photos  # noqa: E402
import runs  # noqa: E402
import shortcuts  # noqa: E402
import sizes  # noqa: E402
import soap  # noqa: E402
import stream as bench_stream  # noqa: E402
import sweep  # noqa: E402
import train as bench_train  # noqa: E402

from dcae_lib import DCAE, blocks  # noqa: E402
from dcae_lib.data.cifar10 import SHA256  # noqa: E402
from dcae_lib.soap import SHARED_FROM  # noqa: E402


@pytest.fixture(autouse=True)
def threads():
    """The benchmarks set the number of threads for their process, which here is that of all tests."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", shortcuts.CHAINS)
def test_what_is_timed_against_a_shortcut_does_the_same(name):
    chain, shape, out = shortcuts.CHAINS[name]
    x = torch.randn(2, *shape)
    torch.testing.assert_close(chain(x, out), getattr(blocks, name)(x, out))


def test_no_fused_shortcut_is_far_slower_than_its_chain():
    torch.set_num_threads(1)
    for name, rows in shortcuts.measure(rounds=9, batch=32).items():
        assert rows["fused"]["both"] <= 10 * rows["chain"]["both"], name        # loose, for a busy machine


def test_the_recorded_measurement_says_that_every_fused_shortcut_is_faster():
    record = json.loads(shortcuts.RESULT.read_text())
    assert record["threads"] == 1 and set(record["shortcuts"]) == set(shortcuts.CHAINS)
    for name, rows in record["shortcuts"].items():
        assert min(rows["chain_over_fused"].values()) >= 1, name        # forward, backward and both


def test_the_shortcuts_benchmark_writes_times_ratios_and_where_they_were_measured(tmp_path, capsys):
    shortcuts.main(["--rounds", "2", "--batch", "2", "--out", str(tmp_path / "new" / "shortcuts.json")])
    record = json.loads((tmp_path / "new" / "shortcuts.json").read_text())
    assert record["threads"] == 1 and record["torch"] == torch.__version__ and record["processor"]
    assert set(record["shortcuts"]) == {"pool_down", "pool_up", "direct_down", "direct_up"}
    for rows in record["shortcuts"].values():
        fused, chain, ratio = rows["fused"], rows["chain"], rows["chain_over_fused"]
        for part in ("forward", "backward", "both"):
            assert fused[part] > 0 and ratio[part] == pytest.approx(chain[part] / fused[part], rel=2e-3)
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(record["shortcuts"])


def test_the_sweep_trains_each_change_once_and_goes_on_where_it_was_stopped(tmp_path, capsys):
    out = tmp_path / "new" / "sweep.json"
    arguments = ["--dataset", "sample", "--epochs", "1", "--images", "64", "--out", str(out)]
    sweep.main([*arguments, "--first", "2"])
    first = json.loads(out.read_text())["rows"]
    sweep.main([*arguments, "--first", "3"])
    record = json.loads(out.read_text())
    assert record["rows"][:2] == first and len(record["rows"]) == 3
    assert all(change in [row["change"] for row in record["rows"]] for change in sweep.CHANGES[:3])
    assert len({row["psnr"] for row in record["rows"]}) == 3          # three seeds
    assert record["base"] == sweep.BASE and record["revision"] and record["hardware"]
    assert len(capsys.readouterr().out.splitlines()) == 2 + 3


def test_the_recorded_sweep_holds_every_change():
    done = [row["change"] for row in json.loads(sweep.RESULT.read_text())["rows"]]
    assert [change for change in json.loads(json.dumps(sweep.CHANGES)) if done.count(change) != 1] == []


def test_training_is_timed_beside_the_readers_loop_and_is_not_far_slower(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)         # the other tests have the other core
    out = tmp_path / "train.json"
    bench_train.main(["--dataset", "sample", "--rounds", "2", "--steps", "8", "--out", str(out)])
    rows = {row["loop"]: row["times_reader"] for row in json.loads(out.read_text())["rows"]}
    assert {"ours, float32", "ours, bfloat16", "reader, threads: 1", "reader, keeping memory"} == set(rows)
    assert rows["reader, threads: 1"] == 1
    assert rows["ours, float32"] > 0.18                               # recorded: ten times that
    assert len(capsys.readouterr().out.splitlines()) == len(rows)


# An hour each without a GPU: how many seeds there are is for the README to say.
RECORDED = [name for name in runs.RUNS if not name.startswith("seed-") or (runs.folder(name) / "history.json").exists()]


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_run_was_trained_as_the_list_says_by_committed_code(name):
    assert runs.recorded(name), f"{name} is not there with these settings: python bench/runs.py {name}"
    record = json.loads((runs.folder(name) / "history.json").read_text())
    assert [row["epoch"] for row in record["history"]] == list(range(1, record["config"]["epochs"] + 1))
    assert record["parameters"] <= 96_019
    assert record["data"] == {"cifar10 train": SHA256["train_images"], "cifar10 test": SHA256["test_images"]}
    assert all(len(session["revision"]) == 40 for session in record["sessions"])


def test_a_step_of_soap_is_not_far_slower_than_one_of_adamw(monkeypatch):
    monkeypatch.setattr(soap, "find_spec", lambda name: None)       # heavyball compiles for a minute
    torch.set_num_threads(1)
    times = soap.measure("DCAE", 10, 2)
    assert times["ours"] <= 20 * times["torch AdamW"]       # loose, for a busy machine


def test_the_recorded_soap_keeps_its_bars_on_this_model():
    record = json.loads(soap.RESULT.read_text())
    rows = {(row["model"], row["frequency"], row["implementation"]): row for row in record["rows"]}
    assert record["threads"] == 1 and {model for model, *_ in rows} == set(soap.MODELS)
    assert rows["DCAE", 10, "ours"]["times_adamw"] <= 2.0
    assert rows["DCAE", 1, "ours"]["times_adamw"] <= 3.8
    for frequency in (10, 1):
        assert rows["DCAE", frequency, "pytorch_optimizer"]["times_ours"] >= 2.0
        assert rows["DCAE", frequency, "heavyball"]["times_ours"] >= 2.0


def test_the_soap_benchmark_writes_times_ratios_and_where_they_were_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(soap, "find_spec", lambda name: None)       # heavyball compiles for a minute
    soap.main(["--rounds", "1", "--models", "DCAE", "--out", str(tmp_path / "new" / "soap.json")])
    record = json.loads((tmp_path / "new" / "soap.json").read_text())
    assert record["threads"] == 1 and record["torch"] == torch.__version__ and record["processor"]
    names = ["torch AdamW", "ours", "pytorch_optimizer"]
    assert [(row["frequency"], row["implementation"]) for row in record["rows"]] == [(k, n) for k in (10, 1) for n in names]
    for adamw, ours, peer in zip(*[iter(record["rows"])] * 3):
        assert ours["times_adamw"] == pytest.approx(ours["milliseconds"] / adamw["milliseconds"], abs=0.01)
        assert peer["times_ours"] == pytest.approx(peer["milliseconds"] / ours["milliseconds"], abs=0.01)
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(record["rows"])


def test_an_explorer_answers_within_ten_times_its_bar(tmp_path, capsys):
    out = tmp_path / "new" / "explore.json"
    explore.main(["--rounds", "5", "--no-browser", "--out", str(out)])
    record = json.loads(out.read_text())
    assert max(record["compute_ms"].values()) < 300 and record["upload_seconds"] < 20
    assert json.loads(capsys.readouterr().out) == record


def test_the_recorded_explorers_keep_their_bars():
    record = json.loads(explore.RESULT.read_text())
    assert record["threads"] == 1 and record["rounds"] >= 50
    assert max(record["compute_ms"].values()) <= 30
    assert record["browser"].pop("upload_seconds") <= 2 and record["upload_seconds"] <= 2
    assert max(record["browser"].values()) <= 100


def test_overlapping_tiles_are_the_best_way_for_every_recorded_photo():
    rows = json.loads(photos.OUT.read_text())["rows"]
    assert {row["groups"] for row in rows} == {1, 8, 32}
    for row in rows:
        assert row["psnr"]["32/8"] > max(row["psnr"]["whole"], row["psnr"]["tiles"])


def test_the_recorded_numbers_of_the_shipped_weights_on_a_photo_are_found_again():
    rows = json.loads(photos.OUT.read_text())["rows"]
    recorded = next(row["psnr"] for row in rows if row["model"] == "full" and row["photo"] == "cat")
    assert photos.measure(DCAE.from_pretrained(), photos.photo("cat")) == pytest.approx(recorded, abs=0.01)


def test_the_photographs_are_those_of_the_list():
    for name, (_, sha256) in make_photos.PHOTOS.items():
        with Image.open(ROOT / "data" / "photos" / f"{name}.webp") as image:
            assert hashlib.sha256(np.asarray(image).tobytes()).hexdigest() == sha256


def recorded(name):
    return json.loads((ROOT / "results" / "bench" / f"{name}.json").read_text())


def test_the_recorded_sizes_of_the_shipped_weights_are_found_again():
    models = recorded("sizes")["models"]
    for name, found in sizes.measure(DCAE.from_pretrained()).items():
        assert found == pytest.approx(models["the course's weights"]["psnr"][name], abs=0.01)


def test_training_on_several_sizes_takes_the_slope_away():
    """From 32×32 pieces to one piece, with one channel per group, on every photo."""
    models = recorded("sizes")["models"]
    for name in sizes.REGIONS:
        one, more, several = (models[f"crops of {crops}, one channel per group"]["psnr"][name] for crops in sizes.CROPS)
        assert one["whole"] - one["32"] < -4 and several["whole"] - several["32"] > -0.5
        assert more["whole"] - more["32"] < -4 and several["whole"] > more["whole"] + 3         # as many pixels, of one size
    steps = {model["steps"] for name, model in models.items() if name.startswith("crops")}
    assert len(steps) == 1


def test_two_processes_are_faster_where_batches_are_large_and_what_is_shared_pays():
    record = recorded("distributed")
    assert record["steps"][-1]["seconds"]["alone"] > 1.2 * record["steps"][-1]["seconds"]["together"]
    assert max(record["drift"]["float64, eps 1e-6"].values()) < 1e-6
    assert all(all(ways.values()) for ways in record["same_bits"].values())
    assert record["shared_from"] == SHARED_FROM
    for row in record["refresh"]:                           # between a quarter of that size and all of it, it is even
        if row["k"] >= SHARED_FROM or row["k"] <= SHARED_FROM // 4:
            assert (row["seconds"]["shared"] < row["seconds"]["each"]) == (row["k"] >= SHARED_FROM)


def test_a_hundred_thousand_files_take_hardly_more_memory_than_ten_thousand():
    rows = {(row["kind"], row["count"]): row["mebibytes"] for row in recorded("stream")["rows"] if row["workers"] == 1}
    for kind in ("files", "shards"):
        assert rows[kind, 100_000] < rows[kind, 10_000] + 30


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what processes share is counted on Linux only")
def test_memory_does_not_grow_while_images_are_streamed(tmp_path):
    """Batches of 3 MB: kept, those of an epoch would be 190."""
    bench_stream.write(tmp_path, 4500)
    read = [sys.executable, bench_stream.__file__, "--read", str(tmp_path / "files"), "1"]
    found = json.loads(subprocess.run(read, capture_output=True, text=True, check=True, cwd=ROOT).stdout.splitlines()[-1])
    assert found["images"] == 2 * 4050 and found["mebibytes"] < 130
