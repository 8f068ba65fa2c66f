"""JupyterLab and Voilà on 127.0.0.1 with a browser in front of them: real pages, a real keyboard and mouse."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from statistics import median

import nbformat
import psutil
from playwright.sync_api import Browser, Error, Locator, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "06_exploring_latents.ipynb"
SCREENSHOTS = ROOT / "results" / "browser"  # git-ignored: to look at
PATIENCE = 120  # seconds: how long a loaded machine may take for what an idle one does at once
CODEC_CELLS = [
    'import json\nrecord = json.loads((resource("recorded") / "codec.json").read_text())',
    "from dcae_lib import Codec\nexplore.budget(Codec.from_pretrained(), pictures, record)",
    "explore.curves(record)",
]
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking".split()
PLACES = "JUPYTER_CONFIG_DIR JUPYTER_DATA_DIR JUPYTERLAB_SETTINGS_DIR JUPYTERLAB_WORKSPACES_DIR IPYTHONDIR".split()
# Every cell stays in the page, wherever it is scrolled to, and no news pops up.
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
CONNECTED = """() => {
    const kernel = window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel;
    return kernel?.connectionStatus == 'connected' && document.querySelector('.jp-Notebook .jp-CodeCell');
}"""
NUMBERED = "() => ![...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].some(e => !/\\d/.test(e.textContent))"
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
IDLE = """() => {
    const kernel = window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel;
    return !kernel || kernel.status == 'idle';
}"""
COUNT = "img => { window.loads = 0; img.addEventListener('load', () => { window.loads += 1 }) }"


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the Chromium or Chrome of this machine; FileNotFoundError says how to get one."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        raise FileNotFoundError(
            "there is no Chromium or Chrome: `apt install chromium` on Debian, else see chromium.org"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS, timeout=1000 * PATIENCE)
        BROWSERS.append(browser)
        yield browser
        browser.close()


BROWSERS: list[Browser] = []
LOGS: list[Path] = []  # of servers
COMPLAINTS: list[str] = []  # of the pages' consoles


def seen(test: str) -> Iterator[tuple[str, str]]:
    """Save what all pages show, and return where, what their consoles said, and the ends of the servers' logs."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    pages = [page for browser in BROWSERS for context in browser.contexts for page in context.pages]
    for k, page in enumerate(pages):
        path = SCREENSHOTS / f"failed-{test.replace('/', '-')}-{k}.png"
        try:
            page.screenshot(path=path)
            yield "the page", str(path)
        except Error as error:
            yield "the page", f"no screenshot: {error}"
    yield "the console", "\n".join(COMPLAINTS)
    for log in LOGS:
        yield "the server", log.read_text(errors="replace")[-3000:]


def address_of(process: subprocess.Popen, path: str) -> str:
    """Wait until a server answers at a path, on the port that the system gave it; return its address."""
    end = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < end:
        for connection in psutil.Process(process.pid).net_connections("tcp4"):
            if connection.status == psutil.CONN_LISTEN:
                address = f"http://127.0.0.1:{connection.laddr.port}"
                try:
                    urllib.request.urlopen(address + path, timeout=PATIENCE).close()
                    return address
                except urllib.error.HTTPError:  # an answer, too
                    return address
                except OSError:
                    pass
        time.sleep(0.1)
    raise RuntimeError("the server did not start:\n" + LOGS[-1].read_text(errors="replace"))


@contextmanager
def served(folder: Path, module: str, *options: str, at: str) -> Iterator[tuple[str, str]]:
    """Run `python -m module` on a port of 127.0.0.1 with its own settings in a folder; yield (address, token)."""
    token, log = secrets.token_hex(16), folder / "server.log"
    environment = os.environ | {name: str(folder / name) for name in PLACES}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", module, "--no-browser", "--port=0", *(o.format(token) for o in options)]
    with open(log, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=folder)
    LOGS.append(log)
    try:
        yield address_of(process, f"{at}?token={token}"), token
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()


def set_up(folder: Path, name: str, settings: dict) -> None:
    file = folder / "JUPYTERLAB_SETTINGS_DIR" / "@jupyterlab" / f"{name}.jupyterlab-settings"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings))


def jupyterlab(folder: Path) -> AbstractContextManager[tuple[str, str]]:
    """Serve folder/work in JupyterLab."""
    for name, settings in SETTINGS.items():
        set_up(folder, name, settings)
    (folder / "work").mkdir()
    options = ["--allow-root", "--ServerApp.ip=127.0.0.1", "--ServerApp.port_retries=0", "--IdentityProvider.token={}"]
    options += ["--LabApp.expose_app_in_browser=True", f"--ServerApp.root_dir={folder / 'work'}"]
    return served(folder, "jupyterlab", *options, at="/api/status")


def voila(folder: Path) -> AbstractContextManager[tuple[str, str]]:
    """Serve the notebook as an app."""
    options = [str(NOTEBOOK), "--Voila.ip=127.0.0.1", "--Voila.port_retries=0", "--token={}"]
    return served(folder, "voila", *options, at="/static/none")


# What JupyterLab lays over a page, now and then: questions about the kernel, the connection or the file, and news.
DIALOGS = ".jp-Dialog-button:last-child, .Toastify__close-button"


