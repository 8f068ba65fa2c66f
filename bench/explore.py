"""How fast an explorer answers: from a slider's event to the new picture's bytes, and in JupyterLab from key to pixels.

One thread; the browser part needs Chromium or Chrome and is left out with --no-browser.
"""

import argparse
import io
import json
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from statistics import median

import torch
from PIL import Image

from dcae_lib import DCAE, ImageSet, explore, load_images, plots, to_model
from dcae_lib.explore.widgets import png
from dcae_lib.runs.record import processor

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "results" / "bench" / "explore.json"
ROUNDS = 50


def moves(model: DCAE, test: ImageSet) -> dict:
    """One control of each explorer and the values it goes to in turn: {name: (control, values)}."""
    return {
        "channels": (explore.channels(model, test).controls["gains"][10], (0.5, 1.5)),
        "interpolation": (explore.interpolation(model, test).controls["percent"], (25, 75)),
        "directions": (explore.directions(model, test).controls["steps"][0], (-1.0, 1.0)),
        "quantisation": (explore.quantisation(model, test).controls["levels"], (8, 16)),
        "damage": (explore.damage(model, test).controls["noise"], (0.5, 1.0)),
        "brush": (explore.brush(model, test).controls["sites"][27], (True, False)),
        "classes": (explore.classes(model, test).controls["class"], (3, 6)),
    }


def compute(model: DCAE, test: ImageSet, rounds: int = ROUNDS) -> dict[str, float]:
    """Median milliseconds from a control's new value to the end of its callback, by explorer."""
    found = {}
    for name, (control, values) in moves(model, test).items():
        times = []
        for k in range(rounds):
            start = time.perf_counter()
            control.value = values[k % 2]
            times.append(1e3 * (time.perf_counter() - start))
        found[name] = median(times)
    return found


def picture(test: ImageSet, rounds: int = ROUNDS) -> dict[str, float]:
    """Median milliseconds to turn one 32×32 picture into PNG bytes: directly, and as a figure of matplotlib."""
    x, times = to_model(test.images[0]), {"png": [], "figure": []}
    for _ in range(rounds):
        start = time.perf_counter()
        png(x)
        times["png"].append(1e3 * (time.perf_counter() - start))
        start = time.perf_counter()
        figure = plots.image_rows({"picture": x[None]})
        figure.savefig(io.BytesIO(), format="png")
        plots.plt.close(figure)
        times["figure"].append(1e3 * (time.perf_counter() - start))
    return {name: median(values) for name, values in times.items()}


def photograph(side: int) -> bytes:
    """A JPEG of side × side pixels, made of a photo that comes with the course."""
    with Image.open(ROOT / "data" / "photos" / "astronaut.webp") as image:
        file = io.BytesIO()
        image.resize((side, side)).save(file, "JPEG", quality=90)
    return file.getvalue()


def upload(model: DCAE, side: int = 1024) -> float:
    """Seconds that the callback of an upload takes."""
    shown, data = explore.upload(model), photograph(side)
    start = time.perf_counter()
    shown.controls["file"].value = ({"name": "large.jpg", "type": "image/jpeg", "size": len(data), "content": memoryview(data),
                                     "last_modified": datetime.now()},)
    seconds = time.perf_counter() - start
    assert not shown.message.value, shown.message.value
    return seconds


def in_browser(rounds: int = ROUNDS) -> dict[str, float]:
    """Median milliseconds from key to pixels by explorer, and seconds from choosing a 1,024×1,024 file to its picture."""
    sys.path.insert(0, str(ROOT / "tests" / "browser"))
    from lab import chromium, from_key_to_pixels, jupyterlab, run_in_lab

    found = {}
    with tempfile.TemporaryDirectory() as folder, chromium() as browser, jupyterlab(Path(folder)) as server:
        opened = run_in_lab(browser, Path(folder), server)
        titles = {"channels": "reconstruction, ", "interpolation": "through the latents", "directions": "moved",
                  "quantisation": "levels, ", "damage": None}
        for name, title in titles.items():
            found[name] = from_key_to_pixels(opened, name, title, rounds)
        shown = opened.explorer("upload")
        seconds = []
        for k in range(5):
            with shown.page.expect_file_chooser() as chooser:
                shown.box.get_by_role("button", name="your picture").click()
            start = time.perf_counter()
            chooser.value.set_files({"name": f"{k}.jpg", "mimeType": "image/jpeg", "buffer": photograph(1024)})
            shown.box.get_by_text(f"{k}.jpg: 1024×1024 pixels").wait_for()
            seconds.append(time.perf_counter() - start)
        found["upload_seconds"] = median(seconds)
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--no-browser", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    plots.use_style()
    model, test = DCAE.from_pretrained(), load_images().test
    record = dict(
        processor=processor(), threads=1, rounds=options.rounds, compute_ms=compute(model, test, options.rounds),
        picture_ms=picture(test, options.rounds), upload_seconds=upload(model),
    )
    if not options.no_browser:
        record["browser"] = in_browser(options.rounds)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(options.out.read_text())


if __name__ == "__main__":
    main()
