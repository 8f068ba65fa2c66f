"""Sphinx's settings for the site that `make site` builds of the course's pages and of the notebooks as stored."""

import json
import re
import sys
from itertools import pairwise
from pathlib import Path
from posixpath import dirname, join, normpath

from docutils import nodes
from sphinx import addnodes

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
from address import home_and_ref  # noqa: E402

HOME, REF = home_and_ref() or ("", "")  # of the repository on GitHub; empty while unset
REPOSITORY = HOME and f"https://github.com/{HOME}"

project = html_title = "DCAE"
extensions = ["myst_nb", "sphinx-mathjax-offline"]
exclude_patterns = ["README.md"]  # the front page includes parts of it
nb_execution_mode = "off"
myst_enable_extensions = ["attrs_block", "dollarmath"]
myst_heading_anchors = 3
html_theme = "sphinx_book_theme"
html_theme_options = {
    "repository_url": REPOSITORY,
    "repository_branch": REF,
    "use_repository_button": bool(HOME),
    "launch_buttons": {"colab_url": HOME and "https://colab.research.google.com"},
    "navigation_with_keys": False,
    "footer_content_items": [],
}
html_context = {"default_mode": "auto"}
html_favicon = "static/icon.svg"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = html_show_copyright = html_use_index = False
LIVE = {
    "index": "start.js",
    "notebooks/06_exploring_latents": "start.js",
    "codec": "budget.js",
    "notebooks/08_rate_and_distortion": "budget.js",
}


def prepare(app, page: str, source: list[str]) -> None:
    """Take out badges, which ask other hosts; name folded cells by their titles, and describe figures."""
    source[0] = re.sub(r"\[!\[.*?\]\(.*?\)\]\(.*?\)", "", source[0])
    if app.env.doc2path(page).suffix != ".ipynb":
        return
    notebook, heading = json.loads(source[0]), ""
    for cell, after in pairwise([*notebook["cells"], {"source": []}]):
        text, below = "".join(cell["source"]), "".join(after["source"])
        if cell["cell_type"] == "markdown":
            heading = (re.findall(r"^#+ (.+)$", text, re.M) or [heading])[-1]
            continue
        title = re.match(r"# @title (.+)\n", text)
        caption = re.match(r"\*[^*].+", below) if after.get("cell_type") == "markdown" else None
        if title:
            cell["source"] = text[title.end() :]
        if caption and cell["outputs"]:
            after["source"] = "{.caption}\n" + below
        words = re.sub(r"[*`$\\]", "", caption[0] if caption else title[1] if title else heading)
        settings = {"image": {"alt": words}}
        if title:
            settings |= dict.fromkeys(("code_prompt_show", "code_prompt_hide"), title[1])
        cell["metadata"]["mystnb"] = settings
    source[0] = json.dumps(notebook)


def resolve(app, doctree: nodes.document) -> None:
    """Have links to what is no page of the site lead to the repository; they are plain text while it has no address."""
    for link in list(doctree.findall(addnodes.pending_xref)):
        if link["reftarget"] == "README":
            link["reftarget"] = "index"
        elif link["refdomain"] is None and not link["reftarget"].startswith("#"):
            path = normpath(join(dirname(link["refdoc"]), link["reftarget"]))
            if not (ROOT / path.partition("#")[0]).exists():
                raise FileNotFoundError(f"{link['refdoc']} links to {path}")
            address = f"{REPOSITORY}/blob/{REF}/{path}"  # GitHub leads on to /tree/ if it is a folder
            link.replace_self(nodes.reference("", "", *link.children, refuri=address) if HOME else link.children)


def add_live(app, page: str, template: str, context: dict, doctree) -> None:
    """Load the explorers where there are any."""
    if page in LIVE:
        app.add_css_file("../live/live.css")
        app.add_js_file("serve.js", loading_method="defer")
        app.add_js_file(f"../live/{LIVE[page]}", type="module")


def setup(app) -> None:
    app.connect("source-read", prepare)
    app.connect("doctree-read", resolve)
    app.connect("html-page-context", add_live)
