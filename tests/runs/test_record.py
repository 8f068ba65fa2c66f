"""A run's record names the code, the versions and the machine, and what a finished run leaves can be read again."""

import hashlib
import json
import platform
import re
import subprocess
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

from dcae_lib import DCAE, TrainConfig, load_images
from dcae_lib.runs import record
from dcae_lib.runs.record import hardware, processor, provenance, refuse_another, revision


def git(folder, *arguments):
    identity = ["-c", "user.name=A Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A small repository in which dcae_lib is a package, taken for the clone that this package lies in."""
    for path, text in (("dcae_lib/model.py", "one = 1\n"), ("README.md", "read me\n"), (".gitignore", "__pycache__/\n")):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "One")
    monkeypatch.setattr(record, "CLONE", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "change, changes",
    [
        (lambda clone: None, ""),
        (lambda clone: (clone / "dcae_lib" / "model.py").write_text("one = 2\n"), " + changes"),
        (lambda clone: (clone / "dcae_lib" / "new.py").write_text(""), " + changes"),
        (lambda clone: (clone / "dcae_lib" / "model.py").unlink(), " + changes"),
        (lambda clone: git(clone, "rm", "-q", "dcae_lib/model.py"), " + changes"),
        (lambda clone: (clone / "README.md").write_text("changed"), ""),
        (lambda clone: (clone / "dcae_lib" / "__pycache__").mkdir(), ""),
    ],
    ids=["none", "changed", "new", "deleted", "staged", "elsewhere", "ignored"],
)
def test_revision_is_the_commit_and_names_changes(change, changes, clone):
    commit = git(clone, "rev-parse", "HEAD")
    change(clone)
    assert re.fullmatch("[0-9a-f]{40}", commit) and revision() == commit + changes


def test_revision_outside_a_clone_is_the_version(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(record, "CLONE", None)
    assert revision() == f"dcae_lib {version('dcae_lib')}"
    monkeypatch.setattr(record, "version", missing)
    assert revision() == "unknown"


@pytest.mark.parametrize("lacks", ["a commit", "git", "a repository"])
def test_revision_is_unknown_in_a_clone_without(lacks, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "CLONE", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    if lacks == "a commit":
        git(tmp_path, "init", "--quiet")
    if lacks == "git":
        monkeypatch.setenv("PATH", str(tmp_path))
    assert revision() == "unknown"


def test_provenance_names_revision_versions_hardware_and_threads():
    found = provenance(torch.device("cpu"))
    assert found["revision"] == revision() and found["threads"] == torch.get_num_threads()
    assert found["versions"].pop("python") == platform.python_version()
    packages = ("torch", "torchvision", "torchmetrics", "numpy", "safetensors")
    assert found["versions"] == {name: version(name) for name in packages}
    assert found["hardware"] == hardware(torch.device("cpu")) == f"{processor()}, {platform.system()}"
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    "lines, name",
    [
        ("processor\t: 0\nmodel name\t: A Chip: fast\nmodel name\t: Another\n", "A Chip: fast"),
        ("CPU implementer\t: 0x41\n", "aarch64"),  # ARM gives no name
        (None, "aarch64"),  # no /proc
    ],
)
def test_processor_has_the_name_that_the_system_gives(lines, name, monkeypatch):
    def read_text(self):
        if lines is None:
            raise FileNotFoundError
        return lines

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert processor() == name


# ---- a finished run


def test_run_leaves_its_weights_and_everything_about_them(run):
    assert {path.name for path in run.iterdir()} == {"config.json", "model.safetensors", "history.json", "README.md"}
    data = (run / "model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    assert header == {"history_sha256": hashlib.sha256((run / "history.json").read_bytes()).hexdigest()}
    found, model = json.loads((run / "history.json").read_text()), DCAE.from_pretrained(run)
    assert found["config"] == json.loads(json.dumps(asdict(TrainConfig(**found["config"]))))
    assert tuple(found["config"]["model"]["channels"]) == model.config["channels"]
    assert found["data"] == {images.name: images.sha256 for images in load_images(found["config"]["dataset"])}
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    (session,) = found["sessions"]
    assert session == dict(step=0, processes=1, **provenance(torch.device("cpu")))
    names = {"epoch", "train_l1", "l1", "l1_01", "psnr", "ssim", "seconds", "images_per_second"}
    assert [row.keys() for row in found["history"]] == [names, names]


def test_card_names_the_figures_and_its_example_runs(run):
    card = (run / "README.md").read_text()
    last = json.loads((run / "history.json").read_text())["history"][-1]
    for words in ("parameters", "for 2 epochs", "dcae verify", *(f"{name} {last[name]:.4f}" for name in ("l1", "psnr"))):
        assert words in card
    names = dict(x=torch.zeros(1, 3, 8, 8))
    exec(re.search(r"```python\n(.*?)```", card, re.S)[1].replace('"this folder"', repr(str(run))), names)
    assert names["latent"].shape == (1, 4, 2, 2)


def test_finished_run_with_other_settings_is_refused(run):
    config = TrainConfig(**json.loads((run / "history.json").read_text())["config"])
    refuse_another(config, run)
    refuse_another(TrainConfig(**asdict(config) | dict(device="cuda")), run)
    refuse_another(config, run / "nowhere")
    message = r"holds a finished training with other settings \(epochs was 2, is 3\)\. Write to another folder"
    with pytest.raises(ValueError, match=message):
        refuse_another(TrainConfig(**asdict(config) | dict(epochs=3)), run)
    (run / "history.json").write_text("{")
    with pytest.raises(ValueError, match=r"history\.json is not the record of a training; write to another folder"):
        refuse_another(config, run)
