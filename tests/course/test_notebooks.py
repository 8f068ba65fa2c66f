"""The notebooks as they are stored: of one form, with outputs that any page can show."""

import nbformat
import pytest
import results_page
from run_all import NOTEBOOKS, ROOT, number

BOOTSTRAP = nbformat.read(NOTEBOOKS[0], 4).cells[1].source
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def folded(cell):
    """Return True for a cell whose source JupyterLab, Colab and the site fold."""
    metadata = cell.metadata
    return metadata.get("jupyter", {}).get("source_hidden") and "hide-input" in metadata.get("tags", [])


@each_notebook
def test_a_stored_notebook_has_the_common_form(path):
    notebook = nbformat.read(path, 4)
    cells = notebook.cells
    assert [cell.metadata.get("tags", [])[:1] for cell in cells[1:4]] == [["bootstrap"], ["parameters"], ["hide-input"]]
    assert all(folded(cell) and cell.source.startswith("# @title ") for cell in cells[1:4])
    assert cells[0].source.startswith(f"# {number(path.stem)} · ")
    assert cells[1].source == BOOTSTRAP and BOOTSTRAP.count("\n") < 6
    assert cells[0].source.splitlines()[-1] == cells[-1].source.splitlines()[-1]
    assert "widgets" not in notebook.metadata
    for cell in cells:
        if cell.cell_type == "code":
            assert cell.execution_count, f"never run: {cell.source}"
            assert cell.source.count("\n") < (40 if folded(cell) else 15), f"too long: {cell.source}"
        if cell.source.startswith("explore."):  # leaves a still figure for pages without a kernel
            assert [set(output.data) for output in cell.outputs] == [{"text/plain", "image/png"}]
    for output in outputs(notebook):
        assert output.output_type != "error"
        assert len(output.get("data", {}).get("image/png", "")) < 150_000  # base64 of 110 KB


def test_pages_and_model_cards_show_the_recorded_results():
    for page in results_page.PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert results_page.written(page) == text, "run `python tools/results_page.py`"
    assert results_page.cards() == {path: path.read_bytes() for path in results_page.cards()}
