"""The explorers that live in a page: PyTorch's pictures, by every kind of input, at once, and from this host only."""

import io
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import export_live
import numpy as np
import pytest
import torch
from lab import SCREENSHOTS, Opened
from PIL import Image
from playwright.sync_api import Error, sync_playwright

from dcae_lib import explore, load_images, plots, to_model, to_uint8
from dcae_lib.tiles import reconstruct

CELL = '<div class="cell"><div class="cell_input">explore.{}(model)</div><div class="cell_output">a still</div></div>'
PAGE = """<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<link rel="icon" href="data:,"><link rel="stylesheet" href="live/live.css">
<body style="max-width: 45rem; margin: auto"><p style="height: 3000px">A long text.</p>
<div data-explorer="hero">a still</div><p style="height: 3000px">More of it.</p>{}
<script type="module" src="live/start.js"></script>"""
# What is done to each explorer: in the page, and by the Python explorer's controls of the same names.
MOVES = {
    "channels": {"image": 4, "gain-3": -1.5, "gain-8": 0.3, "switch-11": False},
    "brush": {"image": 2, "paint": 5, "site-27": True, "site-0": False},
    "interpolation": {"from": 1, "to": 9, "percent": 35},
    "directions": {"start": 3, "step-0": -2.0, "step-6": 1.5},
    "quantisation": {"image": 6, "levels": 24},
    "damage": {"image": 8, "noise": 0.35, "site-36": True, "freeze": True},
}
CONTROLS = {"gain": "gains", "switch": "switches", "site": "sites", "step": "steps"}  # those of which there are many
MOVED = dict.fromkeys(MOVES, "[type=range]") | {"hero": ".dcae-maps button", "brush": ".dcae-sites :nth-child(30)"}


@pytest.fixture(scope="session")
def live(site):
    """Add a page with all explorers below a long text to the site; return the folder and the address."""
    folder, address = site
    shutil.copy(Path(__file__).with_name("live.js"), folder)
    (folder / "explorers.html").write_text(PAGE.format("".join(map(CELL.format, [*MOVES, "upload"]))))
    return folder, address


@pytest.fixture(scope="session")
def page(browser, live):
    opened = Opened(browser)
    opened.page.goto(f"{live[1]}explorers.html")
    yield opened.page
    assert opened.errors() == []
    assert all(url.startswith((live[1], "data:", "blob:")) for url in opened.asked)


@pytest.fixture(scope="session")
def python():
    return export_live.halved(), load_images("sample").test


def section(page, name):
    """Scroll to an explorer, and wait until it is there in the place of its still."""
    page.locator(f".cell:has-text('explore.{name}(') .cell_output, [data-explorer={name}]").scroll_into_view_if_needed()
    page.locator(f".dcae-{name}").wait_for()
    return page.locator(f".dcae-{name}")


def call(page, function, *arguments):
    """Call a function of live.js."""
    return page.evaluate(f"given => import('/live.js').then(m => m.{function}(...given))", arguments)


def shown(page, name):
    """Return what the canvases of an explorer show: int [H, W, 3] by name."""
    return {key: rgb(*found) for key, found in call(page, "pictures", name).items()}


def rgb(width, height, data):
    return np.array(data).reshape(height, width, 4)[..., :3]


def close(a, b, levels=1):
    return a.shape == b.shape and np.abs(a - b).max() <= levels


def as_pixels(x):
    return to_uint8(x).permute(1, 2, 0).numpy().astype(int)


def decoded_right(page, python):
    model, images = python
    with torch.no_grad():
        expected = model(to_model(images.images[:12]))
    return all(close(rgb(32, 32, data), as_pixels(y)) for data, y in zip(call(page, "twelve"), expected))


def test_twelve_pictures_are_at_most_one_level_from_pytorchs(page, python):
    assert decoded_right(page, python)


@pytest.mark.parametrize("engine", ["firefox", "webkit"])
def test_other_browsers_decode_the_same(engine, live, python):
    def visit():  # in a thread of its own, since Playwright runs in this one
        with sync_playwright() as playwright:
            try:
                browser = getattr(playwright, engine).launch()
            except Error:
                return None
            page = browser.new_page()
            page.goto(f"{live[1]}explorers.html")
            return decoded_right(page, python)

    with ThreadPoolExecutor(1) as thread:
        right = thread.submit(visit).result()
    if right is None:
        pytest.skip(f"no {engine}: `playwright install {engine}`")
    assert right


@pytest.mark.parametrize("name", MOVES)
def test_moved_explorers_show_the_pictures_of_the_python_explorers(page, python, name):
    live, twin = section(page, name), getattr(explore, name)(*python)
    for control, value in MOVES[name].items():
        kind, _, k = control.partition("-")
        (twin.controls[CONTROLS[kind]][int(k)] if k else twin.controls[kind]).value = value
        call(page, "move", name, control, explore.LEVELS.index(value) if control == "levels" else value)
    pictures = shown(page, name)
    assert twin.message.value == "" and {*twin.pictures} == {*pictures}
    magma = plots.colorize(torch.linspace(0, 1, 256)[None])[:, 0].int()
    neighbours = (magma[:, 1:] - magma[:, :-1]).abs().max().item()  # a change on the border of two colours
    for key, picture in twin.pictures.items():
        expected = np.asarray(Image.open(io.BytesIO(picture.image.value)), int)
        assert close(pictures[key], expected, neighbours if key == "change" else 1), key
    live.screenshot(path=SCREENSHOTS / f"live-{name}.png")


