"""Execute all notebooks with papermill, two at a time, and gather their figures: `python tools/run_all.py --help`."""

import argparse
import html
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from subprocess import PIPE, STDOUT
from tempfile import TemporaryFile

import nbformat
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
KERNEL_DIED = "Kernel died before replying to kernel_info"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]*_*.ipynb"))


class NotebookFailed(RuntimeError):
    """Raised when a cell fails: the message holds its error and names the executed notebook."""


def run_all(notebooks: list[Path], profile: str, out: Path, workers: int = 2) -> dict[str, float]:
    """Execute notebooks into `out` and return {name: seconds}. The first failure stops the others and is raised.

    The last notebook goes first: it takes longest, and would be alone at the end.
    """
    out.mkdir(parents=True, exist_ok=True)
    cells = sum(len(nbformat.read(path, 4).cells) + 1 for path in notebooks)  # papermill injects one more
    running: list[subprocess.Popen] = []
    with tqdm(total=cells, unit="cell", desc=f"{len(notebooks)} notebooks") as bar, ThreadPoolExecutor(workers) as pool:
        jobs = {path.stem: pool.submit(execute, path, profile, out, bar, running) for path in reversed(notebooks)}
        try:
            done, _ = wait(jobs.values(), return_when=FIRST_EXCEPTION)
            for job in done:
                job.result()  # raises what the notebook raised
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in running:  # left over only after a failure or Ctrl-C
                process.terminate()
    return {path.stem: jobs[path.stem].result() for path in notebooks}


def execute(path: Path, profile: str, out: Path, bar: tqdm, running: list[subprocess.Popen]) -> float:
    """Run one notebook in its own papermill process, advance the bar by its cells, and return the seconds."""
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "--log-output", str(path), str(out / path.name)]
    command += ["-p", "profile", profile, "-p", "out", str(out), "--cwd", str(out)]
    environment = dict(os.environ, PYTHONUTF8="1", **({"OMP_NUM_THREADS": "1"} if profile == "quick" else {}))
    start = time.perf_counter()
    for _ in range(2):
        log = []
        with subprocess.Popen(command, env=environment, stdout=PIPE, stderr=STDOUT, encoding="utf-8") as process:
            running.append(process)
            for line in process.stdout:
                log.append(line)
                bar.update("Ending Cell" in line)
        running.remove(process)
        if KERNEL_DIED not in "".join(log):  # once more: another process may have taken a port of its kernel
            break
    if process.returncode:
        raise NotebookFailed(failure(out / path.name, log))
    return time.perf_counter() - start


def failure(executed: Path, log: list[str]) -> str:
    """Return the error of the first cell that raised, and the path of the executed notebook."""
    if executed.is_file():
        for number, cell in enumerate(nbformat.read(executed, 4).cells, 1):
            for output in cell.get("outputs", []):
                if output.output_type == "error":
                    trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(output.traceback))
                    return f"{executed.stem}, cell {number}:\n{trace}\n\nThe executed notebook is {executed}"
    return f"{executed.stem} did not run:\n{''.join(log[-20:])}"


def number(name: str) -> str:
    """Return the number of a notebook, such as 03 or 09a."""
    return name.partition("_")[0]


def measured(out: Path, name: str) -> dict[str, float]:
    """Load the numbers that a notebook recorded in `<out>/<number>.json`."""
    path = out / f"{number(name)}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def write_index(out: Path, names: list[str], profile: str) -> Path:
    """Write index.html: every figure of the executed notebooks, with its heading and caption."""
    parts = []
    for name in names:
        notebook = nbformat.read(out / f"{name}.ipynb", 4)
        heading = ""
        for cell, after in zip(notebook.cells, [*notebook.cells[1:], None]):
            if cell.cell_type == "markdown":
                for mark, text in re.findall(r"^(#+) (.+)$", cell.source, re.M):
                    heading = text
                    if mark == "#":
                        parts.append(f'<h1><a href="{name}.ipynb">{html.escape(text)}</a></h1>')
            for output in cell.get("outputs", []):
                if picture := output.get("data", {}).get("image/png"):
                    caption = after.source if after and after.source.startswith("*") else heading
                    caption = html.escape(caption.strip("*").replace("`", ""))
                    source = f"data:image/png;base64,{''.join(picture).strip()}"
                    parts.append(
                        f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
                    )
    style = (
        "body{font:16px/1.5 sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#222;background:#FCFCFA}"
        "figure{margin:1.5rem 0}img{max-width:100%}figcaption{color:#555}h1{font-size:1.3rem;margin-top:3rem}"
    )
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>DCAE: the figures</title><style>{style}</style>"
        f"<p>Every figure of the course, from the notebooks as executed here (profile: {profile}).</p>"
    )
    (out / "index.html").write_text(page + "\n".join(parts) + "</html>\n", encoding="utf-8")
    return out / "index.html"


def main() -> int:
    parser = argparse.ArgumentParser(description="Execute all notebooks with papermill.")
    parser.add_argument("--profile", choices=["quick", "full"], default="quick")
    parser.add_argument("--out", type=Path, help="folder to write to (default: results/<profile>)")
    options = parser.parse_args()
    out = (options.out or ROOT / "results" / options.profile).expanduser().resolve()
    try:
        out.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=out).close()
    except OSError as error:
        parser.error(f"{out} cannot be written to ({error.strerror}); name another folder with --out")
    if options.profile == "full":
        from dcae_lib import load_images

        load_images("cifar10")  # downloaded once, before two notebooks would
    start = time.perf_counter()
    try:
        # Quick notebooks take one thread each, so two run at a time; a full run may use the whole machine.
        seconds = run_all(NOTEBOOKS, options.profile, out, workers=2 if options.profile == "quick" else 1)
    except NotebookFailed as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    taken = {number(name): round(value, 1) for name, value in seconds.items()}
    (out / "seconds.json").write_text(json.dumps(taken) + "\n")
    index = write_index(out, list(seconds), options.profile)
    print(f"\n{'notebook':28} {'seconds':>7}  measured")
    for name, value in seconds.items():
        numbers = ", ".join(f"{key} {figure:.4g}" for key, figure in measured(out, name).items())
        print(f"{name:28} {value:7.0f}  {numbers}")
    print(f"{'all':28} {time.perf_counter() - start:7.0f}\n\nfigures: {index}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
