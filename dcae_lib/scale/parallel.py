"""One training in several processes on one machine, started by `torchrun`: PyTorch's DistributedDataParallel."""

import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ..device import best_device
from ..loop import SingleProcess, State

T = TypeVar("T")
TRAININGS = count()  # in this process
TIMEOUT = timedelta(hours=1)  # rank 0 may download the data while the others wait


class StoppedElsewhere(RuntimeError):
    """Rank 0 stopped and reports the error; this process stops with it."""


class Processes(SingleProcess):
    """Several processes that hold the same weights, bit for bit, and share every batch."""

    def __init__(self, rank: int, size: int):
        self.rank, self.size = rank, size

    def shard(self, index: Tensor) -> Tensor:
        """Return every size-th element from this rank on; where there is none, one that weighs nothing."""
        return index[self.rank :: self.size] if self.rank < len(index) else index[:1]

    def weight(self, count: int) -> float:
        return len(range(self.rank, count, self.size)) * self.size / count

    def mean(self, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values / self.size

    def on_rank0(self, do: Callable[[], T]) -> T:
        """Run `do` on rank 0 and broadcast the result. If it raises, the other ranks raise StoppedElsewhere."""
        result, error = None, None
        if self.rank == 0:
            try:
                result = do()
            except Exception as caught:
                error = caught
        message: list = [result, error and str(error)]
        dist.broadcast_object_list(message)
        if error:
            raise error
        if message[1] is not None:
            raise StoppedElsewhere(f"rank 0 stopped: {message[1]}")
        return message[0]

    def start(self, state: State) -> None:
        warnings.filterwarnings("ignore", "Grad strides do not match")  # those of 1×1 kernels, channels last
        state.replica = DistributedDataParallel(state.model, gradient_as_bucket_view=True)
        # DDP reorders its gradients after the first backward pass, and their order decides how sums are rounded: take
        # that pass before the first step, so that a resumed run rounds like one that was never stopped.
        blank = torch.zeros(1, 3, 256, 256, device=state.device)
        (state.task.loss(state.replica, blank) * 0).backward()
        state.optimizer.zero_grad()
        self.after_step(state)

    def after_step(self, state: State) -> None:
        """Seed dropout and noise, differently on each rank, and alike after a restart."""
        torch.manual_seed(((state.config.seed * 1_000_003 + state.step) * self.size + self.rank) % 2**63)


def rank0_first(parallel: SingleProcess, do: Callable[[], T]) -> T:
    """Run `do` on every rank, on rank 0 before the others: what it downloads is there for them."""
    results: list[T] = []
    parallel.on_rank0(lambda: results.append(do()))
    return results[0] if results else do()


@contextmanager
def processes(device: str | None = None) -> Iterator[tuple[SingleProcess, torch.device]]:
    """Connect the processes that torchrun started, by NCCL between GPUs and gloo else; without torchrun, just this one.

    Each has a GPU of its own, or the CPU. A process group that exists already is used and left as it is.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) == 1:
        yield SingleProcess(), best_device(device)
        return
    name = device or os.environ.get("DCAE_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    own = torch.device(name, int(os.environ["LOCAL_RANK"])) if name == "cuda" else torch.device(name)
    if dist.is_initialized():
        yield Processes(dist.get_rank(), dist.get_world_size()), own
        return
    if own.type == "cuda":
        torch.cuda.set_device(own)
    store, rank, size = next(dist.rendezvous("env://"))
    # The store keeps the addresses of groups before: those of processes that died, if torchrun has started them again
    # (PyTorch issue 135712), and those of trainings before this one.
    store = dist.PrefixStore(f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}, {next(TRAININGS)}", store)
    backend = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    try:
        yield Processes(rank, size), own
    finally:
        # Gloo's threads are still finishing: at once, an exit aborts now and then ("terminate called"), and before
        # torch 2.8 (its issue 154976) destroying the group waits for them while it holds the lock that they need.
        time.sleep(0.2)
    dist.destroy_process_group()  # not after an error: NCCL would wait for the others
