"""The settings of a training run, two presets, and the learning rate at each step."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from .soap import SOAP


@dataclass(frozen=True)
class TrainConfig:
    """Everything that a training run depends on, except the machine and its threads."""

    dataset: str = "sample"  # as for `load_images`, or with `crop` for `stream_images`
    crop: tuple[int, ...] = ()  # sides of random crops, in pixels, of images that are streamed
    epochs: int = 40
    batch_size: int = 64
    optimizer: str = "SOAP"  # ours, or a name in torch.optim
    lr: float = 1e-2
    optimizer_args: dict = field(default_factory=dict)
    schedule: str = "cosine"  # after the warm-up: "cosine" (down to 0) or "constant"
    warmup: float = 0.05  # fraction of all steps in which the learning rate rises
    clip: float | None = None  # the norm to which longer gradients are cut
    precision: str = "float32"  # "bfloat16": autocast
    model: dict = field(default_factory=dict)  # arguments of DCAE(...)
    seed: int = 0  # of the initial weights, the order of the images and dropout
    device: str | None = None  # None: DCAE_DEVICE, else CUDA, else MPS, else CPU

    def __post_init__(self):
        object.__setattr__(self, "crop", (self.crop,) if isinstance(self.crop, int) else tuple(self.crop))
        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
            if not isinstance(value := getattr(self, name), int) or not least <= value < 2**63:
                raise ValueError(f"{name} must be a whole number, {least} or more and below 2⁶³, got {value!r}")
        if not 0 < self.lr < math.inf or not 0 <= self.warmup <= 1:
            raise ValueError(f"lr must be above 0 and finite, warmup in [0, 1], got {self.lr} and {self.warmup}")
        for name, allowed in (("schedule", ("cosine", "constant")), ("precision", ("float32", "bfloat16"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        optimizer_class(self.optimizer)

    @classmethod
    def preset(cls, name: str, **changes) -> "TrainConfig":
        """Return the preset "tuned" or "document" with changes, in `model` of single arguments."""
        preset = PRESETS[name]
        return cls(**preset | changes | dict(model=preset["model"] | changes.get("model", {})))


PRESETS: dict[str, dict[str, Any]] = {
    # Chosen by bench/sweep.py, the widths by bench/runs.py; results/bench/sweep.json and results/runs hold the tables.
    "tuned": dict(batch_size=32, lr=2e-2, model=dict(groups=1, channels=(36, 24))),
    # The recipe that notebook 05 reproduces, one channel per group included.
    "document": dict(
        batch_size=512,
        lr=5e-4,
        optimizer_args=dict(betas=(0.95, 0.95), weight_decay=0.01, precondition_frequency=10),
        schedule="constant",
        warmup=0.0,
        model=dict(dropout=0.01, stage_dropout=0.05, groups=32),
    ),
}


def optimizer_class(name: str) -> Callable[..., torch.optim.Optimizer]:
    """Return SOAP, or the class of that name in torch.optim; ValueError if there is none."""
    optimizer = SOAP if name == "SOAP" else getattr(torch.optim, name, None)
    if not isinstance(optimizer, type):
        raise ValueError(f"optimizer must be SOAP or a name in torch.optim, got {name!r}")
    return optimizer


def learning_rate(config: TrainConfig, steps: int) -> Callable[[int], float]:
    """Return the learning rate at each step: linear up to `lr` in the warm-up, then a cosine down to 0, or constant."""
    rise = round(steps * config.warmup)

    def rate(step: int) -> float:
        if step < rise:
            return config.lr * (step + 1) / rise
        if config.schedule == "constant":
            return config.lr
        return config.lr * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    return rate
