"""The record of a run: the code, the versions and the machine, and the files that a finished run leaves."""

import hashlib
import json
import platform
import subprocess
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ..config import TrainConfig
from ..data import Splits
from ..files import CLONE, PACKAGE, write_whole
from ..loop import Hook, SingleProcess, State
from ..model import pretrained_files
from .checkpoint import differences, plain


class Record(Hook):
    """Note in state.sessions by which code, and on which machine, each part of the run was computed."""

    def __init__(self, parallel: SingleProcess):
        self.processes = parallel.size

    def start(self, state: State) -> None:
        state.sessions.append(dict(step=state.step, processes=self.processes, **provenance(state.device)))


def provenance(device: torch.device) -> dict:
    """Return the code's revision, the versions of the packages that compute, and the hardware."""
    packages = ("torch", "torchvision", "torchmetrics", "numpy", "safetensors")
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
    run = subprocess.run(["git", "-C", str(CLONE), *arguments], capture_output=True, text=True, check=True)
    return run.stdout.strip()


def processor() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


# ---- a finished run

CARD = """# {title}, {parameters:,} parameters

{summary}

```python
{example}
```

`model.safetensors` holds the weights, and in its header the SHA-256 of `history.json`; `config.json` the arguments of
the model; `history.json` every epoch, the settings, the hashes of the data, versions, code revision and hardware.
`dcae verify FOLDER` evaluates the weights again and compares. {notes}
"""


def save_run(
    state: State, splits: Splits, out: Path, title: str, summary: str, example: str, notes: str, **more: str
) -> None:
    """Write the model, its card, and history.json: config, hashes of the data, sessions, and a dict per epoch."""
    parameters = sum(p.numel() for p in state.model.parameters())
    data = {images.name: images.sha256 for images in splits}
    record = dict(config=asdict(state.config), **more, parameters=parameters, data=data)
    record |= dict(sessions=state.sessions, history=state.history)
    history = (json.dumps(record, indent=1, default=str) + "\n").encode()
    files = pretrained_files(state.model, history_sha256=hashlib.sha256(history).hexdigest())
    card = CARD.format(title=title, parameters=parameters, summary=summary, example=example, notes=notes)
    files |= {"history.json": history, "README.md": card.encode("utf-8", "backslashreplace")}
    out.mkdir(parents=True, exist_ok=True)
    write_whole({out / name: content for name, content in files.items()})


def refuse_another(config: TrainConfig, out: str | Path) -> None:
    """Raise ValueError if a run with other settings was finished in `out`: a command does not replace it."""
    path = Path(out) / "history.json"
    if not path.exists():
        return
    try:
        before = asdict(TrainConfig()) | json.loads(path.read_text(encoding="utf-8"))["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the record of a training; write to another folder") from error
    if changes := list(differences(plain(before), plain(asdict(config)), "config")):
        raise ValueError(
            f"{out} holds a finished training with other settings ({'; '.join(changes)}). "
            "Write to another folder, or delete this one to start over"
        )
