"""The recorded runs on all of CIFAR-10: both presets, three seeds, and what each choice is worth after ten epochs.

`python bench/runs.py` trains what is not there yet, as many at a time as there are processors, each on one thread, into
results/full and results/runs/<name>; a run that was stopped goes on. Hours without a GPU.
"""

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch

from dcae_lib import TrainConfig, load_images, train
from dcae_lib.training import keep_pictures

RESULTS = Path(__file__).resolve().parent.parent / "results"
ADAMW = dict(optimizer="AdamW", lr=8e-3)                    # in the sweep, level with twice as much, and ahead of less
SHORT = dict(epochs=10)

# name: (preset, changes); "full" goes to results/full, where the package looks for its weights.
RUNS = {
    "full": ("tuned", {}),
    "document": ("document", {}),
    "ablation-tuned": ("tuned", SHORT),
    "ablation-adamw": ("tuned", SHORT | ADAMW),
    "ablation-direct": ("tuned", SHORT | dict(model=dict(shortcut="direct"))),
    "ablation-no-shortcut": ("tuned", SHORT | dict(model=dict(shortcut="none"))),
    "ablation-dropout-0.01": ("tuned", SHORT | dict(model=dict(dropout=0.01))),
    "ablation-dropout-0.05": ("tuned", SHORT | dict(model=dict(dropout=0.05))),
    "ablation-no-zero-init": ("tuned", SHORT | dict(model=dict(zero_init=False))),
    "ablation-groups-8": ("tuned", SHORT | dict(model=dict(groups=8))),
    "ablation-groups-32": ("tuned", SHORT | dict(model=dict(groups=32))),
    "seed-1": ("tuned", dict(seed=1)),
    "seed-2": ("tuned", dict(seed=2)),
    "short-seed-1": ("tuned", SHORT | dict(seed=1)),                # beside ablation-tuned: how much chance there is in a bar
    "short-seed-2": ("tuned", SHORT | dict(seed=2)),
}


def folder(name: str) -> Path:
    return RESULTS / "full" if name == "full" else RESULTS / "runs" / name


def config(name: str) -> TrainConfig:
    preset, changes = RUNS[name]
    return TrainConfig.preset(preset, dataset="cifar10", **changes)


def recorded(name: str) -> bool:
    """Whether the run is there, made with these settings."""
    history = folder(name) / "history.json"
    settings = json.loads(json.dumps(asdict(config(name))))
    new = json.loads(json.dumps(asdict(TrainConfig())))                 # settings that the run did not know yet
    return history.exists() and new | json.loads(history.read_text())["config"] == settings


def do(name: str) -> str:
    torch.set_num_threads(1)
    splits = load_images("cifar10")
    run = train(config(name), folder(name), splits, keep_pictures(folder(name), splits.test))
    return f"{name}: {run.metrics['psnr']:.2f} dB, L1 {run.metrics['l1']:.4f}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(RUNS)}; without any, those that are not there")
    options = parser.parse_args(arguments)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        todo = options.names or [name for name in RUNS if not recorded(name)]
        for line in pool.map(do, todo):
            print(line, flush=True)


if __name__ == "__main__":
    main()
