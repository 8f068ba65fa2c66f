"""Find the recipe: train briefly with one change at a time from a base, then with those that helped together.

`python bench/sweep.py` writes results/bench/sweep.json, a row per run; a sweep that was stopped is resumed.
"""

import io
import json
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr
from dataclasses import replace

from harness import here, one_thread, parser, save
from tqdm import tqdm

from dcae_lib import DCAE, Splits, TrainConfig, load_images, train

BASE = dict(batch_size=32, lr=0.02, model=dict(shortcut="direct", groups=1))


def each(setting: str, *values) -> list[dict]:
    """Return a change of one setting to each of the values."""
    return [{setting: value} for value in values]


CHANGES = [
    {},
    *each("seed", 1, 2),
    *each("batch_size", 16, 64, 128),
    *each("lr", 0.01, 0.03),
    *each("warmup", 0.01, 0.2),
    *each("schedule", "constant"),
    *each("optimizer_args", *each("weight_decay", 0.0, 0.1), *each("betas", (0.9, 0.95), (0.95, 0.99))),
    *each("clip", 1.0),
    *each("precision", "bfloat16"),
    *[dict(optimizer="AdamW", lr=lr) for lr in (2e-3, 4e-3, 8e-3, 1.6e-2)],
    *each("model", *each("shortcut", "pool", "none"), *each("groups", 2, 8, 32), *each("up_kernel", 2, 3)),
    *each("model", dict(dropout=0.01), dict(zero_init=False), dict(channels=(8, 32))),
    # what helped, together
    dict(model=dict(shortcut="pool"), seed=1),
    dict(model=dict(shortcut="pool"), optimizer_args=dict(weight_decay=0.1)),
    dict(model=dict(shortcut="pool", groups=2), optimizer_args=dict(weight_decay=0.1)),
    dict(model=dict(shortcut="none"), optimizer_args=dict(weight_decay=0.1)),
    dict(model=dict(shortcut="pool"), optimizer_args=dict(weight_decay=0.1), batch_size=16),
]


def run(change: dict, dataset: str, epochs: int, images: int) -> dict:
    """Train the base with a change, on one thread, and return its row."""
    one_thread()
    parts = zip(load_images(dataset), (images, images // 5))
    splits = Splits(*(replace(part, images=part.images[:count], labels=None) for part, count in parts))
    model = BASE["model"] | change.get("model", {})
    config = TrainConfig(**BASE | dict(epochs=epochs, device="cpu") | change | dict(model=model))
    with redirect_stderr(io.StringIO()):  # hides the bar: many trainings run at a time
        last = train(config, splits=splits).history[-1]
    scores = {name: last[name] for name in ("psnr", "l1", "train_l1", "images_per_second")}
    return dict(change=change, parameters=sum(p.numel() for p in DCAE(**model).parameters()), **scores)


def main(arguments: list[str] | None = None) -> None:
    command = parser(__doc__, "sweep")
    command.add_argument("--dataset", default="cifar10", help='or "sample"')
    command.add_argument("--epochs", type=int, default=4)
    command.add_argument("--images", type=int, default=10_000, help="of the training set; a fifth as many to test on")
    command.add_argument("--first", type=int, help="only that many of the changes")
    options = command.parse_args(arguments)
    one_thread()
    how = dict(dataset=options.dataset, epochs=options.epochs, images=options.images)
    key = json.loads(json.dumps(dict(base=BASE, **how)))
    record = json.loads(options.out.read_text()) if options.out.exists() else {}
    rows = record["rows"] if {name: record.get(name) for name in key} == key else []
    done = [row["change"] for row in rows]
    todo = [change for change in CHANGES[: options.first] if json.loads(json.dumps(change)) not in done]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(run, change, **how) for change in todo]
        for job in tqdm(as_completed(jobs), total=len(jobs), unit="run"):
            rows.append(job.result())
            save(options.out, key | here() | dict(rows=rows))
    for row in sorted(rows, key=lambda row: -row["psnr"]):
        speed = f"{row['images_per_second']:5.0f} images/s"
        print(f"{row['psnr']:6.2f} dB  L1 {row['l1']:.4f}  {speed}  {row['change'] or 'base'}")


if __name__ == "__main__":
    main()
