"""The site's links, anchors, captions and formulas, without a browser."""

import build_site
import nbformat
import pytest
from build_site import NOTEBOOKS, REPOSITORY, LinkError, address, anchor, caption_figures
from formulas import mathml

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAIAAAABCAAAAADRSSBWAAAAC0lEQVR4nGNgYGAAAAAEAAF2EljCAAAAAElFTkSuQmCC"
THIN = '<mspace width="0.17em" />'


@pytest.mark.parametrize(
    "folder, url, target",
    [
        ("", "notebooks/04_soap.ipynb", "04_soap.html"),
        ("notebooks", "04_soap.ipynb#a-fair-race", "04_soap.html#a-fair-race"),
        ("notebooks", "../README.md#results", "index.html#results"),
        ("", "notebooks/GLOSSARY.md", "GLOSSARY.html"),
        ("", "#results", "#results"),
        ("notebooks", "../bench/sweep.py#L9", f"{REPOSITORY}/blob/main/bench/sweep.py#L9"),
        ("", "results/full", f"{REPOSITORY}/tree/main/results/full"),
        ("", "mailto:us@example.org", "mailto:us@example.org"),
    ],
)
def test_a_link_leads_to_the_site_or_the_repository(folder, url, target):
    assert address(url, folder) == target


def test_a_link_to_a_missing_file_stops_the_build():
    with pytest.raises(LinkError, match=r"notebooks/10_magic.ipynb does not exist"):
        address("10_magic.ipynb", "notebooks")


def test_a_heading_has_githubs_anchor():
    assert anchor("The unit: GroupNorm → SiLU → convolution") == "the-unit-groupnorm--silu--convolution"
    assert anchor("What <code>train_l1</code> &amp; co. say") == "what-train_l1--co-say"


def test_a_caption_moves_into_its_figure():
    figures = [nbformat.v4.new_output("display_data", {"image/png": PIXEL}) for _ in range(2)]
    text, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell
    cells = [text("# Title\n\n## A part"), code("plt.show()", outputs=figures[:1])]
    cells += [text("*Left: $x$. Right: `y`.*\n\nAnd so on."), code("plt.show()", outputs=figures[1:])]
    cells += [text("**Bold** words are no caption.")]
    _, first, below, second, bold = caption_figures(nbformat.v4.new_notebook(cells=cells)).cells
    shown = first.outputs[0].metadata
    assert (shown.caption, shown.alt) == ("*Left: $x$. Right: `y`.*", "Left: x. Right: y.")
    assert (shown.width, shown.height) == (2, 1)
    assert below.source == "And so on."
    assert second.outputs[0].metadata["alt"] == "A part" and bold.source.startswith("**Bold**")


def test_an_unknown_command_in_a_formula_stops_the_build():
    with pytest.raises(ValueError, match="does not know all"):
        mathml(r"\Big\unheardof x", "inline")


@pytest.mark.parametrize(
    "tex, part",
    [
        (r"\Big\lfloor x", ">⌊</mo>"),
        (r"u \sim v", "<mo>∼</mo>"),
        (r"\mathcal U", "<mi>𝒰</mi>"),
        (r"\mathcal L", "<mi>ℒ</mi>"),
        (r"\mathrm{MSE}", "<mi>MSE</mi>"),
        (r"\int \mathrm{d}x", '<mi mathvariant="normal">&#x00064;</mi>'),
        (r"2 \log_{10} p", f"</mn>{THIN}<msub><mi>log</mi><mrow><mn>10</mn></mrow></msub>{THIN}<mi>p</mi>"),
        (r"\min(a)", "<mrow><mi>min</mi><mo"),
        ("z'_k", '<msub><mrow><mi>z</mi><mo lspace="0" rspace="0">′</mo></mrow><mi>k</mi></msub>'),
    ],
)
def test_formulas_are_repaired_for_browsers(tex, part):
    assert part in mathml(tex, "inline")


def test_every_text_becomes_a_page_without_scripts(tmp_path):
    pages = build_site.build(tmp_path)
    names = ["index.html", "GLOSSARY.html", *(f"{path.stem}.html" for path in NOTEBOOKS)]
    assert [page.name for page in pages] == names
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "<script" not in text and "/main/" in text and 'src="http' not in text
