"""The record of a run: code, versions and machine, the files that a finished run leaves, and how they are verified."""

import hashlib
import json
import platform
import re
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from safetensors import safe_open

from ..config import TrainConfig
from ..data import ImageSet, Splits
from ..files import CLONE, PACKAGE, write_whole
from ..loop import Hook, SingleProcess, State
from ..model import pretrained_files
from .checkpoint import as_json, refuse_changes


class Record(Hook):
    """Note in state.sessions by which code, and on which machine, each part of the run was computed."""

    def __init__(self, parallel: SingleProcess):
        self.processes = parallel.size

    def start(self, state: State) -> None:
        state.sessions.append(dict(step=state.step, processes=self.processes, **provenance(state.device)))


def provenance(device: torch.device) -> dict:
    """Return the code's revision, the versions of the packages that compute, and the hardware."""
    packages = ("torch", "torchvision", "numpy", "safetensors")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return dict(
        revision=revision(),
        versions=dict(python=platform.python_version(), **{name: version(name) for name in packages}),
        hardware=f"{name}, {platform.system()}",
        threads=torch.get_num_threads(),
    )


def revision() -> str:
    """Return the commit of a clone, "+ changes" if dcae_lib/ has uncommitted ones; else the package's version."""
    try:
        if CLONE:
            commit = _git("rev-parse", "HEAD")
            return f"{commit} + changes" if _git("status", "--porcelain", "--", PACKAGE.name) else commit
        return f"dcae_lib {version('dcae_lib')}"
    except (OSError, subprocess.CalledProcessError, PackageNotFoundError):
        return "unknown"


def _git(*arguments: str) -> str:
    return subprocess.check_output(["git", "-C", str(CLONE), *arguments], text=True, stderr=subprocess.DEVNULL).strip()


def processor() -> str:
    """Return the processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    found = cpuinfo.is_file() and re.search(r"^model name\s*: (.+)", cpuinfo.read_text(), re.M)
    return found[1] if found else platform.processor() or platform.machine()


def save_run(state: State, splits: Splits, out: Path, card: Path, **more: str) -> None:
    """Write the model, its card, and history.json: config, hashes of the data, sessions, and a dict per epoch."""
    record = dict(config=asdict(state.config), **more, parameters=sum(p.numel() for p in state.model.parameters()))
    record |= dict(data={images.name: images.sha256 for images in splits})
    record |= dict(sessions=state.sessions, history=state.history)
    history = (json.dumps(record, indent=1, default=str) + "\n").encode()
    files = pretrained_files(state.model, history_sha256=hashlib.sha256(history).hexdigest())
    files |= {"history.json": history, "README.md": fill_card(card, json.loads(history))}
    out.mkdir(parents=True, exist_ok=True)
    write_whole({out / name: content for name, content in files.items()})


def fill_card(card: Path, record: dict) -> bytes:
    """Return a model card with the facts of a record; its YAML head is what the Hugging Face hub reads."""
    dataset, last = record["config"]["dataset"], record["history"][-1]
    scores = {name: value for name, value in last.items() if not re.match("epoch|train_|seconds|images_", name)}
    facts = record | dict(dataset=dataset, epochs=last["epoch"], test=json.dumps([*record["data"]][-1]))
    facts["hub"] = "uoft-cs/cifar10" if dataset in ("cifar10", "sample") else "imagefolder"
    facts["metrics"] = json.dumps([dict(type=name, value=round(value, 4)) for name, value in scores.items()])
    facts["scores"] = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
    return card.read_text(encoding="utf-8").format(**facts).encode("utf-8", "backslashreplace")


def refuse_another(config: TrainConfig, out: str | Path) -> None:
    """Raise ValueError if a run with other settings was finished in `out`: a command does not replace it."""
    path = Path(out).expanduser() / "history.json"
    if path.exists():
        before = asdict(TrainConfig()) | json.loads(path.read_text(encoding="utf-8")).get("config", {})
        refuse_changes(as_json(before), as_json(asdict(config)), f"{out} holds a finished training with other settings")


def read_record(folder: Path) -> dict:
    """Return the `history.json` of a run. Raises ValueError if the weights in the folder were not saved with it."""
    history = (folder / "history.json").read_bytes()
    with safe_open(folder / "model.safetensors", "pt") as file:
        saved_with = (file.metadata() or {}).get("history_sha256")
    if saved_with != hashlib.sha256(history).hexdigest():
        raise ValueError(f"the weights in {folder} were not saved with the history.json beside them")
    return json.loads(history)


def compare(record: dict, test: ImageSet, model, score: Callable, tolerance: float) -> dict[str, tuple[float, float]]:
    """Score a model on the test images: {metric: (recorded, measured)}. ValueError for others or beyond tolerance."""
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
