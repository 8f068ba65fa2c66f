"""The notebooks as a reader runs them: papermill end to end, solutions included, and what they measured."""

import ast
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import readme  # noqa: E402
from run_all import NOTEBOOKS, NotebookFailed, measured, run_all, write_index  # noqa: E402

NAMES = [path.stem for path in NOTEBOOKS]
# Exercises that a cell checks: what it prints at first says so.
EXERCISES = {path.stem: sum("not yet" in cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code") for path in NOTEBOOKS}
EXPECTED = json.loads((ROOT / "tests" / "expected.json").read_text())


def names(statement: ast.stmt) -> set[str]:
    """What a statement of the top level assigns or defines."""
    if isinstance(statement, ast.FunctionDef):
        return {statement.name}
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    return {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}


def solved(exercise: str, solution: str) -> str | None:
    """The code of an exercise with the solution in the place of what it defines; None if it defines nothing of it."""
    given = set().union(*map(names, ast.parse(solution).body))
    lines = exercise.splitlines()
    stubs = [s for s in ast.parse(exercise).body if names(s) & given]
    assert all(after.lineno == before.end_lineno + 1 for before, after in pairwise(stubs)), "the solution would replace its check"
    for stub in reversed(stubs):
        lines[stub.lineno - 1 : stub.end_lineno] = solution.splitlines() if stub is stubs[0] else []
    return "\n".join(lines) if stubs else None


def with_solutions(path: Path) -> nbformat.NotebookNode:
    """The notebook with the exercises solved, as a reader pastes the folded code; that of open ones in a cell of its own."""
    notebook = nbformat.read(path, 4)
    cells: list[nbformat.NotebookNode] = []
    for cell in notebook.cells:
        cells.append(cell)
        for folded in re.findall(r"<details>.*?</details>", cell.source, re.S) if cell.cell_type == "markdown" else []:
            for code in re.findall(r"^```python\n(.*?)^```", folded, re.M | re.S):
                exercise = next(cell for cell in reversed(cells) if cell.cell_type == "code")
                if whole := solved(exercise.source, code):
                    exercise.source, exercise.metadata["solved"] = whole, True
                else:
                    cells.append(nbformat.v4.new_code_cell(code))
    notebook.cells = cells
    return notebook


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> Path:
    """A folder with all notebooks, solutions included, as papermill executed them away from the clone."""
    sources, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("out")
    for path in NOTEBOOKS:
        nbformat.write(with_solutions(path), sources / path.name)
    with ExitStack() as stack:
        with suppress(OSError):                             # Dask's port is taken, as where a notebook is open twice
            stack.enter_context(socket.create_server(("127.0.0.1", 8787)))
        run_all(sorted(sources.glob("*.ipynb")), "quick", out)
    return out


@pytest.mark.parametrize("name", NAMES)
def test_what_the_notebook_measured_is_within_its_tolerance(executed, name):
    numbers = measured(executed, name)
    assert set(numbers) == set(EXPECTED[name[:2]]), "tests/expected.json and lesson.record name different numbers"
    for key, (low, high) in EXPECTED[name[:2]].items():
        assert low <= numbers[key] <= high, f"{key} is {numbers[key]:.4g}, expected {low} to {high}"


@pytest.mark.parametrize("name", NAMES)
def test_every_solution_in_the_place_of_its_placeholder_is_right(executed, name):
    cells = [cell for cell in nbformat.read(executed / f"{name}.ipynb", 4).cells if cell.metadata.get("solved")]
    assert len(cells) == EXERCISES[name]
    for cell in cells:
        said = "".join(output.get("text", "") for output in cell.outputs)
        assert said.rstrip().endswith("right") and "not yet" not in said, cell.source


@pytest.mark.parametrize("name", NAMES)
def test_no_output_of_the_executed_notebook_holds_a_traceback_or_a_warning(executed, name):
    # papermill does not fail on an exception inside a widget's callback: it only lands in the output.
    for cell in nbformat.read(executed / f"{name}.ipynb", 4).cells:
        assert "Traceback (most recent call last)" not in json.dumps(cell.get("outputs", []))
        for output in cell.get("outputs", []):
            assert output.get("name") != "stderr", output.text


def test_the_index_shows_every_figure(executed):
    page = write_index(executed, NAMES, "quick").read_text(encoding="utf-8")
    figures = sum(
        "image/png" in output.get("data", {})
        for name in NAMES
        for cell in nbformat.read(executed / f"{name}.ipynb", 4).cells
        for output in cell.get("outputs", [])
    )
    assert page.count("<figure>") == figures > 0


def test_the_readme_says_what_the_results_say():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.written(text) == text, "run `python notebooks/readme.py`"


def test_a_failing_cell_stops_the_run_and_is_shown_with_the_place_of_the_notebook(tmp_path):
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell("profile = 'quick'; out = ''", metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell("raise OSError('the disk is made of cheese')"),
        ],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    nbformat.write(notebook, tmp_path / "99_broken.ipynb")
    with pytest.raises(NotebookFailed) as failure:
        run_all([tmp_path / "99_broken.ipynb"], "quick", tmp_path / "out")
    assert "made of cheese" in str(failure.value) and str(tmp_path / "out" / "99_broken.ipynb") in str(failure.value)


@pytest.mark.parametrize("deaths", [1, 2])
def test_a_kernel_that_does_not_come_up_is_started_once_more(deaths, tmp_path, monkeypatch):
    folder = tmp_path / "kernels" / "mortal"
    folder.mkdir(parents=True)
    (folder / "start.py").write_text(f"""
import os, sys
with open({str(tmp_path / "starts")!r}, "a+") as file:
    file.write(".")
    file.seek(0)
    if len(file.read()) <= {deaths}:
        sys.exit(1)
os.execv(sys.executable, [sys.executable, "-m", "ipykernel_launcher", "-f", sys.argv[1]])
""")
    start = [sys.executable, str(folder / "start.py"), "{connection_file}"]
    (folder / "kernel.json").write_text(json.dumps({"argv": start, "display_name": "mortal", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    cell = nbformat.v4.new_code_cell("profile = 'quick'; out = ''", metadata={"tags": ["parameters"]})
    metadata = {"kernelspec": {"name": "mortal", "display_name": "mortal", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=metadata), tmp_path / "99_mortal.ipynb")
    if deaths == 1:
        assert list(run_all([tmp_path / "99_mortal.ipynb"], "quick", tmp_path / "out")) == ["99_mortal"]
    else:
        with pytest.raises(NotebookFailed, match=r"99_mortal did not run:(.|\n)*Kernel died"):
            run_all([tmp_path / "99_mortal.ipynb"], "quick", tmp_path / "out")
    assert (tmp_path / "starts").read_text() == ".."


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
class TestStored:
    """What lies in the repository, before anything is run."""

    def test_it_has_parameters_navigation_and_the_same_bootstrap_as_the_others(self, path):
        cells = nbformat.read(path, 4).cells
        assert sum("parameters" in cell.metadata.get("tags", []) for cell in cells) == 1
        assert cells[0].source.startswith(f"# {path.stem[:2]} · ")
        assert cells[1].source == nbformat.read(NOTEBOOKS[0], 4).cells[1].source
        assert cells[0].source.splitlines()[-1] == cells[-1].source.splitlines()[-1]
        for target in re.findall(r"\]\((\S+\.ipynb)\)", cells[-1].source):
            assert (path.parent / target).is_file(), f"{target} is linked and does not exist"

    def test_every_cell_was_executed_and_figures_are_small(self, path):
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type == "code":
                assert cell.execution_count, f"never run: {cell.source}"
                assert cell.source.count("\n") < 15, f"longer than 15 lines: {cell.source}"
                for output in cell.outputs:
                    assert output.output_type != "error"
                    assert len(output.get("data", {}).get("image/png", "")) < 150_000       # base64 of 110 KB

    def test_an_explorer_left_a_still_figure_for_pages_without_a_kernel(self, path):
        for cell in nbformat.read(path, 4).cells:
            if cell.source.startswith("explore."):
                assert [set(output.data) for output in cell.outputs] == [{"text/plain", "image/png"}]

    def test_it_names_no_machine_path_and_holds_no_broken_widget_state(self, path):
        assert not re.search(r"/(home|root|Users|tmp)/|[A-Z]:\\\\", path.read_text(encoding="utf-8"))
        assert "widgets" not in nbformat.read(path, 4).metadata


def test_an_empty_place_installs_the_package_from_a_repository_and_keeps_torch(tmp_path):
    """The bootstrap cell in a fresh environment that has torch and the like, but not the package, and no clone near."""
    repository, place = tmp_path / "repository", tmp_path / "elsewhere"
    place.mkdir()
    tracked = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    for name in filter(None, tracked):
        if (ROOT / name).is_file():
            (repository / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, repository / name)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "copy"]):
        subprocess.run([*git, *arguments], cwd=repository, check=True)

    subprocess.run([sys.executable, "-m", "venv", tmp_path / "bare"], check=True)
    python = tmp_path / "bare" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    site = subprocess.check_output([python, "-c", "import site; print(site.getsitepackages()[0])"], text=True).strip()
    import torch

    (Path(site) / "borrowed.pth").write_text(str(Path(torch.__file__).parent.parent) + "\n")
    environment = dict(os.environ, DCAE_REPOSITORY=repository.as_uri(), PIP_RETRIES="10")
    missing = subprocess.run([python, "-c", "import dcae_lib"], cwd=place, capture_output=True)
    assert missing.returncode, "the bare environment has the package already"

    bootstrap = nbformat.read(NOTEBOOKS[0], 4).cells[1].source
    use = (
        "\nimport dcae_lib, torch; splits = dcae_lib.load_images(); model = dcae_lib.DCAE.from_pretrained()"
        "\nfrom dcae_lib.course import measured, recorded_run; measured('sizes'), recorded_run()"
        "\ncodec, image = dcae_lib.Codec.from_pretrained(), splits.test.images[0]"
        "\nassert codec.decompress(codec.compress(image)).shape == image.shape"
        "\nprint(dcae_lib.__file__, torch.__file__, len(splits.train), sum(p.numel() for p in model.parameters()))"
    )
    done = subprocess.run([python, "-c", bootstrap + use], cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    package, torch_file, images, parameters = done.stdout.split()[-4:]
    assert package.startswith(str(tmp_path)) and torch_file == torch.__file__
    assert (images, parameters) == ("2000", "96019")
