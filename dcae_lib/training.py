"""The training loop, and the evaluation that scores what it made: `dcae train --help`."""

import argparse
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, NamedTuple, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from . import metrics
from .runs.checkpoint import TrainingState, finished, refuse_another
from .data import DataError, ImageSet, Splits, eval_batch_size, load_images, to_model, to_uint8
from .device import best_device
from .config import PRESETS, TrainConfig, learning_rate, optimizer_class
from .scale.parallel import ALONE, Meetings, ProcessesDiffer, StoppedElsewhere, World, restarts, world
from .model import DCAE, M, save_pretrained
from .device import interrupts, keep_memory
from .runs.record import provenance
from .soap import SOAP
from .scale.stream import WORKERS, stream_images
from .runs.progress import LossWatch, NonFiniteLoss

EPOCHS_SHOWN = (1, 2, 3, 5, 10, 25, 40)


@dataclass
class Run(Generic[M]):
    """What a training run left: the model, a dict per whole epoch, and where it was done."""

    config: TrainConfig
    model: M
    history: list[dict]
    sessions: list[dict]                    # where it was done, and by which code: one entry per start
    interrupted: bool = False               # stopped by Ctrl-C before the end

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def metrics(self) -> dict[str, float]:
        """The test metrics of the last epoch: what `evaluate` says, or for a codec's model `estimate`."""
        if not self.history:
            raise RuntimeError("no epoch of this run is complete: there are no metrics yet; evaluate(run.model, ...) makes some")
        others = ("epoch", "seconds", "images_per_second")
        return {name: value for name, value in self.history[-1].items() if name not in others and not name.startswith("train_")}


def train(
    config: TrainConfig,
    out: str | Path | None = None,
    splits: Splits | None = None,
    after_epoch: Callable[[Run[DCAE]], None] | None = None,
    save_every: float = 60.0,
) -> Run[DCAE]:
    """Train a DCAE with an L1 loss, pixels in [-1, 1], and evaluate it on the test images after every epoch.

    With `out`, the model, its card and `history.json` are written there at the end, and every `save_every` seconds a
    checkpoint: the same call after a kill goes on from it, and on a CPU with as many threads ends with the same
    weights, bit for bit. Ctrl-C, or a notebook's stop button, ends the step, writes a checkpoint and returns the run
    so far. `splits` replaces config.dataset; `after_epoch` is handed the run after each epoch.

    Under `torchrun` each process takes its part of every batch, and all end with the same weights, bit for bit; the
    batch stays config.batch_size in all. The first process alone writes, shows the bar and calls `after_epoch`.

    Raises NonFiniteLoss within 50 steps of the first loss that is NaN or infinite, and where SOAP meets such a
    gradient; ValueError if `out` holds checkpoints of another training (a finished one is replaced), and for crops or images
    with a side that is no multiple of the model's factor or less than 11; CheckpointError if a checkpoint cannot be written.
    """
    def build() -> DCAE:
        model = DCAE(**config.model)
        for side in config.crop or found.test.images.shape[2:]:                # else SSIM says so, after the first epoch
            if side % model.factor or side < metrics.WINDOW:
                what = "a crop" if config.crop else "the side of an image"
                raise ValueError(f"{what} must be a multiple of {model.factor} and at least {metrics.WINDOW} pixels, got {side}")
        return model

    def l1(model: nn.Module, x: Tensor) -> Tensor:
        return F.l1_loss(model(x), x)

    task = Task("l1", build, l1, evaluate, save_run)
    with world(config.device) as processes:
        found = splits or processes.machine_first(lambda: images_of(config))
        return fit(task, config, out, found, after_epoch, save_every, processes)


class Task(NamedTuple, Generic[M]):
    """What differs between trainings: the name of the loss, and four functions."""

    name: str
    build: Callable[[], M]
    loss: Callable[[nn.Module, Tensor], Tensor]                         # of a batch in [-1, 1], on the device
    score: Callable[[M, ImageSet], dict[str, float]]                    # on the test images, after every epoch
    save: Callable[[Run[M], Splits, Path], None]                        # what is written at the end


