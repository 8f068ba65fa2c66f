"""JupyterLab on loopback and a browser in front of it: real pages, a real keyboard and mouse."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = ROOT / "results" / "browser"                  # git-ignored; look at them
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]
# Every cell stays in the page, wherever it is scrolled to, and no news pop up.
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


def chromium() -> str | None:
    """The path of a Chromium or Chrome of this machine."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session")
def browser():
    path = chromium()
    if path is None:
        missing = "no Chromium or Chrome here; `apt install chromium` (Debian) or https://www.google.com/chrome brings one"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def served(command: list[str], folder: Path, ready: str):
    """A server on a free port of 127.0.0.1 that answers at `ready`: yields (address, token), ends it afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    environment = dict(
        os.environ, JUPYTER_CONFIG_DIR=str(folder / "config"), JUPYTER_DATA_DIR=str(folder / "data"),
        JUPYTERLAB_SETTINGS_DIR=str(folder / "settings"), JUPYTERLAB_WORKSPACES_DIR=str(folder / "workspaces"),
        IPYTHONDIR=str(folder / "ipython"), PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1",
    )
    log = folder / "server.log"
    with open(log, "w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *(part.format(port=port, token=token) for part in command)],
            stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=folder,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(480):
            try:
                urllib.request.urlopen(f"{address}{ready}?token={token}", timeout=5)
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                time.sleep(0.25)
        yield address, token
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """JupyterLab: (address, token, folder of its notebooks)."""
    folder = tmp_path_factory.mktemp("lab")
    for name, value in SETTINGS.items():
        file = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(value))
    work = folder / "work"
    work.mkdir()
    command = [
        "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", "--port={port}", "--ServerApp.port_retries=0",
        "--IdentityProvider.token={token}", f"--ServerApp.root_dir={work}", "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    with served(command, folder, "/api/status") as (address, token):
        yield address, token, work


class Page:
    """A page that remembers what its console complained about and what it asked of other hosts."""

    def __init__(self, browser):
        self.context = browser.new_context(viewport={"width": 1300, "height": 1000}, accept_downloads=True)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.outside: list[str] = []
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda r: self.outside.append(r.url) if self._outside(r.url) else None)

    @staticmethod
    def _outside(url: str) -> bool:
        return not url.startswith(("data:", "blob:", "http://127.0.0.1", "ws://127.0.0.1"))


def run_in_lab(browser, lab, notebook: Path) -> Page:
    """Open a notebook in JupyterLab and run all of it; returns when every cell has its number."""
    address, token, work = lab
    content = nbformat.read(notebook, 4)
    for cell in content.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None   # what is there after this was made by this
    nbformat.write(content, work / notebook.name)
    opened = Page(browser)
    page = opened.page
    page.goto(f"{address}/lab/tree/{notebook.name}?reset&token={token}")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=120_000)
    # The page says "idle" before the kernel is connected, and Run All is then lost without a word: ask the server.
    for _ in range(480):
        kernels = json.load(urllib.request.urlopen(f"{address}/api/kernels?token={token}"))
        if any(kernel["execution_state"] == "idle" and kernel["connections"] for kernel in kernels):
            break
        page.wait_for_timeout(250)
    numbers = "() => [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(e => e.textContent)"
    for _ in range(10):
        page.wait_for_timeout(1500)
        page.click(".lm-MenuBar-itemLabel:text-is('Run')")
        page.click('[data-command="runmenu:run-all"]')
        page.wait_for_timeout(3000)
        if any("*" in text or text.strip("[]: ").isdigit() for text in page.evaluate(numbers)):
            break
    page.wait_for_function(
        f"() => {{ const p = ({numbers})(); return p.length && p.every(t => /\\[\\d+\\]/.test(t)) }}", timeout=300_000
    )
    return opened
