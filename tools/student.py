"""Write the notebooks without their solutions, for a class: `python tools/student.py --help`."""

import argparse
import re
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from run_all import NOTEBOOKS, ROOT

SOLUTION = re.compile(r"<details><summary>[^<]*</summary>.*?</details>\n*", re.S)


def without_solutions(notebook: NotebookNode) -> NotebookNode:
    """Remove the folded solutions from a notebook, and the cells that are then empty."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = SOLUTION.sub("", cell.source).strip()
    notebook.cells = [cell for cell in notebook.cells if cell.source]
    return notebook


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the notebooks without their solutions.")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "student", help="folder to write to")
    out = parser.parse_args().out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for path in NOTEBOOKS:
        nbformat.write(without_solutions(nbformat.read(path, 4)), out / path.name)
    print(f"{len(NOTEBOOKS)} notebooks without solutions: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