def fit(
    task: Task[M],
    config: TrainConfig,
    out: str | Path | None,
    splits: Splits,
    after_epoch: Callable[[Run[M]], None] | None = None,
    save_every: float = 60.0,
    processes: World = ALONE,
) -> Run[M]:
    """The loop of every training here; `train` says what it promises."""
    choose = best_device if processes.size == 1 else processes.own_device
    device = processes.machine_first(lambda: choose(config.device))
    if device.type == "cpu":
        keep_memory()
    first = processes.rank == 0
    images, test = splits.train.to(device), splits.test.to(device)
    torch.manual_seed(config.seed)
    model = processes.machine_first(task.build).to(device)
    optimizer = optimizer_class(config.optimizer)(model.parameters(), lr=config.lr, **config.optimizer_args)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.average)) if config.average else None
    order = torch.Generator().manual_seed(config.seed)
    steps_per_epoch = math.ceil(len(images) / config.batch_size)
    steps = config.epochs * steps_per_epoch
    rate = learning_rate(config, steps)
    run = Run(config, cast(M, average.module) if average else model, [], [])
    modules: dict[str, nn.Module] = {"model": model} | ({"average": average} if average else {})
    state = TrainingState(Path(out) / "checkpoints" if out else None, run, modules, optimizer, order, splits, processes)
    if out is not None and restarts():                      # by torchrun: perhaps what died had nothing left to do
        done = processes.first_does(lambda: finished(config, splits, Path(out)))
        if done:
            return Run(config, cast(Any, model).from_pretrained(out).to(device), done["history"], done["sessions"])
    state.restore()
    step = len(run.history) * steps_per_epoch + len(state.losses)
    run.sessions.append(dict(step=step, processes=processes.size, **provenance(device)))
    replica = processes.wrap(model)                         # its gradients are means over all processes
    if isinstance(optimizer, SOAP):
        optimizer.processes = processes

    def loss_of(x: Tensor) -> Tensor:                       # x: float [B, 3, H, W] in [-1, 1], on the device
        with torch.autocast(device.type, torch.bfloat16) if config.precision == "bfloat16" else nullcontext():
            return task.loss(replica, x)

    if processes.size > 1:      # DDP sorts gradients anew after its first backward pass, and the order decides how sums are rounded
        x = next(images.batches(config.batch_size, torch.Generator(), 0, processes.mine))
        (loss_of(x) * 0).backward()
        optimizer.zero_grad()

    def tell() -> None:
        if after_epoch:
            after_epoch(run)

    meetings = Meetings(processes, step)
    with interrupts() as interrupted, tqdm(total=steps, initial=step, unit="step", desc="training", disable=not first) as bar:
        while len(run.history) < config.epochs:
            model.train()
            state.order_at_start = order.get_state()
            before = len(run.history) * steps_per_epoch
            losses = LossWatch(task.name, state.losses, bar, config.batch_size, before, processes.mean)
            start = time.perf_counter() - state.seconds
            for x in images.batches(config.batch_size, order, len(state.losses), processes.mine):
                for group in optimizer.param_groups:
                    group["lr"] = rate(step)
                processes.seed(config.seed, step)
                whole = min(config.batch_size, len(images) - (step - before) * config.batch_size)
                loss = loss_of(x) * processes.weight(whole)             # parts of a batch may differ by an image
                losses.append(loss)
                loss.backward()
                if config.clip:
                    nn.utils.clip_grad_norm_(model.parameters(), config.clip)
                losses.guard(optimizer.step)
                optimizer.zero_grad()
                if average:
                    average.update_parameters(model)
                step += 1
                if not meetings.due(step, step - before == steps_per_epoch):
                    continue                                # several stop and save together
                stop, due = processes.any(bool(interrupted), state.due(save_every))
                if stop or due:
                    losses.look()
                    state.seconds = time.perf_counter() - start
                    state.save(step)
                if stop:
                    run.interrupted = True
                    return run
            train_loss, seconds = losses.mean(), time.perf_counter() - start
            processes.check_same_bits(model)
            run.history.append(
                dict(epoch=len(run.history) + 1, **{f"train_{task.name}": train_loss}, **score(task, run, test, processes),
                     seconds=seconds, images_per_second=len(images) / seconds)
            )
            state.losses.clear()
            state.seconds = 0.0
            processes.first_does(tell)
    del images                                              # and with it workers that read: what is written now does not need them
    for name, value in run.history[-1].items():             # the last step broke the weights: no later loss shows it
        if not math.isfinite(value):
            raise NonFiniteLoss(f"the test {name} is {value} after the last step; lower the learning rate")
    if out is not None:
        processes.first_does(lambda: task.save(run, splits, Path(out)))
        processes.first_does(state.delete)
    return run


