"""A run's record names the code, the versions and the machine, and what a finished run leaves can be read again."""

import hashlib
import json
import platform
import re
import subprocess
from dataclasses import asdict
from importlib.metadata import version

import pytest
import torch
import yaml

from dcae_lib import DCAE, TrainConfig, load_images
from dcae_lib.runs import record
from dcae_lib.runs.record import processor, provenance, revision


def git(folder, *arguments):
    identity = ["-c", "user.name=A Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A small repository in which dcae_lib is a package, taken for the clone that this package lies in."""
    (tmp_path / "dcae_lib").mkdir()
    (tmp_path / "dcae_lib" / "model.py").write_text("one = 1\n")
    (tmp_path / ".gitignore").write_text("*.pyc\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "One")
    monkeypatch.setattr(record, "CLONE", tmp_path)
    return tmp_path


CHANGED = ["dcae_lib/model.py", "dcae_lib/new.py"]
OTHERS = ["README.md", "dcae_lib/model.pyc"]  # outside the package, and ignored


@pytest.mark.parametrize("path", [*CHANGED, *OTHERS])
def test_revision_is_the_commit_and_names_changes(path, clone):
    commit = git(clone, "rev-parse", "HEAD")
    assert re.fullmatch("[0-9a-f]{40}", commit) and revision() == commit
    (clone / path).write_text("one = 2\n")
    assert revision() == commit + (" + changes" if path in CHANGED else "")
    git(clone, "add", ".")
    assert revision() == commit + (" + changes" if path in CHANGED else "")


def test_revision_outside_a_clone_is_the_version(monkeypatch):
    monkeypatch.setattr(record, "CLONE", None)
    assert revision() == f"dcae_lib {version('dcae_lib')}"


@pytest.mark.parametrize("lacks", ["a commit", "git", "a repository"])
def test_revision_is_unknown_in_a_clone_without(lacks, tmp_path, monkeypatch):
    if lacks == "a commit":
        git(tmp_path, "init", "--quiet")
    monkeypatch.setattr(record, "CLONE", tmp_path)
    monkeypatch.setenv("PATH" if lacks == "git" else "GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert revision() == "unknown"


def test_provenance_names_revision_versions_hardware_and_threads():
    seen = provenance(torch.device("cpu"))
    assert seen["revision"] == revision() and seen["threads"] == torch.get_num_threads()
    assert seen["versions"].pop("python") == platform.python_version()
    packages = ("torch", "torchvision", "numpy", "safetensors")
    assert seen["versions"] == {name: version(name) for name in packages}
    assert seen["hardware"] == f"{processor()}, {platform.system()}"


# ---- a finished run


def test_run_leaves_its_weights_and_everything_about_them(run):
    assert {path.name for path in run.iterdir()} == {"config.json", "model.safetensors", "history.json", "README.md"}
    data = (run / "model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    assert header == {"history_sha256": hashlib.sha256((run / "history.json").read_bytes()).hexdigest()}
    history, model = json.loads((run / "history.json").read_text()), DCAE.from_pretrained(run)
    assert history["config"] == json.loads(json.dumps(asdict(TrainConfig(**history["config"]))))
    assert history["data"] == {images.name: images.sha256 for images in load_images(history["config"]["dataset"])}
    assert history["parameters"] == sum(p.numel() for p in model.parameters())
    assert history["sessions"] == [dict(step=0, processes=1, **provenance(torch.device("cpu")))]
    names = {"epoch", "train_l1", "l1", "l1_01", "psnr", "ssim", "seconds", "images_per_second"}
    assert [row.keys() for row in history["history"]] == [names, names]


def test_card_names_the_figures_and_its_example_runs(run):
    card = (run / "README.md").read_text()
    last = json.loads((run / "history.json").read_text())["history"][-1]
    for words in ("parameters", "for 2 epochs", "dcae verify", f"l1 {last['l1']:.4f}", f"psnr {last['psnr']:.4f}"):
        assert words in card
    (result,) = yaml.safe_load(card.split("---")[1])["model-index"][0]["results"]
    scores = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert scores == {name: round(last[name], 4) for name in ("l1", "l1_01", "psnr", "ssim")}
    assert result["dataset"]["name"] == list(json.loads((run / "history.json").read_text())["data"])[-1]
    names = dict(x=torch.zeros(1, 3, 8, 8))
    exec(re.search(r"```python\n(.*?)```", card, re.S)[1].replace('"this folder"', repr(str(run))), names)
    assert names["latent"].shape == (1, 4, 2, 2)
