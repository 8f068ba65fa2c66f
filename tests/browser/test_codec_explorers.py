"""The explorers of the codec in JupyterLab: pictures follow the slider, the checkbox and the buttons."""

import pytest
from lab import CLOCK


@pytest.fixture
def budget(opened):
    return opened.explorer("budget")


def test_keys_and_checkbox_change_pictures_but_not_the_original(budget):
    original, jpeg = budget.picture("original"), budget.picture("JPEG")
    kept, before = budget.pixels(original), budget.pixels(jpeg)
    budget.press(0, "ArrowLeft", 50)
    whole = budget.pixels(jpeg)
    budget.box.locator("input[type=checkbox]").click()
    assert len({before, whole, budget.pixels(jpeg)}) == 3 and budget.pixels(original) == kept
    budget.box.locator("input[type=checkbox]").click()
    assert budget.pixels(jpeg) == whole


def test_long_drags_settle_on_the_last_value(budget):
    budget.drag(0, *(60 * (-1) ** k for k in range(200)), 31)
    budget.picture("DCAE").evaluate(CLOCK)
    budget.page.mouse.up()
    last = budget.pixels(budget.picture("JPEG"))
    assert budget.page.evaluate("() => window.waits.length") < 20, "pictures of the drag came after the mouse was up"
    budget.press(0, "ArrowLeft")
    budget.press(0, "ArrowRight")
    assert budget.pixels(budget.picture("JPEG")) == last
