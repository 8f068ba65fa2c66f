"""Compare the training speed of the package with the loop that most people write first, in turns.

Each loop has a process of its own, since ours changes the memory allocator of its process; the plain loop is also timed
with that setting. `python bench/train.py` needs CIFAR-10; with --device cuda it writes results/bench/train-cuda.json.
"""

import io
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr
from dataclasses import replace
from itertools import chain, islice, repeat
from multiprocessing import get_context
from statistics import median

import torch
import torch.nn.functional as F
from harness import here, in_turns, parser, ratio, save
from pytorch_optimizer import SOAP as PytorchOptimizerSOAP
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR10

from dcae_lib import DCAE, ImageSet, Splits, TrainConfig, load_images, train
from dcae_lib.training import keep_memory


def torchvision_cifar10(images: ImageSet) -> CIFAR10:
    """Return torchvision's data set, filled with images that are already here: its host is often slow."""
    dataset = CIFAR10.__new__(CIFAR10)
    dataset.data = images.images.permute(0, 2, 3, 1).contiguous().numpy()
    dataset.targets = images.labels.tolist()
    dataset.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])
    dataset.target_transform = None
    return dataset


def plain(splits: Splits, config: TrainConfig) -> Callable[[int], float]:
    """Return the loop that most people write first: DataLoader, two workers, eager, pytorch_optimizer's SOAP."""
    dataset = torchvision_cifar10(splits.train)
    batches = chain.from_iterable(repeat(DataLoader(dataset, config.batch_size, shuffle=True, num_workers=2)))
    model = DCAE(**config.model).to(config.device)
    optimizer = PytorchOptimizerSOAP(model.parameters(), lr=config.lr)

    def images_per_second(steps: int) -> float:
        images, start = 0, time.perf_counter()
        for x in (x.to(config.device) for x, _ in islice(batches, steps)):
            optimizer.zero_grad()
            loss = F.l1_loss(model(x), x)
            loss.backward()
            optimizer.step()
            images += len(x)
        loss.item()  # waits for the device
        return images / (time.perf_counter() - start)

    return images_per_second


def ours(splits: Splits, config: TrainConfig) -> Callable[[int], float]:
    """Return `dcae_lib.train`, for one epoch of so many steps and without the time of its evaluation."""
    test = replace(splits.test, images=splits.test.images[:10], labels=None)

    def images_per_second(steps: int) -> float:
        images = splits.train.images[: steps * config.batch_size]
        part = Splits(replace(splits.train, images=images, labels=None), test)
        with redirect_stderr(io.StringIO()):  # hides the bar
            return train(replace(config, epochs=1), splits=part).history[0]["images_per_second"]

    return images_per_second


def begin(loop: Callable, config: TrainConfig, threads: int, keeps_memory: bool) -> None:
    """Build the loop of this process."""
    global LOOP  # noqa: PLW0603  (which `timed` finds here)
    torch.set_num_threads(threads)
    if keeps_memory:
        keep_memory()
    LOOP = loop(load_images(config.dataset), config)


def timed(steps: int) -> float:
    """Return the images per second of this process's loop."""
    return LOOP(steps)


def main(arguments: list[str] | None = None) -> None:
    command = parser(__doc__, "train", rounds=7)
    command.add_argument("--steps", type=int, default=100, help="of each loop in each round")
    command.add_argument("--dataset", default="cifar10", help='or "sample"')
    command.add_argument("--device", default="cpu")
    options = command.parse_args(arguments)
    device, steps, cores = options.device, options.steps, os.cpu_count()
    if device != "cpu" and options.out == command.get_default("out"):
        options.out = options.out.with_stem(f"train-{device}")
    config = TrainConfig.preset("tuned", dataset=options.dataset, device=device)
    loops = {f"reader, threads: {threads}": (plain, config, threads, False) for threads in sorted({1, cores})}
    loops["reader, keeping memory"] = (plain, config, cores, True)
    loops |= {f"ours, {name}": (ours, replace(config, precision=name), cores, True) for name in ("float32", "bfloat16")}
    pools = {name: ProcessPoolExecutor(1, get_context("spawn"), begin, loop) for name, loop in loops.items()}
    speeds = in_turns(pools, options.rounds, lambda pool: pool.submit(timed, steps).result())
    for pool in pools.values():
        pool.shutdown()
    best = max((speeds[name] for name in speeds if name.startswith("reader, threads")), key=median)
    rows = []
    for name, values in speeds.items():
        row = dict(loop=name, images_per_second=round(median(values)), times_reader=round(ratio(values, best), 2))
        print(*row.values(), sep="\t")
        rows.append(row)
    record = dict(batch=config.batch_size, model=config.model, rounds=options.rounds, steps=steps, cores=cores)
    save(options.out, record | here(device) | dict(threads=cores, rows=rows))


if __name__ == "__main__":
    main()
