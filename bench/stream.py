"""Measure streaming from a folder and from shards: memory for 10,000 and for 100,000 files, and images per second.

`python bench/stream.py` writes the pictures into a temporary folder (half a gigabyte) and reads them in processes of
their own, in turns.
"""

import io
import json
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
from harness import here, in_turns, one_thread, parser, save
from PIL import Image

from dcae_lib.scale.stream import stream_images

MANY, FEW, SHARD = 100_000, 10_000, 5_000
BATCH = 64
CASES = [  # files, where they are, workers
    *[(count, kind, 1) for kind in ("files", "shards") for count in (FEW, MANY)],
    *[(FEW, "files", 0), (FEW, "files", 2), (FEW, "shards", 2)],
]


def jpegs(count: int):
    """Yield names and JPEG files of 96×96 pixels, all different: waves as in a photograph, shifted."""
    grid = np.arange(96)
    for i in range(count):
        waves = [np.sin((grid[:, None] * a + grid * b) / 30 + i) for a, b in ((1 + i % 3, 1), (2, i % 5), (i % 7, 3))]
        file = io.BytesIO()
        Image.fromarray(((np.stack(waves, -1) + 1) * 127).astype(np.uint8)).save(file, "JPEG")
        yield f"{i:06d}.jpg", file.getvalue()


def write(place: Path, count: int) -> None:
    """Write the same pictures as a folder of files and as shards of 5,000."""
    (place / "shards").mkdir(parents=True)
    files = jpegs(count)
    for shard in range(-(-count // SHARD)):
        with tarfile.open(place / "shards" / f"{shard:03d}.tar", "w") as tar:
            for name, data in islice(files, SHARD):
                path = place / "files" / name[:3] / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                tar.add(path, name)


def memory() -> float:
    """Return the MiB that this process and its workers hold, shared memory counted once (Linux: PSS).

    PyTorch's own files do not count: all processes of the machine share them, and the share grows when one ends.
    """
    held = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
        fields = dict(line.split(":", 1) for line in lines)
        held += sum(int(fields[name].split()[0]) for name in ("Pss_Anon", "Pss_Shmem"))
    return held / 1024


def read(place: str, workers: int) -> dict[str, float]:
    """Read two epochs, the second by the same workers."""
    one_thread()
    before, start = memory(), time.perf_counter()
    train = stream_images(place, 64, workers).train
    found, order = time.perf_counter() - start, torch.Generator().manual_seed(0)
    images, held, start = 0, [], time.perf_counter()
    for k, x in enumerate(chain(train.batches(BATCH, order), train.batches(BATCH, order))):
        images += len(x)
        if k % 20 == 10:
            held.append(memory() - before)
    row = dict(images=images, seconds_to_find=found, images_per_second=images / (time.perf_counter() - start))
    return row | dict(mebibytes=max(held), mebibytes_in_the_first_100_batches=max(held[:5]))


def in_process(arguments: tuple[str, str]) -> dict[str, float]:
    """Call `read` in a process of its own."""
    command = [sys.executable, __file__, "--read", *arguments]
    return json.loads(subprocess.check_output(command, text=True).splitlines()[-1])


def main(arguments: list[str] | None = None) -> None:
    command = parser(__doc__, "stream", rounds=3)
    command.add_argument("--read", nargs=2, metavar=("PLACE", "WORKERS"), help="only read, and print what it took")
    options = command.parse_args(arguments)
    if options.read:
        print(json.dumps(read(options.read[0], int(options.read[1]))))
        return
    one_thread()
    with tempfile.TemporaryDirectory() as place:
        for count in (FEW, MANY):
            write(Path(place, str(count)), count)
        tasks = {case: (f"{place}/{case[0]}/{case[1]}", str(case[2])) for case in CASES}
        found = in_turns(tasks, options.rounds, in_process, warmup=0)
    rows = []
    for (count, kind, workers), readings in found.items():
        medians = {name: median(row[name] for row in readings) for name in readings[0]}
        rows.append(dict(count=count, kind=kind, workers=workers, **medians))
        print(rows[-1])
    save(options.out, dict(batch=BATCH, rows=rows) | here())


if __name__ == "__main__":
    main()
