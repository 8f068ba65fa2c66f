"""The training loop, and the evaluation that scores what it made: `python -m dcae_lib.train --help`."""

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from . import metrics
from .cifar10 import DataError
from .data import ImageSet, Splits, batches, best_device, load_images, to_model
from .model import DCAE
from .soap import SOAP

CHECK_EVERY = 50            # steps between two looks at the losses; each look waits for the device once


@dataclass(frozen=True)
class TrainConfig:
    """All that a training run depends on but the machine and its threads. The learning rate rises over `warmup` and falls on a cosine to 0."""

    dataset: str = "sample"                 # what `load_images` takes
    epochs: int = 40
    batch_size: int = 64
    optimizer: str = "SOAP"                 # ours, or any name in torch.optim
    lr: float = 1e-2
    optimizer_args: dict = field(default_factory=dict)
    warmup: float = 0.05                    # fraction of all steps
    model: dict = field(default_factory=dict)           # arguments of DCAE(...)
    seed: int = 0                           # of the initial weights, the order of the images and dropout
    device: str | None = None               # None: CUDA, else MPS, else CPU

    def __post_init__(self):
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"epochs and batch_size must be 1 or more, got {self.epochs} and {self.batch_size}")
        if not self.lr > 0 or not 0 <= self.warmup <= 1:
            raise ValueError(f"lr must be above 0 and warmup in [0, 1], got {self.lr} and {self.warmup}")
        optimizer_class(self.optimizer)


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """SOAP, or the class of that name in torch.optim. Raises ValueError if there is none."""
    found = SOAP if name == "SOAP" else getattr(torch.optim, name, None)
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise ValueError(f"optimizer must be SOAP or a name in torch.optim, such as AdamW, got {name!r}")
    return found


