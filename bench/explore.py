"""Measure how fast an explorer answers: from a slider's event to the new picture, in JupyterLab and on a web page.

One thread; the browser part needs Chromium or Chrome and is left out with --no-browser.
"""

import io
import shutil
import sys
import tempfile
import time
from datetime import datetime
from itertools import cycle, pairwise
from pathlib import Path
from statistics import median

from harness import RESULTS, here, in_turns, one_thread, parser, photo, save, seconds
from torchvision.transforms.functional import to_pil_image

from dcae_lib import DCAE, ImageSet, explore, load_images, plots, to_model
from dcae_lib.explore.widgets import png


def compute(model: DCAE, test: ImageSet, rounds: int) -> dict[str, float]:
    """Return the median milliseconds from a control's new value to the end of its callback, by explorer."""
    controls = {
        "channels": (explore.channels(model, test).controls["gains"][10], (0.5, 1.5)),
        "interpolation": (explore.interpolation(model, test).controls["percent"], (25, 75)),
        "directions": (explore.directions(model, test).controls["steps"][0], (-1.0, 1.0)),
        "quantisation": (explore.quantisation(model, test).controls["levels"], (8, 16)),
        "damage": (explore.damage(model, test).controls["noise"], (0.5, 1.0)),
        "brush": (explore.brush(model, test).controls["sites"][27], (True, False)),
    }

    def move(control, values: cycle):
        return lambda: setattr(control, "value", next(values))

    times = in_turns({name: move(control, cycle(values)) for name, (control, values) in controls.items()}, rounds)
    return {name: 1e3 * median(values) for name, values in times.items()}


def picture(test: ImageSet, rounds: int) -> dict[str, float]:
    """Return the median milliseconds to turn one 32×32 picture into PNG bytes: directly, and as a matplotlib figure."""
    x = to_model(test.images[0])

    def figure() -> None:
        figure = plots.image_rows({"picture": x[None]})
        figure.savefig(io.BytesIO(), format="png")
        plots.plt.close(figure)

    times = in_turns({"png": lambda: png(x), "figure": figure}, rounds)
    return {name: 1e3 * median(values) for name, values in times.items()}


def photograph() -> bytes:
    """Return a JPEG of 1,024×1,024 pixels."""
    file = io.BytesIO()
    to_pil_image(photo("astronaut")).resize((1024, 1024)).save(file, "JPEG", quality=90)
    return file.getvalue()


def upload(model: DCAE) -> float:
    """Return the seconds that the callback of an upload takes."""
    shown, data = explore.upload(model), photograph()
    file = dict(name="large.jpg", type="image/jpeg", size=len(data), content=memoryview(data))
    value = (file | dict(last_modified=datetime.now()),)
    taken = seconds(lambda: setattr(shown.controls["file"], "value", value))
    assert not shown.message.value, shown.message.value
    return taken


def in_browser(rounds: int) -> dict[str, float]:
    """Return the median milliseconds from key to pixels by explorer, and the seconds of an upload."""
    sys.path.insert(0, str(RESULTS.parent / "tests" / "browser"))
    from lab import chromium, from_key_to_pixels, jupyterlab, run_in_lab

    titles = {"channels": "reconstruction, ", "interpolation": "through the latents", "directions": "moved"}
    titles |= {"quantisation": "levels, ", "damage": None}
    with tempfile.TemporaryDirectory() as folder, chromium() as browser, jupyterlab(Path(folder)) as server:
        opened = run_in_lab(browser, Path(folder), server)
        found = {name: from_key_to_pixels(opened, name, title, rounds) for name, title in titles.items()}
        shown, waits = opened.explorer("upload"), []
        for k in range(5):
            with shown.page.expect_file_chooser() as chooser:
                shown.box.get_by_role("button", name="your picture").click()
            start = time.perf_counter()
            chooser.value.set_files({"name": f"{k}.jpg", "mimeType": "image/jpeg", "buffer": photograph()})
            shown.box.get_by_text(f"{k}.jpg: 1024×1024 pixels").wait_for()
            waits.append(time.perf_counter() - start)
    return found | dict(upload_seconds=median(waits))


SLIDERS = "channels", "interpolation", "directions", "quantisation", "damage"
FRAME = 1000 / 60  # milliseconds
FRAMES = """() => {
    const seen = window.frames = [], note = now => { seen.push(now); requestAnimationFrame(note); };
    requestAnimationFrame(note);
}"""


def on_a_page() -> dict[str, dict[str, float]]:
    """Return the median milliseconds from a slider's event to its frame, and the share of frames that a drag loses."""
    sys.path[:0] = [str(RESULTS.parent / "tests" / "browser"), str(RESULTS.parent / "tools")]
    from build_site import build
    from lab import chromium, on_a_port

    waits, lost = {}, {}
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        site = Path(folder) / "site"
        build(site)
        shutil.copy(RESULTS.parent / "tests" / "browser" / "live.js", site)
        with on_a_port(site) as address:
            page = browser.new_page()
            page.goto(f"{address}notebooks/06_exploring_latents.html")
            for name in SLIDERS:
                page.locator(f".cell:has-text('explore.{name}(') .cell_output").scroll_into_view_if_needed()
                slider = page.locator(f".dcae-{name} [type=range]").first
                slider.wait_for()
                call = "name => import('/live.js').then(m => m.waits(name, '[type=range]'))"
                waits[name] = median(page.evaluate(call, name))
                box = slider.bounding_box()
                across = [box["x"] + box["width"] * (k + 0.5) / 120 for k in range(120)]
                page.mouse.move(across[0], box["y"] + box["height"] / 2)
                page.mouse.down()
                page.evaluate(FRAMES)
                for x in across:
                    page.mouse.move(x, box["y"] + box["height"] / 2)
                    page.wait_for_timeout(10)
                page.mouse.up()
                gaps = [later - sooner for sooner, later in pairwise(page.evaluate("window.frames"))]
                lost[name] = sum(round(gap / FRAME) - 1 for gap in gaps) * FRAME / sum(gaps)
    return dict(waits_ms=waits, lost_frames=lost)


def main(arguments: list[str] | None = None) -> None:
    command = parser(__doc__, "explore", rounds=50)
    command.add_argument("--no-browser", action="store_true")
    options = command.parse_args(arguments)
    one_thread()
    plots.use_style()
    model, test, rounds = DCAE.from_pretrained(), load_images("sample").test, options.rounds
    record = dict(rounds=rounds, compute_ms=compute(model, test, rounds), picture_ms=picture(test, rounds))
    record |= dict(upload_seconds=upload(model))
    if not options.no_browser:
        record["browser"] = in_browser(rounds)
        record["page"] = on_a_page()
    save(options.out, record | here())


if __name__ == "__main__":
    main()
