"""A run's record names the code, the versions and the machine, and says what it does not know."""

import json
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

from dcae_lib import provenance as module
from dcae_lib.runs.record import hardware, processor, provenance, revision


def git(folder, *arguments):
    identity = ["-c", "user.name=A Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A small repository in which dcae_lib is a package, taken for the clone that this package lies in."""
    (tmp_path / "dcae_lib").mkdir()
    (tmp_path / "dcae_lib" / "model.py").write_text("one = 1\n")
    (tmp_path / "README.md").write_text("read me\n")
    (tmp_path / ".gitignore").write_text("__pycache__/\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "One")
    monkeypatch.setattr(module, "CLONE", tmp_path)
    return tmp_path


def test_the_revision_of_a_clone_is_its_commit(clone):
    assert revision() == git(clone, "rev-parse", "HEAD")
    assert re.fullmatch("[0-9a-f]{40}", revision())


@pytest.mark.parametrize("change", [
    lambda clone: (clone / "dcae_lib" / "model.py").write_text("one = 2\n"),
    lambda clone: (clone / "dcae_lib" / "new.py").write_text(""),
    lambda clone: (clone / "dcae_lib" / "model.py").unlink(),
    lambda clone: (clone / "dcae_lib" / "model.py").write_text("one = 2\n") and git(clone, "add", "."),
], ids=["changed", "new", "deleted", "staged"])
def test_changes_to_the_package_are_named(change, clone):
    commit = revision()
    change(clone)
    assert revision() == f"{commit} + changes"


@pytest.mark.parametrize("path", ["README.md", "notes.txt", "dcae_lib/__pycache__/model.pyc"])
def test_changes_elsewhere_and_ignored_files_are_not(path, clone):
    commit = revision()
    (clone / path).parent.mkdir(exist_ok=True)
    (clone / path).write_text("changed")
    assert revision() == commit


def test_outside_of_a_clone_the_revision_is_the_version_of_the_package(monkeypatch):
    monkeypatch.setattr(module, "CLONE", None)
    assert revision() == f"dcae_lib {version('dcae_lib')}"


def test_a_package_that_is_not_installed_has_no_known_revision(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(module, "CLONE", None)
    monkeypatch.setattr(module, "version", missing)
    assert revision() == "unknown"


def test_a_clone_without_a_commit_or_without_git_has_no_known_revision(clone, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path_factory.mktemp("empty")))
    assert revision() == "unknown"
    monkeypatch.undo()
    empty = tmp_path_factory.mktemp("repository")
    git(empty, "init", "--quiet")
    monkeypatch.setattr(module, "CLONE", empty)
    assert revision() == "unknown"


def test_a_folder_with_a_pyproject_that_is_no_repository_has_no_known_revision(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CLONE", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert revision() == "unknown"


def test_the_record_names_revision_versions_hardware_and_threads_and_is_json():
    record = provenance(torch.device("cpu"))
    assert set(record) == {"revision", "versions", "hardware", "threads"}
    assert record["revision"] == revision() and record["threads"] == torch.get_num_threads()
    assert record["versions"]["python"] == platform.python_version()
    for name in ("torch", "torchvision", "torchmetrics", "numpy", "safetensors"):
        assert record["versions"][name] == version(name)
    assert json.loads(json.dumps(record)) == record


def test_the_hardware_is_the_processor_and_the_system():
    assert hardware(torch.device("cpu")) == f"{processor()}, {platform.system()}"


@pytest.mark.parametrize("lines, name", [
    ("processor\t: 0\nmodel name\t: A Chip: fast\nmodel name\t: Another\n", "A Chip: fast"),
    ("CPU implementer\t: 0x41\n", "aarch64"),               # of ARM, no name is given there
])
def test_the_processor_is_named_as_the_system_names_it(lines, name, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda self: lines)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert processor() == name


def test_the_processor_is_named_where_there_is_no_proc_too(monkeypatch):
    def missing(self):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr(platform, "processor", lambda: "Apple M9")
    assert processor() == "Apple M9"
