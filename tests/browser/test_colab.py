"""What stands for Google Colab: its Python and versions, the package from a git address, the classic notebook."""

import json
import os
import subprocess
from importlib.metadata import distributions

import nbformat
import pytest
from colab import PINS, NoPython, make
from lab import CODEC_CELLS, NOTEBOOK, NUMBERED, PATIENCE, ROOT, SCREENSHOTS, Opened, served, write_notebook
from run_all import NOTEBOOKS, run_all

KEPT = "torch torchvision numpy pillow matplotlib ipywidgets ipython traitlets tqdm notebook ipykernel".split()
TRAINING = """from IPython.display import HTML, Image, display
from dcae_lib import TrainConfig, plots, train
place = display(HTML("a curve"), display_id=True)
drawn = lambda images: Image(plots.figure_png(plots.image_rows({"epoch": to_model(images)})))
curve = lambda run: place.update(drawn(pictures.images[: 3 + len(run.history)]))
run = train(TrainConfig(epochs=2, batch_size=100, device="cpu"), after_epoch=curve)"""
FIGURE = """from ipywidgets import IntSlider
explore.figure(lambda k: plots.image_rows({"": pictures.images[k : k + 1]}), IntSlider(0, 0, 9))"""

# When the page has no answer to "which widgets are there?" yet, it draws all outputs anew on that answer, and loses
# the widgets of cells that were run before. It asks twice: a new kernel refuses the first question.
LOADED = "() => new Promise(done => Jupyter.notebook.kernel.comm_info(null, () => setTimeout(done)))"


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """The environment, after notebook 00, whose first cell installs the package; all notebooks; a folder of outputs."""
    try:
        colab = make(tmp_path_factory.mktemp("colab"))
    except NoPython as error:
        pytest.fail(str(error)) if os.environ.get("CI") else pytest.skip(str(error))
    notebooks, out = [colab.repository / "notebooks" / path.name for path in NOTEBOOKS], tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONPATH", raising=False)
        for name, value in colab.variables.items():
            patch.setenv(name, value)
        run_all(notebooks[:1], "quick", out)
        yield colab, notebooks, out


def test_notebooks_run_and_pip_replaces_nothing(colab):
    environment, notebooks, out = colab
    run_all(notebooks[1:], "quick", out)
    for path in notebooks:
        for cell in nbformat.read(out / path.name, 4).cells:
            for output in cell.get("outputs", []):
                assert "Traceback (most recent call last)" not in json.dumps(output)
                assert output.get("name") != "stderr" or "pip install" in cell.source, output.text
    had, added = installed(environment.colab), installed(environment.own)
    pins = dict(line.lower().split("==") for line in PINS.read_text().splitlines() if "==" in line)
    print({name: had[name] for name in KEPT}, added)
    assert "dcae_lib" in added and had.keys() & added.keys() == set()
    assert {name: had[name] for name in KEPT} == {name: pins[name] for name in KEPT}


def installed(folder):
    return {distribution.name.lower(): distribution.version for distribution in distributions(path=[str(folder)])}


def test_explorers_pass_their_tests(colab):
    environment, _, _ = colab
    command = [environment.python, "-m", "pytest", "-q", "tests/explore"]
    done = subprocess.run(command, cwd=environment.repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.fixture(scope="module")
def opened(colab, browser, tmp_path_factory):
    """Notebook 06 with more cells, run in the classic notebook."""
    folder = tmp_path_factory.mktemp("classic")
    (folder / "work").mkdir()
    write_notebook(folder / "work", [*CODEC_CELLS, FIGURE, TRAINING])
    options = ["--allow-root", "--ip=127.0.0.1", "--port-retries=0", "--NotebookApp.token={}", "--notebook-dir=work"]
    options += ["--no-mathjax"]  # it asks for a font at about:blank, which Chromium calls an error
    with served(folder, "notebook", *options, python=colab[0].python, PYTHONPATH="") as (address, token):
        opened = Opened(browser)
        with opened.page.expect_console_message(lambda message: "Failed to fetch ipywidgets" in message.text):
            opened.page.goto(f"{address}/notebooks/{NOTEBOOK.name}?token={token}")
        opened.page.evaluate(LOADED)
        opened.page.evaluate("() => { Jupyter.notebook.execute_all_cells() }")
        opened.page.wait_for_function(NUMBERED, timeout=5000 * PATIENCE)
        yield opened


SLIDERS = {"channels": "reconstruction, ", "interpolation": "through the latents", "directions": "the mean, moved"}
SLIDERS |= {"quantisation": " levels, ", "budget": "JPEG", "damage": "", "figure": ""}  # titles of pictures
BUTTONS = {"brush": "clear"}


@pytest.mark.parametrize("name", [*SLIDERS, *BUTTONS])
def test_arrow_keys_and_buttons_change_pictures(opened, name):
    shown = opened.explorer(name)
    picture = shown.picture(SLIDERS[name]) if SLIDERS.get(name) else shown.box.locator("img").last
    before = shown.pixels(picture)
    if name in BUTTONS:
        shown.click(BUTTONS[name])
    else:
        shown.press(0, "ArrowRight", 50 if name == "budget" else 5)
    shown.changes(picture, before)
    shown.box.screenshot(path=SCREENSHOTS / f"colab-{name}.png")


def test_play_walks_until_stopped(opened):
    opened.play()


def test_uploads_are_shown_and_bad_ones_refused(opened):
    shown = opened.explorer("upload")
    for name, said in (("coffee.webp", ": "), ("README.md", " is not a picture"), ("astronaut.webp", ": ")):
        with shown.page.expect_file_chooser() as chooser:
            shown.box.get_by_role("button", name="your picture").click()
        chooser.value.set_files(ROOT / "data" / ("photos" if "webp" in name else "") / name)
        shown.box.get_by_text(name + said).wait_for()
    picture = shown.box.locator("img")
    before, element = shown.pixels(picture), picture.element_handle()
    shown.box.screenshot(path=SCREENSHOTS / "colab-upload.png")
    shown.click("original")
    element.wait_for_element_state("hidden")
    assert shown.pixels(picture) != before and picture.evaluate("img => [img.width, img.naturalWidth]") == [512, 512]
    assert shown.box.get_by_text("is not a picture").count() == 0


def test_bars_and_figures_that_change_are_drawn(opened):
    cell = opened.page.locator(".code_cell").filter(has_text="TrainConfig(epochs=2")
    cell.scroll_into_view_if_needed()
    assert cell.locator(".progress-bar").is_visible() and cell.get_by_text("40/40").is_visible()
    assert cell.locator("img").evaluate("img => img.naturalWidth") > 400
    cell.screenshot(path=SCREENSHOTS / "colab-training.png")


def test_nothing_failed(opened):
    assert "Traceback" not in opened.page.locator("#notebook").inner_text()
    assert opened.page.locator(".output_stderr").count() == 0
    assert opened.errors() == []
