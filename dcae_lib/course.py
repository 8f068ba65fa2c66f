"""The first and last lines of every notebook: settings by profile, recorded results, and a file of its own numbers."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .data import read_picture
from .files import CLONE, PACKAGE, resource
from .plots import use_style

PROFILES = {"quick": "sample", "full": "cifar10"}  # profile: data set

# L1 on [-1, 1] by epoch that was reported for the recipe of the preset "document"; not measured here.
DOCUMENT_L1 = {10: 0.0760, 25: 0.0641, 40: 0.0602}


class Lesson(NamedTuple):
    """The settings of one notebook."""

    name: str
    profile: str
    dataset: str  # as for `load_images`
    out: Path  # where the notebook writes

    def record(self, **numbers: float) -> None:
        """Write measured numbers to `<out>/<name>.json`, where `make results` and the tests read it."""
        text = json.dumps(numbers, indent=1, default=lambda x: x.tolist())  # of NumPy and PyTorch
        (self.out / f"{self.name}.json").write_text(text + "\n")


def begin(name: str, profile: str = "quick", out: str = "") -> Lesson:
    """Set threads, seed and figure style for a notebook. `out` is by default results/<profile> of the clone or here.

    Quick notebooks use the embedded sample and one thread, so that their stored outputs repeat on other machines.
    """
    if profile == "quick":
        torch.set_num_threads(1)
    torch.manual_seed(0)
    use_style()
    folder = Path(out).expanduser() if out else (CLONE or Path.cwd()) / "results" / profile
    folder.mkdir(parents=True, exist_ok=True)
    return Lesson(name, profile, PROFILES[profile], folder)


def measured(name: str, where: str = "bench") -> dict:
    """Load `<name>.json` from the folder `resource(where)`; CONTRIBUTING.md lists the commands that wrote it."""
    return json.loads((resource(where) / f"{name}.json").read_text())


def recorded_runs() -> dict[str, dict]:
    """Load {name: history.json} of the runs on CIFAR-10 that bench/runs.py made, besides the shipped one."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(resource("runs").glob("*/history.json"))}


def recorded_pictures() -> dict[int, Tensor]:
    """Load {epoch: uint8 [10, 3, 32, 32]}: the recorded run's reconstructions of test images; 0: the originals."""
    paths = sorted((resource("recorded") / "epochs").glob("*.png"))
    rows = {int(path.stem): read_picture(path) for path in paths}
    return {epoch: torch.stack(row.split(32, dim=2)) for epoch, row in rows.items()}


def check(exercise: str, *answer, rtol: float = 1e-5) -> None:
    """Print "right" or "not yet" for an answer: numbers, lists and tensors of them, or functions that return them."""
    try:
        expected = json.loads((PACKAGE / "answers.json").read_text())[exercise]
        right = np.allclose(fingerprint(*answer), expected, rtol=rtol)
        print("right" if right else "not yet")
    except (TypeError, AttributeError, ValueError):  # the answer is still None, of another kind, or too long
        print("not yet")


def fingerprint(*answer) -> list[float]:
    """Return a few numbers that tell answers apart without giving them away: their count, and three random sums."""
    parts = [part() if callable(part) else part for part in answer]
    values = torch.cat([torch.as_tensor(part, dtype=torch.float64).flatten() for part in parts])
    weights = torch.rand(3, len(values), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return [len(values), *(weights @ values).tolist()]
