"""The explorers of the codec in JupyterLab: the slider, the checkbox and the buttons show what the functions say."""

import json
import re

import pytest
from lab import CLOCK
from PIL import features

from dcae_lib import Codec, load_images
from dcae_lib.codec.compare import best, candidates, constants, counted
from dcae_lib.explore.codec import _title
from dcae_lib.files import resource

pytestmark = pytest.mark.skipif(not features.check("avif"), reason="this Pillow writes no AVIF")


@pytest.fixture(scope="module")
def files():
    record = json.loads((resource("recorded") / "codec.json").read_text())
    prepared = candidates(Codec.from_pretrained(), load_images().test.images[0])
    return {headers: counted(prepared, headers, constants(record)) for headers in (True, False)}


@pytest.fixture
def budget(opened):
    return opened.explorer("budget")


def title_of(shown, name):
    title = shown.box.locator(".dcae-picture").filter(has_text=name).locator(".dcae-label").first
    return title.inner_text().replace("\n", " ")


def assert_titles(shown, files, size):
    """Check that the titles belong to a budget."""
    shown.settle()
    for name, of in files.items():
        title = re.sub("<[^>]*>", lambda tag: " " if tag[0] == "<br>" else "", _title(of, best(of, size)))
        assert title_of(shown, name) == title


def test_keys_change_pictures_and_titles_but_not_the_original(budget, files):
    original, ours = budget.picture("original"), budget.picture("DCAE")
    kept, before = budget.pixels(original), budget.pixels(ours)
    budget.press(0, "ArrowLeft", 50)
    assert_titles(budget, files[True], 200)
    assert budget.pixels(ours) != before and budget.pixels(original) == kept
    budget.press(0, "Home")
    assert_titles(budget, files[True], 60)
    assert "does not fit: the smallest has" in title_of(budget, "AVIF")
    budget.press(0, "End")
    assert_titles(budget, files[True], 600)


def test_checkbox_leaves_headers_out_and_counts_them_again(budget, files):
    budget.press(0, "Home")
    budget.press(0, "ArrowRight", 35)
    picture, switch = budget.picture("AVIF"), budget.box.locator("input[type=checkbox]")
    assert_titles(budget, files[True], 200)
    before = budget.pixels(picture)
    switch.click()
    assert_titles(budget, files[False], 200)
    assert budget.pixels(picture) != before
    switch.click()
    assert_titles(budget, files[True], 200)
    assert budget.pixels(picture) == before


def test_long_drags_settle_on_the_last_value(budget, files):
    budget.drag(0, *(60 * (-1) ** k for k in range(200)), 31)
    budget.picture("DCAE").evaluate(CLOCK)
    budget.page.mouse.up()
    budget.settle()
    assert budget.page.evaluate("() => window.waits.length") < 20, (
        "pictures of the drag still came after the mouse was up"
    )
    assert_titles(budget, files[True], round(float(budget.handle().get_attribute("aria-valuenow"))))


def test_buttons_choose_the_curves(opened):
    shown = opened.explorer("curves")
    picture = shown.box.locator(".dcae-picture img").first
    pixels = [shown.pixels(picture)]
    for button in ("SSIM", "whole files", "500 images in one file", "PSNR"):
        shown.click(button)
        pixels.append(shown.pixels(picture))
    assert len(set(pixels)) == 5
    shown.box.get_by_role("button", name="without what all files share").press("Enter")
    assert shown.pixels(picture) == pixels[0]
