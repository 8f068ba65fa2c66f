"""Execute notebooks and store their outputs in place, without what changes from run to run: `make notebooks`."""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from tqdm import tqdm

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
WIDGET = "application/vnd.jupyter.widget-view+json"


def refresh(path: Path) -> None:
    """Execute one notebook and write it back."""
    notebook = nbformat.read(path, 4)
    resources = {"metadata": {"path": NOTEBOOKS}}
    NotebookClient(notebook, timeout=None, record_timing=False, coalesce_streams=True, resources=resources).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            # A bar or a slider needs a live kernel and would be an empty box on GitHub; an explorer leaves its still.
            cell.outputs = [output for output in cell.outputs if without_widget(output)]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.write(notebook, path)


def without_widget(output: nbformat.NotebookNode) -> bool:
    """Remove the widget from an output; return True if it had none or has a picture too."""
    data = output.get("data", {})
    return data.pop(WIDGET, None) is None or "image/png" in data


if __name__ == "__main__":
    chosen = [Path(name) for name in sys.argv[1:]] or sorted(NOTEBOOKS.glob("[0-9][0-9]*_*.ipynb"))
    for path in tqdm(chosen, unit="notebook"):
        refresh(path)
