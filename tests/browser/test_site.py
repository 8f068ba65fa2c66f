"""Every page of the site in a browser: wide and narrow, light and dark, by keyboard."""

import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from types import SimpleNamespace

import nbformat
import pytest
from build_site import NOTEBOOKS, build
from lab import Opened

# Prose: all text but code, folded text included. Cut: what is wider than the window and in no box that scrolls.
SHOWN = """() => {
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), texts = [];
    while (walker.nextNode())
        if (!walker.currentNode.parentElement.closest('pre, code')) texts.push(walker.currentNode.data);
    return {
        title: document.title,
        prose: texts.join(' '),
        ids: [...document.querySelectorAll('[id]')].map(e => e.id),
        links: [...document.links].map(a => a.href),
        pictures: [...document.images].map(i => [i.getAttribute('src'), i.alt, i.naturalWidth, i.clientWidth]),
        formulas: [...document.querySelectorAll('math')].map(m => m.getBoundingClientRect().width),
        font: [...document.fonts].map(f => f.status),
    };
}"""
CUT = """() => {
    const scrolls = e => e && (getComputedStyle(e).overflowX == 'auto' || scrolls(e.parentElement));
    return [...document.querySelectorAll('pre, table, math, img, p')]
        .filter(e => e.checkVisibility() && e.getBoundingClientRect().right > innerWidth + 1 && !scrolls(e))
        .map(e => e.outerHTML.slice(0, 80));
}"""


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """Build the site and serve it; return the names of its pages and the address."""
    folder = tmp_path_factory.mktemp("site")
    pages = build(folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield [page.name for page in pages], f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def visited(browser, url):
    """Open a page and return what it shows, what it asks for, what fails and what the console says."""
    opened = Opened(browser, width=1280, height=900)
    page = opened.page
    page.goto(url)
    page.evaluate("document.fonts.ready")
    shown = page.evaluate(SHOWN)
    page.set_viewport_size({"width": 375, "height": 667})  # a phone
    page.wait_for_function("innerWidth == 375")
    cut = page.evaluate(CUT)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    width = page.evaluate("document.documentElement.scrollWidth")
    page.close()
    return SimpleNamespace(**shown, cut=cut, width=width, opened=opened)


@pytest.fixture(scope="session")
def visits(browser, site):
    names, address = site
    return {name: visited(browser, address + name) for name in names}


def test_no_page_asks_another_host_or_misses_a_file(visits, site):
    assert len({visit.title for visit in visits.values()}) == len(visits) == len(NOTEBOOKS) + 2
    for name, visit in visits.items():
        opened = visit.opened
        assert [url for url in opened.asked if not url.startswith((site[1], "data:"))] == [], name
        assert opened.errors() == [] and f"{site[1]}style.css" in opened.asked, name


def test_every_figure_is_shown_and_described(visits):
    for name, visit in visits.items():
        for source, alt, width, shown in visit.pictures:
            assert width > 0 and shown > 0, f"{name}: {source} is not shown"
            assert len(alt) > 5 and not re.search(r"[\\$*`]|No description", alt), f"{name}: {source}: {alt!r}"
    for path in NOTEBOOKS:
        outputs = [output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", [])]
        figures = sum("image/png" in output.get("data", {}) for output in outputs)
        assert len(visits[f"{path.stem}.html"].pictures) == figures > 0, path.stem


def test_links_lead_to_places_and_through_all_pages(visits, site):
    linked = {}
    for name, visit in visits.items():
        assert len(set(visit.ids)) == len(visit.ids), f"{name}: an id is not unique"
        inside = [link.removeprefix(site[1]).partition("#") for link in visit.links if link.startswith(site[1])]
        linked[name] = {page for page, _, _ in inside}
        for page, _, fragment in inside:
            assert page in visits, f"{name} links to {page}"
            assert not fragment or fragment in visits[page].ids, f"{name} links to {page}#{fragment}"
    for name, after in pairwise(visits):
        assert after in linked[name] and {name, "index.html"} <= linked[after], f"{name}, {after}"


def test_every_formula_is_rendered(visits):
    for path in NOTEBOOKS:
        visit = visits[f"{path.stem}.html"]
        text = "\n\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")
        text = re.sub(r"^```.*?^```|`[^`\n]+`", "", text, flags=re.M | re.S)
        assert len(visit.formulas) == len(re.findall(r"\$\$.+?\$\$|\$[^$]+\$", text, re.S)), path.stem
        assert min(visit.formulas, default=1) > 0 and (not visit.formulas or visit.font == ["loaded"]), path.stem
    for name, visit in visits.items():
        assert not re.search(r"\$|\\[a-zA-Z]|```|\*\*|\]\(", visit.prose), name


def test_no_page_is_wider_than_a_phone(visits):
    for name, visit in visits.items():
        assert visit.width <= 375 and visit.cut == [], name


def test_the_keyboard_leads_on_and_unfolds_solutions(browser, site):
    page = Opened(browser).page
    page.goto(f"{site[1]}00_quickstart.html")
    for expected in ("#text", "index.html", "01_space_to_channel.html"):
        page.keyboard.press("Tab")
        page.wait_for_function("end => document.activeElement.href?.endsWith(end)", arg=expected)
    page.keyboard.press("Enter")
    page.wait_for_url("**/01_space_to_channel.html")
    solution = page.locator("details").filter(has_text="my_channel_to_space").first
    code = solution.locator(".highlight .k").first
    assert not code.is_visible()
    solution.locator("summary").press("Enter")
    code.wait_for()
    colours = [part.evaluate("e => getComputedStyle(e).color") for part in (code, solution.locator("pre"))]
    assert colours[0] != colours[1]
    page.close()
