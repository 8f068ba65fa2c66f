"""JupyterLab and Voilà on 127.0.0.1 with a browser in front of them: real pages, a real keyboard and mouse."""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median

import nbformat
import psutil
from playwright.sync_api import Browser, Error, Locator, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "06_exploring_latents.ipynb"
SCREENSHOTS = ROOT / "results" / "browser"  # git-ignored: to look at
CODEC_CELLS = [
    'import json\nrecord = json.loads((resource("recorded") / "codec.json").read_text())',
    "from dcae_lib import Codec\nexplore.budget(Codec.from_pretrained(), pictures, record)",
]
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking".split()
PLACES = "JUPYTER_CONFIG_DIR JUPYTER_DATA_DIR JUPYTERLAB_SETTINGS_DIR JUPYTERLAB_WORKSPACES_DIR IPYTHONDIR".split()
PATIENCE = 120  # seconds until a wait gives up: many more than a busy machine takes
# Every cell stays in the page, wherever it is scrolled to; nothing pops up, is saved, or gives up a slow kernel.
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"doNotDisturbMode": True, "fetchNews": "false", "checkForUpdates": False},
    "apputils-extension/kernels-settings": {"kernelInfoTimeout": 1000 * PATIENCE},
    "docmanager-extension/plugin": {"autosave": False},
}
# A dialog covers the page and takes the keyboard. Of its buttons, the last one that loses nothing closes it.
UNCOVER = """new MutationObserver(() => {
    for (const dialog of document.getElementsByClassName('jp-Dialog')) {
        console.info('closed a dialog:', dialog.innerText);
        [...dialog.querySelectorAll('.jp-Dialog-button:not(.jp-mod-warn)')].pop()?.click();
    }
}).observe(document, {childList: true, subtree: true})"""
KERNEL = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel"
CONNECTED = f"() => {KERNEL}?.connectionStatus == 'connected' && document.querySelector('.jp-Notebook .jp-CodeCell')"
PROMPTS = ".jp-CodeCell .jp-InputPrompt, .code_cell .input_prompt"  # of JupyterLab and of the classic notebook
NUMBERED = f"() => ![...document.querySelectorAll('{PROMPTS}')].some(e => !/\\d/.test(e.textContent))"
# The pixels on the screen, not the address that the picture has at the moment.
PIXELS = """img => {
    const size = {width: img.naturalWidth, height: img.naturalHeight};
    const canvas = Object.assign(document.createElement('canvas'), size);
    canvas.getContext('2d').drawImage(img, 0, 0);
    return canvas.toDataURL();
}"""
# From the key to the frame after the one that shows the new picture.
CLOCK = """img => {
    window.waits = [];
    document.addEventListener('keydown', () => { window.pressed = performance.now() }, true);
    const drawn = () => window.waits.push(performance.now() - window.pressed);
    img.addEventListener('load', () => requestAnimationFrame(() => requestAnimationFrame(drawn)));
}"""
# What the page has asked the kernel and is not answered yet.
ASKED = f"""() => {{
    window.asked = new Set();
    {KERNEL}.anyMessage.connect((_, {{direction, msg}}) => {{
        if (direction == 'send') window.asked.add(msg.header.msg_id);
        if (msg.content.execution_state == 'idle') window.asked.delete(msg.parent_header.msg_id);
    }});
}}"""
# Asked in each frame: the kernel has answered and every picture is complete, three times in a row.
SETTLED = """() => {
    const still = !window.asked?.size && [...document.images].every(img => img.complete);
    window.still = still ? (window.still ?? 0) + 1 : 0;
    return still && window.still % 3 == 0;
}"""
ROUND_TRIP = f"() => {KERNEL}.requestExecute({{code: 'pass'}}).done"
PAGES: list["Opened"] = []
LOGS: list[Path] = []


