"""The glossary: in order, and each term where its row says that it first stands."""

import re
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
ROWS = re.findall(r"^\| (.+?) \| (.+?) \| \[(\d\d)\]\((\S+?)\) \|$", (FOLDER / "GLOSSARY.md").read_text(encoding="utf-8"), re.M)
NAMES = ("Deep Compression Autoencoder", "deep convolutional autoencoder")           # hold a term, and are not its use


def cells(path: Path) -> list[nbformat.NotebookNode]:
    """The cells, without the line of links in the first and the last."""
    found = nbformat.read(path, 4).cells
    for cell in (found[0], found[-1]):
        cell.source = "\n".join(cell.source.splitlines()[:-1])
    return found


def holds(text: str, term: str) -> bool:
    """Whether a term, or a longer form of it, stands in a text, in any case and with or without emphasis."""
    plain = re.sub(r"[*_\s]+", " ", text.replace("*", ""))
    return re.search(rf"(?<!\w){re.escape(term)}", plain, re.I) is not None


def uses(cell: nbformat.NotebookNode, term: str, number: str) -> bool:
    """Whether prose uses a term as known: not as code, and in no paragraph that names the notebook which explains it."""
    for paragraph in cell.source.split("\n\n"):
        pointers = re.findall(r"notebooks? (\d\d)", paragraph, re.I)
        text = re.sub("|".join(NAMES), "", paragraph.replace("*", ""))
        if number not in pointers and holds(re.sub(r"`[^`]*`", "", text), term):
            return True
    return False


def test_the_rows_are_read_and_stand_in_alphabetical_order():
    table = (FOLDER / "GLOSSARY.md").read_text(encoding="utf-8").partition("|---|")[2]
    assert len(ROWS) == table.count("\n| ") > 40
    terms = [term.casefold() for term, *_ in ROWS]
    assert terms == sorted(set(terms))


@pytest.mark.parametrize("term, line, number, target", ROWS, ids=[term for term, *_ in ROWS])
def test_a_term_first_stands_in_the_notebook_that_its_row_links_to(term, line, number, target):
    assert target.startswith(number) and (FOLDER / target).is_file()
    assert any(holds(cell.source, term) for cell in cells(FOLDER / target))
    for path in sorted(FOLDER.glob("[0-9][0-9]_*.ipynb")):
        if path.name < target:
            earlier = [cell.source for cell in cells(path) if cell.cell_type == "markdown" and uses(cell, term, number)]
            assert not earlier, f"{path.name} uses “{term}” before {target}: {earlier[0][:200]}"


def test_the_quickstart_links_to_the_glossary():
    assert any("](GLOSSARY.md)" in cell.source for cell in cells(FOLDER / "00_quickstart.ipynb"))
