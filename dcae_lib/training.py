"""Training with everything that a real run needs around the loop: checkpoints, Ctrl-C, several processes, a record."""

import ctypes
import platform
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torchvision.transforms.functional import to_pil_image

from .config import TrainConfig
from .data import ImageSet, Splits, load_images, to_model, to_uint8
from .files import PACKAGE
from .loop import Hook, SingleProcess, State, Task, evaluate, fit
from .model import DCAE, M
from .runs.checkpoint import Checkpoint
from .runs.progress import Interrupt, Progress
from .runs.record import Record, save_run
from .scale.graph import Graphs
from .scale.parallel import processes, rank0_first
from .scale.stream import WORKERS, stream_images

Out = str | Path | None
Call = Callable[[State], object] | None
EPOCHS_SHOWN = (1, 2, 3, 5, 10, 25, 40)


def train(
    config: TrainConfig, out: Out = None, splits: Splits | None = None, after_epoch: Call = None, save_every=60.0
) -> State[DCAE]:
    """Train a DCAE with an L1 loss, pixels in [-1, 1], and evaluate it on the test images after every epoch.

    With `out`, the model, its card and `history.json` are written there at the end, and every `save_every` seconds a
    checkpoint: the same call after a kill resumes, and on a CPU with as many threads ends with the same weights, bit
    for bit. Ctrl-C, or a notebook's stop button, ends the step, writes a checkpoint and returns the run so far.
    `splits` replaces config.dataset; `after_epoch` is called with the run after each epoch.

    Under `torchrun` each process takes its part of every batch of config.batch_size, and all end with the same
    weights, bit for bit; rank 0 alone writes, shows the bar and calls `after_epoch`.

    Raises FloatingPointError within 50 steps of a loss or gradient that is NaN or infinite; ValueError if `out` has
    checkpoints of another training (a finished one is replaced); OSError if a checkpoint cannot be written.
    """
    # In float32, whatever torch's default is.
    task = Task("l1", lambda: DCAE(**config.model).float(), lambda model, x: F.l1_loss(model(x), x), evaluate)
    return run_task(task, PACKAGE / "runs" / "card.md", config, out, splits, after_epoch, save_every)


def run_task(
    task: Task[M], card: Path, config: TrainConfig, out: Out, splits, after_epoch: Call, save_every=60.0, **more: str
) -> State[M]:
    """Run the loop for a task as `train` does, and save the run with this card, and with more facts in its record."""
    out = out and Path(out).expanduser()
    with processes(config.device) as (several, device):
        graphed = device.type == "cuda" and several.size == 1 and config.optimizer == "SOAP"
        parallel = Graphs() if graphed else several
        if device.type == "cpu":
            keep_memory()
        torch.backends.cudnn.allow_tf32 = False  # float32 as on a CPU, and for channels this few the faster
        splits = splits or rank0_first(parallel, lambda: images_of(config))
        hooks: list[Hook] = [Interrupt(parallel)]
        checkpoint = Checkpoint(out / "checkpoints", splits, parallel, save_every) if out else None
        if checkpoint:
            hooks.append(checkpoint)
        hooks += [Record(parallel), Progress(parallel)]
        hooks += [Callback(after_epoch, parallel)] if after_epoch else []
        state = fit(task, config, splits, hooks, parallel, device)
        if out and checkpoint and len(state.history) == config.epochs:
            parallel.on_rank0(lambda: save_run(state, splits, out, card, **more))
            parallel.on_rank0(checkpoint.delete)
    return state


class Callback(Hook):
    """Call a function with the run after every epoch, on rank 0."""

    def __init__(self, call: Callable[[State], object], parallel: SingleProcess):
        self.call, self.parallel = call, parallel

    def after_epoch(self, state: State) -> None:
        self.parallel.on_rank0(lambda: self.call(state) and None)  # other ranks need no result


def images_of(config: TrainConfig, workers: int = WORKERS) -> Splits:
    """Return the images that a config names: all in memory, or with `crop` streamed by `workers` processes."""
    if config.crop:
        return stream_images(config.dataset, config.crop, workers)
    return load_images(config.dataset)


def keep_pictures(out: str | Path, test: ImageSet, count: int = 10) -> Callable[[State[DCAE]], None]:
    """Return an `after_epoch` that writes reconstructions of the first test images to `<out>/epochs/<epoch>.png`.

    One row of pictures per file, the originals in `00.png`; of all epochs, those in EPOCHS_SHOWN and the last.
    """
    folder, originals = Path(out).expanduser() / "epochs", test.images[:count]

    @torch.no_grad()
    def keep(state: State[DCAE]) -> None:
        epoch = len(state.history)
        if epoch in (*EPOCHS_SHOWN, state.config.epochs):
            folder.mkdir(parents=True, exist_ok=True)
            reconstructions = to_uint8(state.model.eval()(to_model(originals).to(state.device))).cpu()
            for name, pictures in (("00", originals), (f"{epoch:02d}", reconstructions)):
                to_pil_image(torch.cat(list(pictures), dim=2)).save(folder / f"{name}.png")

    return keep


def keep_memory() -> None:
    """Let glibc keep freed memory for the next step instead of returning it to the system and faulting it in anew."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, 2**30)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, its maximum
