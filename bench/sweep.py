"""Find the tuned recipe: one change at a time from a base, then those that helped together, each trained briefly on a part of CIFAR-10.

`python bench/sweep.py` writes results/bench/sweep.json, a row per run, and goes on where it was stopped.
"""

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":
    os.environ["TQDM_DISABLE"] = "1"                        # many short trainings follow; read when tqdm is imported

import torch
from tqdm import tqdm

from dcae_lib import DCAE, Splits, TrainConfig, load_images, train
from dcae_lib.runs.record import provenance
from dcae_lib.files import write_whole

RESULT = Path(__file__).resolve().parent.parent / "results" / "bench" / "sweep.json"
BASE = dict(batch_size=32, lr=0.02, model=dict(shortcut="direct", groups=1))
CHANGES = [
    {},
    dict(seed=1),
    dict(seed=2),
    dict(batch_size=16),
    dict(batch_size=64),
    dict(batch_size=128),
    dict(lr=0.01),
    dict(lr=0.03),
    dict(warmup=0.01),
    dict(warmup=0.2),
    dict(schedule="constant"),
    dict(optimizer_args=dict(weight_decay=0.0)),
    dict(optimizer_args=dict(weight_decay=0.1)),
    dict(optimizer_args=dict(betas=(0.9, 0.95))),
    dict(optimizer_args=dict(betas=(0.95, 0.99))),
    dict(clip=1.0),
    dict(average=0.999),
    dict(precision="bfloat16"),
    dict(optimizer="AdamW", lr=4e-3),
    dict(optimizer="AdamW", lr=8e-3),
    dict(model=dict(shortcut="pool")),
    dict(model=dict(shortcut="none")),
    dict(model=dict(groups=2)),
    dict(model=dict(groups=8)),
    dict(model=dict(groups=32)),
    dict(model=dict(up_kernel=2)),
    dict(model=dict(up_kernel=3)),
    dict(model=dict(dropout=0.01)),
    dict(model=dict(zero_init=False)),
    dict(model=dict(channels=(8, 32))),
    # what came out above the base, together
    dict(model=dict(shortcut="pool"), seed=1),
    dict(model=dict(shortcut="pool"), optimizer_args=dict(weight_decay=0.1)),
    dict(model=dict(shortcut="pool", groups=2), optimizer_args=dict(weight_decay=0.1)),
    dict(model=dict(shortcut="none"), optimizer_args=dict(weight_decay=0.1)),
    dict(model=dict(shortcut="pool"), optimizer_args=dict(weight_decay=0.1), batch_size=16),
    # what the base may have treated unfairly
    dict(average=0.99),
    dict(optimizer="AdamW", lr=2e-3),
    dict(optimizer="AdamW", lr=1.6e-2),
]


def part(images, count: int):
    """The first images of a set."""
    return replace(images, images=images.images[:count].clone(), labels=None)


def run(change: dict, dataset: str, epochs: int, images: int) -> dict:
    """Train the base with a change, on one thread; a row of the table."""
    torch.set_num_threads(1)
    splits = load_images(dataset)
    splits = Splits(part(splits.train, images), part(splits.test, images // 5))
    model = BASE["model"] | change.get("model", {})
    config = TrainConfig(**BASE | dict(epochs=epochs, device="cpu") | change | dict(model=model))
    last = train(config, splits=splits).history[-1]
    parameters = sum(p.numel() for p in DCAE(**model).parameters())
    return dict(change=change, parameters=parameters, **{name: last[name] for name in ("psnr", "l1", "train_l1", "images_per_second")})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="cifar10", help='or "sample"')
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--images", type=int, default=10_000, help="of the training set; a fifth as many to test on")
    parser.add_argument("--first", type=int, help="only that many of the changes")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    key = json.loads(json.dumps(dict(base=BASE, dataset=options.dataset, epochs=options.epochs, images=options.images)))
    record = json.loads(options.out.read_text()) if options.out.exists() else {}
    rows = record["rows"] if {name: record.get(name) for name in key} == key else []
    done = [row["change"] for row in rows]
    todo = [change for change in CHANGES[: options.first] if json.loads(json.dumps(change)) not in done]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(run, change, options.dataset, options.epochs, options.images) for change in todo]
        for job in tqdm(as_completed(jobs), total=len(jobs), unit="run", disable=False):
            rows.append(job.result())
            record = key | dict(**provenance(torch.device("cpu")), rows=rows)
            options.out.parent.mkdir(parents=True, exist_ok=True)
            write_whole({options.out: (json.dumps(record, indent=1) + "\n").encode()})
    for row in sorted(rows, key=lambda row: -row["psnr"]):
        print(f"{row['psnr']:6.2f} dB  L1 {row['l1']:.4f}  {row['images_per_second']:5.0f} images/s  {row['change'] or 'base'}")


if __name__ == "__main__":
    main()