def score(task: Task[M], run: Run[M], test: ImageSet, processes: World) -> dict[str, float]:
    """The task's means over the test images, each process evaluating its part of them."""
    if processes.size == 1:
        return task.score(run.model, test)
    means = task.score(run.model, replace(test, images=processes.mine(test.images), labels=None))
    shares = torch.tensor(list(means.values()), dtype=torch.float64, device=run.device) * processes.weight(len(test))
    return dict(zip(means, processes.mean(shares).tolist()))


def images_of(config: TrainConfig, workers: int | None = None) -> Splits:
    """The images that a config names: all in memory, or with `crop` streamed, by so many workers."""
    if config.crop:
        return stream_images(config.dataset, config.crop, WORKERS if workers is None else workers)
    if workers is not None:
        raise ValueError("--workers read images while the network trains: give --crop too, or leave --workers out")
    return load_images(config.dataset)


@torch.no_grad()
def evaluate(model: nn.Module, images: ImageSet, batch_size: int | None = None) -> dict[str, float]:
    """Means over images of {"l1", "l1_01", "psnr", "ssim"}: reconstruct every image and compare.

    l1: on [-1, 1], output as it is; l1_01: half of that, the same on [0, 1]; psnr (dB) and ssim: on output clamped
    to [-1, 1], not rounded to bytes. Runs in evaluation mode on the model's device and restores its mode; as many at a
    time as have the pixels of 500 of 32×32, or `batch_size`. ValueError for images that SSIM's window of 11 pixels does not fit into.
    """
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    scores = []
    for part in images.images.split(batch_size or eval_batch_size(images)):
        x = to_model(part.to(device))
        y = model(x)
        scores.append(torch.stack([metrics.l1(y, x), metrics.psnr(y, x), metrics.ssim(y, x)]))
    model.train(was_training)
    l1, psnr, ssim = torch.cat(scores, 1).cpu().double().mean(1).tolist()     # MPS has no float64
    return dict(l1=l1, l1_01=l1 / 2, psnr=psnr, ssim=ssim)


def keep_pictures(out: str | Path, test: ImageSet, count: int = 10) -> Callable[[Run[DCAE]], None]:
    """An `after_epoch` that writes the first test images as the network gives them back into `<out>/epochs/<epoch>.png`.

    One row of pictures per file, the originals in `00.png`. Of all epochs, those in EPOCHS_SHOWN and the last.
    """
    folder, originals = Path(out) / "epochs", test.images[:count]

    def write(name: str, pictures: Tensor) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        row = torch.cat(list(pictures), dim=2).permute(1, 2, 0)                             # [H, count·W, 3]
        Image.fromarray(row.numpy()).save(folder / f"{name}.png")

    @torch.no_grad()
    def keep(run: Run[DCAE]) -> None:
        epoch = len(run.history)
        if epoch in (*EPOCHS_SHOWN, run.config.epochs):
            write("00", originals)
            write(f"{epoch:02d}", to_uint8(run.model.eval()(to_model(originals).to(run.device))).cpu())

    return keep


def save_run(run: Run[DCAE], splits: Splits, out: Path) -> None:
    """Write the model, with its card, and `history.json`."""
    save_record(run, splits, out, card)


def save_record(run: Run[M], splits: Splits, out: Path, card: Callable[[Run[M], int], str], **more: str) -> None:
    """Write the model and beside it `history.json`: config, hashes of the data, sessions, and a dict per epoch; and a card."""
    parameters = sum(p.numel() for p in run.model.parameters())
    record: dict[str, Any] = dict(
        config=asdict(run.config), **more,
        parameters=parameters,
        data={images.name: images.sha256 for images in splits},
        sessions=run.sessions,
        history=run.history,
    )
    history = (json.dumps(record, indent=1, default=str) + "\n").encode()
    text = card(run, parameters).encode("utf-8", "backslashreplace")            # a folder's name may be no UTF-8
    save_pretrained(run.model, out, {"history.json": history, "README.md": text}, history_sha256=hashlib.sha256(history).hexdigest())


def card(run: Run[DCAE], parameters: int) -> str:
    """The model card: what the weights are, how to load them, how good they are, what not to expect."""
    figures = ", ".join(f"{name} {value:.4f}" for name, value in run.metrics.items())
    return f"""# A deep convolutional autoencoder (DCAE), {parameters:,} parameters

Trained on {run.config.dataset} for {run.config.epochs} epochs by `dcae train`; on its test images: {figures}
(l1 on [-1, 1], l1_01 on [0, 1], psnr in dB; means over images).

```python
from dcae_lib import DCAE

model = DCAE.from_pretrained("this folder")     # pixels in [-1, 1], [B, 3, H, W], sides multiples of {run.model.factor}
latent = model.encode(x)
```

`model.safetensors` holds the weights, and in its header the SHA-256 of `history.json`; `config.json` the arguments of
`DCAE(...)`; `history.json` every epoch, the settings, the data's hashes, versions, code revision and hardware.
`dcae verify FOLDER` evaluates the weights again and compares. Trained on small squares: pass larger images
through in tiles (`dcae_lib.tiles.reconstruct`).
"""


