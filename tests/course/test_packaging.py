"""The files that say what to install agree, the modules stay small and in order, and public names are explained."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import dcae_lib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = sorted((ROOT / "dcae_lib").glob("*.py"))

# A module imports only from those that stand before it here; a new module gets its place in this list.
ORDER = [
    "resources", "process", "distributed", "watch", "provenance", "shuffle", "blocks", "model", "soap", "cifar10", "data", "stream",
    "metrics", "baselines", "tiles", "latents", "config", "checkpoint", "train", "bitstream", "entropy", "rate", "codec", "verify", "plots", "lesson", "panels", "explore", "compare",
]

# What conda-forge calls otherwise than PyPI does.
PYPI_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib"}


def direct():
    """Every direct dependency, of the package and of its extras: {name: Requirement}."""
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *extras["notebooks"], *extras["dev"]]
    requirements = [Requirement(line) for line in lines]
    return {canonicalize_name(r.name): r for r in requirements if canonicalize_name(r.name) != "dcae-lib"}


def bounds(requirements):
    return {name: str(r.specifier) for name, r in requirements.items()}


# ---- what to install


def test_every_dependency_has_one_lower_bound_and_no_other():
    assert all(re.fullmatch(r">=[\d.]+", bound) for bound in bounds(direct()).values()), bounds(direct())


def test_dev_includes_what_notebooks_need():
    assert "dcae_lib[notebooks]" in PROJECT["optional-dependencies"]["dev"]


def test_environment_yml_says_the_same_as_pyproject_toml():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge"]
    named, others = {}, []
    for entry in environment["dependencies"]:
        if isinstance(entry, str):
            requirement = Requirement(entry)
            named[canonicalize_name(PYPI_NAMES.get(requirement.name, requirement.name))] = str(requirement.specifier)
        else:
            others.append(entry)
    assert named.pop("python") == PROJECT["requires-python"]
    assert named.pop("pip") == ""
    # conda brings all but the package itself and what only PyPI has.
    assert len(others) == 1 and list(others[0]) == ["pip"]
    *pypi_only, package = others[0]["pip"]
    assert package == "--editable ."
    assert bounds(direct()) == named | {canonicalize_name(r.name): str(r.specifier) for r in map(Requirement, pypi_only)}


# Where the course is installed: every pin may say, after a semicolon, for which of these it is.
PLACES = [
    dict(sys_platform=system, os_name="nt" if system == "win32" else "posix", python_full_version=f"{python}.9")
    | dict(platform_machine=machine, python_version=python, implementation_name="cpython")
    for system, machine in [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"), ("win32", "AMD64")]
    for python in ("3.11", "3.12", "3.13", "3.14")
]


def pins():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    # No URL, path, hash, range or local build such as +cpu: any index can serve these.
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==\d[\w.]*( ; .*)?", line)] == []
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("place", PLACES, ids="{sys_platform}-{platform_machine}-{python_version}".format_map)
def test_constraints_txt_pins_every_dependency_once_within_its_bounds(place):
    pinned = [pin for pin in pins() if not pin.marker or pin.marker.evaluate(place)]
    names = [canonicalize_name(pin.name) for pin in pinned]
    assert [name for name in names if names.count(name) > 1] == []
    versions = {name: str(pin.specifier).removeprefix("==") for name, pin in zip(names, pinned)}
    assert set(direct()) - set(versions) == set()
    assert [name for name, r in direct().items() if not r.specifier.contains(versions[name])] == []


# ---- the modules


def imported(tree):
    """Modules of dcae_lib that a module imports, wherever in it: {name}."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "dcae_lib"):
            inside = (node.module or "").removeprefix("dcae_lib").strip(".")
            yield from [inside.split(".")[0]] if inside else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                first, _, inside = alias.name.partition(".")
                if first == "dcae_lib":
                    yield inside.split(".")[0]


def test_a_module_imports_only_from_those_above_it():
    for path in MODULES:
        if path.stem == "__init__":
            continue
        assert path.stem in ORDER, f"say in ORDER where {path.name} stands"
        below = set(imported(ast.parse(path.read_text(encoding="utf-8")))) - set(ORDER[: ORDER.index(path.stem)])
        assert below == set(), f"{path.name} imports {below}, which stands below it"


def test_no_module_is_longer_than_400_lines_nor_all_than_5340():
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {name: count for name, count in lines.items() if count > 400} == {}
    assert sum(lines.values()) <= 5340


def test_every_module_says_what_it_is_for_in_one_line():
    for path in MODULES:
        first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
        assert first and "\n" not in first, path.name


# ---- public names


@pytest.mark.parametrize("name", dcae_lib.__all__)
def test_a_public_name_can_be_imported_and_has_a_docstring(name):
    text = getattr(dcae_lib, name).__doc__
    assert text and not text.startswith(f"{name}(")         # as dataclasses and named tuples write by themselves


def test_public_names_stand_once_and_in_order():
    assert dcae_lib.__all__ == sorted(set(dcae_lib.__all__))
