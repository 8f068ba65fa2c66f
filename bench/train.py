"""How fast we train beside the loop that a reader would write first; in turns, in one run.

Each loop has a process of its own, since ours sets its process's memory allocator up and the reader's does not; the
reader's is timed with that setting as well. `python bench/train.py` needs CIFAR-10 and writes results/bench/train.json; --device cuda writes train-cuda.json.
"""

import argparse
import json
import os
import time
from dataclasses import replace
from itertools import chain, repeat
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

if __name__ == "__main__":
    os.environ["TQDM_DISABLE"] = "1"                        # many short trainings follow; read when tqdm is imported

import torch
import torch.nn.functional as F
from pytorch_optimizer import SOAP as PytorchOptimizerSOAP
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR10

from dcae_lib import DCAE, Splits, TrainConfig, load_images, train
from dcae_lib.device import keep_memory
from dcae_lib.runs.record import provenance
from dcae_lib.files import write_whole

RESULTS = Path(__file__).resolve().parent.parent / "results" / "bench"


def torchvision_cifar10(images) -> CIFAR10:
    """torchvision's own data set, filled with the arrays that we have: its host need not answer."""
    dataset = CIFAR10.__new__(CIFAR10)
    dataset.data = images.images.permute(0, 2, 3, 1).contiguous().numpy()
    dataset.targets = images.labels.tolist()
    dataset.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])
    dataset.target_transform = None
    return dataset


class Reader:
    """The loop that a reader would write first: DataLoader, two workers, float32, eager, pytorch_optimizer's SOAP."""

    def __init__(self, images, config: TrainConfig, threads: int):
        loader = DataLoader(torchvision_cifar10(images), config.batch_size, shuffle=True, num_workers=2, drop_last=True)
        self.batches = chain.from_iterable(repeat(loader))
        self.model = DCAE(**config.model).to(config.device)
        self.optimizer = PytorchOptimizerSOAP(self.model.parameters(), lr=config.lr)
        self.config, self.threads = config, threads

    def images_per_second(self, steps: int) -> float:
        torch.set_num_threads(self.threads)
        start = time.perf_counter()
        for _ in range(steps):
            x = next(self.batches)[0].to(self.config.device)
            self.optimizer.zero_grad()
            loss = F.l1_loss(self.model(x), x)
            loss.backward()
            self.optimizer.step()
        loss.item()                                         # waits for the device
        return steps * self.config.batch_size / (time.perf_counter() - start)


class Ours:
    """`dcae_lib.training`, as it is: one epoch over so many images."""

    def __init__(self, splits: Splits, config: TrainConfig, threads: int):
        self.splits, self.config, self.threads = splits, config, threads

    def images_per_second(self, steps: int) -> float:
        torch.set_num_threads(self.threads)
        images = self.splits.train.images[: steps * self.config.batch_size]
        test = replace(self.splits.test, images=self.splits.test.images[:10])
        splits = Splits(replace(self.splits.train, images=images, labels=None), test)
        return train(replace(self.config, epochs=1), splits=splits).history[0]["images_per_second"]


def serve(connection: Connection, reader: bool, keeps_memory: bool, config: TrainConfig, threads: int) -> None:
    """Build a loop, and time so many of its steps as often as asked."""
    splits = load_images(config.dataset)
    if keeps_memory:
        keep_memory()
    loop = Reader(splits.train, config, threads) if reader else Ours(splits, config, threads)
    while steps := connection.recv():
        connection.send(loop.images_per_second(steps))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=100, help="of each loop in each round")
    parser.add_argument("--dataset", default="cifar10", help='or "sample"')
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    config = TrainConfig.preset("tuned", dataset=options.dataset, device=options.device)
    cores = os.cpu_count()
    loops = {f"reader, threads: {threads}": (True, False, config, threads) for threads in sorted({1, cores})}
    loops["reader, keeping memory"] = (True, True, config, cores)
    loops |= {f"ours, {name}": (False, True, replace(config, precision=name), cores) for name in ("float32", "bfloat16")}
    connections, speeds = {}, {name: [] for name in loops}
    for name, what in loops.items():
        connections[name], theirs = (context := get_context("spawn")).Pipe()
        context.Process(target=serve, args=(theirs, *what)).start()
    for _ in range(options.rounds):
        for name, connection in connections.items():
            connection.send(options.steps)
            speeds[name].append(connection.recv())
    for connection in connections.values():
        connection.send(0)
    speeds = {name: median(values) for name, values in speeds.items()}
    best = max(value for name, value in speeds.items() if name.startswith("reader, threads"))
    rows = [dict(loop=name, images_per_second=round(value), times_reader=round(value / best, 2)) for name, value in speeds.items()]
    record = dict(
        batch=config.batch_size, model=config.model, rounds=options.rounds, steps=options.steps, cores=cores,
        **provenance(torch.device(options.device)), rows=rows,
    )
    default = RESULTS / ("train.json" if options.device == "cpu" else f"train-{options.device}.json")
    write_whole({options.out or default: (json.dumps(record, indent=1) + "\n").encode()})
    for row in rows:
        print(f"{row['loop']:22} {row['images_per_second']:7,d} images/s  {row['times_reader']:5.2f}× the reader's better one")


if __name__ == "__main__":
    main()
