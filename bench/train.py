"""Compare the training speed of the package with the loop that most people write first, in turns.

Each loop has a process of its own. Ours is also timed without each of its tricks, and the plain loop with the setting
of the memory allocator, which is one line. `python bench/train.py` needs CIFAR-10.
"""

import io
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr
from dataclasses import replace
from itertools import chain, islice, repeat
from multiprocessing import get_all_start_methods, get_context
from statistics import median

import torch
import torch.nn.functional as F
from harness import WIDTHS, here, in_turns, parser, ratio, save
from pytorch_optimizer import SOAP as PytorchOptimizerSOAP
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchvision import transforms
from torchvision.datasets import CIFAR10

from dcae_lib import DCAE, ImageSet, Splits, TrainConfig, evaluate, load_images, train, training
from dcae_lib.data import sets

EVALUATED = 500  # images at a time, in both loops
Loop = tuple[Callable[[int], float], Callable[[int], float]]  # images per second: of so many steps, of so many images


def torchvision_cifar10(images: ImageSet) -> CIFAR10:
    """Return torchvision's data set, filled with images that are already here: its host is often slow."""
    dataset = CIFAR10.__new__(CIFAR10)
    dataset.data = images.images.permute(0, 2, 3, 1).contiguous().numpy()
    dataset.targets = images.labels.tolist()
    dataset.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])
    dataset.target_transform = None
    return dataset


def forever(images: ImageSet, batch_size: int, shuffle: bool, device: str | None) -> Iterator[Tensor]:
    """Yield batches on the device from a DataLoader with two workers, epoch after epoch."""
    start = get_all_start_methods()[0]  # the system's own, not that of the benchmark's processes
    dataset = torchvision_cifar10(images)
    loader = DataLoader(dataset, batch_size, shuffle=shuffle, num_workers=2, multiprocessing_context=start)
    return (x.to(device) for x, _ in chain.from_iterable(repeat(loader)))


def plain(splits: Splits, config: TrainConfig) -> Loop:
    """Return the loop that most people write first: DataLoaders, eager, pytorch_optimizer's SOAP, torchmetrics."""
    batches = forever(splits.train, config.batch_size, True, config.device)
    tests = forever(splits.test, EVALUATED, False, config.device)
    model = DCAE(**config.model).to(config.device)
    optimizer = PytorchOptimizerSOAP(model.parameters(), lr=config.lr)

    def trained(steps: int) -> float:
        images, start = 0, time.perf_counter()
        for x in islice(batches, steps):
            optimizer.zero_grad()
            loss = F.l1_loss(model(x), x)
            loss.backward()
            optimizer.step()
            images += len(x)
        loss.item()  # waits for the device
        return images / (time.perf_counter() - start)

    @torch.no_grad()
    def scored(count: int) -> float:
        sums, images, start = torch.zeros(3, device=config.device), 0, time.perf_counter()
        for x in islice(tests, -(-count // EVALUATED)):
            y = model(x)
            pair = (y.clamp(-1, 1) + 1) / 2, (x + 1) / 2
            psnr = peak_signal_noise_ratio(*pair, data_range=1.0, reduction="none", dim=(1, 2, 3))
            ssim = structural_similarity_index_measure(*pair, data_range=1.0, reduction="none")
            sums += torch.stack([F.l1_loss(y, x) * len(x), psnr.sum(), ssim.sum()])
            images += len(x)
        sums.tolist()
        return images / (time.perf_counter() - start)

    return trained, scored


def ours(splits: Splits, config: TrainConfig) -> Loop:
    """Return `dcae_lib.train`, for one epoch of so many steps, and `dcae_lib.evaluate`."""
    model, few = DCAE(**config.model), replace(splits.test, images=splits.test.images[:10], labels=None)

    def trained(steps: int) -> float:
        images = splits.train.images[: steps * config.batch_size]
        part = Splits(replace(splits.train, images=images, labels=None), few)
        with redirect_stderr(io.StringIO()):  # hides the bar
            return train(replace(config, epochs=1), splits=part).history[0]["images_per_second"]

    def scored(count: int) -> float:
        images, start = replace(splits.test, images=splits.test.images[:count], labels=None), time.perf_counter()
        evaluate(model, images)
        return len(images) / (time.perf_counter() - start)

    return trained, scored


def channels_first() -> None:
    sets.to_model = lambda images: images.float() / 127.5 - 1


def give_memory_back() -> None:
    training.keep_memory = lambda: None


def begin(loop: Callable[..., Loop], config: TrainConfig, threads: int, change: Callable[[], object] | None) -> None:
    """Build the loop of this process."""
    global LOOP  # noqa: PLW0603  (which `timed` finds here)
    torch.set_num_threads(threads)
    if change:
        change()
    LOOP = loop(load_images(config.dataset), config)


def timed(steps: int, images: int) -> tuple[float, float, float]:
    """Return images per second of this process's loop, training and evaluating, and the seconds of an epoch of both."""
    trained, scored = LOOP[0](steps), LOOP[1](images)
    return trained, scored, 50_000 / trained + 10_000 / scored


def main(arguments: list[str] | None = None) -> None:
    command = parser(__doc__, "train", rounds=5)
    command.add_argument("--steps", type=int, default=300, help="of each loop in each round")
    command.add_argument("--images", type=int, default=2000, help="that each loop evaluates in each round")
    command.add_argument("--dataset", default="cifar10", help='or "sample"')
    options = command.parse_args(arguments)
    cores = os.cpu_count() or 1
    config = TrainConfig.preset("tuned", model=WIDTHS, dataset=options.dataset, device="cpu")
    loops = {f"reader, threads: {threads}": (plain, config, threads, None) for threads in sorted({1, cores})}
    loops |= {
        "reader, keeping memory": (plain, config, cores, training.keep_memory),
        "ours, float32": (ours, config, cores, None),
        "ours, float32, channels first": (ours, config, cores, channels_first),
        "ours, float32, memory given back": (ours, config, cores, give_memory_back),
        "ours, bfloat16": (ours, replace(config, precision="bfloat16"), cores, None),
    }
    pools = {name: ProcessPoolExecutor(1, get_context("spawn"), begin, loop) for name, loop in loops.items()}
    found = in_turns(pools, options.rounds, lambda pool: pool.submit(timed, options.steps, options.images).result())
    for pool in pools.values():
        pool.shutdown()
    speeds = {name: [list(values) for values in zip(*rounds)] for name, rounds in found.items()}
    best = max(
        (name for name in speeds if name.startswith("reader, threads")), key=lambda name: median(speeds[name][0])
    )
    rows = []
    for name, (trained, scored, epoch) in speeds.items():
        row = dict(loop=name, images_per_second=round(median(trained)), evaluated_per_second=round(median(scored)))
        row |= dict(times_reader=round(ratio(trained, speeds[best][0]), 2))
        row |= dict(epoch_seconds=round(median(epoch), 1), epoch_times_reader=round(ratio(speeds[best][2], epoch), 2))
        print(*row.values(), sep="\t")
        rows.append(row)
    record = dict(batch=config.batch_size, model=config.model, rounds=options.rounds, steps=options.steps, cores=cores)
    save(options.out, record | here() | dict(threads=cores, rows=rows))


if __name__ == "__main__":
    main()
