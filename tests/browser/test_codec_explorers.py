"""The explorers of the codec in JupyterLab: the slider, the checkbox and the buttons show what the functions say."""

import json
import re

import nbformat
import pytest
from lab import COUNT, ROOT, WHOLE, run_in_lab
from PIL import features
from playwright.sync_api import expect

from dcae_lib import Codec, compare, load_images

SCREENSHOTS = ROOT / "results" / "browser"                  # git-ignored: to look at
SHARED = {"DCAE": 4, "AVIF": 284, "WebP": 25, "JPEG": 625}
pytestmark = pytest.mark.skipif(not features.check("avif"), reason="this Pillow writes no AVIF")


def points(bits: float, **more) -> list[dict]:
    """A curve that begins at so many bits per pixel."""
    return [dict(quality=50, bpp=bits * 2**k, psnr=20 + 5 * k, ssim=1 - 0.6 ** (k + 2), **more) for k in range(4)]


RECORD = dict(curves={
    name: dict(whole=points(8 * (constant + 60) / 1024), stripped=points(0.4 + constant / 1000, constant=constant), mosaic=points(0.3))
    for name, constant in SHARED.items()
} | {"KLT": points(0.9)})
CELLS = [
    "import json\nfrom dcae_lib import Codec, compare, load_images, plots\nplots.use_style()",
    f"codec, test = Codec.from_pretrained(), load_images().test\nrecord = json.loads('{json.dumps(RECORD)}')",
    "compare.budget(codec, test, record)",
    "compare.curves(record)",
]


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    path = tmp_path_factory.mktemp("notebook") / "codec.ipynb"
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS], metadata=metadata), path)
    return path


@pytest.fixture(scope="module")
def opened(browser, server, notebook):
    return run_in_lab(browser, *server, notebook=notebook)


@pytest.fixture(scope="module")
def files():
    return compare.candidates(Codec.from_pretrained(), load_images().test.images[0])


@pytest.fixture
def budget(opened):
    shown = opened.explorer("budget", "compare")
    shown.box.scroll_into_view_if_needed()
    return shown


def title_of(shown, name: str) -> str:
    return shown.box.locator(".dcae-picture").filter(has_text=name).locator(".dcae-label").first.inner_text().replace("\n", " ")


def assert_titles(shown, files: dict, size: int, headers: bool = True) -> None:
    """Wait for the titles that belong to a budget."""
    for name, of in compare.counted(files, headers, compare.constants(RECORD)).items():
        expected = re.sub("<[^>]*>", lambda tag: " " if tag[0] == "<br>" else "", compare._title(of, compare.best(of, size)))
        assert shown.until(lambda name=name, expected=expected: title_of(shown, name) == expected), title_of(shown, name)


@pytest.mark.parametrize("name, count", [("budget", 6), ("curves", 1)])
def test_every_picture_is_shown_whole(opened, name, count):
    shown = opened.explorer(name, "compare")
    shown.box.scroll_into_view_if_needed()
    visible = shown.box.locator(".dcae-picture img:visible")
    expect(visible).to_have_count(count)
    assert shown.until(lambda: all(img.evaluate(WHOLE) for img in visible.all()))
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    shown.box.screenshot(path=SCREENSHOTS / f"{name}.png")
    for label in shown.box.locator(".dcae-picture .dcae-label").all():
        assert label.evaluate("e => e.scrollWidth <= e.clientWidth + 1 && e.scrollHeight <= e.clientHeight + 1"), label.inner_text()


def test_arrow_keys_on_the_bytes_change_pictures_and_titles_and_not_the_original(budget, files):
    original, ours = budget.picture("original"), budget.picture("DCAE")
    kept, before = budget.pixels(original), budget.pixels(ours)
    budget.handle().focus()
    for _ in range(50):
        budget.page.keyboard.press("ArrowLeft")
    assert_titles(budget, files, 200)
    assert budget.changes(ours, before) and budget.pixels(original) == kept
    budget.box.screenshot(path=SCREENSHOTS / "budget-200.png")
    budget.page.keyboard.press("Home")
    assert_titles(budget, files, 60)
    assert "does not fit: the smallest has" in title_of(budget, "AVIF")
    budget.page.keyboard.press("End")
    assert_titles(budget, files, 600)


