"""Measure training on a GPU: the loop's speed by precision, by batch and with graphs, its parts, and 40 epochs.

`python bench/gpu.py` needs CIFAR-10 and a GPU, and writes results/bench/gpu.json after each part; a part that fails
says why in its place. `--device cpu --smoke` tries the script on a few images where there is no GPU.
"""

import io
import os
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
import torch.nn.functional as F
from harness import RESULTS, WIDTHS, here, parser, save
from pytorch_optimizer import SOAP as PytorchOptimizerSOAP
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from train import plain

from dcae_lib import DCAE, SOAP, Splits, TrainConfig, evaluate, load_images, train
from dcae_lib.loop import Hook, SingleProcess, Task, fit
from dcae_lib.scale.graph import Graphs, capture
from dcae_lib.scale.parallel import Processes
from dcae_lib.soap import refresh

os.environ["TQDM_DISABLE"] = "1"
# name: precision, TF32 in convolutions and in matrix products, batch, in graphs, compiled
LOOPS = {
    "kernel by kernel": ("float32", False, False, 32, False, False),
    "float32": ("float32", False, False, 32, True, False),
    "TF32 in convolutions": ("float32", True, False, 32, True, False),
    "TF32": ("float32", True, True, 32, True, False),
    "bfloat16": ("bfloat16", False, False, 32, True, False),
    "float32, batch 64": ("float32", False, False, 64, True, False),
    "float32, batch 128": ("float32", False, False, 128, True, False),
    "float32, compiled": ("float32", False, False, 32, True, True),
}
# name: changes of the preset "tuned"
WHOLE = {
    "float32": {},
    "float32, batch 64": dict(
        batch_size=64, lr=0.028, optimizer_args=dict(betas=(0.9, 0.95), precondition_frequency=5)
    ),
}


def wait(device: str) -> float:
    """Wait for the device and return the time."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def first(splits: Splits, count: int, test: int) -> Splits:
    """Return as many images to train on, repeated where there are fewer, and some to test on."""
    images = splits.train.images
    images = images.repeat(-(-count // len(images)), 1, 1, 1)[:count]
    return Splits(
        replace(splits.train, images=images, labels=None),
        replace(splits.test, images=splits.test.images[:test], labels=None),
    )


def set_tf32(convolutions: bool, products: bool) -> None:
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products


class Clock(Hook):
    """The time at which the second half of a run begins."""

    def after_step(self, state) -> None:
        if state.step == state.steps_per_epoch // 2:
            self.time = wait(state.device.type)


def loop(name: str, splits: Splits, device: str, steps: int, parallel=None) -> dict:
    """Run the loop and return the milliseconds of a step and the images per second of its second half."""
    precision, convolutions, products, batch, graphed, compiled = LOOPS[name]
    set_tf32(convolutions, products)
    config = TrainConfig.preset("tuned", model=WIDTHS, epochs=1, batch_size=batch, precision=precision, device=device)

    def l1(model: nn.Module, x: Tensor) -> Tensor:
        return F.l1_loss(model(x), x)

    loss = torch.compile(l1, dynamic=False) if compiled else l1
    task = Task("l1", lambda: DCAE(**config.model), loss, lambda *_: {"l1": 0.0})
    clock, begin = Clock(), wait(device)
    parallel = parallel or (Graphs() if graphed and device != "cpu" else SingleProcess())
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    fit(task, config, first(splits, steps * batch, 1), [clock], parallel, torch.device(device))
    end = wait(device)
    each = (end - clock.time) / (steps - steps // 2)
    row = dict(milliseconds=round(each * 1e3, 3), images_per_second=round(batch / each), seconds=round(end - begin, 1))
    return row | (dict(peak_MiB=round(torch.cuda.max_memory_allocated() / 2**20)) if device != "cpu" else {})


def one_process_with_nccl(splits: Splits, device: str, steps: int) -> dict:
    """Run the loop as `torchrun` would with one process: DDP and, between GPUs, NCCL."""
    backend = "cpu:gloo,cuda:nccl" if device != "cpu" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        return loop("kernel by kernel", splits, device, steps, Processes(0, 1))
    finally:
        dist.destroy_process_group()


def plain_loop(dataset: str, device: str, steps: int) -> dict:
    """Run the loop that most people write first (bench/train.py); return its images per second after a warm-up."""
    trained, _ = plain(load_images(dataset), TrainConfig.preset("tuned", model=WIDTHS, batch_size=32, device=device))
    trained(max(2, steps // 4))
    return dict(images_per_second=round(trained(max(2, steps))))


def per_call(do: Callable[[], object], device: str, calls: int) -> float:
    """Return the milliseconds of a call: the median of five rounds, after two calls that warm up."""
    do(), do()
    seen = []
    for _ in range(5):
        start = wait(device)
        for _ in range(calls):
            do()
        seen.append((wait(device) - start) / calls * 1e3)
    return round(median(seen), 4)


def optimizers(device: str, steps: int) -> dict:
    """Return the milliseconds of a step of optimizers on the weights of the DCAE, kernel by kernel."""
    made: dict[str, Callable] = {
        "torch AdamW": lambda weights: torch.optim.AdamW(weights, lr=1e-3),
        "torch AdamW, fused": lambda weights: torch.optim.AdamW(weights, lr=1e-3, fused=True),
        "ours": lambda weights: SOAP(weights, lr=1e-3),
        "pytorch_optimizer": lambda weights: PytorchOptimizerSOAP(weights, lr=1e-3),
    }
    found = {}
    for name, make in made.items():
        weights = list(DCAE(groups=1).to(device).parameters())
        for p in weights:
            p.grad = torch.randn_like(p)
        found[name] = per_call(make(weights).step, device, steps)
    return found


class Bytes(TorchDispatchMode):
    """Counts the bytes that operations read and write, views aside: what a step moves if nothing stays in a cache."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
            self.total += sum(x.numel() * x.element_size() for x in tensors)
        return out


