"""The explorers of notebook 06 in JupyterLab: controls change the pixels that they should, and nothing fails."""

import io
import re
from statistics import median
from timeit import repeat

import numpy as np
import pytest
import torch
from lab import ROUND_TRIP, SCREENSHOTS, Opened, Shown, from_key_to_pixels, voila
from PIL import Image

from dcae_lib import DCAE, to_model, to_uint8
from dcae_lib.tiles import reconstruct

WHOLE = "img => img.complete && img.naturalWidth > 0"
FITS = "e => e.scrollWidth <= e.clientWidth + 1 && e.scrollHeight <= e.clientHeight + 1"
EXPLORERS = "channels brush upload interpolation directions quantisation damage budget".split()


@pytest.mark.parametrize("name", EXPLORERS)
def test_explorers_show_their_pictures_and_whole_titles(opened, name):
    shown = opened.explorer(name)
    visible = shown.box.locator("img:visible")
    assert visible.count() and all(img.evaluate(WHOLE) for img in visible.all())
    shown.box.screenshot(path=SCREENSHOTS / f"{name}.png")
    assert all(title.evaluate(FITS) for title in shown.box.locator(".dcae-picture .dcae-label").all())


@pytest.mark.parametrize("name, title", [("channels", "reconstruction, "), ("directions", "the mean, moved")])
def test_keys_and_mouse_move_sliders_until_reset(opened, name, title):
    shown = opened.explorer(name)
    picture = shown.picture(title)
    start = shown.pixels(picture)
    shown.press(7, "ArrowLeft", 10)
    moved = shown.pixels(picture)
    shown.drag(4, *range(0, -41, -4))
    shown.page.mouse.up()
    assert len({start, moved, shown.pixels(picture)}) == 3
    assert float(shown.handle(4).get_attribute("aria-valuenow")) < 0.5
    shown.click("reset")
    assert shown.pixels(picture) == start


def test_clicks_choose_pictures(opened):
    shown = opened.explorer("channels")
    original, thumbnails = shown.picture("original"), shown.box.locator("button.dcae-thumbnail")
    before = shown.pixels(original)
    thumbnails.nth(5).click()
    assert shown.pixels(original) != before
    assert shown.box.locator(".dcae-chosen").count() == 1
    assert "dcae-chosen" in thumbnails.nth(5).get_attribute("class")


@pytest.mark.parametrize("name", ["brush", "damage"])
def test_clicks_into_the_picture_change_it_and_back(opened, name):
    shown = opened.explorer(name)
    board, changes = shown.box.locator(".dcae-board img"), shown.box.locator("img").last
    shown.click("clear")
    clean, still = shown.pixels(board), shown.pixels(changes)
    site = shown.box.locator(".dcae-site").nth(36)  # of 8×8 over the picture
    site.click()
    assert shown.pixels(board) != clean and shown.pixels(changes) != still
    site.click()
    assert shown.pixels(board) == clean
    active = shown.box.locator(".dcae-site.mod-active")
    for start, count in ((18, 3), (19, 1)):  # a stroke over three sites; one that starts on a painted site erases
        shown.box.locator(".dcae-site").nth(start).hover()
        shown.page.mouse.down()
        shown.box.locator(".dcae-site").nth(20).hover()
        shown.page.mouse.up()
        shown.settle()
        assert active.count() == count


def test_play_walks_between_pictures_until_stopped(opened):
    opened.play().locator(".fa-play").wait_for()  # no longer the sign of a pause


def test_keys_take_no_more_time_than_some_round_trips_to_the_kernel(opened):
    taken = from_key_to_pixels(opened, "channels", "reconstruction, ", rounds=20)  # bench/explore.py: at most 100 ms
    trip = 1000 * median(repeat(lambda: opened.page.evaluate(ROUND_TRIP), number=1, repeat=20))
    assert taken < max(1000, 20 * trip)  # on a busy machine, both are slow


@pytest.fixture
def upload(opened):
    shown = opened.explorer("upload")

    def send(name: str, data: bytes) -> None:
        with shown.page.expect_file_chooser() as chooser:
            shown.box.get_by_role("button", name="your picture").click()
        chooser.value.set_files({"name": name, "mimeType": "image/png", "buffer": data})

    shown.send = send
    return shown


def test_uploads_are_shown_at_full_resolution_and_saved_exactly(upload):
    pixels = np.random.default_rng(0).integers(0, 256, (70, 101, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
    upload.send("mine.png", file.getvalue())
    upload.box.get_by_text("mine.png: 101×70 pixels").wait_for()
    upload.click("original")
    upload.settle()
    assert upload.box.locator("img:visible").evaluate("img => [img.naturalWidth, img.width]") == [101, 101]
    with upload.page.expect_download() as download:
        upload.box.get_by_text("save the result").click()
    assert download.value.suggested_filename == "mine-dcae.png"
    saved = np.asarray(Image.open(download.value.path()))
    x = to_model(torch.from_numpy(pixels).permute(2, 0, 1))
    expected = to_uint8(reconstruct(DCAE.from_pretrained(), x)).permute(1, 2, 0).numpy()
    assert np.abs(saved.astype(int) - expected).max() <= 1  # another process may round differently


def test_nothing_failed_and_no_other_host_was_asked(opened):
    page = opened.page
    assert page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    assert "Traceback" not in page.locator(".jp-Notebook").inner_text()
    inside = ("data:", "blob:", "http://127.0.0.1:", "ws://127.0.0.1:")
    assert opened.errors() == [] and [url for url in opened.asked if not url.startswith(inside)] == []


def test_labels_are_light_on_dark_pages(opened):
    change = "name => window.jupyterapp.commands.execute('apputils:change-theme', {theme: `JupyterLab ${name}`})"
    opened.page.evaluate(change, "Dark")
    opened.page.wait_for_selector("body[data-jp-theme-light=false] .jp-Notebook")
    for name in ("channels", "budget"):
        shown = opened.explorer(name)
        shown.box.screenshot(path=SCREENSHOTS / f"{name}-dark.png")
        labels = shown.box.locator(".dcae-label")
        colours = labels.evaluate_all("all => all.map(label => getComputedStyle(label).color)")
        assert colours and all(min(map(int, re.findall(r"\d+", colour)[:3])) > 200 for colour in colours)
    opened.page.evaluate(change, "Light")


def test_voila_shows_the_notebook_as_an_app(browser, tmp_path):
    with voila(tmp_path) as (address, token):
        page = Opened(browser).page
        page.goto(f"{address}/?token={token}", timeout=600_000)
        shown = Shown(page.locator("body"))
        shown.handle(20).wait_for()
        picture = shown.picture("reconstruction, ")
        before = shown.pixels(picture)
        shown.press(10, "ArrowLeft", 10)
        shown.changes(picture, before)
        assert "Traceback" not in page.inner_text("body")
        page.screenshot(path=SCREENSHOTS / "voila.png", full_page=True)
        page.close()
