"""What `make results` and each layer of `make test` cost: seconds, and peak memory of all their processes together."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
PYTEST = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile"]
NBVAL = ["--nbval", "--nbval-sanitize-with", "tests/nbval_sanitize.cfg"]
LAYERS = {
    "results": [sys.executable, "notebooks/run_all.py", "--profile", "quick"],
    "unit": [*PYTEST, "tests", "--ignore", "tests/test_notebooks.py", "--ignore", "tests/browser"],
    "nbval": [*PYTEST, *NBVAL, "notebooks"],
    "papermill": [*PYTEST, "tests/test_notebooks.py"],
    "browser": [*PYTEST, "tests/browser"],
}


def memory(process: psutil.Process) -> int:
    """Bytes of a process and all that it started; pages that they share count once where the system can tell."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            info = one.memory_full_info()
            total += getattr(info, "pss", info.rss)
        except psutil.Error:                                # it ended between the two lines above
            continue
    return total


def cost(command: list[str]) -> dict[str, float]:
    start, peak = time.perf_counter(), 0
    with subprocess.Popen(command, cwd=ROOT, env=dict(os.environ, OMP_NUM_THREADS="1")) as process:
        while process.poll() is None:
            try:
                peak = max(peak, memory(psutil.Process(process.pid)))
            except psutil.NoSuchProcess:
                break
            time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return dict(seconds=round(time.perf_counter() - start, 1), peak_gib=round(peak / 2**30, 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("layers", nargs="*", metavar="layer", help=f"of {', '.join(LAYERS)}; without any, all")
    layers = parser.parse_args().layers or list(LAYERS)
    path = ROOT / "results" / "bench" / "costs.json"
    costs = json.loads(path.read_text()) if path.exists() else {}
    costs |= {"processors": os.cpu_count(), **{name: cost(LAYERS[name]) for name in layers}}
    files = (path for path in Path(sys.prefix).rglob("*") if path.is_file() and not path.is_symlink())
    costs["environment_gib"] = round(sum(path.stat().st_size for path in files) / 2**30, 1)
    if "results" in layers:
        costs["notebooks"] = json.loads((ROOT / "results" / "quick" / "seconds.json").read_text())
    path.write_text(json.dumps(costs, indent=1) + "\n")
    print(json.dumps(costs, indent=1))
    subprocess.run([sys.executable, "notebooks/readme.py"], cwd=ROOT, check=True)       # the README shows them


if __name__ == "__main__":
    main()
