"""Write dcae_lib/answers.json, to which the course's exercises are compared, from the solutions in the notebooks.

`python tools/answers.py [notebook ...]` executes notebooks with every folded solution in the place of its stub.
"""

import ast
import json
import re
import sys
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from run_all import NOTEBOOKS, ROOT
from tqdm import tqdm

ANSWERS = ROOT / "dcae_lib" / "answers.json"
RECORD = """from dcae_lib.course import fingerprint


def check(exercise, *answer, rtol=0):
    print(f"{exercise} {fingerprint(*answer)}")
"""


def names(statement):
    """Return what a statement of the top level assigns or defines."""
    if isinstance(statement, ast.FunctionDef):
        return {statement.name}
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    return {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}


def solved(exercise, solution):
    """Return an exercise with the solution in the place of what it defines; None if it defines nothing of it."""
    given = set().union(*map(names, ast.parse(solution).body))
    lines = exercise.splitlines()
    stubs = [s for s in ast.parse(exercise).body if names(s) & given]
    if any(b.lineno != a.end_lineno + 1 for a, b in pairwise(stubs)):
        raise ValueError("the solution would replace its check")
    for stub in reversed(stubs):
        lines[stub.lineno - 1 : stub.end_lineno] = solution.splitlines() if stub is stubs[0] else []
    return "\n".join(lines) if stubs else None


def with_solutions(path):
    """Read a notebook and paste every folded solution into its exercise; those of open ones into cells of their own."""
    notebook, cells = nbformat.read(path, 4), []
    for cell in notebook.cells:
        cells.append(cell)
        folded = re.findall(r"<details>.*?</details>", cell.source, re.S) if cell.cell_type == "markdown" else []
        for code in re.findall(r"^```python\n(.*?)^```", "\n".join(folded), re.M | re.S):
            exercise = next(cell for cell in reversed(cells) if cell.cell_type == "code")
            if whole := solved(exercise.source, code):
                exercise.source, exercise.metadata["solved"] = whole, True
            else:
                cells.append(nbformat.v4.new_code_cell(code))
    notebook.cells = cells
    return notebook


def answers_of(path: Path) -> dict[str, list[float]]:
    """Execute a notebook with its solutions and return the fingerprint of each answer."""
    notebook = with_solutions(path)
    notebook.cells.insert(4, nbformat.v4.new_code_cell(RECORD))  # after the imports
    with TemporaryDirectory() as folder:
        parameters = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
        parameters.source += f"\nout = {folder!r}"
        NotebookClient(notebook, timeout=None, resources={"metadata": {"path": folder}}).execute()
    printed = "".join(o.get("text", "") for c in notebook.cells if c.metadata.get("solved") for o in c.outputs)
    return {number: json.loads(sums) for number, sums in re.findall(r"^(\d\d\w?\.\d) (\[.*\])$", printed, re.M)}


def main() -> None:
    found = json.loads(ANSWERS.read_text()) if ANSWERS.exists() else {}
    for path in tqdm([Path(name) for name in sys.argv[1:]] or NOTEBOOKS, unit="notebook"):
        found |= answers_of(path)
    rows = ",\n".join(f" {json.dumps(number)}: {json.dumps(sums)}" for number, sums in sorted(found.items()))
    ANSWERS.write_text(f"{{\n{rows}\n}}\n")


if __name__ == "__main__":
    main()
