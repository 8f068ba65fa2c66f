"""The repository as a stranger finds it: no secret or local path, links that work, one address, copies for a class."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from address import PLACES, home_and_ref
from run_all import NOTEBOOKS
from student import without_solutions

ROOT = Path(__file__).resolve().parents[2]
TRACKED = [ROOT / name for name in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()]
KINDS = {".py", ".md", ".ipynb", ".yml", ".toml", ".cff", ".txt", ".json", ".cfg", ".css", ".js", ""}
TEXTS = {path: path.read_text(encoding="utf-8") for path in TRACKED if path.suffix in KINDS and path.is_file()}
MODULES = [path for path in TEXTS if path.is_relative_to(ROOT / "dcae_lib") and path.suffix == ".py"]
PAGES = [path for path in TEXTS if path.suffix == ".md"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))

SECRETS = r"""
    -----BEGIN\ [A-Z ]*PRIVATE\ KEY | \bAKIA[0-9A-Z]{16}\b | \bgh[pousr]_[A-Za-z0-9]{30,} | \bgithub_pat_\w{20,}
    | \bhf_[A-Za-z]{30,} | \bsk-[A-Za-z0-9]{30,} | \bxox[abp]-[\w-]{10,} | \bpypi-[A-Za-z0-9_-]{40,}
    | ://[^/\s:@"']+:[^/\s:@"'{]+@
"""
# A token that is empty, in the forms that Jupyter takes.
OPEN_DOOR = r"""
    token\s*=\s*('{2}|"{2}|None\b) | --[\w.]*token=(?=[\s`"']|$) | password\s*=\s*('{2}|"{2})
    | disable_check_xsrf | allow_unauthenticated_access=True
"""
LOCAL_PATH = r"(?<![\w.])/(home|root|Users|tmp|work|mnt|opt)/\w | \b[A-Z]:\\\\(Users|home)"
UNSAFE = (
    r"torch\.load\( | joblib | np\.load\(.*allow_pickle | \.extractall\( | shutil\.unpack | (?<![.\w])(eval|exec)\("
)


def matches(pattern, text):
    found = re.finditer(pattern, text, re.VERBOSE | re.MULTILINE)
    return [text[max(0, m.start() - 30) : m.end() + 30] for m in found]


def findings(pattern, paths):
    """Return {path: matches} for the files with any."""
    return {path: found for path in paths if (found := matches(pattern, TEXTS[path]))}


@pytest.mark.parametrize(
    "pattern, known, paths",
    [
        (SECRETS, ["ghp_" + "a1" * 18, "AKIA" + "A" * 16, "-----BEGIN " + "PRIVATE KEY", "://me:my" + "@a.org"], TEXTS),
        (OPEN_DOOR, ["--ServerApp.token=''", 'token = ""'], [path for path in TEXTS if "tests" not in path.parts]),
        (LOCAL_PATH, ["see /home/me"], [path for path in TEXTS if path.suffix in (".ipynb", ".md", ".json")]),
        (UNSAFE, ["torch.load(path)", "x = eval(text)"], MODULES),
    ],
    ids=["secret", "open server", "local path", "unsafe code"],
)
def test_no_file_holds_what_it_should_not(pattern, known, paths):
    assert paths and all(matches(pattern, text) for text in known)
    assert findings(pattern, paths) == {}


def test_only_checked_files_are_unpickled():
    # There an unpickler that admits arrays only reads a file whose hash was checked.
    assert [path.name for path in findings(r"import\ pickle|pickle\.", MODULES)] == ["cifar10.py"]


def targets(text):
    """Return the links of Markdown text, but for those in code and to other hosts."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)
    return [url for url in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"\w+:", url)]


def anchor(heading):
    """Return the id that GitHub and the site give to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def markdown(path):
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    return "\n\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")


LINKING = [path for path in [*PAGES, *NOTEBOOKS] if path.parent != ROOT / "site"]  # there the build checks them


@pytest.mark.parametrize("path", LINKING, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_within_the_repository_leads_somewhere(path):
    for url in targets(markdown(path)):
        file, _, fragment = url.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{path.name} links to {url}"
        if fragment and target.suffix in (".md", ".ipynb"):
            anchors = map(anchor, re.findall(r"^#+ (.+)$", markdown(target), re.M))
            assert fragment in anchors, f"{path.name} links to {url}"


def test_no_word_is_misspelt(tmp_path):
    for path in [*PAGES, *NOTEBOOKS]:
        (tmp_path / f"{path.parent.name}-{path.stem}.md").write_text(markdown(path), encoding="utf-8")
    sources = [path for path in TEXTS if path.suffix in (".py", ".yml", ".toml", ".cff") or path.name == "Makefile"]
    command = [sys.executable, "-m", "codespell_lib", "-L", "rouge,Mede,Theis,fro", tmp_path, *sources]
    checked = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert checked.returncode == 0, checked.stdout


def test_the_readme_has_at_most_a_thousand_words():
    assert len(TEXTS[ROOT / "README.md"].split()) <= 1000


def test_the_changelog_tells_of_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(), re.M)


def test_every_place_shows_one_address_and_gives_it_up(tmp_path):
    for file in (*PLACES, "tools/address.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)

    def files(*arguments):
        subprocess.run([sys.executable, tmp_path / "tools" / "address.py", *arguments], check=True)
        return {file: (tmp_path / file).read_bytes() for file in PLACES}

    here, stored = home_and_ref(), {file: (ROOT / file).read_bytes() for file in PLACES}
    there = files("some-one/its.copy", "--ref", "v9")
    assert all(b"some-one/its.copy" in data for data in there.values())
    assert there == files("some-one/its.copy", "--ref", "v9")
    assert stored == files(*([here[0], "--ref", here[1]] if here else ["--unset"]))
    assert [path for path, text in TEXTS.items() if "<" + "owner>" in text] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_asks_for_no_more_than_it_needs(path):
    flow = yaml.safe_load(path.read_text())
    assert flow["permissions"].get("contents") == "read"
    for name, job in flow["jobs"].items():
        assert job.get("timeout-minutes"), f"{name} may run for six hours"
        for step in job["steps"]:
            assert re.fullmatch(r"[\w-]+/[\w./-]+@(v\d+|[0-9a-f]{40})", step.get("uses", "a/b@v1")), step


def test_every_target_that_a_page_names_is_in_the_makefile():
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for path in [*PAGES, *WORKFLOWS]:
        written = set(re.findall(r"(?:`|run: |^)make ([a-z-]+)", path.read_text(encoding="utf-8"), re.M))
        assert written <= known, f"{path.name}: {written - known}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_students_copy_lacks_only_the_solutions(path):
    whole, copy = nbformat.read(path, 4), without_solutions(nbformat.read(path, 4))
    nbformat.validate(copy)
    text, before = ("\n\n".join(c.source for c in n.cells if c.cell_type == "markdown") for n in (copy, whole))
    assert "<details>" not in text and "```python" not in text
    assert [c for c in copy.cells if c.cell_type == "code"] == [c for c in whole.cells if c.cell_type == "code"]
    solutions = re.findall(r"<details>.*?</details>", before, re.S)
    assert solutions and len(before) - len(text) <= sum(map(len, solutions)) + 8 * len(solutions)
