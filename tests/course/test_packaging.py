"""The files that say what to install agree, and public names can be imported and are explained."""

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
EXTRAS = PROJECT["optional-dependencies"]
PYPI_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib"}  # where conda-forge has other names

# Where the course is installed: a pin may name some of these after a semicolon.
PLACES = [
    dict(sys_platform=system, os_name="nt" if system == "win32" else "posix", python_full_version=f"{python}.9")
    | dict(platform_machine=machine, python_version=python, implementation_name="cpython")
    for system, machine in [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"), ("win32", "AMD64")]
    for python in ("3.11", "3.12", "3.13", "3.14")
]


def named(lines):
    """Parse requirements: {PyPI's name: Requirement}."""
    requirements = map(Requirement, lines)
    return {canonicalize_name(PYPI_NAMES.get(r.name, r.name)): r for r in requirements if r.name != "dcae_lib"}


def bounds(requirements):
    return {name: str(requirement.specifier) for name, requirement in requirements.items()}


DIRECT = named([*PROJECT["dependencies"], *EXTRAS["notebooks"], *EXTRAS["dev"]])


def test_every_dependency_has_one_lower_bound_and_no_other():
    assert {name: bound for name, bound in bounds(DIRECT).items() if not re.fullmatch(r">=[\d.]+", bound)} == {}
    assert "dcae_lib[notebooks]" in EXTRAS["dev"]


def test_environment_yml_agrees_with_pyproject_toml():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge"]
    *conda, pip = environment["dependencies"]
    *pypi_only, package = pip["pip"]
    assert package == "--editable ."
    python = {"python": PROJECT["requires-python"], "pip": ""}
    assert bounds(named([*conda, *pypi_only])) == bounds(DIRECT) | python


@pytest.mark.parametrize("place", PLACES, ids="{sys_platform}-{platform_machine}-{python_version}".format_map)
def test_constraints_pin_every_dependency_once_within_its_bounds(place):
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    # No URL, path, hash, range or local build such as +cpu: any index can serve these.
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==\d[\w.]*( ; .*)?", line)] == []
    pins = [pin for pin in map(Requirement, lines) if not pin.marker or pin.marker.evaluate(place)]
    versions = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    assert len(versions) == len(pins)
    assert set(DIRECT) - set(versions) == set()
    assert [name for name, r in DIRECT.items() if not r.specifier.contains(versions[name])] == []


def test_public_names_are_sorted_and_documented():
    assert dcae_lib.__all__ == sorted(set(dcae_lib.__all__))
    texts = {name: getattr(dcae_lib, name).__doc__ or "" for name in dcae_lib.__all__}
    # Dataclasses and named tuples write a docstring by themselves.
    assert [name for name, text in texts.items() if not text or text.startswith(f"{name}(")] == []