@contextmanager
def on_a_port(folder: Path) -> Iterator[str]:
    """Serve the files of a folder on this machine; give the address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the Chromium or Chrome of this machine; FileNotFoundError says how to get one."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        raise FileNotFoundError("no Chromium or Chrome found: `apt install chromium` on Debian, else see chromium.org")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS, timeout=1000 * PATIENCE)
        yield browser
        browser.close()


def port_of(process: subprocess.Popen) -> int | None:
    """Wait until a server listens and return the port that the system gave it; return None if it ends first."""
    end = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < end:
        with suppress(psutil.Error, StopIteration):  # it has just ended, or does not listen yet
            connections = psutil.Process(process.pid).net_connections("tcp")
            return next(c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN)
        time.sleep(0.1)
    process.kill()
    return None


@contextmanager
def served(folder: Path, module: str, *options: str, python=sys.executable, **places) -> Iterator[tuple[str, str]]:
    """Run `python -m module` on a free port of 127.0.0.1 with its own settings in a folder; yield (address, token).

    places: more of the environment, such as PYTHONPATH, by default the clone.
    """
    token, log = secrets.token_hex(16), folder / "server.log"
    LOGS.append(log)
    environment = os.environ | {name: str(folder / name) for name in PLACES}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | places
    command = [python, "-m", module, "--no-browser", "--port=0", *(o.format(token) for o in options)]
    for _ in range(3):  # JupyterLab lets go of its port for a moment before it listens
        with open(log, "w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=folder)
        if port := port_of(process):
            break
    else:
        raise RuntimeError(log.read_text())
    try:
        yield f"http://127.0.0.1:{port}", token
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()


def jupyterlab(folder: Path) -> AbstractContextManager[tuple[str, str]]:
    """Serve folder/work in JupyterLab."""
    for name, settings in SETTINGS.items():
        file = folder / "JUPYTERLAB_SETTINGS_DIR" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings))
    (folder / "work").mkdir()
    options = ["--allow-root", "--ServerApp.ip=127.0.0.1", "--ServerApp.port_retries=0", "--IdentityProvider.token={}"]
    options += ["--LabApp.expose_app_in_browser=True", f"--ServerApp.root_dir={folder / 'work'}"]
    return served(folder, "jupyterlab", *options)


def voila(folder: Path) -> AbstractContextManager[tuple[str, str]]:
    """Serve the notebook as an app."""
    options = [str(NOTEBOOK), "--Voila.ip=127.0.0.1", "--Voila.port_retries=0", "--token={}"]
    return served(folder, "voila", *options)


class Opened:
    """A page that closes JupyterLab's dialogs and keeps what its console says and what it asks for."""

    def __init__(self, browser: Browser, width: int = 1300, height: int = 1000, **options):
        self.page = browser.new_page(viewport={"width": width, "height": height}, **options)
        self.page.set_default_timeout(1000 * PATIENCE)
        self.page.add_init_script(UNCOVER)
        self.console: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.console.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.console.append(f"error: {error}"))
        self.page.on("request", lambda request: self.asked.append(request.url))
        PAGES.append(self)

    def errors(self) -> list[str]:
        return [line for line in self.console if line.startswith("error: ")]

    def explorer(self, name: str) -> "Shown":
        """Find the output of the cell with `explore.<name>(`, scroll to it, and wait until the page is settled."""
        cell = self.page.locator(".jp-CodeCell, .code_cell").filter(has_text=f"explore.{name}(")
        shown = Shown(cell.locator(".jp-OutputArea-output, .output_subarea").first)
        shown.box.scroll_into_view_if_needed()
        shown.settle()
        return shown

    def play(self) -> Locator:
        """Play the interpolation until its picture has changed twice, stop it, and return the button."""
        shown = self.explorer("interpolation")
        picture, button = shown.picture("through the latents"), shown.box.locator(".widget-play button").first
        before = shown.pixels(picture)
        button.click()
        shown.changes(picture, shown.changes(picture, before))
        button.click()
        return button


