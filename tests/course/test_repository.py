"""What a stranger finds: links that lead somewhere, no secret and no path of a machine, one version, copies for a class."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from run_all import NOTEBOOKS  # noqa: E402
from student import without_solutions  # noqa: E402

TRACKED = [ROOT / name for name in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()]
KINDS = {".py", ".md", ".ipynb", ".yml", ".toml", ".cff", ".txt", ".json", ".cfg", ".css", ".j2", ""}
TEXTS = [path for path in TRACKED if path.suffix in KINDS and path.is_file()]
PAGES = [path for path in TRACKED if path.suffix == ".md"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

SECRETS = [
    r"-----BEGIN [A-Z ]*PRIVATE KEY", r"\bAKIA[0-9A-Z]{16}\b", r"\bgh[pousr]_[A-Za-z0-9]{30,}", r"\bgithub_pat_\w{20,}",
    r"\bhf_[A-Za-z]{30,}", r"\bsk-[A-Za-z0-9]{30,}", r"\bxox[abp]-[\w-]{10,}", r"\bpypi-[A-Za-z0-9_-]{40,}",
    r"://[^/\s:@\"']+:[^/\s:@\"'{]+@",
]
# A token that is empty, in the forms that Jupyter takes.
OPEN_DOORS = [r"token\s*=\s*(''|\"\"|None\b)", r"(?m)--[\w.]*token=(?=[\s`\"']|$)", r"password\s*=\s*(''|\"\")", r"disable_check_xsrf", r"allow_unauthenticated_access=True"]
MACHINE = r"(?<![\w.])/(home|root|Users|tmp|work|mnt|opt)/\w|\b[A-Z]:\\\\(Users|home)"


def matches(pattern, text):
    return [text[max(0, m.start() - 30) : m.end() + 30] for m in re.finditer(pattern, text)]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_holds_a_secret(path):
    text = path.read_text(encoding="utf-8")
    if path.name != Path(__file__).name:
        assert [found for pattern in SECRETS for found in matches(pattern, text)] == []


@pytest.mark.parametrize("text", [
    "ghp_" + "a1" * 18, "AKIA" + "A" * 16, "-----BEGIN RSA PRIVATE KEY", "https://me:secret@example.org", "hf_" + "a" * 34,
])
def test_a_secret_would_be_seen(text):
    assert any(matches(pattern, text) for pattern in SECRETS)


@pytest.mark.parametrize("path", [p for p in TEXTS if "tests" not in p.parts], ids=lambda path: str(path.relative_to(ROOT)))
def test_jupyters_token_is_never_switched_off(path):
    text = path.read_text(encoding="utf-8")
    assert [found for pattern in OPEN_DOORS for found in matches(pattern, text)] == []


@pytest.mark.parametrize("path", [p for p in TEXTS if p.suffix in (".ipynb", ".md", ".json")], ids=lambda p: str(p.relative_to(ROOT)))
def test_no_page_names_a_place_on_somebodys_machine(path):
    assert matches(MACHINE, path.read_text(encoding="utf-8")) == []


def test_nothing_is_unpickled_but_what_was_checked():
    for path in (ROOT / "dcae_lib").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"torch\.load\(|joblib|np\.load\(.*allow_pickle|\.extractall\(|shutil\.unpack|(?<![.\w])(eval|exec)\(", text), path
        # There it is an unpickler that admits arrays only, of a file whose hash was checked.
        assert bool(re.search(r"import pickle|pickle\.", text)) == (path.name == "cifar10.py"), path


# ---- links


def targets(text):
    """What Markdown links to, without code and without other hosts."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)
    return [url for url in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"\w+:", url)]


def anchors(text):
    """The ids that GitHub gives to headings."""
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.M)}


def markdown(path):
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    return "\n\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_within_the_repository_leads_somewhere(path):
    for url in targets(markdown(path)):
        file, _, fragment = url.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{path.name} links to {url}"
        if fragment and target.suffix in (".md", ".ipynb"):
            assert fragment in anchors(markdown(target)), f"{path.name} links to {url}"


def test_no_word_is_misspelt(tmp_path):
    for path in [*PAGES, *NOTEBOOKS]:
        (tmp_path / f"{path.parent.name}-{path.stem}.md").write_text(markdown(path), encoding="utf-8")
    sources = [path for path in TRACKED if path.suffix in (".py", ".yml", ".toml", ".cff") or path.name == "Makefile"]
    checked = subprocess.run(
        [sys.executable, "-m", "codespell_lib", "-L", "rouge", tmp_path, *sources], capture_output=True, text=True, cwd=ROOT
    )
    assert checked.returncode == 0, checked.stdout


# ---- what says the same in several places


def test_the_version_is_one_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == VERSION and citation["cff-version"] == "1.2.0" and citation["license"] == "MIT"
    assert re.search(rf"^## {re.escape(VERSION)}\b", (ROOT / "CHANGELOG.md").read_text(), re.M)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_asks_for_no_more_than_it_needs(path):
    flow = yaml.safe_load(path.read_text())
    assert flow["permissions"].get("contents") == "read"
    for name, job in flow["jobs"].items():
        assert job.get("timeout-minutes"), f"{name} may run for six hours"
        for step in job["steps"]:
            assert re.fullmatch(r"[\w-]+/[\w./-]+@(v\d+|[0-9a-f]{40})", step.get("uses", "a/b@v1")), step


def test_every_target_that_is_written_about_is_in_the_makefile():
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for path in [*PAGES, *WORKFLOWS]:
        written = set(re.findall(r"(?:`|run: |^)make ([a-z-]+)", path.read_text(encoding="utf-8"), re.M))
        assert written <= known, f"{path.name}: {written - known}"


# ---- copies for a class


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_students_copy_has_everything_but_the_solutions(path):
    whole, copy = nbformat.read(path, 4), without_solutions(nbformat.read(path, 4))
    nbformat.validate(copy)
    text = "\n".join(cell.source for cell in copy.cells)
    assert "<details>" not in text and "```python" not in text
    assert [c.source for c in copy.cells if c.cell_type == "code"] == [c.source for c in whole.cells if c.cell_type == "code"]
    kept, before = markdown(path), "\n\n".join(c.source for c in copy.cells if c.cell_type == "markdown")
    solutions = re.findall(r"<details>.*?</details>", kept, re.S)
    assert solutions and len(kept) - len(before) <= sum(map(len, solutions)) + 8 * len(solutions)
