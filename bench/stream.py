"""Streaming 100,000 files: memory beside that of 10,000, and images per second by workers, from a folder and from shards.

`python bench/stream.py` writes the pictures into a temporary folder (half a gigabyte), each reading in a process of its own.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from itertools import chain, islice
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import torch
from PIL import Image

from dcae_lib.device import keep_memory
from dcae_lib.runs.record import hardware
from dcae_lib.scale.stream import stream_images

OUT = Path(__file__).resolve().parent.parent / "results" / "bench" / "stream.json"
MANY, FEW, SHARD = 100_000, 10_000, 5_000
TIMES = 3                                                   # each reading; the medians are recorded
BATCH = 64


def jpegs(count: int):
    """JPEG files of 96×96 pixels, each another one: a few photographs' worth of waves, shifted."""
    grid = np.arange(96)
    for i in range(count):
        waves = [np.sin((grid[:, None] * a + grid * b) / 30 + i) for a, b in ((1 + i % 3, 1), (2, i % 5), (i % 7, 3))]
        file = io.BytesIO()
        Image.fromarray(((np.stack(waves, -1) + 1) * 127).astype(np.uint8)).save(file, "JPEG")
        yield f"{i:06d}.jpg", file.getvalue()


def write(place: Path, count: int) -> None:
    """The same pictures as a folder of files and as shards of 5,000."""
    (place / "files").mkdir(parents=True)
    (place / "shards").mkdir()
    files = jpegs(count)
    for shard in range(-(-count // SHARD)):
        with tarfile.open(place / "shards" / f"{shard:03d}.tar", "w") as tar:
            for name, data in islice(files, SHARD):
                folder = place / "files" / name[:3]
                folder.mkdir(exist_ok=True)
                (folder / name).write_bytes(data)
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def memory() -> float:
    """Bytes that this process and its workers hold, what they share counted once (Linux: PSS), but for the files of PyTorch:

    all processes of the machine share those, and a part becomes larger when another one ends.
    """
    held = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:])
        held += sum(1024 * int(fields[name].split()[0]) for name in ("Pss_Anon", "Pss_Shmem"))
    return held


def read(place: str, workers: int) -> None:
    """Two epochs, in a process of its own: prints what they took."""
    torch.set_num_threads(1)
    keep_memory()                                           # as a training does
    before = memory()
    start = time.perf_counter()
    train = stream_images(place, 64, workers).train
    found = time.perf_counter() - start
    held, images, start = [], 0, time.perf_counter()
    order = torch.Generator().manual_seed(0)
    for k, x in enumerate(chain(train.batches(BATCH, order), train.batches(BATCH, order))):       # the second by the same workers
        images += len(x)
        if k % 20 == 10:
            held.append((memory() - before) / 2**20)
    seconds = time.perf_counter() - start
    print(json.dumps(dict(
        images=images, seconds_to_find=found, images_per_second=images / seconds,
        mebibytes=max(held), mebibytes_in_the_first_100_batches=max(held[:5]),
    )))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--read", nargs=2, metavar=("PLACE", "WORKERS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        read(options.read[0], int(options.read[1]))
        return
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for count in (FEW, MANY):
            write(Path(place, str(count)), count)
        for count, kind, workers in [(FEW, "files", 1), (MANY, "files", 1), (FEW, "shards", 1), (MANY, "shards", 1),
                                     (FEW, "files", 0), (FEW, "files", 2), (FEW, "shards", 2)]:
            command = [sys.executable, __file__, "--read", str(Path(place, str(count), kind)), str(workers)]
            environment = dict(os.environ, OMP_NUM_THREADS="1")
            found = [json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
                     for _ in range(TIMES)]
            rows.append(dict(count=count, kind=kind, workers=workers, **{name: median(row[name] for row in found) for name in found[0]}))
            print(rows[-1], flush=True)
    OUT.write_text(json.dumps(dict(hardware=hardware(torch.device("cpu")), batch=BATCH, rows=rows), indent=1) + "\n")


if __name__ == "__main__":
    main()
