"""What stands for Google Colab: its Python and versions, the package from a git address, the classic notebook.

The environment is made once, in a folder of the user's caches; each run of the tests puts an empty one over it, into
which the notebooks' first cell installs the package, so that whatever pip replaces is found there.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib.metadata import distributions
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
from lab import CODEC_CELLS, NOTEBOOK, NUMBERED, PATIENCE, ROOT, SCREENSHOTS, Opened, served, write_notebook
from run_all import NOTEBOOKS, run_all

PINS = Path(__file__).parent / "colab.txt"
KEPT = "torch torchvision numpy pillow matplotlib ipywidgets ipython traitlets tqdm notebook ipykernel".split()
HOME = "some-one/its-copy"
TRAINING = """from IPython.display import HTML, display
from dcae_lib import TrainConfig, plots, train
place = display(HTML("a curve"), display_id=True)
run = train(TrainConfig(epochs=2, batch_size=100, device="cpu"), after_epoch=plots.live_curve(place, 15, "a line"))"""
FIGURE = """from ipywidgets import IntSlider
explore.figure(lambda k: plots.image_rows({"": pictures.images[k : k + 1]}), IntSlider(0, 0, 9))"""

# When the page has no answer to "which widgets are there?" yet, it draws all outputs anew on that answer, and loses
# the widgets of cells that were run before. It asks twice: a new kernel refuses the first question.
LOADED = "() => new Promise(done => Jupyter.notebook.kernel.comm_info(null, () => setTimeout(done)))"


class Colab(NamedTuple):
    """An environment: its Python, the folder of what was installed into it, and the folder of what it had before."""

    python: Path
    added: Path
    cached: Path


def python_of_colab() -> str:
    """Find Python 3.13, or else 3.12, on the path or of pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for version in ("3.13", "3.12"):
        for path in (shutil.which(f"python{version}"), *pyenv.glob(f"{version}.*/bin/python")):
            if path and subprocess.run([path, "-c", "import ensurepip"], capture_output=True).returncode == 0:
                return str(path)
    reason = "neither Python 3.13 nor 3.12 is here, on the path or of pyenv"
    return pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


