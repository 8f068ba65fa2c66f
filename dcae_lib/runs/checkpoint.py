"""Checkpoints that survive a kill: written whole or not at all, never unpickled."""

import hashlib
import json
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load, save
from torch import Tensor

from ..data import Splits
from ..files import write_whole
from ..loop import Hook, SingleProcess, State
from .progress import read_losses


class Checkpoint(Hook):
    """Save the run every few seconds and when it stops, and resume from the newest checkpoint when it starts."""

    def __init__(self, folder: Path, splits: Splits, parallel: SingleProcess, every: float):
        self.folder, self.splits, self.parallel, self.every = folder, splits, parallel, every

    def start(self, state: State) -> None:
        """Raises ValueError if the folder holds checkpoints of another training."""
        data = {images.name: f"{len(images)} images, SHA-256 {images.sha256}" for images in self.splits}
        self.identity = dict(config=as_json(asdict(state.config)), data=data)
        self.parallel.on_rank0(lambda: self.folder.mkdir(parents=True, exist_ok=True))
        if newest := checkpoints(self.folder)[:1]:
            tensors, record = load_checkpoint(newest[0])
            before, now = (kept["config"] | kept["data"] for kept in (record, self.identity))
            refuse_changes(before, now, f"{self.folder} holds checkpoints of another training")
            restore(state, tensors, record)
        self.order = state.order.get_state()  # at the start of an epoch: the order of its images follows from it
        self.saved = time.monotonic()

    def after_step(self, state: State) -> None:
        if self.parallel.any(state.stop or time.monotonic() - self.saved > self.every):
            self.save(state)

    def after_epoch(self, state: State) -> None:
        self.order = state.order.get_state()

    def save(self, state: State) -> None:
        """Raises OSError if the disk is full, and FloatingPointError for losses that are not finite."""
        progress = dict(losses=read_losses(state), seconds=state.seconds)
        record = self.identity | progress | dict(history=state.history, sessions=state.sessions)
        self.parallel.on_rank0(lambda: save_checkpoint(self.folder, state.step, pack(state, self.order), record))
        self.saved = time.monotonic()

    def delete(self) -> None:
        for path in checkpoints(self.folder):
            path.unlink()
        if not any(self.folder.iterdir()):
            self.folder.rmdir()


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], record: dict) -> Path:
    """Write a checkpoint and delete all older ones but one; OSError, and all stay, if the disk is full."""
    # A copy each: safetensors refuses tensors that share memory, as those of SOAP's state do.
    copies = {name: x.detach().cpu().clone(memory_format=torch.contiguous_format) for name, x in tensors.items()}
    data = save(copies, metadata={"record": json.dumps(record)})
    path = folder / f"{step:09d}-{hashlib.sha256(data).hexdigest()[:16]}.safetensors"
    write_whole({path: data})
    for old in checkpoints(folder)[2:]:  # if the newest is damaged, delete it: there is one before it
        old.unlink()
    return path


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Return the tensors and the record of a checkpoint."""
    with safe_open(path, "pt") as file:
        return load(path.read_bytes()), json.loads(file.metadata()["record"])


def checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints in a folder, the newest first: their names begin with the step."""
    return sorted(folder.glob("[0-9]" * 9 + "-*.safetensors"), reverse=True)


def as_json(settings: dict) -> dict:
    """Return settings as JSON holds them, but for the device, which is no part of a training's identity."""
    return json.loads(json.dumps(settings | {"device": None}, default=str))


def refuse_changes(before: dict, now: dict, reason: str) -> None:
    """Raise ValueError, with the reason and what differs, if settings changed."""
    pairs = {name: (before.get(name), now.get(name)) for name in before | now}
    if changes := "; ".join(f"{name} was {old}, is {new}" for name, (old, new) in pairs.items() if old != new):
        raise ValueError(f"{reason} ({changes}). Write to another folder, or delete this one to start over")


def pack(state: State, order: Tensor) -> dict[str, Tensor]:
    """Gather weights, optimizer state and the states of the random number generators in one flat dict."""
    tensors = {f"model/{name}": value for name, value in state.model.state_dict().items()}
    for i, values in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{i}/{name}": torch.as_tensor(x) for name, x in values.items() if x is not None}
    tensors |= {"order": order, "random/cpu": torch.get_rng_state()}
    if state.device.type == "cuda":
        tensors["random/cuda"] = torch.cuda.get_rng_state(state.device)
    return tensors


def restore(state: State, tensors: dict[str, Tensor], record: dict) -> None:
    """Put back what `pack` gathered, and the run's progress."""
    groups: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, value in tensors.items():
        group, _, key = name.rpartition("/")
        groups[group][key] = value
    state.model.load_state_dict(groups["model"])
    settings = state.optimizer.state_dict()["param_groups"]
    values = {i: groups[f"optimizer/{i}"] for group in settings for i in group["params"] if f"optimizer/{i}" in groups}
    state.optimizer.load_state_dict(dict(state=values, param_groups=settings))
    state.order.set_state(tensors["order"])
    torch.set_rng_state(tensors["random/cpu"])
    if "random/cuda" in tensors and state.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random/cuda"], state.device)
    state.history, state.sessions, state.seconds = record["history"], record["sessions"], record["seconds"]
    state.losses = list(torch.tensor(record["losses"], device=state.device).unbind())
    state.step = len(state.history) * state.steps_per_epoch + len(state.losses)
