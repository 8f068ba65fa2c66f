"""The site's links, anchors, captions and formulas, without a browser."""

import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "site"))

import build_site  # noqa: E402
from build_site import LinkError, address, anchor, caption_figures, render  # noqa: E402
from formulas import mathml  # noqa: E402
from run_all import NOTEBOOKS  # noqa: E402

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAIAAAABCAAAAADRSSBWAAAAC0lEQVR4nGNgYGAAAAAEAAF2EljCAAAAAElFTkSuQmCC"
THIN = '<mspace width="0.17em" />'


@pytest.fixture(autouse=True)
def repository(monkeypatch):
    monkeypatch.setattr(build_site, "REPOSITORY", "https://example.org/us/dcae")


@pytest.mark.parametrize(
    "folder, url, leads_to",
    [
        ("", "notebooks/04_soap.ipynb", "04_soap.html"),
        ("notebooks", "04_soap.ipynb#a-fair-race", "04_soap.html#a-fair-race"),
        ("notebooks", "../README.md#results", "index.html#results"),
        ("", "notebooks/GLOSSARY.md", "GLOSSARY.html"),
        ("", "#results", "#results"),
        ("", "dcae_lib/soap.py", "https://example.org/us/dcae/blob/main/dcae_lib/soap.py"),
        ("notebooks", "../bench/sweep.py#L9", "https://example.org/us/dcae/blob/main/bench/sweep.py#L9"),
        ("", "results/full", "https://example.org/us/dcae/tree/main/results/full"),
        ("", "https://arxiv.org/abs/2410.10733", "https://arxiv.org/abs/2410.10733"),
        ("", "mailto:us@example.org", "mailto:us@example.org"),
    ],
)
def test_a_link_leads_to_the_sites_page_or_to_the_repository(folder, url, leads_to):
    assert address(url, folder) == leads_to


def test_a_link_to_a_file_that_does_not_exist_stops_the_build():
    with pytest.raises(LinkError, match=r"notebooks/10_magic.ipynb does not exist"):
        address("10_magic.ipynb", "notebooks")


@pytest.mark.parametrize(
    "heading, identifier",
    [
        ("Results", "results"),
        ("The unit: GroupNorm → SiLU → convolution", "the-unit-groupnorm--silu--convolution"),
        ("What <code>train_l1</code> &amp; co. say", "what-train_l1--co-say"),
    ],
)
def test_a_heading_has_the_anchor_that_github_gives_it(heading, identifier):
    assert anchor(heading) == identifier


def test_a_caption_moves_into_the_figure_and_says_what_is_seen():
    figures = [nbformat.v4.new_output("display_data", {"image/png": PIXEL}) for _ in range(2)]
    notebook = nbformat.v4.new_notebook(cells=[
        nbformat.v4.new_markdown_cell("# Title\n\n## A part"),
        nbformat.v4.new_code_cell("plt.show()", outputs=figures[:1]),
        nbformat.v4.new_markdown_cell("*Left: $x$. Right: `y`.*\n\nAnd so on."),
        nbformat.v4.new_code_cell("plt.show()", outputs=figures[1:]),
        nbformat.v4.new_markdown_cell("**Bold** words are no caption."),
    ])
    _, first, text, second, bold = caption_figures(notebook).cells
    shown = first.outputs[0].metadata
    assert (shown.caption, shown.alt) == ("*Left: $x$. Right: `y`.*", "Left: x. Right: y.")
    assert (shown.width, shown.height) == (2, 1)
    assert text.source == "And so on."
    assert second.outputs[0].metadata["alt"] == "A part" and bold.source.startswith("**Bold**")


def test_a_solution_stays_folded_and_its_code_is_coloured():
    page = render("<details><summary>Solution</summary>\n\n```python\nassert x\n```\nSo.\n</details>", "")
    assert page.startswith("<details><summary>") and page.rstrip().endswith("</details>")
    assert '<span class="k">assert</span>' in page and "```" not in page


def test_a_formula_that_would_not_be_rendered_stops_the_build():
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
        (r"2 \log_2 p", f"<mn>2</mn>{THIN}<msub><mi>log</mi><mn>2</mn></msub>{THIN}<mi>p</mi>"),
        (r"2 \log_{10} p", f"</mn>{THIN}<msub><mi>log</mi><mrow><mn>10</mn></mrow></msub>{THIN}<mi>p</mi>"),
        (r"\min(a)", "<mrow><mi>min</mi><mo"),
        ("z'_k", '<msub><mrow><mi>z</mi><mo lspace="0" rspace="0">′</mo></mrow><mi>k</mi></msub>'),
    ],
)
def test_what_browsers_read_otherwise_than_tex_is_mended(tex, part):
    assert part in mathml(tex, "inline")


def test_every_notebook_the_glossary_and_the_readme_become_a_page_without_a_script(tmp_path):
    pages = build_site.build(tmp_path)
    assert [page.name for page in pages] == ["index.html", "GLOSSARY.html", *(f"{path.stem}.html" for path in NOTEBOOKS)]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "<script" not in text and "/main/" in text and 'src="http' not in text
