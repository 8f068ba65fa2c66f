"""Training in several processes on this machine, beside one: how far the weights part, what a step takes, what to share.

`python bench/distributed.py` starts itself under torchrun with 1, 2 and 4 processes, a thread each (gloo, loopback).
Times are of one run in turns: while one process computes alone the other waits.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from dcae_lib import DCAE, SOAP, TrainConfig, load_images, to_model
from dcae_lib.config import learning_rate
from dcae_lib.scale.parallel import ALONE, World, world
from dcae_lib.device import keep_memory
from dcae_lib.runs.record import hardware
from dcae_lib.soap import SHARED_FROM, power_iteration

OUT = Path(__file__).resolve().parent.parent / "results" / "bench" / "distributed.json"
STEPS, BATCH = 50, 32
# Rounding makes tiny gradients where there are none: steps, if they are not small beside eps.
WAYS = {
    "float32": (torch.float32, 1e-8), "float32, eps 1e-6": (torch.float32, 1e-6), "float32, eps 1e-4": (torch.float32, 1e-4),
    "float64": (torch.float64, 1e-8), "float64, eps 1e-6": (torch.float64, 1e-6),
}
BATCHES = (32, 128, 256)                                   # beyond, activations are larger than what glibc keeps
ROUNDS = 15


def step(model, replica, optimizer, x: Tensor, processes: World) -> None:
    """A training step on this process's part of a batch."""
    part = x[processes.rank :: processes.size]
    (F.l1_loss(replica(part), part) * processes.weight(len(x))).backward()
    optimizer.step()
    optimizer.zero_grad()


def after_steps(processes: World, dtype: torch.dtype, eps: float) -> Tensor:
    """The weights after 50 steps at the learning rates of a training of so many, as one vector."""
    torch.manual_seed(0)
    model = DCAE(groups=1).to(dtype)
    optimizer, replica = SOAP(model.parameters(), eps=eps), processes.wrap(model)
    images = to_model(load_images().train.images[: STEPS * BATCH]).to(dtype)
    rate = learning_rate(TrainConfig(lr=1e-2), STEPS)
    for k, x in enumerate(images.split(BATCH)):
        optimizer.param_groups[0]["lr"] = rate(k)
        step(model, replica, optimizer, x, processes)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def in_turns(ways: dict[str, Callable[[], None]], processes: World) -> dict[str, float]:
    """Median seconds of each way, in turns. Ways that begin with "alone" run in process 0, the other one waiting."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS + 1):
        for name, way in ways.items():
            dist.barrier()
            if name.startswith("alone") and processes.rank:
                continue
            start = time.perf_counter()
            way()
            if turn:                                        # the first one warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: median(values) if values else 0.0 for name, values in seconds.items()}


def steps_of(batch: int, processes: World) -> dict[str, float]:
    """Seconds of a step, alone and together, and of the parts that do not become shorter with more processes."""
    x = to_model(load_images().train.images[:batch])
    model, other = DCAE(groups=1), DCAE(groups=1)
    replica = processes.wrap(other)
    mine, ours = SOAP(model.parameters(), lr=1e-3), SOAP(other.parameters(), lr=1e-3)
    loss = F.l1_loss(model(x[:2]), x[:2])
    loss.backward()
    kept = [p.grad.clone() for p in model.parameters()]

    def optimize():
        for p, grad in zip(model.parameters(), kept):
            p.grad = grad
        mine.step()
        mine.zero_grad()

    return in_turns({
        "alone": lambda: step(model, model, mine, x, ALONE),
        "alone, half the batch": lambda: step(model, model, mine, x[: batch // 2], ALONE),
        "alone, optimizer": optimize,
        "both, half the batch": lambda: step(model, model, mine, x[: batch // 2], ALONE),   # at once, without a word
        "together": lambda: step(other, replica, ours, x, processes),
    }, processes)


def all_reduce(processes: World) -> float:
    """Seconds to make the sum of as many numbers as the network has weights, and give it to both."""
    gradients = torch.randn(sum(p.numel() for p in DCAE().parameters()))
    return in_turns({"all-reduce": lambda: [dist.all_reduce(gradients) for _ in range(100)] and None}, processes)["all-reduce"] / 100


def refresh_of(k: int, count: int, processes: World) -> dict[str, float]:
    """Seconds of a refresh of `count` factors of k×k, by each process or shared."""
    torch.manual_seed(0)
    A = torch.randn(count, k, 2 * k)
    GG, Q = A @ A.mT, torch.linalg.qr(torch.randn(count, k, k)).Q
    times = max(1, round(1000 / k**1.5))

    def repeat(do: Callable) -> Callable[[], None]:
        return lambda: [do() for _ in range(times)] and None

    seconds = in_turns({
        "each": repeat(lambda: power_iteration(GG, Q)), "shared": repeat(lambda: processes.spread(power_iteration, GG, Q)),
    }, processes)
    return {name: value / times for name, value in seconds.items()}


def worker(place: Path) -> None:
    torch.set_num_threads(1)
    keep_memory()                                           # as a training does
    with world() as processes:
        same = {}
        for name, (dtype, eps) in WAYS.items():
            weights = after_steps(processes, dtype, eps)
            same[name] = len(set(processes.gather(hashlib.sha256(weights.numpy().tobytes()).hexdigest()))) == 1
            if processes.rank == 0:
                torch.save(weights, place / f"{processes.size} {name}.pt")
        if processes.rank == 0:
            (place / f"{processes.size} same.json").write_text(json.dumps(same))
        if processes.size == 2:
            record = dict(
                all_reduce=all_reduce(processes),
                steps=[dict(batch=batch, seconds=steps_of(batch, processes)) for batch in BATCHES],
                refresh=[dict(k=k, count=8, seconds=refresh_of(k, 8, processes)) for k in (16, 32, 64, 128, 256, 512)],
            )
            if processes.rank == 0:
                (place / "times.json").write_text(json.dumps(record))


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        for processes in (1, 2, 4):
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
            subprocess.run([*(torchrun if processes > 1 else [sys.executable]), __file__, place], check=True)
        drift = {}
        for name in WAYS:
            one, two, four = (torch.load(f"{place}/{n} {name}.pt", weights_only=True).double() for n in (1, 2, 4))
            drift[name] = {"2": (two - one).abs().max().item(), "4": (four - one).abs().max().item()}
        same = {n: json.loads(Path(place, f"{n} same.json").read_text()) for n in (2, 4)}
        record = dict(
            hardware=hardware(torch.device("cpu")), torch=torch.__version__, backend="gloo", threads=1,
            parameters=sum(p.numel() for p in DCAE().parameters()), shared_from=SHARED_FROM, after_steps=STEPS, same_bits=same, drift=drift,
            **json.loads(Path(place, "times.json").read_text()),
        )
    OUT.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    worker(Path(sys.argv[1])) if len(sys.argv) > 1 else main()
