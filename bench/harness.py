"""The harness of the benchmarks: common options, timing in turns, and records that say where they were measured."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from dcae_lib.data import read_picture
from dcae_lib.files import resource, write_whole
from dcae_lib.runs.record import processor, provenance
from dcae_lib.training import keep_memory

RESULTS = Path(__file__).resolve().parents[1] / "results"
PHOTOS = ("astronaut", "cat", "coffee")
WIDTHS = dict(channels=(16, 32))  # DCAE's own: speeds are those of the model that the course builds
T, R = TypeVar("T"), TypeVar("R")


def parser(doc: str, name: str, rounds: int | None = None) -> argparse.ArgumentParser:
    """Return a parser with --out, by default results/bench/NAME.json, and --rounds for a benchmark that has rounds."""
    options = argparse.ArgumentParser(description=doc.splitlines()[0])
    options.add_argument("--out", type=Path, default=RESULTS / "bench" / f"{name}.json")
    if rounds:
        options.add_argument("--rounds", type=int, default=rounds)
    return options


def one_thread() -> None:
    """Set the process up as a training does, but on one thread."""
    torch.set_num_threads(1)
    keep_memory()
    torch.manual_seed(0)


def seconds(task: Callable[[], object]) -> float:
    """Run a task and return its wall time."""
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def in_turns(
    tasks: dict[str, T], rounds: int, measure: Callable[[T], R] = seconds, warmup: int = 1
) -> dict[str, list[R]]:
    """Measure every task once per round and return {name: measurements}, without those of the warm-up rounds.

    Every other round goes backwards: what slows the machine for a moment then slows neighbours alike.
    """
    found: dict[str, list[R]] = {name: [] for name in tasks}
    for turn in range(warmup + rounds):
        for name in reversed(tasks) if turn % 2 else tasks:
            value = measure(tasks[name])
            if turn >= warmup:
                found[name].append(value)
    return found


def ratio(values: list[float], base: list[float]) -> float:
    """Return the median over rounds of value / base, both measured in the same round."""
    return median(value / other for value, other in zip(values, base))


def here(device: str = "cpu") -> dict:
    """Return the code's revision, versions, hardware and threads, for the record of a benchmark."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else processor()
    return provenance(torch.device(device)) | dict(processor=name)


def save(out: Path, record: dict) -> None:
    """Write a record as JSON."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole({out: (json.dumps(record, indent=1) + "\n").encode()})


def photo(name: str) -> Tensor:
    """Read a photograph of the course: uint8 [3, H, W]."""
    return read_picture(resource("photos") / f"{name}.webp")


def constant_bytes(files: list[bytes]) -> int:
    """Count the bytes that all files have in common, at the same distance from their start or from their end.

    A collection of such files would have to store them only once.
    """
    n = min(map(len, files))
    aligned = [file[:n] for file in files], [file[len(file) - n :] for file in files]
    arrays = (np.frombuffer(b"".join(part), np.uint8).reshape(-1, n) for part in aligned)
    front, back = ((array == array[0]).all(0) for array in arrays)
    # Bytes before k are compared from the start, the others from the end, so that none counts twice.
    return max(int(front[:k].sum() + back[k:].sum()) for k in range(n + 1))


def join(tiles: Tensor, B: int, H: int, W: int) -> Tensor:
    """Undo `dcae_lib.tiles.cut`, padding included: [B·rows·columns, C, side, side] → [B, C, H, W]."""
    C, side = tiles.shape[1:3]
    rows, columns = -(-H // side), -(-W // side)
    x = tiles.view(B, rows, columns, C, side, side).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(B, C, rows * side, columns * side)[:, :, :H, :W]