def test_the_checkbox_leaves_headers_out_and_takes_them_in_again(budget, files):
    budget.handle().focus()
    budget.page.keyboard.press("Home")
    assert_titles(budget, files, 60)
    picture, switch = budget.picture("AVIF"), budget.box.locator("input[type=checkbox]")
    before = budget.pixels(picture)
    for _ in range(35):
        budget.page.keyboard.press("ArrowRight")
    assert_titles(budget, files, 200)
    switch.click()
    assert_titles(budget, files, 200, headers=False)
    budget.changes(picture, before)
    budget.box.screenshot(path=SCREENSHOTS / "budget-200-bare.png")
    switch.click()
    assert_titles(budget, files, 200)
    assert budget.shows(picture, before)


def test_a_drag_of_many_moves_settles_on_the_last(budget, files):
    knob = budget.handle()
    knob.scroll_into_view_if_needed()
    box = knob.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    budget.page.mouse.move(x, y)
    budget.page.mouse.down()
    for k in range(200):
        budget.page.mouse.move(x + 60 * (-1) ** k, y)
    budget.page.mouse.move(x + 31, y)
    ours = budget.picture("DCAE")
    ours.evaluate(COUNT)
    budget.page.mouse.up()
    budget.settled(ours)
    assert budget.page.evaluate("() => window.loads") < 20, "pictures of the drag still came when the hand had let go"
    assert_titles(budget, files, round(float(knob.get_attribute("aria-valuenow"))))


def test_a_click_on_a_thumbnail_brings_its_pictures(budget):
    before = {name: budget.pixels(budget.picture(name)) for name in ("original", "WebP", "bits per site")}
    budget.box.locator("button.dcae-thumbnail").nth(5).click()
    for name, pixels in before.items():
        budget.changes(budget.picture(name), pixels)
    budget.box.locator("button.dcae-thumbnail").nth(0).click()
    assert all(budget.shows(budget.picture(name), pixels) for name, pixels in before.items())


def test_buttons_choose_the_curves(opened):
    shown = opened.explorer("curves", "compare")
    shown.box.scroll_into_view_if_needed()
    picture = shown.box.locator(".dcae-picture img").first
    start = shown.pixels(picture)
    seen = {start}
    for button in ("SSIM", "whole files", "500 images in one file", "PSNR"):
        before = shown.pixels(picture)
        shown.box.get_by_role("button", name=button, exact=True).click()
        seen.add(shown.changes(picture, before))
        shown.box.screenshot(path=SCREENSHOTS / f"curves-{button.replace(' ', '-')}.png")
    assert len(seen) == 5
    before = shown.pixels(picture)
    shown.box.get_by_role("button", name="without what all files share").focus()
    shown.page.keyboard.press("Enter")
    assert shown.shows(picture, start)


def test_nothing_failed_on_the_page_and_nothing_was_asked_of_other_hosts(opened):
    assert opened.page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    assert "Traceback" not in opened.page.locator(".jp-Notebook").inner_text()
    assert opened.complaints == []
    assert opened.outside == []


def test_in_a_dark_page_the_titles_are_light(browser, server, notebook):
    dark = run_in_lab(browser, *server, notebook=notebook, dark=True)
    shown = dark.explorer("budget", "compare")
    shown.box.screenshot(path=SCREENSHOTS / "budget-dark.png")
    dark.explorer("curves", "compare").box.screenshot(path=SCREENSHOTS / "curves-dark.png")
    shown.box.locator(".dcae-picture .dcae-label").first.wait_for()
    colours = shown.box.locator(".dcae-picture .dcae-label").evaluate_all("all => all.map(label => getComputedStyle(label).color)")
    assert colours and all(min(map(int, re.findall(r"\d+", colour)[:3])) > 200 for colour in colours)
    dark.page.close()
