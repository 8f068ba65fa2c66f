"""Every page of the site as a reader sees it, from a server on loopback: wide and narrow, light and dark."""

import re
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from types import SimpleNamespace

import nbformat
import pytest
from lab import ROOT

sys.path.insert(0, str(ROOT / "site"))

from build_site import NOTEBOOKS, build

PHONE = {"width": 375, "height": 667}
SHOWN = """() => ({
    ids: [...document.querySelectorAll('[id]')].map(e => e.id),
    links: [...document.links].map(a => a.href),
    pictures: [...document.images].map(i => [i.getAttribute('src'), i.alt, i.naturalWidth, i.clientWidth]),
    formulas: [...document.querySelectorAll('math')].map(m => m.getBoundingClientRect()).map(box => box.width * box.height),
    font: [...document.fonts].map(f => f.status),
    title: document.title,
})"""
# What a reader reads, code aside; folded text as well.
PROSE = """() => {
    const texts = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode())
        if (!walker.currentNode.parentElement.closest('pre, code')) texts.push(walker.currentNode.data);
    return texts.join(' ');
}"""
# What a page without a scrollbar would cut: wider than the window, and in no box that scrolls.
CUT = """() => {
    const scrolls = e => e && (getComputedStyle(e).overflowX == 'auto' || scrolls(e.parentElement));
    return [...document.querySelectorAll('pre, table, math, img, p')]
        .filter(e => e.checkVisibility() && e.getBoundingClientRect().right > innerWidth + 1 && !scrolls(e))
        .map(e => e.outerHTML.slice(0, 80));
}"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """Names of the pages, and the address that serves them."""
    folder = tmp_path_factory.mktemp("site")
    pages = build(folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield [page.name for page in pages], f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="session")
def visits(browser, site):
    """What was seen, asked for and complained about on each page: {name: ...}."""
    names, address = site
    visits = {}
    for name in names:
        page, asked, failed, complaints = browser.new_page(viewport={"width": 1280, "height": 900}), [], [], []
        page.on("request", lambda request, to=asked: to.append(request.url))
        page.on("requestfailed", lambda request, to=failed: to.append(request.url))
        page.on("response", lambda answer, to=failed: to.append(answer.url) if answer.status >= 400 else None)
        page.on("console", lambda message, to=complaints: to.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error, to=complaints: to.append(str(error)))
        page.goto(f"{address}/{name}")
        page.evaluate("document.fonts.ready")
        visit = SimpleNamespace(**page.evaluate(SHOWN), prose=page.evaluate(PROSE))
        page.set_viewport_size(PHONE)
        visit.narrow = page.evaluate("document.documentElement.scrollWidth")
        visit.cut = page.evaluate(CUT)
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        visit.narrow_unfolded = page.evaluate("document.documentElement.scrollWidth")
        page.close()
        visit.asked, visit.failed, visit.complaints = asked, failed, complaints
        visits[name] = visit
    return visits


def test_there_is_a_page_with_a_title_for_each_notebook_the_glossary_and_the_readme(visits):
    assert len(visits) == len(NOTEBOOKS) + 2
    assert len({visit.title for visit in visits.values()}) == len(visits)


def test_no_page_asks_another_host_or_misses_a_file(visits, site):
    for name, visit in visits.items():
        assert [url for url in visit.asked if not url.startswith((site[1], "data:"))] == [], name
        assert visit.failed == [] and visit.complaints == [], name
        assert f"{site[1]}/style.css" in visit.asked, name


def test_every_picture_is_shown_and_described(visits):
    for name, visit in visits.items():
        for source, alt, width, shown in visit.pictures:
            assert width > 0 and shown > 0, f"{name}: {source} is not shown"
            assert len(alt) > 5 and not re.search(r"[\\$*`]|No description", alt), f"{name}: {source}: {alt!r}"


def test_every_stored_figure_is_on_its_page(visits):
    for path in NOTEBOOKS:
        outputs = [output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", [])]
        figures = sum("image/png" in output.get("data", {}) for output in outputs)
        assert len(visits[f"{path.stem}.html"].pictures) == figures > 0, path.stem


def test_every_link_within_the_site_leads_to_a_page_and_a_place_in_it(visits, site):
    for name, visit in visits.items():
        assert len(set(visit.ids)) == len(visit.ids), f"{name}: an id stands twice"
        inside = [link.removeprefix(f"{site[1]}/").partition("#") for link in visit.links if link.startswith(site[1])]
        assert inside
        for page, _, fragment in inside:
            assert page in visits, f"{name} links to {page}"
            assert not fragment or fragment in visits[page].ids, f"{name} links to {page}#{fragment}"


def test_one_can_walk_from_the_index_through_all_pages_and_back(visits, site):
    def linked(name):
        return {link.removeprefix(f"{site[1]}/").partition("#")[0] for link in visits[name].links}

    names = list(visits)
    for name, after in pairwise(names):
        assert after in linked(name) and {name, "index.html"} <= linked(after), f"{name}, {after}"


def test_every_formula_is_rendered(visits):
    for path in NOTEBOOKS:
        visit = visits[f"{path.stem}.html"]
        sources = "\n\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")
        sources = re.sub(r"^```.*?^```|`[^`\n]+`", "", sources, flags=re.M | re.S)
        in_source = re.findall(r"\$\$.+?\$\$|\$[^$]+\$", sources, re.S)
        assert len(visit.formulas) == len(in_source), path.stem
        assert all(area > 0 for area in visit.formulas), path.stem
        assert not visit.formulas or visit.font == ["loaded"], path.stem
    for name, visit in visits.items():
        assert not re.search(r"\$|\\[a-zA-Z]", visit.prose), name
        assert not [mark for mark in ("```", "**", "](") if mark in visit.prose], name


def test_no_page_is_wider_than_a_phone(visits):
    for name, visit in visits.items():
        assert visit.narrow <= 375 and visit.narrow_unfolded <= 375, name
        assert visit.cut == [], name


def test_a_solution_unfolds_by_the_keyboard_and_is_coloured(browser, site):
    page = browser.new_page()
    page.goto(f"{site[1]}/01_space_to_channel.html")
    solution = page.locator("details").filter(has_text="my_channel_to_space").first
    code = solution.locator(".highlight .k").first
    assert not code.is_visible()
    solution.locator("summary").focus()
    page.keyboard.press("Enter")
    assert code.is_visible()
    colours = [place.evaluate("e => getComputedStyle(e).color") for place in (code, solution.locator("pre"))]
    assert colours[0] != colours[1]
    page.close()


def test_the_first_keys_lead_to_the_text_the_index_and_the_next_notebook(browser, site):
    page = browser.new_page()
    page.goto(f"{site[1]}/00_quickstart.html")
    for expected in ("#text", "index.html", "01_space_to_channel.html"):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.href").endswith(expected)
    page.keyboard.press("Enter")
    page.wait_for_url("**/01_space_to_channel.html")
    page.close()


@pytest.mark.parametrize("scheme, is_dark", [("light", False), ("dark", True)])
def test_text_stands_out_from_its_page_in_light_and_dark(browser, site, scheme, is_dark):
    # The contrast that WCAG asks for (its curve for the darkest shades aside).
    page = browser.new_page(color_scheme=scheme)
    page.goto(f"{site[1]}/04_soap.html")

    def luminance(selector, colour):
        parts = re.findall(r"\d+", page.locator(selector).first.evaluate(f"e => getComputedStyle(e).{colour}"))
        red, green, blue = (((int(part) / 255 + 0.055) / 1.055) ** 2.4 for part in parts[:3])
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    paper, shade = luminance("html", "backgroundColor"), luminance(".code", "backgroundColor")
    assert (paper < 0.1) == is_dark
    code = [f".highlight .{kind}" for kind in ("c1", "k", "s2", "mi", "nf")]
    for selector, ground in [("p", paper), ("main a", paper), ("figcaption p", paper), *((kind, shade) for kind in code)]:
        dark, light = sorted([luminance(selector, "color"), ground])
        assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{selector} is too faint"
    page.close()
