"""The training loop, with hooks for what a real run needs around it, and the evaluation of a model."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from . import metrics
from .config import TrainConfig, learning_rate, optimizer_class
from .data import ImageSet, Splits, eval_batch_size, to_model
from .device import best_device
from .model import M

T = TypeVar("T")


class Task(NamedTuple, Generic[M]):
    """A training task: the name of its loss, and functions that build and score the model and compute the loss."""

    name: str
    build: Callable[[], M]
    loss: Callable[[nn.Module, Tensor], Tensor]  # of a batch [B, 3, H, W] in [-1, 1], on the device
    score: Callable[[M, ImageSet], dict[str, float]]  # on the test images, after every epoch


@dataclass
class State(Generic[M]):
    """A training run: everything that its next step depends on, and what it has recorded so far."""

    config: TrainConfig
    task: Task[M]
    model: M
    replica: nn.Module  # computes the loss: the model, or DDP around it
    optimizer: torch.optim.Optimizer
    order: torch.Generator  # draws the order of the images
    steps_per_epoch: int
    step: int = 0
    losses: list[Tensor] = field(default_factory=list)  # one per step of this epoch, on the device
    seconds: float = 0.0  # that these steps took
    history: list[dict] = field(default_factory=list)  # one entry per complete epoch
    sessions: list[dict] = field(default_factory=list)  # the code and machine, one entry per start
    stop: bool = False  # set by a hook to end the run after this step

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def metrics(self) -> dict[str, float]:
        """The test metrics of the last epoch: those of `evaluate`, or of the codec's `estimate`."""
        others = ("epoch", f"train_{self.task.name}", "seconds", "images_per_second")
        return {name: value for name, value in self.history[-1].items() if name not in others}


class Hook:
    """Actions around the loop. `end` runs however the run ends, in reverse order; an error in it ends the run."""

    def start(self, state: State) -> None: ...
    def after_step(self, state: State) -> None: ...
    def after_epoch(self, state: State) -> None: ...
    def end(self, state: State) -> None: ...


class SingleProcess(Hook):
    """A training in one process; in its place, `scale.parallel.Processes` under torchrun, `scale.graph` on a GPU."""

    rank, size = 0, 1

    def shard(self, index: Tensor) -> Tensor:
        """Return this process's part of a batch."""
        return index

    def weight(self, count: int) -> float:
        """Return the weight of a mean over this process's part of `count` images in the mean over all of them."""
        return 1.0

    def mean(self, values: Tensor) -> Tensor:
        """Average over the processes, element by element."""
        return values

    def on_rank0(self, do: Callable[[], T]) -> T:
        """Run `do` on rank 0 and return its result everywhere; its error ends all processes."""
        return do()

    def take_step(self, state: State, gradients: Callable[[Tensor], Tensor], x: Tensor) -> None:
        """Take a step on a batch and record its loss; `gradients` returns that, with its gradients in the weights."""
        state.losses.append(gradients(x))  # first: an optimizer stops the run at a gradient that is not finite
        state.optimizer.step()
        state.optimizer.zero_grad()

    def any(self, flag: bool) -> bool:
        return self.mean(torch.tensor(float(flag))).item() > 0


def fit(
    task: Task[M], config: TrainConfig, splits: Splits, hooks: Sequence[Hook] = (), parallel=None, device=None
) -> State[M]:
    """Train on splits.train and score on splits.test after every epoch, until done or until a hook sets state.stop."""
    parallel, device = parallel or SingleProcess(), device or best_device(config.device)
    images, test = splits.train.to(device), splits.test.to(device)
    torch.manual_seed(config.seed)
    model = task.build().to(device)
    optimizer = optimizer_class(config.optimizer)(model.parameters(), lr=config.lr, **config.optimizer_args)
    order = torch.Generator().manual_seed(config.seed)
    steps_per_epoch = math.ceil(len(images) / config.batch_size)
    lr = learning_rate(config, config.epochs * steps_per_epoch)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")
    state = State(config, task, model, model, optimizer, order, steps_per_epoch)
    hooks = [*hooks, parallel]

    def gradients(x: Tensor) -> Tensor:
        count = min(config.batch_size, len(images) - len(state.losses) * config.batch_size)
        with autocast:
            loss = task.loss(state.replica, x) * parallel.weight(count)
        loss.backward()
        if config.clip:
            nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        return parallel.mean(loss.detach())

    with ExitStack() as stack:
        for hook in hooks:
            stack.callback(hook.end, state)
            hook.start(state)
        while len(state.history) < config.epochs:
            model.train()
            start = time.perf_counter() - state.seconds
            for x in images.batches(config.batch_size, order, len(state.losses), parallel.shard):
                for group in optimizer.param_groups:
                    group["lr"] = lr(state.step)
                parallel.take_step(state, gradients, x)
                state.step += 1
                state.seconds = time.perf_counter() - start
                for hook in hooks:
                    hook.after_step(state)
                if state.stop:
                    return state
            train_loss = torch.stack(state.losses).cpu().double().mean().item()  # waits for the device
            seconds = time.perf_counter() - start
            speed = dict(seconds=seconds, images_per_second=len(images) / seconds)
            means = task.score(model, replace(test, images=parallel.shard(test.images), labels=None))
            values = torch.tensor(list(means.values()), dtype=torch.float64) * parallel.weight(len(test))
            scores = {f"train_{task.name}": train_loss, **dict(zip(means, parallel.mean(values).tolist()))}
            state.history.append(dict(epoch=len(state.history) + 1, **scores, **speed))
            state.losses, state.seconds = [], 0.0
            for hook in hooks:
                hook.after_epoch(state)
    return state


@torch.no_grad()
def evaluate(model: nn.Module, images: ImageSet, batch_size: int | None = None) -> dict[str, float]:
    """Reconstruct every image and return means over images: {"l1", "l1_01", "psnr", "ssim"}.

    l1: on [-1, 1], output not clamped; l1_01: half of that, the scale of [0, 1]; psnr (dB; an exact image counts 100)
    and ssim: output clamped to [-1, 1], not rounded to bytes. Runs in evaluation mode on the model's device;
    batch_size: by default as many images as have the pixels of 500 of 32×32. Raises ValueError for images smaller than
    11 pixels, the window of SSIM.
    """
    scores, weight, training = [], next(model.parameters()), model.training
    model.eval()
    for part in images.images.split(batch_size or eval_batch_size(images)):
        y = model(x := to_model(part.to(weight.device)).to(weight.dtype))
        psnr = metrics.psnr(y, x).clamp(max=metrics.MAX_PSNR)
        scores.append(torch.stack([metrics.l1(y, x), psnr, metrics.ssim(y, x)]))
    model.train(training)
    l1, psnr, ssim = torch.cat(scores, 1).cpu().double().mean(1).tolist()  # MPS has no float64
    return dict(l1=l1, l1_01=l1 / 2, psnr=psnr, ssim=ssim)
