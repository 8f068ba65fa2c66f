"""One training in several processes, which `torchrun` starts: who is who, and what they must agree on."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..device import asked_device

T = TypeVar("T")
CUT = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")      # what gloo says when another process ends
PATIENCE = timedelta(hours=1)                               # one process may fetch the data while the others wait
AGREE_EVERY = 10            # steps, at most, after which several processes ask each other whether to save or to stop
AGREE_WITHIN = 5.0          # seconds: torchrun kills what has not stopped 30 after Ctrl-C
SETTING = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"


class StoppedElsewhere(RuntimeError):
    """Another process stopped, and says why; this process stops with it."""


class ProcessesDiffer(RuntimeError):
    """The processes do not hold the same weights; all of them say so."""


class World(NamedTuple):
    """The processes of a training. One process alone is a world of size 1, and asks nobody."""

    rank: int = 0
    size: int = 1

    def first_does(self, do: Callable[[], T]) -> T:
        """What `do` returns in process 0, in every process. What it raises there stops all of them."""
        if self.size == 1:
            return do()
        found: list = [None, None]                          # what it returns, or what it says when it raises
        error = None
        if self.rank == 0:
            try:
                found = [do(), None]
            except Exception as caught:
                found, error = [None, str(caught)], caught
        dist.broadcast_object_list(found)
        if error:
            raise error
        if found[1] is not None:
            raise StoppedElsewhere(f"process 0 stopped: {found[1]}")
        return found[0]

    def machine_first(self, do: Callable[[], T]) -> T:
        """`do` in every process, in one of each machine before the others: what it fetches is then there for them.

        What it raises in one process stops all of them.
        """
        if self.size == 1:
            return do()
        done: list[T] = []
        error = None
        for turn in (True, False):
            if turn == (os.environ.get("LOCAL_RANK", "0") == "0"):
                try:
                    done.append(do())
                except Exception as caught:
                    error = caught
            failed = [rank for rank, failed in enumerate(self.gather(error is not None)) if failed]
            if failed:
                if error and failed[0] == self.rank:        # the first of them says it for all
                    raise error
                raise StoppedElsewhere(f"process {failed[0]} stopped, and says why")
        return done[0]

    def own_device(self, name: str | None) -> torch.device:
        """The device of this process, one of several: a GPU of its own, or the CPU. ValueError for another."""
        name = asked_device(name) or ("cuda" if torch.cuda.is_available() else "cpu")
        if name == "cpu":
            return torch.device("cpu")
        place = int(os.environ.get("LOCAL_RANK", "0"))
        if name != "cuda":
            raise ValueError(f'several processes train on "cuda", one GPU each, or on the "cpu", not on {name!r}')
        if place >= torch.cuda.device_count():
            raise ValueError(f"this machine has {torch.cuda.device_count()} GPUs; start as many processes on it, not more, or name the device cpu")
        return torch.device("cuda", place)

    def gather(self, value: T) -> list[T]:
        """What each process holds, in all of them."""
        if self.size == 1:
            return [value]
        values = [value] * self.size
        dist.all_gather_object(values, value)
        return values

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes, number by number; the same bits in all of them."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
            values /= self.size
        return values

    def spread(self, compute: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
        """compute(*tensors), each [N, …], in and out: every process does a part of the N and is given the others'."""
        if self.size == 1:
            return compute(*tensors)
        N = len(tensors[0])
        part = -(-N // self.size)
        place = torch.arange(self.rank * part, (self.rank + 1) * part, device=tensors[0].device).clamp(max=N - 1)
        results = []
        for own in compute(*(tensor[place] for tensor in tensors)):
            whole = own.new_empty(part * self.size, *own.shape[1:])
            dist.all_gather(list(whole.chunk(self.size)), own.contiguous())
            results.append(whole[:N])
        return tuple(results)

    def any(self, *flags: bool) -> list[bool]:
        """Of each flag, whether a process raised it."""
        return [any(raised) for raised in zip(*self.gather(flags))]

    def mine(self, index: Tensor) -> Tensor:
        """This process's part of a batch's indices; where there is none, one that weighs nothing."""
        return index[self.rank :: self.size] if self.rank < len(index) else index[:1]

    def weight(self, count: int) -> float:
        """What a mean over this process's part of `count` images counts, so that `mean` gives the mean over all of them."""
        return len(range(self.rank, count, self.size)) * self.size / count

    def seed(self, seed: int, step: int) -> None:
        """Let several processes draw different noise, and the same after a restart; one alone goes on drawing."""
        if self.size > 1:
            torch.manual_seed(((seed * 1_000_003 + step) * self.size + self.rank) % 2**63)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model, with gradients that are the mean over the processes."""
        if self.size == 1:
            return model
        return DistributedDataParallel(model, gradient_as_bucket_view=True, broadcast_buffers=False)    # ours do not change

    def check_same_bits(self, model: nn.Module) -> None:
        """Raise ProcessesDiffer if the processes do not hold the same weights, to the last bit."""
        if self.size == 1:
            return
        sums = self.gather(fingerprint(model))
        others = [rank for rank, found in enumerate(sums) if found != sums[0]]
        if others:
            raise ProcessesDiffer(
                f"the weights in processes {others} are no longer those in process 0: their machines compute differently. "
                "Train on machines of one kind, with one version of torch"
            )


class Meetings:
    """When several processes ask each other whether to save or to stop: every few steps, or seconds if steps are slow."""

    def __init__(self, processes: World, step: int):
        self.processes, self.asked, self.next, self.time = processes, step, step + 1, time.perf_counter()

    def due(self, step: int, last: bool) -> bool:
        """Whether they ask after this step. They always do after the last of an epoch; one process alone does after every step."""
        if self.processes.size > 1:
            if step < self.next and not last:
                return False
            now = time.perf_counter()
            slowest = max(self.processes.gather((now - self.time) / (step - self.asked)))
            self.next = step + max(1, min(AGREE_EVERY, int(AGREE_WITHIN / slowest)))
            self.asked, self.time = step, now
        return True


def restarts() -> int:
    """How often torchrun has started this process again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of all weights and buffers, bit by bit."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


ALONE = World()


@contextmanager
def world(device: str | None = None) -> Iterator[World]:
    """The processes that torchrun started, connected (NCCL between GPUs, else gloo), or this process alone.

    Each process of a machine gets a GPU of its own. A process group that is there already is used, and left as it is.
    """
    if dist.is_available() and dist.is_initialized():
        yield World(dist.get_rank(), dist.get_world_size())
        return
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    on_gpu = torch.cuda.is_available() and (asked_device(device) or "cuda").startswith("cuda")
    if "LOCAL_RANK" not in os.environ:
        raise ValueError("WORLD_SIZE asks for several processes, and LOCAL_RANK is not set: start the training with torchrun")
    several_machines = int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1
    if several_machines and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0" and not os.environ.get(SETTING):
        raise ValueError(f"start torchrun with {SETTING}=1 in its environment: without it, PyTorch (#135712) hands the addresses of "
                         "processes that are gone to those that it starts again, and several machines wait for each other forever")
    if on_gpu and int(os.environ["LOCAL_RANK"]) < torch.cuda.device_count():        # else `own_device` says what is wrong
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, rank, size = next(dist.rendezvous("env://"))
    if not several_machines:
        # torchrun keeps its store when it starts processes again, and in it the addresses of the dead (PyTorch #135712).
        # Each start gets a part of its own; machines count their starts apart, so for several of them there is the setting.
        store = dist.PrefixStore(f"start {restarts()}", store)
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield World(rank, size)
    except RuntimeError as error:
        if isinstance(error, dist.DistBackendError) or any(words in str(error) for words in CUT):
            raise StoppedElsewhere("another process stopped, and says why") from error
        raise
    else:                                                   # after an error others may wait for this one: NCCL would wait for them
        # Before torch 2.8 (its #154976) the group waits, with the interpreter's lock, for gloo's threads, and one of these may
        # still wait for that lock to let go of the last tensor: asleep, this thread does not hold it.
        time.sleep(0.2)
        dist.destroy_process_group()
