"""Train the recorded runs on CIFAR-10: the presets, three seeds, and ten epochs for each choice of the recipe.

`python bench/runs.py` trains what is missing into results/full and results/runs/NAME, as many runs at a time as there
are processors, each on one thread; a run that was stopped is resumed. Hours without a GPU.
"""

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

from harness import RESULTS, one_thread

from dcae_lib import TrainConfig, load_images, train
from dcae_lib.training import keep_pictures

SHORT = dict(epochs=10)

# name: (preset, changes); "full" goes to results/full, where the package looks for its weights.
RUNS = {
    "full": ("wide", {}),
    "document": ("document", {}),
    "ablation-tuned": ("tuned", SHORT),
    # In the sweep this rate is level with twice as much, and ahead of less.
    "ablation-adamw": ("tuned", SHORT | dict(optimizer="AdamW", lr=8e-3)),
    "ablation-direct": ("tuned", SHORT | dict(model=dict(shortcut="direct"))),
    "ablation-no-shortcut": ("tuned", SHORT | dict(model=dict(shortcut="none"))),
    "ablation-dropout-0.01": ("tuned", SHORT | dict(model=dict(dropout=0.01))),
    "ablation-dropout-0.05": ("tuned", SHORT | dict(model=dict(dropout=0.05))),
    "ablation-no-zero-init": ("tuned", SHORT | dict(model=dict(zero_init=False))),
    "ablation-groups-8": ("tuned", SHORT | dict(model=dict(groups=8))),
    "ablation-groups-32": ("tuned", SHORT | dict(model=dict(groups=32))),
    "ablation-batch-16": ("tuned", SHORT | dict(batch_size=16, lr=1.4e-2)),
    "ablation-bfloat16": ("tuned", SHORT | dict(precision="bfloat16")),
    "ablation-widths-24-24": ("tuned", SHORT | dict(model=dict(channels=(24, 24)))),
    "ablation-widths-36-24": ("tuned", SHORT | dict(model=dict(channels=(36, 24)))),
    "ablation-widths-45-20": ("tuned", SHORT | dict(model=dict(channels=(45, 20)))),
    "ablation-widths-48-24": ("tuned", SHORT | dict(model=dict(channels=(48, 24), up_kernel=3))),
    "ablation-widths-28-28": ("tuned", SHORT | dict(model=dict(channels=(28, 28), up_kernel=3))),
    "ablation-widths-27-27": ("tuned", SHORT | dict(model=dict(channels=(27, 27), shortcut="direct"))),
    "seed-1": ("wide", dict(seed=1)),
    "seed-2": ("wide", dict(seed=2)),
    "short-seed-1": ("tuned", SHORT | dict(seed=1)),  # how much of an ablation may be chance
    "short-seed-2": ("tuned", SHORT | dict(seed=2)),
}


def folder(name: str) -> Path:
    """Return where a run is recorded."""
    return RESULTS / "full" if name == "full" else RESULTS / "runs" / name


def config(name: str) -> TrainConfig:
    """Return the settings of a run."""
    preset, changes = RUNS[name]
    return TrainConfig.preset(preset, dataset="cifar10", **changes)


def recorded(name: str) -> bool:
    """Return True if the run is recorded with today's settings; those that it did not know had their defaults."""
    history = folder(name) / "history.json"
    if not history.exists():
        return False
    default, wanted = (json.loads(json.dumps(asdict(settings))) for settings in (TrainConfig(), config(name)))
    known = default | json.loads(history.read_text())["config"]
    return all(known[key] == value for key, value in wanted.items())


def run(name: str) -> str:
    """Train one run and return its result in words."""
    one_thread()
    splits = load_images("cifar10")
    state = train(config(name), folder(name), splits, keep_pictures(folder(name), splits.test))
    return f"{name}: {state.metrics['psnr']:.2f} dB, L1 {state.metrics['l1']:.4f}"


def main(arguments: list[str] | None = None) -> None:
    command = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    command.add_argument("names", nargs="*", help=f"of {', '.join(RUNS)}; without any, those that are missing")
    names = command.parse_args(arguments).names or [name for name in RUNS if not recorded(name)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for line in pool.map(run, names):
            print(line, flush=True)


if __name__ == "__main__":
    main()