def in_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON ({error})") from error


def main(arguments: list[str] | None = None) -> int:
    default = TrainConfig()
    parser = argparse.ArgumentParser(
        prog="dcae train",
        description="Train a DCAE. The same command after a kill or Ctrl-C goes on where it stopped.",
    )
    parser.add_argument("--out", required=True, help="folder for the model, history.json and, until the end, checkpoints")
    parser.add_argument("--preset", default="tuned", choices=PRESETS, help="what the options below change (default: %(default)s)")
    for name, explanation in (
        ("dataset", '"sample", "cifar10" or a folder of images: of one size, or with --crop of any'),
        ("optimizer", "SOAP or a name in torch.optim"),
        ("precision", "float32 or bfloat16"),
        ("device", "cuda, mps or cpu; the best there is if not named"),
    ):
        parser.add_argument(f"--{name}", help=explanation)
    for name in ("epochs", "batch_size", "lr", "warmup", "seed"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(getattr(default, name)))
    parser.add_argument("--crop", type=int, nargs="+", metavar="SIDE", help=(
        "train on random squares of this side, or of several, of images (or tar shards of them) that are read meanwhile"
    ))
    parser.add_argument("--workers", type=int, help=(
        "with --crop, processes that read images for each that trains: more, if the pictures are large or the GPU is fast "
        f"(default: {WORKERS}; the weights do not depend on it)"
    ))
    parser.add_argument("--model", type=in_json, help="""arguments of DCAE(...) as JSON, such as '{"shortcut": "pool"}'""")
    options = vars(parser.parse_args(arguments))
    out, preset, workers = options.pop("out"), options.pop("preset"), options.pop("workers")

    def do() -> Run[DCAE]:
        given = {name: value for name, value in options.items() if value is not None}
        with world(options["device"]) as processes:
            config = processes.machine_first(lambda: TrainConfig.preset(preset, **given))
            processes.first_does(lambda: refuse_another(config, out))
            splits = processes.machine_first(lambda: images_of(config, workers))
            return train(config, out, splits, keep_pictures(out, splits.test))

    return status(do, lambda run: f"{out}: " + ", ".join(f"{name} {value:.4f}" for name, value in run.metrics.items()))


def status(do: Callable[[], Run[M]], summary: Callable[[Run[M]], str]) -> int:
    """The exit status of a training as a command: 0 and a summary, 1 and what went wrong, or 130 if it was interrupted.

    Of several processes the first speaks for all, the others of what they alone met.
    """
    rank = int(os.environ.get("RANK", "0"))
    try:
        run = do()
    except StoppedElsewhere as error:
        if isinstance(error.__cause__, dist.DistBackendError):                  # NCCL's, perhaps in all processes: none else says why
            print(f"process {rank}: {str(error.__cause__).splitlines()[0]}", file=sys.stderr)
        time.sleep(1)                       # torchrun ends all when one is gone: the one that says why comes first
        return 1
    except (NonFiniteLoss, ProcessesDiffer) as error:       # met by all
        if rank == 0:
            print(error, file=sys.stderr)
        return 1
    except (DataError, OSError, TypeError, ValueError) as error:
        print(f"process {rank}: {error}" if rank else error, file=sys.stderr)
        return 1
    except RuntimeError as error:                           # raised wherever this process is when a worker dies
        if "DataLoader worker" not in str(error):
            raise
        print(f"process {rank}: a worker that reads images ended ({error}); if memory is short, take fewer --workers", file=sys.stderr)
        return 1
    except KeyboardInterrupt:                               # the second one, or before or after the training
        print("interrupted; the same command goes on from the last checkpoint, if there is one", file=sys.stderr)
        return 130
    if run.interrupted:
        if rank == 0:
            print(f"interrupted in epoch {len(run.history) + 1}; the same command goes on from there", file=sys.stderr)
        return 130
    if rank == 0:
        print(summary(run))
    return 0


if __name__ == "__main__":
    sys.exit(main())
