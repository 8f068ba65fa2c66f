"""Checkpoints that survive a kill: written whole or not at all, checked when read, never unpickled. And what was finished."""

import hashlib
import json
import re
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from ..config import TrainConfig
from ..data import Splits
from ..scale.parallel import ALONE, World
from ..files import write_whole

KEPT = 2                                                    # if the newest is damaged, there is one before it
NAME = re.compile(r"\d{9}-([0-9a-f]{16})\.safetensors")     # the step, and the first 16 digits of the file's SHA-256


class CheckpointError(OSError):
    """A checkpoint could not be written; the message says why, and what is still there."""


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], record: dict) -> Path:
    """Write tensors and a record (what JSON can hold) as the checkpoint of a step; older ones but one are deleted.

    The file's name carries the hash of its content. Raises CheckpointError if it cannot be written: then the
    earlier checkpoints are still there.
    """
    # A copy each: safetensors refuses tensors that share a buffer, as those of SOAP's state do.
    copies = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    data = save(copies, metadata={"record": json.dumps(record)})
    path = folder / f"{step:09d}-{hashlib.sha256(data).hexdigest()[:16]}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole({path: data})
        for old in checkpoints(folder)[KEPT:]:
            old.unlink()
    except OSError as error:
        there = ", ".join(old.name for old in checkpoints(folder)) or "none"
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written to {folder}: {error.strerror or error}. Whole "
            f"checkpoints there: {there}. Make room or choose another folder; the same training goes on from the last one"
        ) from error
    return path


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict] | None:
    """Tensors and record of the newest checkpoint that is whole, or None if there is none.

    A damaged one is named in a warning, set aside under another name, and the one before it is taken.
    """
    for path in checkpoints(folder):
        data = path.read_bytes()
        if path.stem.endswith(hashlib.sha256(data).hexdigest()[:16]):
            try:
                header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
                return load(data), json.loads(header["__metadata__"]["record"])
            except (SafetensorError, KeyError, ValueError):         # whole, but nothing that we wrote
                pass
        aside = path.with_suffix(".damaged")
        path.replace(aside)
        warnings.warn(f"the checkpoint {path.name} is damaged; it is passed over and kept as {aside}", stacklevel=8)
    return None


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest first."""
    found = [path for path in folder.iterdir() if NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: path.name, reverse=True)


class TrainingState:
    """All that the rest of a training depends on, to and from the checkpoints in a folder; None: nothing is kept."""

    def __init__(
        self, folder: Path | None, run, modules: dict[str, nn.Module], optimizer, order: torch.Generator, splits,
        processes: World = ALONE,
    ):
        self.folder, self.run, self.modules, self.optimizer, self.order = folder, run, modules, optimizer, order
        self.processes = processes
        data = {images.name: f"{len(images)} images, SHA-256 {images.sha256}" for images in splits}
        self.identity = json.loads(json.dumps(dict(config=asdict(run.config) | {"device": None}, data=data), default=str))
        self.losses: list[float] = []                       # of the steps of this epoch so far
        self.seconds = 0.0                                  # that these took
        self.order_at_start = order.get_state()             # of this epoch: the order of its images follows from it
        self.saved = time.monotonic()
        # Of these depends where a process waits for the others, and how it rounds.
        place = {"out": "given" if folder else "not given", "device": run.device.type, "torch": torch.__version__}
        identities = processes.gather(self.identity | place)
        processes.first_does(lambda: _check_alike(identities))
        if folder:                                          # one that cannot be made shows before the training
            processes.first_does(lambda: folder.parent.mkdir(parents=True, exist_ok=True))

    def due(self, every: float) -> bool:
        """Whether the last checkpoint is older than that many seconds."""
        return self.folder is not None and time.monotonic() - self.saved > every

    def save(self, step: int) -> None:
        """Write the checkpoint of a step; of several processes the first does. Raises CheckpointError, in all of them."""
        if (folder := self.folder) is None:
            return

        def write() -> None:
            tensors = _pack(self.modules, self.optimizer, self.run.device) | {"order": self.order_at_start}
            progress = dict(history=self.run.history, sessions=self.run.sessions, losses=self.losses, seconds=self.seconds)
            save_checkpoint(folder, step, tensors, self.identity | progress)

        self.processes.first_does(write)
        self.saved = time.monotonic()

    def restore(self) -> None:
        """Go on from the newest checkpoint, if there is one. Raises ValueError if it is of another training."""
        if (folder := self.folder) is None:
            return
        found = self.processes.first_does(lambda: self._read(folder))
        if not found:
            return
        tensors, record = found
        _unpack(tensors, self.modules, self.optimizer, self.run.device)
        self.order.set_state(tensors["order"])
        self.order_at_start = tensors["order"]
        self.losses[:], self.seconds = record["losses"], record["seconds"]
        self.run.history[:], self.run.sessions[:] = record["history"], record["sessions"]

    def _read(self, folder: Path) -> tuple[dict[str, Tensor], dict] | None:
        """The newest checkpoint, once what a kill left half written is gone."""
        for place in (folder, folder.parent):
            for left in place.glob("*.partial"):            # by a kill in the middle of a write
                if re.search(r"\.(json|md|safetensors)\.\d+\.partial$", left.name):
                    left.unlink()
        found = load_checkpoint(folder)
        changes = [] if not found else list(differences(self.identity, {name: found[1][name] for name in self.identity}))
        if changes:
            raise ValueError(
                f"{folder} holds checkpoints of another training ({'; '.join(changes)}). "
                "Write to another folder, or delete this one to begin anew"
            )
        return found

    def delete(self) -> None:
        """Delete the checkpoints: the training is done, and what it made is written."""
        if self.folder and self.folder.is_dir():
            for path in checkpoints(self.folder):
                path.unlink()
            if not any(self.folder.iterdir()):
                self.folder.rmdir()


def recorded(config: TrainConfig, out: str | Path) -> tuple[dict, list[str]]:
    """The record of a training that was finished in `out`, and what its settings differ in; {} if there is none."""
    path = Path(out) / "history.json"
    if not path.exists():
        return {}, []
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        before, now = (asdict(TrainConfig()) | found | {"device": None} for found in (record["config"], asdict(config)))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the record of a training; write to another folder") from error
    return record, list(differences(json.loads(json.dumps(now)), json.loads(json.dumps(before))))


def finished(config: TrainConfig, splits: Splits, out: Path) -> dict:
    """The record of this very training, if it was finished in `out` and none was begun since; else {}."""
    record, changes = recorded(config, out)
    if changes or not record or checkpoints(out / "checkpoints"):
        return {}
    same = record["data"] == {images.name: images.sha256 for images in splits} and len(record["history"]) == config.epochs
    return record if same else {}


def refuse_another(config: TrainConfig, out: str | Path) -> None:
    """Raise ValueError if a training with other settings was finished in `out`: a command does not replace it."""
    changes = recorded(config, out)[1]
    if changes:
        raise ValueError(
            f"{out} holds a finished training with other settings ({'; '.join(changes)}). "
            "Write to another folder, or delete this one to begin anew"
        )


def _pack(modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer, device: torch.device) -> dict[str, Tensor]:
    """Weights, optimizer state and the states of torch's random number generators, as one flat dict of tensors."""
    tensors = {f"{name}/{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{i}/{key}": torch.as_tensor(value) for key, value in state.items() if value is not None}
    tensors["random/cpu"] = torch.get_rng_state()
    if device.type != "cpu":
        tensors["random/device"] = getattr(torch, device.type).get_rng_state(*_number(device))
    return tensors


