"""Make a static site of the README and the notebooks, as stored: `python site/build_site.py --help`."""

# By nbconvert, not Jupyter Book 2, which needs Node and downloads its templates while it builds.
import argparse
import base64
import html
import io
import posixpath
import re
import shutil
import sys
import tomllib
from pathlib import Path

import nbformat
from formulas import mathml
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbconvert.preprocessors import ExtractOutputPreprocessor
from nbformat import NotebookNode
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]*_*.ipynb"))
GLOSSARY = "GLOSSARY.md"
URLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("urls", {})
TREE = URLS.get("Course", "").removesuffix("/notebooks")  # of the repository's files; empty while unset


class LinkError(ValueError):
    """Raised when a page links to a file that does not exist."""


def build(out: Path) -> list[Path]:
    """Write the pages of the README, the glossary and every notebook, their figures and the style; return the pages."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("style.css", "math.woff2", "OFL.txt"):
        shutil.copy(ROOT / "site" / name, out)
    first, glossary = NOTEBOOKS[0].name, f"notebooks/{GLOSSARY}"
    pages = [
        write_page(out / "index.html", of_text("README.md"), "README.md", f"[Start →](notebooks/{first})"),
        write_page(out / "GLOSSARY.html", of_text(glossary), glossary, f"[Start →]({first})"),
    ]
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, 4)
        # A page asks no other host: of the badge under the title its link stays.
        notebook.cells[0].source = re.sub(r"\[!\[(.+?)\]\(.+?\)\]", r"[\1]", notebook.cells[0].source)
        # The last line of the first cell links to the notebooks before and after: it becomes the header.
        notebook.cells[0].source, _, links = notebook.cells[0].source.rpartition("\n")
        pages.append(write_page(out / f"{path.stem}.html", caption_figures(notebook), f"notebooks/{path.name}", links))
    return pages


def of_text(name: str) -> NotebookNode:
    """Return a notebook of one Markdown file, without its badges."""
    text = re.sub(r"^\[!\[.*\n", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.M)
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])


def write_page(page: Path, notebook: NotebookNode, source: str, links: str) -> Path:
    """Write a page and the files that it shows; `source`: its file in the repository; `links`: Markdown."""
    exporter = HTMLExporter(template_name="site", extra_template_basedirs=[str(ROOT)])
    exporter.register_preprocessor(ExtractOutputPreprocessor, enabled=True)
    folder = posixpath.dirname(source)
    exporter.register_filter("markdown2html", lambda text: render(text, folder))
    title = re.search(r"^# (.+)$", notebook.cells[0].source, re.M)[1]
    resources = {
        "title": title if page.stem == "index" else f"{title} – DCAE",
        "links": links,
        "source": source,
        "address": in_repository(source),
        "unique_key": page.stem,
        "output_files_dir": "figures",
    }
    text, resources = exporter.from_notebook_node(notebook, resources)
    page.write_text(text, encoding="utf-8")
    for name, data in resources["outputs"].items():
        (page.parent / name).parent.mkdir(exist_ok=True)
        (page.parent / name).write_bytes(data)
    for name in set(re.findall(r'<img[^>]* src="([^"]+)"', text)) - set(resources["outputs"]):
        (page.parent / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, page.parent / name)
    return page


def caption_figures(notebook: NotebookNode) -> NotebookNode:
    """Give each figure its size, its caption from the cell below, and the caption as its text for screen readers."""
    heading = ""
    for cell, after in zip(notebook.cells, [*notebook.cells[1:], None]):
        if cell.cell_type == "markdown":
            heading = (re.findall(r"^#+ (.+)$", cell.source, re.M) or [heading])[-1]
        for output in cell.get("outputs", []):
            if picture := output.get("data", {}).get("image/png"):
                width, height = Image.open(io.BytesIO(base64.b64decode(picture))).size
                caption = ""
                if after and after.cell_type == "markdown" and after.source.startswith("*") and after.source[1] != "*":
                    caption, _, after.source = after.source.partition("\n\n")
                alt = re.sub(r"[*`$]", "", caption or heading)
                output.metadata.update(width=width, height=height, caption=caption, alt=alt)
    return notebook


def render(text: str, folder: str) -> str:
    """Render Markdown to HTML; `folder`: where in the repository its relative links start."""
    return MarkdownWithMath(renderer=Renderer(folder)).render(text)


class Renderer(IPythonRenderer):
    """nbconvert's Markdown with links that work on the site, GitHub's anchors, and formulas that need no script."""

    def __init__(self, folder: str):
        super().__init__(escape=False)
        self.folder = folder

    def link(self, text: str, url: str, title: str | None = None) -> str:
        target = address(url, self.folder)
        return super().link(text, target, title) if target else text

    def image(self, text: str, url: str, title: str | None = None) -> str:
        return super().image(text, posixpath.normpath(posixpath.join(self.folder, url)), title)

    def heading(self, text: str, level: int, **attributes) -> str:
        return f'<h{level} id="{anchor(text)}">{text}</h{level}>\n'

    def table(self, text: str) -> str:
        return f'<div class="table"><table>\n{text}</table></div>\n'

    def block_math(self, body: str) -> str:
        return f'<div class="formula">{mathml(body, "block")}</div>'

    def inline_math(self, body: str) -> str:
        return mathml(body, "inline")


def address(url: str, folder: str) -> str:
    """Translate a link from a folder of the repository: to a page of the site, or to the repository; "" if unknown."""
    path, mark, fragment = url.partition("#")
    if re.match(r"\w+:", url) or not path:
        return url
    path = posixpath.normpath(posixpath.join(folder, path))
    if not (ROOT / path).exists():
        raise LinkError(f"{folder or 'README.md'} links to {url}, and {path} does not exist")
    if path == "README.md" or ROOT / path in (*NOTEBOOKS, ROOT / "notebooks" / GLOSSARY):
        return ("index" if path == "README.md" else Path(path).stem) + ".html" + mark + fragment
    return in_repository(path) and in_repository(path) + mark + fragment


def in_repository(path: str) -> str:
    """Return the address of a file or folder of the repository; "" while the repository's own is not set."""
    tree = TREE if (ROOT / path).is_dir() else TREE.replace("/tree/", "/blob/")
    return tree and f"{tree}/{path}"


def anchor(heading: str) -> str:
    """Return the id that GitHub gives to a heading."""
    text = html.unescape(re.sub(r"<[^>]+>", "", heading)).lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def main() -> int:
    parser = argparse.ArgumentParser(description="Make a static site of the notebooks and the README.")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site", help="folder to write to")
    pages = build(parser.parse_args().out.resolve())
    print(f"{len(pages)} pages: {pages[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
