"""The glossary is sorted, and each term first comes up in the notebook that its row links to."""

import re
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
TEXT = (FOLDER / "GLOSSARY.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (.+?) \| .+? \| \[(\d\d[a-z]?)\]\((\S+?)\) \|$", TEXT, re.M)
NAMES = "Deep Compression Autoencoder|deep convolutional autoencoder"  # hold a term without using it


def cells(path):
    """Read the sources of the Markdown cells, but for the links in the first and the last."""
    texts = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown"]
    for k in (0, -1):
        texts[k] = "\n".join(texts[k].splitlines()[:-1])
    return texts


def holds(text, term):
    """Look for a term, or a longer form of it, in any case and with or without emphasis."""
    plain = re.sub(r"[*_\s]+", " ", text.replace("*", ""))
    return re.search(rf"(?<!\w){re.escape(term)}", plain, re.I) is not None


def uses(text, term, number):
    """Look for a term in prose: not in code, nor in a paragraph that names the notebook which explains it."""
    for paragraph in text.split("\n\n"):
        prose = re.sub(rf"`[^`]*`|{NAMES}", "", paragraph.replace("*", ""))
        if number not in re.findall(r"notebooks? (\d\d[a-z]?)", paragraph, re.I) and holds(prose, term):
            return True
    return False


def test_the_glossary_is_sorted_and_linked():
    assert len(ROWS) == TEXT.partition("|---|")[2].count("\n| ") > 40
    terms = [term.casefold() for term, *_ in ROWS]
    assert terms == sorted(set(terms))
    assert any("](GLOSSARY.md)" in text for text in cells(FOLDER / "00_quickstart.ipynb"))


@pytest.mark.parametrize("term, number, target", ROWS, ids=[term for term, *_ in ROWS])
def test_a_term_first_comes_up_in_the_linked_notebook(term, number, target):
    assert target.startswith(f"{number}_") and any(holds(text, term) for text in cells(FOLDER / target))
    for path in sorted(FOLDER.glob("[0-9][0-9]*_*.ipynb")):
        if path.name < target:
            earlier = [text for text in cells(path) if uses(text, term, number)]
            assert not earlier, f"{path.name} uses “{term}” before {target}: {earlier[0][:200]}"