def cached_environment(python: str) -> Path:
    """Return the folder of an environment with Colab's versions; the first call installs it, in minutes."""
    version = subprocess.check_output([python, "-VV"]) + PINS.read_bytes()
    folder = Path.home() / ".cache" / "dcae" / f"colab-{hashlib.sha256(version).hexdigest()[:12]}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            made = Path(temporary) / "made"
            subprocess.run([python, "-m", "venv", made], check=True)
            pip = [made / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-cache-dir"]
            subprocess.run([*pip, "--requirement", PINS], check=True)
            with suppress(OSError):  # another process was first
                made.rename(folder)
    return folder


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """An environment without the package, and a copy of the clone at a git address that pip takes for GitHub's."""
    folder, python = tmp_path_factory.mktemp("colab"), python_of_colab()
    cached, repository = cached_environment(python), folder / "repository"
    subprocess.run([python, "-m", "venv", "--without-pip", folder / "env"], check=True)
    (added,) = (folder / "env" / "lib").glob("python*/site-packages")
    (had,) = (cached / "lib").glob("python*/site-packages")
    (added / "cached.pth").write_text(f"import site; site.addsitedir({str(had)!r})\n")

    tracked = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    for name in filter(lambda name: name and (ROOT / name).is_file(), tracked):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, repository / name)
    subprocess.run([sys.executable, repository / "tools" / "address.py", HOME], check=True)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for arguments in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "copy"]):
        subprocess.run([*git, *arguments], cwd=repository, check=True)

    kernel = folder / "share" / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    argv = [str(folder / "env" / "bin" / "python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps(dict(argv=argv, display_name="Colab", language="python")))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONPATH", raising=False)
        patch.setenv("JUPYTER_PATH", os.pathsep.join(map(str, [kernel.parents[1], cached / "share" / "jupyter"])))
        patch.setenv("JUPYTER_CONFIG_PATH", str(cached / "etc" / "jupyter"))
        patch.setenv("GIT_CONFIG_COUNT", "1")
        patch.setenv("GIT_CONFIG_KEY_0", f"url.{repository.as_uri()}.insteadOf")
        patch.setenv("GIT_CONFIG_VALUE_0", f"https://github.com/{HOME}")
        notebooks = [repository / "notebooks" / path.name for path in NOTEBOOKS]
        run_all(notebooks[:1], "quick", folder / "out")  # its first cell installs the package
        yield Colab(folder / "env" / "bin" / "python", added, had), notebooks, folder / "out"


def test_notebooks_run_and_pip_replaces_nothing(colab):
    environment, notebooks, out = colab
    run_all(notebooks[1:], "quick", out)
    for path in notebooks:
        for cell in nbformat.read(out / path.name, 4).cells:
            for output in cell.get("outputs", []):
                assert "Traceback (most recent call last)" not in json.dumps(output)
                assert output.get("name") != "stderr" or "pip install" in cell.source, output.text
    had, added = installed(environment.cached), installed(environment.added)
    pins = dict(line.lower().split("==") for line in PINS.read_text().splitlines() if "==" in line)
    print({name: had[name] for name in KEPT}, added)
    assert "dcae_lib" in added and had.keys() & added.keys() == set()
    assert {name: had[name] for name in KEPT} == {name: pins[name] for name in KEPT}


def installed(folder):
    return {distribution.name.lower(): distribution.version for distribution in distributions(path=[str(folder)])}


def test_explorers_pass_their_tests(colab):
    environment, notebooks, _ = colab
    command = [environment.python, "-m", "pytest", "-q", "tests/explore"]
    done = subprocess.run(command, cwd=notebooks[0].parents[1], capture_output=True, text=True)
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
SLIDERS |= {"quantisation": " levels, ", "budget": "JPEG", "damage": "", "figure": ""}


@pytest.mark.parametrize("name", SLIDERS)
def test_arrow_keys_move_sliders_and_pictures(opened, name):
    shown = opened.explorer(name)
    picture = shown.picture(SLIDERS[name]) if SLIDERS[name] else shown.box.locator("img").last
    before = shown.pixels(picture)
    shown.press(0, "ArrowRight", 50 if name == "budget" else 5)
    shown.changes(picture, before)
    shown.box.screenshot(path=SCREENSHOTS / f"colab-{name}.png")


@pytest.mark.parametrize("name, button", [("classes", "frog"), ("curves", "SSIM"), ("brush", "clear")])
def test_buttons_change_pictures(opened, name, button):
    shown = opened.explorer(name)
    picture = shown.box.locator("img").last
    before = shown.pixels(picture)
    shown.click(button)
    shown.changes(picture, before)
    shown.box.screenshot(path=SCREENSHOTS / f"colab-{name}.png")


def test_play_walks_until_stopped(opened):
    shown = opened.explorer("interpolation")
    picture, play = shown.picture("through the latents"), shown.box.locator(".widget-play button").first
    before = shown.pixels(picture)
    play.click()
    shown.changes(picture, shown.changes(picture, before))
    play.click()


def test_uploads_are_shown_and_bad_ones_refused(opened):
    shown = opened.explorer("upload")
    for name, said in {
        "coffee.webp": "coffee.webp: ",
        "LICENSE": "LICENSE is not a picture",
        "astronaut.webp": "astronaut.webp: ",
    }.items():
        with shown.page.expect_file_chooser() as chooser:
            shown.box.get_by_role("button", name="your picture").click()
        chooser.value.set_files(ROOT / name if name == "LICENSE" else ROOT / "data" / "photos" / name)
        shown.box.get_by_text(said).wait_for()
    original, reconstruction, _ = shown.box.locator("img").all()
    shown.box.screenshot(path=SCREENSHOTS / "colab-upload.png")
    assert shown.pixels(reconstruction) != shown.pixels(original) and not original.is_visible()
    shown.click("original")
    original.wait_for()
    assert [original.evaluate("img => img.width"), reconstruction.is_visible()] == [512, False]
    assert shown.box.get_by_text("is not a picture").count() == 0


def test_bars_and_the_live_curve_are_drawn(opened):
    cell = opened.page.locator(".code_cell").filter(has_text="TrainConfig(epochs=2")
    cell.scroll_into_view_if_needed()
    assert cell.locator(".progress-bar").is_visible() and cell.get_by_text("40/40").is_visible()
    assert cell.locator("img").evaluate("img => img.naturalWidth") > 400
    cell.screenshot(path=SCREENSHOTS / "colab-training.png")


def test_nothing_failed(opened):
    assert "Traceback" not in opened.page.locator("#notebook").inner_text()
    assert opened.page.locator(".output_stderr").count() == 0
    assert opened.errors() == []
