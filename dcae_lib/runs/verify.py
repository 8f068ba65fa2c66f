"""Compare trained weights with the record of their training."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ..data import ImageSet


def read_record(folder: Path) -> dict:
    """Return the `history.json` of a run. Raises ValueError if the weights in the folder were not saved with it."""
    history = (folder / "history.json").read_bytes()
    with safe_open(folder / "model.safetensors", "pt") as file:
        saved_with = (file.metadata() or {}).get("history_sha256")
    if saved_with != hashlib.sha256(history).hexdigest():
        raise ValueError(f"the weights in {folder} were not saved with the history.json beside them")
    return json.loads(history)


def compare(
    record: dict, test: ImageSet, model: Any, score: Callable[[Any, ImageSet], dict[str, float]], tolerance: float
) -> dict[str, tuple[float, float]]:
    """Score a model on the test images: {metric: (recorded, measured)}.

    Raises ValueError if the images are not those of the record, or if a metric differs by more than the tolerance.
    """
    if record["data"].get(test.name) != test.sha256:
        raise ValueError(f"{test.name} has SHA-256 {test.sha256}, the record says {record['data'].get(test.name)}")
    last = record["history"][-1]
    scores = {name: (float(last.get(name, "nan")), value) for name, value in score(model, test).items()}
    if any(not abs(recorded - measured) <= tolerance for recorded, measured in scores.values()):
        raise ValueError(f"the weights do not give the recorded metrics:\n{table(scores)}")
    return scores


def table(scores: dict[str, tuple[float, float]]) -> str:
    """Format recorded and measured metrics, one line each."""
    width = max(6, *map(len, scores))
    lines = (f"{name:{width}} recorded {old:.6f}, measured {new:.6f}" for name, (old, new) in scores.items())
    return "\n".join(lines)