@pytest.mark.parametrize("name", MOVED)
def test_pixels_follow_a_control_at_once(page, name):
    section(page, name)
    waits = call(page, "waits", name, MOVED[name])
    print(f"{name}: {median(waits):.1f} ms from control to pixels, median of {len(waits)}")
    assert median(waits) < 10 * 30  # ten times what a desktop takes that does nothing else


def test_keys_move_all_controls_and_reset_brings_all_back(page):
    live = section(page, "channels")
    live.get_by_role("button", name="reset").click()
    seen = [shown(page, "channels")["result"]]
    for control, key in (("gain-3]", "ArrowLeft"), ("switch-7]", "Space"), ("image] :checked", "ArrowRight")):
        live.locator(f"[data-control={control}").press(key)
        seen.append(shown(page, "channels")["result"])
    assert len({picture.tobytes() for picture in seen}) == 4
    live.locator("[data-control=image] :checked").press("ArrowLeft")
    live.get_by_role("button", name="reset").click()
    assert np.array_equal(shown(page, "channels")["result"], seen[0])
    live = section(page, "brush")
    live.get_by_role("button", name="clear").click()
    sites = live.locator(".dcae-sites button")
    sites.and_(page.locator("[tabindex='0']")).focus()
    for key in ["ArrowLeft", "ArrowUp"] * 8 + ["ArrowRight", "ArrowDown", "Space", "ArrowDown", "Enter"]:
        page.keyboard.press(key)
    assert [sites.nth(k).get_attribute("aria-pressed") for k in (0, 9, 17)] == ["false", "true", "true"]


def test_fingers_paint_and_move_sliders(browser, live):
    page = Opened(browser, 390, 850, has_touch=True, is_mobile=True).page
    page.goto(f"{live[1]}explorers.html")
    brush = section(page, "brush")
    brush.get_by_role("button", name="clear").tap()
    box = brush.locator(".dcae-sites").bounding_box()
    finger = page.context.new_cdp_session(page)
    for kind, column in (("touchStart", 2.5), ("touchMove", 4.5), ("touchEnd", None)):
        at = {"x": box["x"] + box["width"] * (column or 0) / 8, "y": box["y"] + box["height"] / 16}
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [at] if column else []})
    pressed = [e.get_attribute("aria-label") for e in brush.locator("[aria-pressed=true]").all()]
    assert pressed == ["row 1, column 3", "row 1, column 4", "row 1, column 5"]
    slider = section(page, "quantisation").locator("[type=range]")
    before = slider.input_value()
    slider.tap(position={"x": slider.bounding_box()["width"] * 0.9, "y": 10})
    assert int(slider.input_value()) > int(before)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


def test_nothing_loads_before_an_explorer_is_near_and_then_little(browser, live):
    (folder, address), opened = live, Opened(browser)
    opened.page.goto(f"{address}explorers.html")
    opened.page.wait_for_load_state("networkidle")
    names = [url.removeprefix(address) for url in opened.asked]
    assert {name for name in names if name.startswith("live/")} == {"live/live.css", "live/start.js"}
    section(opened.page, "hero")
    loaded = {url.removeprefix(address) for url in opened.asked if "/live/" in url} - {"live/weights/cat.webp"}
    total = sum((folder / name).stat().st_size for name in loaded)
    print(f"{total:,} bytes of the explorers until the first picture lives, besides the page")
    assert "live/weights/dcae.safetensors" in loaded and total < 400_000
    opened.page.close()


def test_own_pictures_come_upright_on_white_through_the_network_and_are_saved(page, python):
    def choose(explorer, label, name, data):
        file = {"name": name, "mimeType": "image/*", "buffer": data}
        section(page, explorer).get_by_label(label).first.set_input_files(file)

    pixels = np.random.default_rng(0).integers(0, 256, (70, 101, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    pixels[:8, :8] = 0  # transparent
    Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
    choose("upload", "your picture …", "mine.png", file.getvalue())
    page.locator("p", has_text="mine.png: 101×70 pixels,").first.wait_for()
    pictures = shown(page, "upload")
    pixels[:8, :8] = 255
    x = to_model(torch.from_numpy(pixels[..., :3].copy()).permute(2, 0, 1))
    y = reconstruct(python[0], x)
    assert np.array_equal(pictures["original"], pixels[..., :3])
    assert close(pictures["reconstruction"], as_pixels(y))
    assert close(pictures["error × 8"], as_pixels(plots.error_maps(y, x, gain=8)))
    with page.expect_download() as download:
        page.get_by_text("save the result").click()
    assert np.array_equal(np.asarray(Image.open(download.value.path()).convert("RGB"), int), pictures["reconstruction"])
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    Image.fromarray(pixels[..., :3]).save(file := io.BytesIO(), "JPEG", exif=exif)
    choose("upload", "your picture …", "turned.jpg", file.getvalue())
    page.locator("p", has_text="turned.jpg: 70×101 pixels,").first.wait_for()
    choose("upload", "your picture …", "notes.txt", b"no picture")
    page.get_by_text("notes.txt is not a picture that this browser can read.").wait_for()
    choose("hero", "a picture of your own", "turned.jpg", file.getvalue())
    for name in ("hero", "channels"):  # all explorers offer it then
        section(page, name).get_by_title("turned.jpg").wait_for()