def close_dialogs(page: Page) -> None:
    """Answer every dialog with what it proposes; keys and mouse do not wait for that as clicks on elements do."""
    page.locator(DIALOGS).evaluate_all("buttons => buttons.forEach(button => button.click())")
    page.locator(".jp-Dialog").first.wait_for(state="hidden")


class Opened:
    """A page, the errors in its console, and its requests to other hosts."""

    def __init__(self, browser: Browser):
        self.page = browser.new_page(viewport={"width": 1300, "height": 1000})
        self.page.set_default_timeout(1000 * PATIENCE)
        self.page.add_locator_handler(self.page.locator(DIALOGS).first, lambda _: close_dialogs(self.page))
        self.complaints: list[str] = []
        self.outside: list[str] = []
        inside = ("data:", "blob:", "http://127.0.0.1:", "ws://127.0.0.1:")
        self.page.on("console", lambda message: self.complain(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complain(str(error)))
        self.page.on("request", lambda request: request.url.startswith(inside) or self.outside.append(request.url))

    def complain(self, text: str) -> None:
        self.complaints.append(text)
        COMPLAINTS.append(text)

    def explorer(self, name: str) -> "Shown":
        """Find the output of the cell with `explore.<name>(` and scroll to it."""
        cell = self.page.locator(".jp-CodeCell").filter(has_text=f"explore.{name}(")
        shown = Shown(cell.locator(".jp-OutputArea-output").first)
        shown.box.scroll_into_view_if_needed()
        return shown


class Shown:
    """One explorer on the page."""

    def __init__(self, box: Locator):
        self.box, self.page = box, box.page

    def picture(self, title: str) -> Locator:
        """Find the image below a title, of which a part is given."""
        return self.box.locator(".dcae-picture").filter(has_text=title).locator("img").first

    def handle(self, k: int = 0) -> Locator:
        """Find the knob of the k-th slider."""
        return self.box.locator(".noUi-handle").nth(k)

    def click(self, name: str) -> None:
        self.box.get_by_role("button", name=name, exact=True).click()

    def press(self, k: int, key: str, times: int = 1) -> None:
        close_dialogs(self.page)
        self.handle(k).focus()
        for _ in range(times):
            self.page.keyboard.press(key)

    def drag(self, k: int, *offsets: float) -> None:
        """Take the k-th slider's knob with the mouse, move it to offsets in pixels, and hold it."""
        close_dialogs(self.page)
        self.handle(k).scroll_into_view_if_needed()
        box = self.handle(k).bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        for offset in offsets:
            self.page.mouse.move(x + offset, y)

    def pixels(self, picture: Locator) -> str:
        return picture.evaluate(PIXELS)

    def changes(self, picture: Locator, before: str) -> str:
        """Wait until the pixels of a picture differ from what they were; return them."""
        assert self.until(lambda: self.pixels(picture) != before)
        return self.pixels(picture)

    def settled(self, picture: Locator) -> str:
        """Wait until a picture has kept its pixels for a second in which the kernel was idle; return them."""
        end, quiet, pixels = time.monotonic() + PATIENCE, 0, self.pixels(picture)
        while quiet < 20 and time.monotonic() < end:
            self.page.wait_for_timeout(50)
            now = self.pixels(picture)
            quiet = quiet + 1 if now == pixels and self.page.evaluate(IDLE) else 0
            pixels = now
        assert quiet == 20, "the picture never came to rest"
        return pixels

    def shows(self, picture: Locator, wanted: str) -> bool:
        """Wait until a picture has these pixels; return whether it does."""
        return self.until(lambda: self.pixels(picture) == wanted)

    def until(self, holds: Callable[[], bool]) -> bool:
        """Wait until a condition holds, as a text may follow its picture; return whether it does."""
        end = time.monotonic() + PATIENCE
        while not holds() and time.monotonic() < end:
            self.page.wait_for_timeout(50)
        return holds()


def from_key_to_pixels(opened: Opened, name: str, title: str | None, rounds: int) -> float:
    """Median milliseconds from an arrow key on the first slider to a new picture, by its title, or the last one."""
    shown = opened.explorer(name)
    (shown.picture(title) if title else shown.box.locator("img").last).evaluate(CLOCK)
    shown.handle().focus()
    for k in range(rounds):
        shown.page.keyboard.press("ArrowLeft" if k % 2 else "ArrowRight")
        shown.page.wait_for_function("n => window.waits.length >= n", arg=k + 1)
    return median(shown.page.evaluate("() => window.waits"))


def run_in_lab(browser: Browser, folder: Path, server: tuple[str, str], cells=(), dark: bool = False) -> Opened:
    """Open the notebook, more cells at its end, in JupyterLab and run all; return when every cell has its number."""
    address, token = server
    theme = "Dark" if dark else "Light"
    set_up(folder, "apputils-extension/themes", {"theme": f"JupyterLab {theme}"})
    content = nbformat.read(NOTEBOOK, 4)
    content.cells += map(nbformat.v4.new_code_cell, cells)
    for cell in content.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(content, folder / "work" / f"{theme}.ipynb")  # two files: else they share a kernel
    opened = Opened(browser)
    page = opened.page
    page.goto(f"{address}/lab/tree/{theme}.ipynb?reset&token={token}")
    page.wait_for_function(CONNECTED)
    close_dialogs(page)
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
    page.wait_for_function(NUMBERED, timeout=3000 * PATIENCE)
    return opened
