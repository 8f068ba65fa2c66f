"""The fused shortcuts keep their promise of speed, and the benchmarks write what they say."""

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bench"))

import shortcuts  # noqa: E402
import soap  # noqa: E402
import up_kernel  # noqa: E402

from dcae_lib import blocks  # noqa: E402


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


def test_the_up_kernel_benchmark_trains_every_kernel_with_every_seed(tmp_path, capsys):
    out = tmp_path / "new" / "up_kernel.json"
    sizes = ["--train-images", "64", "--test-images", "8", "--epochs", "1", "--seeds", "2"]
    up_kernel.main(["--dataset", "sample", *sizes, "--out", str(out)])
    record = json.loads(out.read_text())
    assert list(record["data"]) == ["sample train, first 64", "sample test, first 8"]
    assert {kernel: row["parameters"] for kernel, row in record["kernels"].items()} == {
        "2": 86_803, "3": 90_643, "4": 96_019,
    }
    for row in record["kernels"].values():
        assert len(set(row["psnr_by_seed"])) == 2 and row["cpu_seconds"] > 0
        assert row["psnr"] == pytest.approx(sum(row["psnr_by_seed"]) / 2, abs=1e-3)
    assert len(capsys.readouterr().out.splitlines()) == 1 + 3


def test_the_recorded_kernels_were_trained_on_10000_images_with_two_seeds_each():
    record = json.loads(up_kernel.RESULT.read_text())
    assert list(record["data"]) == ["cifar10 train, first 10000", "cifar10 test, first 2000"]
    assert [(kernel, len(row["psnr_by_seed"])) for kernel, row in record["kernels"].items()] == [
        ("2", 2), ("3", 2), ("4", 2),
    ]


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
