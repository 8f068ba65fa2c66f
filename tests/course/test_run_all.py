"""The notebooks as a reader runs them: executed by papermill, solutions included, in a clone or far from one."""

import json
import socket
import sys
from contextlib import ExitStack, nullcontext, suppress

import nbformat
import papermill
import pytest
from answers import with_solutions
from run_all import NOTEBOOKS, ROOT, NotebookFailed, measured, number, run_all, write_index

pytestmark = pytest.mark.slow
EXPECTED = json.loads((ROOT / "tests" / "expected.json").read_text())
OTHERS = json.loads((ROOT / "tests" / "parameters.json").read_text())  # other parameters that each notebook is run with
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Execute all solved notebooks with papermill, away from the clone, and return the folder."""
    sources, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("out")
    for path in NOTEBOOKS:
        nbformat.write(with_solutions(path), sources / path.name)
    with ExitStack() as stack:
        with suppress(OSError):  # Dask's port is taken, as when a notebook is open twice
            stack.enter_context(socket.create_server(("127.0.0.1", 8787)))
        run_all(sorted(sources.glob("*.ipynb")), "quick", out)
    return out


@each_notebook
def test_measured_numbers_are_within_their_bounds(executed, path):
    numbers, expected = measured(executed, path.stem), EXPECTED[number(path.stem)]
    assert set(numbers) == set(expected), "tests/expected.json and lesson.record name different numbers"
    for key, (low, high) in expected.items():
        assert low <= numbers[key] <= high, f"{key} is {numbers[key]:.4g}, expected {low} to {high}"


@each_notebook
def test_every_solution_is_right(executed, path):
    exercises = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code" and "check(" in cell.source]
    cells = [cell for cell in nbformat.read(executed / path.name, 4).cells if cell.metadata.get("solved")]
    assert len(cells) == len(exercises)
    for cell in cells:
        printed = "".join(output.get("text", "") for output in cell.outputs)
        assert printed.rstrip().endswith("right") and "not yet" not in printed, cell.source


@each_notebook
def test_executed_outputs_hold_no_traceback_or_warning(executed, path):
    # papermill does not fail on an exception inside a widget's callback: it only lands in the output.
    for output in outputs(nbformat.read(executed / path.name, 4)):
        assert "Traceback (most recent call last)" not in json.dumps(output)
        assert output.get("name") != "stderr", output.text


@pytest.mark.parametrize(("name", "parameters"), [(name, p) for name, some in OTHERS.items() for p in some])
def test_a_notebook_runs_with_other_parameters(name, parameters, tmp_path):
    path = next(path for path in NOTEBOOKS if number(path.stem) == name)
    parameters = {
        key: value.format(root=ROOT) if isinstance(value, str) else value for key, value in parameters.items()
    }
    given = dict(profile="quick", out=str(tmp_path)) | parameters
    papermill.execute_notebook(path, tmp_path / path.name, given, cwd=tmp_path, progress_bar=False)


def test_the_index_shows_every_figure(executed):
    page = write_index(executed, [path.stem for path in NOTEBOOKS], "quick").read_text(encoding="utf-8")
    shown = [output for path in NOTEBOOKS for output in outputs(nbformat.read(executed / path.name, 4))]
    assert page.count("<figure>") == sum("image/png" in output.get("data", {}) for output in shown) > 0


def one_cell(folder, source="", kernel="python3"):
    """Write a notebook of its parameters and one more line."""
    parameters = nbformat.v4.new_code_cell(f"profile = 'quick'; out = ''\n{source}", metadata={"tags": ["parameters"]})
    metadata = {"kernelspec": {"name": kernel, "display_name": kernel, "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[parameters], metadata=metadata), folder / "99_some.ipynb")
    return folder / "99_some.ipynb"


def test_a_failing_cell_is_reported_with_its_executed_notebook(tmp_path):
    with pytest.raises(NotebookFailed) as failure:
        run_all([one_cell(tmp_path, "raise OSError('the disk is full')")], "quick", tmp_path / "out")
    assert "disk is full" in str(failure.value) and str(tmp_path / "out" / "99_some.ipynb") in str(failure.value)


@pytest.mark.parametrize("deaths", [1, 2])
def test_a_kernel_that_dies_early_is_started_once_more(deaths, tmp_path, monkeypatch):
    folder, starts = tmp_path / "kernels" / "mortal", tmp_path / "starts"
    folder.mkdir(parents=True)
    (folder / "start.py").write_text(f"""
import os, sys
with open({str(starts)!r}, "a") as file:
    file.write(".")
if os.path.getsize({str(starts)!r}) > {deaths}:
    os.execv(sys.executable, [sys.executable, "-m", "ipykernel_launcher", "-f", sys.argv[1]])
""")
    argv = [sys.executable, str(folder / "start.py"), "{connection_file}"]
    (folder / "kernel.json").write_text(json.dumps(dict(argv=argv, display_name="mortal", language="python")))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    with pytest.raises(NotebookFailed, match="Kernel died") if deaths == 2 else nullcontext():
        run_all([one_cell(tmp_path, kernel="mortal")], "quick", tmp_path / "out")
    assert starts.read_text() == ".."
