"""Compare training in several processes on this machine with one: how far the weights part, and the time of a step.

`python bench/distributed.py` starts itself under torchrun with 1, 2 and 4 processes, a thread each (gloo, loopback).
Times are of one run in turns: while one process computes alone the other waits.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
import torch.nn.functional as F
from harness import here, in_turns, one_thread, parser, save, seconds
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dcae_lib import DCAE, SOAP, Splits, TrainConfig, load_images, to_model
from dcae_lib.loop import SingleProcess, Task, fit
from dcae_lib.scale.parallel import processes

STEPS, BATCH = 50, 32
# Where gradients should be zero rounding makes tiny ones: they are steps, unless they are small compared with eps.
WAYS = {
    "float32": (torch.float32, 1e-8),
    "float32, eps 1e-6": (torch.float32, 1e-6),
    "float32, eps 1e-4": (torch.float32, 1e-4),
    "float64": (torch.float64, 1e-8),
    "float64, eps 1e-6": (torch.float64, 1e-6),
}
BATCHES = (32, 128, 256)  # beyond, activations are larger than what glibc keeps
ALONE = SingleProcess()


def after_steps(parallel: SingleProcess, dtype: torch.dtype, eps: float) -> Tensor:
    """Train for one epoch of 50 steps and return the weights as one vector."""
    train, test = load_images("sample")
    splits = Splits(replace(train, images=train.images[: STEPS * BATCH], labels=None), test)
    config = TrainConfig(epochs=1, batch_size=BATCH, lr=1e-2, optimizer_args=dict(eps=eps))

    def l1(model, x: Tensor) -> Tensor:
        return F.l1_loss(model(x.to(dtype)), x.to(dtype))

    task = Task("l1", lambda: DCAE(groups=1).to(dtype), l1, lambda model, images: {})
    model = fit(task, config, splits, parallel=parallel, device=torch.device("cpu")).model
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def medians(tasks: dict[str, Callable], parallel: SingleProcess) -> dict[str, float]:
    """Return the median seconds of each task, in turns. Tasks that begin with "alone" run on rank 0 only."""

    def timed(task: Callable) -> float:
        dist.barrier()
        return seconds(task)

    own = {name: task for name, task in tasks.items() if not (name.startswith("alone") and parallel.rank)}
    times = in_turns(dict.fromkeys(tasks, lambda: None) | own, 15, timed)
    return {name: median(values) for name, values in times.items()}


def step_times(batch: int, parallel: SingleProcess) -> dict[str, float]:
    """Return the seconds of a step, alone and together, and of its parts that more processes do not shorten."""
    x = to_model(load_images("sample").train.images[:batch])
    models = own, shared, still = [DCAE(groups=1) for _ in range(3)]
    mine, ours, idle = (SOAP(model.parameters(), lr=1e-3) for model in models)
    replica = DistributedDataParallel(shared, gradient_as_bucket_view=True)
    F.l1_loss(still(x[:2]), x[:2]).backward()  # its gradients stay

    def step(model, optimizer: SOAP, x: Tensor, parallel: SingleProcess = ALONE) -> None:
        part = parallel.shard(x)
        (F.l1_loss(model(part), part) * parallel.weight(len(x))).backward()
        optimizer.step()
        optimizer.zero_grad()

    half = x[: batch // 2]
    tasks = {
        "alone": lambda: step(own, mine, x),
        "alone, half the batch": lambda: step(own, mine, half),
        "alone, optimizer": idle.step,
        "both, half the batch": lambda: step(own, mine, half),  # at once, without an exchange
        "together": lambda: step(replica, ours, x, parallel),
    }
    return medians(tasks, parallel)


def all_reduce(parallel: SingleProcess) -> float:
    """Return the seconds to add up as many numbers as the network has weights, in both processes."""
    numbers = torch.randn(sum(p.numel() for p in DCAE().parameters()))
    tasks = {"100 times": lambda: [dist.all_reduce(numbers) for _ in range(100)]}
    return medians(tasks, parallel)["100 times"] / 100


def work(place: Path) -> None:
    """Leave the weights of this process in a folder, and if there are two processes the times of both."""
    one_thread()
    with processes("cpu") as (parallel, _):
        for name, (dtype, eps) in WAYS.items():
            torch.save(after_steps(parallel, dtype, eps), place / f"{parallel.size} {parallel.rank} {name}.pt")
        if parallel.size == 2:
            steps = [dict(batch=batch, seconds=step_times(batch, parallel)) for batch in BATCHES]
            times = dict(all_reduce=all_reduce(parallel), steps=steps)
            if parallel.rank == 0:
                (place / "times.json").write_text(json.dumps(times))


def main(arguments: list[str] | None = None) -> None:
    command = parser(__doc__, "distributed")
    command.add_argument("--work", type=Path, metavar="PLACE", help="train in this process and leave the weights there")
    options = command.parse_args(arguments)
    if options.work:
        work(options.work)
        return
    one_thread()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for count in (1, 2, 4):
            torchrun = ["-m", "torch.distributed.run", f"--nproc-per-node={count}"] if count > 1 else []
            subprocess.run([sys.executable, *torchrun, __file__, "--work", folder], check=True)
        drift, same = {name: {} for name in WAYS}, {2: {}, 4: {}}
        for name in WAYS:
            alone = torch.load(place / f"1 0 {name}.pt").double()
            for count in same:
                first, *others = (torch.load(place / f"{count} {rank} {name}.pt") for rank in range(count))
                same[count][name] = all(torch.equal(first, other) for other in others)
                drift[name][count] = (first.double() - alone).abs().max().item()
        times = json.loads((place / "times.json").read_text())
    parameters = sum(p.numel() for p in DCAE().parameters())
    record = dict(backend="gloo", parameters=parameters, after_steps=STEPS, same_bits=same, drift=drift, **times)
    save(options.out, record | here())
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