@dataclass
class Run:
    """What a training run left: the model, a dict per epoch, and the test metrics of the last one."""

    config: TrainConfig
    model: DCAE
    history: list[dict]

    @property
    def metrics(self) -> dict[str, float]:
        return {name: self.history[-1][name] for name in ("l1", "l1_01", "psnr", "ssim")}


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; the message says at which step."""


def train(
    config: TrainConfig,
    out: str | Path | None = None,
    splits: Splits | None = None,
    after_epoch: Callable[[Run], None] | None = None,
) -> Run:
    """Train a DCAE with an L1 loss, pixels in [-1, 1], and evaluate it on the test images after every epoch.

    On a CPU, the same config and number of threads give the same weights, bit for bit. With `out`, the model and
    `history.json` are written there at the end. `splits` replaces config.dataset; `after_epoch` is handed the run
    so far. Raises NonFiniteLoss within 50 steps of the first loss that is NaN or infinite, and where SOAP meets such a
    gradient.
    """
    device = best_device(config.device)
    splits = splits or load_images(config.dataset)
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)        # a folder that cannot be made shows before the training
    images = splits.train.images.to(device)                 # uint8, all of them: a batch is an index
    test = splits.test.to(device)
    torch.manual_seed(config.seed)
    model = DCAE(**config.model).to(device)
    optimizer = optimizer_class(config.optimizer)(model.parameters(), lr=config.lr, **config.optimizer_args)
    steps_per_epoch = math.ceil(len(images) / config.batch_size)
    steps = config.epochs * steps_per_epoch
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(steps, config.warmup))
    generator = torch.Generator().manual_seed(config.seed)
    run = Run(config, model, [])

    with tqdm(total=steps, unit="step", desc="training") as bar:
        for epoch in range(1, config.epochs + 1):
            model.train()
            losses = LossWatch(bar, config.batch_size, (epoch - 1) * steps_per_epoch)
            start = time.perf_counter()
            try:
                for x in batches(images, config.batch_size, generator):     # float [B, 3, H, W] in [-1, 1], on the device
                    loss = F.l1_loss(model(x), x)
                    losses.append(loss)
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    scheduler.step()
            except FloatingPointError as error:             # SOAP may meet what is not finite before the next look
                losses.look()
                raise NonFiniteLoss(f"the loss is finite, but {error}; lower the learning rate") from error
            train_l1, seconds = losses.mean(), time.perf_counter() - start
            score = evaluate(model, test)
            run.history.append(
                dict(epoch=epoch, train_l1=train_l1, **score, seconds=seconds, images_per_second=len(images) / seconds)
            )
            if after_epoch:
                after_epoch(run)
    if not math.isfinite(run.metrics["l1"]):                # the last step broke the weights: no later loss shows it
        raise NonFiniteLoss(f"the test L1 is {run.metrics['l1']} after the last step; lower the learning rate")
    if out is not None:
        save_run(run, splits, Path(out))
    return run


@torch.no_grad()
def evaluate(model: nn.Module, images: ImageSet, batch_size: int = 500) -> dict[str, float]:
    """Means over images of {"l1", "l1_01", "psnr", "ssim"}: reconstruct every image and compare.

    l1: on [-1, 1], output as it is; l1_01: half of that, the same on [0, 1]; psnr (dB) and ssim: on output clamped
    to [-1, 1], not rounded to bytes. Runs in evaluation mode on the model's device and restores its mode.
    """
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    scores = []
    for part in images.images.split(batch_size):
        x = to_model(part.to(device))
        y = model(x)
        scores.append(torch.stack([metrics.l1(y, x), metrics.psnr(y, x), metrics.ssim(y, x)]))
    model.train(was_training)
    l1, psnr, ssim = torch.cat(scores, 1).double().mean(1).tolist()
    return dict(l1=l1, l1_01=l1 / 2, psnr=psnr, ssim=ssim)


def warmup_cosine(steps: int, warmup: float) -> Callable[[int], float]:
    """The factor on the learning rate at each step: linear up to 1 over the warm-up, then a cosine down to 0."""
    rise = max(1, round(steps * warmup))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    return factor


class LossWatch:
    """Losses of one epoch, kept on the device and read every 50 steps, so that no step waits for the device."""

    def __init__(self, bar: tqdm, batch_size: int, before: int):
        self.bar, self.batch_size, self.before = bar, batch_size, before        # steps before this epoch
        self.pending: list[Tensor] = []
        self.read: list[float] = []

    def append(self, loss: Tensor) -> None:
        self.pending.append(loss.detach())
        if len(self.pending) == CHECK_EVERY:
            self.look()

    def look(self) -> None:
        if not self.pending:
            return
        values = torch.stack(self.pending).tolist()
        for i, value in enumerate(values, self.before + len(self.read) + 1):
            if not math.isfinite(value):
                raise NonFiniteLoss(
                    f"the loss became {value} at step {i}; "
                    "lower the learning rate, warm up for longer, or look for broken images"
                )
        self.pending.clear()
        self.read += values
        self.bar.update(len(values))
        rate = (self.bar.format_dict["rate"] or 0) * self.batch_size
        self.bar.set_postfix_str(f"L1 {sum(values) / len(values):.4f}, {rate:,.0f} images/s")

    def mean(self) -> float:
        """Mean loss over the steps of the epoch."""
        self.look()
        return sum(self.read) / len(self.read)


def save_run(run: Run, splits: Splits, out: Path) -> None:
    """Write the model and `history.json`: config, hashes of the data, versions, and a dict per epoch."""
    run.model.save_pretrained(out)
    record = dict(
        config=asdict(run.config),
        data={images.name: images.sha256 for images in splits},
        versions=dict(python=platform.python_version(), torch=torch.__version__),
        device=str(next(run.model.parameters()).device),
        threads=torch.get_num_threads(),
        history=run.history,
    )
    partial = out / "history.json.partial"
    partial.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(partial, out / "history.json")


def main(arguments: list[str] | None = None) -> int:
    default = TrainConfig()
    parser = argparse.ArgumentParser(prog="python -m dcae_lib.train", description="Train a DCAE.")
    parser.add_argument("--out", required=True, help="folder for the model and history.json")
    parser.add_argument("--dataset", default=default.dataset, help='"sample", "cifar10" or a folder of images of one size')
    parser.add_argument("--optimizer", default=default.optimizer, help="SOAP or a name in torch.optim (default: %(default)s)")
    parser.add_argument("--device", help="cuda, mps or cpu; the best there is if not named")
    for name in ("epochs", "batch_size", "lr", "warmup", "seed"):
        value = getattr(default, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help="default: %(default)s")
    options = vars(parser.parse_args(arguments))
    out = options.pop("out")
    try:
        run = train(TrainConfig(**options), out)
    except (DataError, NonFiniteLoss, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{out}: " + ", ".join(f"{name} {value:.4f}" for name, value in run.metrics.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
