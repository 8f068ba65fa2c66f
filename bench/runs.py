"""Train the recorded runs on CIFAR-10: both presets, three seeds, and ten epochs for each choice of the recipe.

`python bench/runs.py` trains what is missing into results/full and results/runs/NAME, as many runs at a time as there
are processors, each on one thread; a run that was stopped is resumed. Hours without a GPU.
"""

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

from harness import RESULTS, one_thread

from dcae_lib import TrainConfig, load_images, train
from dcae_lib.training import keep_pictures


def short(model: dict | None = None, **changes) -> TrainConfig:
    """Return ten epochs of the tuned recipe with these changes; in `model` from DCAE's own widths on."""
    tuned = TrainConfig.preset("tuned", dataset="cifar10", epochs=10, **changes)
    return replace(tuned, model=dict(groups=1) | (model or {}))


# "full" goes to results/full, where the package looks for its weights.
RUNS = {
    "full": TrainConfig.preset("tuned", dataset="cifar10"),
    "narrow": replace(TrainConfig.preset("tuned", dataset="cifar10"), model=dict(groups=1)),  # the codec starts from it
    "document": TrainConfig.preset("document", dataset="cifar10"),
    "ablation-tuned": short(),
    # In the sweep this rate is level with twice as much, and ahead of less.
    "ablation-adamw": short(optimizer="AdamW", lr=8e-3),
    "ablation-direct": short(model=dict(shortcut="direct")),
    "ablation-no-shortcut": short(model=dict(shortcut="none")),
    "ablation-dropout-0.01": short(model=dict(dropout=0.01)),
    "ablation-dropout-0.05": short(model=dict(dropout=0.05)),
    "ablation-no-zero-init": short(model=dict(zero_init=False)),
    "ablation-groups-8": short(model=dict(groups=8)),
    "ablation-groups-32": short(model=dict(groups=32)),
    "ablation-batch-16": short(batch_size=16, lr=1.4e-2),
    "ablation-bfloat16": short(precision="bfloat16"),
    "ablation-widths-24-24": short(model=dict(channels=(24, 24))),
    "ablation-widths-36-24": short(model=dict(channels=(36, 24))),
    "ablation-widths-45-20": short(model=dict(channels=(45, 20))),
    "ablation-widths-48-24": short(model=dict(channels=(48, 24), up_kernel=3)),
    "ablation-widths-28-28": short(model=dict(channels=(28, 28), up_kernel=3)),
    "ablation-widths-27-27": short(model=dict(channels=(27, 27), shortcut="direct")),
    "seed-1": TrainConfig.preset("tuned", dataset="cifar10", seed=1),
    "seed-2": TrainConfig.preset("tuned", dataset="cifar10", seed=2),
    "short-seed-1": short(seed=1),  # how much of an ablation may be chance
    "short-seed-2": short(seed=2),
}


def folder(name: str) -> Path:
    """Return where a run is recorded."""
    return RESULTS / "full" if name == "full" else RESULTS / "runs" / name


def recorded(name: str) -> bool:
    """Return True if the run is recorded with today's settings; those that it did not know had their defaults."""
    history = folder(name) / "history.json"
    if not history.exists():
        return False
    default, wanted = (json.loads(json.dumps(asdict(settings))) for settings in (TrainConfig(), RUNS[name]))
    known = default | json.loads(history.read_text())["config"]
    return all(known[key] == value for key, value in wanted.items())


def run(name: str) -> str:
    """Train one run and return its result in words."""
    one_thread()
    splits = load_images("cifar10")
    state = train(RUNS[name], folder(name), splits, keep_pictures(folder(name), splits.test))
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