def _unpack(
    tensors: dict[str, Tensor], modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer, device: torch.device
) -> None:
    """Put back what `_pack` took, into the same modules and an optimizer with the same settings."""
    for name, module in modules.items():
        module.load_state_dict(_under(tensors, name))
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in _under(tensors, "optimizer").items():
        i, key = name.split("/", 1)
        state.setdefault(int(i), {})[key] = value
    optimizer.load_state_dict(dict(state=state, param_groups=optimizer.state_dict()["param_groups"]))
    torch.set_rng_state(tensors["random/cpu"])
    if device.type != "cpu" and "random/device" in tensors:
        getattr(torch, device.type).set_rng_state(tensors["random/device"], *_number(device))


def _number(device: torch.device) -> tuple[torch.device, ...]:
    """Which of several: CUDA's functions take the current one for the default; Apple's GPU is one."""
    return (device,) if device.type == "cuda" else ()


def _under(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}


def differences(now: dict, before: dict, words: str = "{} was {}, is {}") -> Iterator[str]:
    """What two nested dicts of settings differ in, in words."""
    for name in dict.fromkeys([*now, *before]):
        new, old = now.get(name), before.get(name)
        if isinstance(new, dict) and isinstance(old, dict):
            yield from differences(new, old, words)
        elif new != old:
            yield words.format(name, old, new)


def _check_alike(identities: list[dict]) -> None:
    """Raise ValueError if a process was given another config or other data than the first."""
    for rank, identity in enumerate(identities):
        differ = list(differences(identity, identities[0], f"{{}} is {{}} in process 0, {{}} in process {rank}"))
        if differ:
            raise ValueError(f"all processes must train alike ({'; '.join(differ)}). Give all of them the same config, data, kind of device and version of torch")
