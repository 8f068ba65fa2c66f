"""Every page of the site in a browser: wide and narrow, light and dark, by keyboard."""

import re
from itertools import pairwise
from types import SimpleNamespace

import nbformat
import pytest
from lab import Opened
from run_all import NOTEBOOKS

# Prose: all text but code, folded text included.
SHOWN = """() => {
    const article = document.querySelector('article');
    const walker = document.createTreeWalker(article, NodeFilter.SHOW_TEXT), texts = [];
    while (walker.nextNode())
        if (!walker.currentNode.parentElement.closest('pre, code')) texts.push(walker.currentNode.data);
    return {
        title: document.title,
        prose: texts.join(' '),
        ids: [...document.querySelectorAll('[id]')].map(e => e.id),
        links: [...document.links].map(a => a.href),
        pictures: [...article.querySelectorAll('img')].map(i => [i.getAttribute('src'), i.alt, i.naturalWidth]),
        formulas: article.querySelectorAll('mjx-container > mjx-math:not(:has(mjx-merror))').length,
    };
}"""
# The contrast of every text with what is behind it (WCAG 2, 1.4.3: 4.5 at least), where it is less.
FAINT = """() => {
    const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
    const behind = e => {
        const [r, g, b, opacity = 1] = numbers(getComputedStyle(e).backgroundColor);
        return opacity ? [r, g, b] : behind(e.parentElement);
    };
    const light = rgb => rgb.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0.05);
    return [...document.querySelectorAll('article *')].filter(e => e.checkVisibility() && e.innerText?.trim())
        .filter(e => [...e.childNodes].some(node => node.nodeType == 3 && node.data.trim())).map(e => {
            const [a, b] = [numbers(getComputedStyle(e).color).slice(0, 3), behind(e)].map(light);
            return [Math.max(a, b) / Math.min(a, b), e.className, e.innerText.slice(0, 30)];
        }).filter(([contrast]) => contrast < 4.5);
}"""


def visited(browser, url):
    """Open a page and return what it shows, what it asks for, what fails and what the console says."""
    opened = Opened(browser, width=1280, height=900)
    page = opened.page
    page.goto(url)
    page.evaluate("window.MathJax?.startup.promise")
    shown = page.evaluate(SHOWN)
    faint = page.evaluate(FAINT)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("document.documentElement.dataset.theme == 'dark'")
    faint += page.evaluate(FAINT)
    page.set_viewport_size({"width": 390, "height": 844})  # a phone
    page.wait_for_function("innerWidth == 390")
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    width = page.evaluate("document.documentElement.scrollWidth")
    page.close()
    return SimpleNamespace(**shown, faint=faint, width=width, opened=opened)


@pytest.fixture(scope="session")
def visits(browser, site):
    folder, address = site
    names = ["index.html", *(f"notebooks/{path.stem}.html" for path in NOTEBOOKS)]
    names += ["notebooks/GLOSSARY.html", "codec.html", "GUIDE.html", "results/README.html", "data/README.html"]
    return {name: visited(browser, address + name) for name in names}


def test_no_page_asks_another_host_or_misses_a_file(visits, site):
    assert len({visit.title for visit in visits.values()}) == len(visits)
    for name, visit in visits.items():
        assert [url for url in visit.opened.asked if not url.startswith((site[1], "data:", "blob:"))] == [], name
        assert visit.opened.errors() == [], name


def test_every_figure_is_shown_and_described(visits):
    for name, visit in visits.items():
        for source, alt, width in visit.pictures:
            assert width > 0, f"{name}: {source} is not shown"
            assert len(alt) > 2 and not re.search(r"[\\$*`]|\.png", alt), f"{name}: {source}: {alt!r}"
    for path in NOTEBOOKS:
        outputs = [output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", [])]
        figures = sum("image/png" in output.get("data", {}) for output in outputs)
        assert len(visits[f"notebooks/{path.stem}.html"].pictures) == figures > 0, path.stem


def test_links_lead_to_places_and_through_all_pages(visits, site):
    folder, address = site
    linked = {}
    for name, visit in visits.items():
        assert len(set(visit.ids)) == len(visit.ids), f"{name}: an id is not unique"
        inside = [link.removeprefix(address).partition("#") for link in visit.links if link.startswith(address)]
        linked[name] = {page for page, _, _ in inside}
        for page, _, fragment in inside:
            assert (folder / page).is_file(), f"{name} links to {page}"
            assert not fragment or page not in visits or fragment in visits[page].ids, f"{name}: {page}#{fragment}"
    for name, after in pairwise(visits):
        assert after in linked[name] and {name, "index.html"} <= linked[after], f"{name}, {after}"


def test_every_formula_is_rendered(visits):
    for path in NOTEBOOKS:
        visit = visits[f"notebooks/{path.stem}.html"]
        text = "\n\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")
        text = re.sub(r"^```.*?^```|`[^`\n]+`", "", text, flags=re.M | re.S)
        assert visit.formulas == len(re.findall(r"\$\$.+?\$\$|\$[^$]+\$", text, re.S)), path.stem
    for name, visit in visits.items():
        assert not re.search(r"\$|\\[a-zA-Z]|```|\*\*|\]\(", visit.prose), name


def test_pages_fit_on_a_phone_and_are_readable_in_light_and_dark(visits):
    assert {name: visit.width for name, visit in visits.items() if visit.width > 390} == {}
    assert {name: visit.faint for name, visit in visits.items() if visit.faint} == {}


def test_search_finds_a_word_without_another_host(browser, site):
    opened = Opened(browser)
    opened.page.goto(f"{site[1]}search.html?q=eigenbasis")
    opened.page.locator("#search-results a", has_text="The right axes").first.wait_for()
    opened.page.close()
    assert [url for url in opened.asked if not url.startswith(site[1])] == []


def test_the_keyboard_skips_to_the_text_and_unfolds_solutions(browser, site):
    page = Opened(browser).page
    page.goto(f"{site[1]}notebooks/01_space_to_channel.html")
    page.keyboard.press("Tab")
    page.wait_for_function("document.activeElement.hash == '#main-content'")
    solution = page.locator("details").filter(has_text="my_channel_to_space").first
    code = solution.locator(".highlight .k").first
    assert not code.is_visible()
    solution.locator("summary").press("Enter")
    code.wait_for()
    page.close()


@pytest.mark.parametrize(
    "name, place",
    [
        ("index.html", "[data-explorer]"),
        ("codec.html", "[data-codec]"),
        ("notebooks/06_exploring_latents.html", ".cell:has-text('explore.brush(')"),
        ("notebooks/08_rate_and_distortion.html", ".cell:has-text('explore.budget(')"),
    ],
)
def test_explorers_live_on_pages_that_are_served(browser, site, name, place):
    folder, address = site
    opened = Opened(browser)
    opened.page.goto(address + name)
    opened.page.locator(place).scroll_into_view_if_needed()
    opened.page.locator(f"{place} canvas").first.wait_for()
    assert [url for url in opened.asked if not url.startswith((address, "data:", "blob:"))] == []
    opened.page.goto((folder / name).as_uri())  # a browser loads no module from there
    assert opened.page.locator(f"{place} img").first.is_visible()
    assert opened.page.get_by_text("python -m http.server").is_visible()
    opened.page.close()