def parts(device: str, calls: int) -> dict:
    """Return what a step of 32 images is made of: milliseconds and kernels of each part, alone in a graph."""
    set_tf32(False, False)
    torch.manual_seed(0)
    model = DCAE(groups=1).to(device)
    optimizer = SOAP(model.parameters(), lr=1e-3)
    x = torch.rand(32, 3, 32, 32, device=device)

    def network() -> Tensor:
        optimizer.zero_grad()
        loss = F.l1_loss(model(x), x)
        loss.backward()
        return loss.detach()

    def soap() -> Tensor:
        optimizer.gather()
        optimizer.move()
        return x

    for _ in range(12):  # past a refresh, after which nothing is set up any more
        network()
        optimizer.step()
    (bundle,) = optimizer.bundles
    stacks = bundle.stacks
    found: dict = {}
    turn = torch.no_grad()(lambda: refresh(stacks) or x)
    for name, do in {"forward and backward": network, "SOAP": soap, "refresh, every ten steps": turn}.items():
        network()  # there are gradients
        with Bytes() as moved:
            do()
        run = capture(do)[0] if device != "cpu" else do
        network()
        found[name] = dict(milliseconds=per_call(run, device, calls), moved_MB=round(moved.total / 1e6, 1))
        if device != "cpu":
            with profile(activities=[ProfilerActivity.CUDA]) as seen:
                run()
                wait(device)
            found[name]["kernels"] = sum(str(event.device_type).endswith("CUDA") for event in seen.events())
    if device != "cpu":
        here_, there = torch.empty(2, 2**28, device=device)
        copying = per_call(lambda: there.copy_(here_), device, 5)
        speed = 2 * here_.numel() * 4 / copying / 1e9  # TB/s
        found["copy_TB_per_s"] = round(speed, 2)
        tenth = {name: 0.1 if "every ten" in name else 1.0 for name in found if name != "copy_TB_per_s"}
        moved, took = (sum(found[n][key] * share for n, share in tenth.items()) for key in ("moved_MB", "milliseconds"))
        found["share_of_bandwidth"] = round(moved / 1e6 / (took / 1e3) / speed, 3)
    return found


def evaluation(splits: Splits, device: str) -> dict:
    """Return the seconds that evaluating the test images takes, by how many are taken at a time."""
    model, test = DCAE(groups=1).to(device), splits.test.to(device)
    return {f"{n} at a time": per_call(lambda n=n: evaluate(model, test, n), device, 1) / 1e3 for n in (100, 500, 2000)}


def whole(name: str, splits: Splits, device: str, epochs: int, out: Path) -> dict:
    """Train as `dcae train` does and return how long it took and the metrics of the last epoch."""
    config, start = TrainConfig.preset("tuned", model=WIDTHS, epochs=epochs, device=device, **WHOLE[name]), wait(device)
    with redirect_stderr(io.StringIO()):
        state = train(config, out / name.replace(", ", "-").replace(" ", "-"), splits)
    seconds = wait(device) - start
    training = sum(row["seconds"] for row in state.history)
    return dict(epochs=epochs, seconds=round(seconds, 1), training=round(training, 1), **state.metrics)


def main(arguments: list[str] | None = None) -> None:
    command = parser(__doc__, "gpu")
    command.add_argument("--device", default="cuda")
    command.add_argument("--smoke", action="store_true", help="a few images of the sample: does it run?")
    command.add_argument("--skip", nargs="*", default=[], help="parts or loops to leave out")
    command.add_argument("--runs", type=Path, default=RESULTS / "gpu", help="folder for the whole runs")
    options = command.parse_args(arguments)
    device, smoke, begin = options.device, options.smoke, time.perf_counter()
    dataset = "sample" if smoke else "cifar10"
    splits = first(load_images(dataset), 64, 16) if smoke else load_images(dataset)
    steps, calls, epochs = (4, 1, 1) if smoke else (600, 20, 40)
    record = dict(model=dict(groups=1)) | here(device)
    tasks: dict[str, Callable[[], object]] = {
        **{name: lambda name=name: loop(name, splits, device, steps) for name in LOOPS if "compiled" not in name},
        "the plain loop": lambda: plain_loop(dataset, device, steps // 4),
        "optimizers": lambda: optimizers(device, calls),
        "parts": lambda: parts(device, calls),
        "evaluation": lambda: evaluation(splits, device),
        "one process with NCCL": lambda: one_process_with_nccl(splits, device, steps // 4 + 4),
        **{f"40 epochs, {name}": lambda name=name: whole(name, splits, device, epochs, options.runs) for name in WHOLE},
        "float32, compiled": lambda: loop("float32, compiled", splits, device, 5 * steps),
    }
    for name, do in tasks.items():
        if name in options.skip:
            continue
        try:
            set_tf32(False, False)
            record[name] = do()
        except Exception as error:
            record[name] = f"{type(error).__name__}: {error}"
        print(f"{time.perf_counter() - begin:5.0f} s  {name}: {record[name]}", flush=True)
        save(options.out, record)


if __name__ == "__main__":
    main()