class Shown:
    """One explorer on the page."""

    def __init__(self, box: Locator):
        self.box, self.page = box, box.page

    def picture(self, title: str) -> Locator:
        """Find the image below a title, of which a part is given."""
        return self.box.locator(".dcae-picture").filter(has_text=title).locator("img").first

    def handle(self, k: int = 0) -> Locator:
        """Find the knob of the k-th slider."""
        return self.box.locator(".noUi-handle, .ui-slider-handle").nth(k)  # of ipywidgets 8 and of 7

    def click(self, name: str) -> None:
        self.box.get_by_role("button", name=name, exact=True).click()

    def press(self, k: int, key: str, times: int = 1) -> None:
        for _ in range(times):
            self.handle(k).press(key)

    def drag(self, k: int, *offsets: float) -> None:
        """Take the k-th slider's knob with the mouse, move it to offsets in pixels, and hold it."""
        self.handle(k).hover()
        self.page.mouse.down()
        box = self.handle(k).bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        for offset in offsets:
            self.page.mouse.move(x + offset, y)

    def settle(self) -> None:
        """Wait until the kernel has answered and all pictures are drawn."""
        self.page.wait_for_function(SETTLED)

    def pixels(self, picture: Locator) -> str:
        """Return the pixels of a picture when the page is settled."""
        self.settle()
        return picture.evaluate(PIXELS)

    def changes(self, picture: Locator, before: str) -> str:
        """Wait until the pixels of a picture differ from what they were, settled or not; return them."""
        differ = f"([img, before]) => ({PIXELS})(img) != before"
        self.page.wait_for_function(differ, arg=[picture.element_handle(), before])
        return picture.evaluate(PIXELS)


def from_key_to_pixels(opened: Opened, name: str, title: str | None, rounds: int) -> float:
    """Median milliseconds from an arrow key on the first slider to a new picture, by its title, or the last one."""
    shown = opened.explorer(name)
    (shown.picture(title) if title else shown.box.locator("img").last).evaluate(CLOCK)
    for k in range(rounds):
        shown.press(0, "ArrowLeft" if k % 2 else "ArrowRight")
        shown.page.wait_for_function("n => window.waits.length >= n", arg=k + 1)
    return median(shown.page.evaluate("() => window.waits"))


def write_notebook(folder: Path, cells) -> None:
    """Write the notebook, more cells at its end, without outputs into a folder."""
    content = nbformat.read(NOTEBOOK, 4)
    content.cells += map(nbformat.v4.new_code_cell, cells)
    for cell in content.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            cell.metadata.pop("jupyter", None)  # JupyterLab numbers no cell whose source is hidden
    nbformat.write(content, folder / NOTEBOOK.name)


def run_in_lab(browser: Browser, folder: Path, server: tuple[str, str], cells=()) -> Opened:
    """Open the notebook, more cells at its end, in JupyterLab and run all; return when every cell has its number."""
    address, token = server
    write_notebook(folder / "work", cells)
    opened = Opened(browser)
    opened.page.goto(f"{address}/lab/tree/{NOTEBOOK.name}?reset&token={token}")
    opened.page.wait_for_function(CONNECTED)
    opened.page.evaluate(ASKED)
    opened.page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
    opened.page.wait_for_function(NUMBERED, timeout=5000 * PATIENCE)
    return opened


def evidence(test: str) -> Iterator[tuple[str, str]]:
    """Save what the open pages show; yield where, with the last lines of their consoles and of the servers' logs."""
    for k, opened in enumerate(opened for opened in PAGES if not opened.page.is_closed()):
        path = SCREENSHOTS / f"{re.sub(r'[^a-z]+', '-', test)}-{k}.png"
        with suppress(Error):
            opened.page.screenshot(path=path, timeout=1000 * PATIENCE)
        yield f"page {k}, saved as {path.relative_to(ROOT)}", "\n".join(opened.console[-20:])
    for log in LOGS:
        yield f"the last lines of {log.name}", "\n".join(log.read_text().splitlines()[-20:])
