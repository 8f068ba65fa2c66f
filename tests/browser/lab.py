"""JupyterLab and Voilà on loopback, and a browser in front of them: real pages, a real keyboard and mouse."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median

import nbformat
from playwright.sync_api import Browser, Locator, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "06_exploring_latents.ipynb"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]
# Every cell stays in the page, wherever it is scrolled to, and no news pop up.
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
NUMBERS = "() => [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(e => e.textContent)"
# The pixels as they are on the screen, not the address that the picture has at the moment.
PIXELS = """img => {
    const canvas = Object.assign(document.createElement('canvas'), {width: img.naturalWidth, height: img.naturalHeight});
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

WHOLE = "img => img.complete && img.naturalWidth > 0"
# How many pictures come after this.
COUNT = "img => { window.loads = 0; img.addEventListener('load', () => { window.loads += 1 }) }"


@contextmanager
def chromium() -> Iterator[Browser]:
    """The Chromium or Chrome of this machine; FileNotFoundError says how to get one."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        raise FileNotFoundError("there is no Chromium or Chrome: `apt install chromium` on Debian, else see chromium.org")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


def answers(url: str, process: subprocess.Popen) -> bool:
    """Wait until a server answers; False if it ends before."""
    for _ in range(480):
        try:
            urllib.request.urlopen(url, timeout=60).close()
        except urllib.error.HTTPError:                      # that is an answer, and enough
            pass
        except OSError:
            if process.poll() is not None:
                return False
            time.sleep(0.25)
            continue
        return True
    return process.poll() is None


@contextmanager
def served(folder: Path, module: str, *options: str, at: str) -> Iterator[tuple[str, str]]:
    """`python -m module` on a free port of 127.0.0.1, with settings of its own in a folder: (address, token)."""
    token, log = secrets.token_hex(16), folder / "server.log"
    environment = dict(
        os.environ, JUPYTER_CONFIG_DIR=str(folder / "config"), JUPYTER_DATA_DIR=str(folder / "data"),
        JUPYTERLAB_SETTINGS_DIR=str(folder / "settings"), JUPYTERLAB_WORKSPACES_DIR=str(folder / "workspaces"),
        IPYTHONDIR=str(folder / "ipython"), PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1",
    )
    for _ in range(3):                                      # before it is used, another process may take the port
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", module, "--no-browser", f"--port={port}", *(o.format(token=token) for o in options)]
        with open(log, "w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=folder)
        address = f"http://127.0.0.1:{port}"
        if answers(f"{address}{at}?token={token}", process):
            break
    else:
        raise RuntimeError(log.read_text())
    try:
        yield address, token
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


@contextmanager
def jupyterlab(folder: Path) -> Iterator[tuple[str, str]]:
    """JupyterLab over folder/work."""
    for name, value in SETTINGS.items():
        file = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(value))
    (folder / "work").mkdir()
    options = [
        "--allow-root", "--ServerApp.ip=127.0.0.1", "--ServerApp.port_retries=0", "--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={folder / 'work'}", "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    with served(folder, "jupyterlab", *options, at="/api/status") as server:
        yield server


@contextmanager
def voila(folder: Path, notebook: Path = NOTEBOOK) -> Iterator[tuple[str, str]]:
    """A notebook as an app."""
    with served(folder, "voila", str(notebook), "--Voila.ip=127.0.0.1", "--Voila.port_retries=0", "--token={token}", at="/static/none") as server:
        yield server


class Opened:
    """A page, what its console complained about, and what it asked of other hosts."""

    def __init__(self, browser: Browser):
        self.page = browser.new_page(viewport={"width": 1300, "height": 1000})
        self.page.set_default_timeout(20_000)
        self.complaints: list[str] = []
        self.outside: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: None if self._inside(request.url) else self.outside.append(request.url))

    @staticmethod
    def _inside(url: str) -> bool:
        return url.startswith(("data:", "blob:", "http://127.0.0.1:", "ws://127.0.0.1:"))

    def explorer(self, name: str, module: str = "explore") -> "Shown":
        """What the cell with `<module>.<name>(` shows."""
        cell = self.page.locator(".jp-CodeCell").filter(has_text=f"{module}.{name}(")
        return Shown(cell.locator(".jp-OutputArea-output").first)


class Shown:
    """One explorer on the page."""

    def __init__(self, box: Locator):
        self.box, self.page = box, box.page

    def picture(self, title: str) -> Locator:
        """The image below a title, of which a part is given."""
        return self.box.locator(".dcae-picture").filter(has_text=title).locator("img").first

    def pixels(self, picture: Locator) -> str:
        return picture.evaluate(PIXELS)

    def changes(self, picture: Locator, before: str, seconds: float = 20) -> str:
        """Wait until the pixels of a picture differ from what they were; returns what they are then."""
        self.page.wait_for_function(f"([img, before]) => ({PIXELS})(img) !== before", arg=[picture.element_handle(), before],
                                    timeout=1000 * seconds)
        return self.pixels(picture)

    def settled(self, picture: Locator, seconds: float = 20) -> str:
        """Wait until the pixels of a picture stay as they are for a second; returns them."""
        last, since, end = self.pixels(picture), time.perf_counter(), time.perf_counter() + seconds
        while time.perf_counter() < min(since + 1, end):
            self.page.wait_for_timeout(50)
            if (now := self.pixels(picture)) != last:
                last, since = now, time.perf_counter()
        return last

    def shows(self, picture: Locator, wanted: str) -> bool:
        """Wait until a picture has these pixels; returns whether it does."""
        return self.until(lambda: self.pixels(picture) == wanted)

    def until(self, holds: Callable[[], bool], seconds: float = 20) -> bool:
        """Wait until it holds: a text may follow its picture. Returns whether it does."""
        end = time.perf_counter() + seconds
        while not holds() and time.perf_counter() < end:
            self.page.wait_for_timeout(50)
        return holds()

    def handle(self, k: int = 0) -> Locator:
        """The knob of the k-th slider."""
        return self.box.locator(".noUi-handle").nth(k)


def from_key_to_pixels(opened: Opened, name: str, title: str | None, rounds: int) -> float:
    """Median milliseconds from an arrow key on an explorer's first slider to a new picture, by title or the last one."""
    shown = opened.explorer(name)
    (shown.picture(title) if title else shown.box.locator("img").last).evaluate(CLOCK)
    shown.handle().focus()
    for k in range(rounds):
        shown.page.keyboard.press("ArrowLeft" if k % 2 else "ArrowRight")
        shown.page.wait_for_function("n => window.waits.length >= n", arg=k + 1)
    return median(shown.page.evaluate("() => window.waits"))


def run_in_lab(
    browser: Browser, folder: Path, server: tuple[str, str], notebook: Path = NOTEBOOK, dark: bool = False
) -> Opened:
    """Open a notebook in JupyterLab and run all of it, from nothing; returns when every cell has its number."""
    address, token = server
    theme = {"theme": "JupyterLab Dark" if dark else "JupyterLab Light"}
    (folder / "settings" / "@jupyterlab" / "apputils-extension" / "themes.jupyterlab-settings").write_text(json.dumps(theme))
    content = nbformat.read(notebook, 4)
    for cell in content.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(content, folder / "work" / notebook.name)
    opened = Opened(browser)
    page = opened.page
    page.goto(f"{address}/lab/tree/{notebook.name}?reset&token={token}", timeout=120_000)
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=120_000)
    # The page says "idle" before the kernel is connected, and Run All is then lost without a word: ask the server.
    for _ in range(480):
        with suppress(urllib.error.HTTPError):              # of a kernel that is being started it may know too little yet
            kernels = json.load(urllib.request.urlopen(f"{address}/api/kernels?token={token}"))
            if any(kernel["execution_state"] == "idle" and kernel["connections"] for kernel in kernels):
                break
        page.wait_for_timeout(250)
    for _ in range(10):
        page.click(".lm-MenuBar-itemLabel:text-is('Run')")
        page.click('[data-command="runmenu:run-all"]')
        page.wait_for_timeout(4000)
        if any("*" in text or text.strip("[]: ").isdigit() for text in page.evaluate(NUMBERS)):
            break
    page.wait_for_function(f"() => ({NUMBERS})().every(text => /\\[\\d+\\]/.test(text))", timeout=300_000)
    return opened
