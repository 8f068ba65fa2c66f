"""Which kernel the transposed convolutions should have: 2, 3 or 4, trained alike on part of CIFAR-10; one thread."""

import argparse
import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path

import torch

from dcae_lib import DCAE, ImageSet, Splits, TrainConfig, load_images
from dcae_lib.train import train

RESULT = Path(__file__).resolve().parents[1] / "results" / "bench" / "up_kernel.json"
KERNELS = (2, 3, 4)


def first(images: ImageSet, n: int) -> ImageSet:
    """The first n images as a set of their own, with their own hash."""
    part = images.images[:n]
    sha256 = hashlib.sha256(part.permute(0, 2, 3, 1).contiguous().numpy().tobytes()).hexdigest()
    labels = None if images.labels is None else images.labels[:n]
    return replace(images, images=part, labels=labels, name=f"{images.name}, first {len(part)}", sha256=sha256)


def measure(splits: Splits, epochs: int, seeds: int) -> dict[str, dict]:
    """Per kernel: parameters, test PSNR by seed and its mean, and CPU seconds of a run."""
    results = {}
    for kernel in KERNELS:
        psnr, seconds = [], 0.0
        for seed in range(seeds):
            config = TrainConfig(
                epochs=epochs, batch_size=64, lr=4e-3, model=dict(up_kernel=kernel), seed=seed, device="cpu"
            )
            start = time.process_time()
            run = train(config, splits=splits)
            seconds += time.process_time() - start
            psnr.append(round(run.metrics["psnr"], 3))
        results[str(kernel)] = dict(
            parameters=sum(p.numel() for p in DCAE(up_kernel=kernel).parameters()),
            psnr=round(sum(psnr) / seeds, 3),
            psnr_by_seed=psnr,
            cpu_seconds=round(seconds / seeds, 1),
        )
    return results


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="cifar10", help='"cifar10", "sample" or a folder of images of one size')
    parser.add_argument("--train-images", type=int, default=10_000)
    parser.add_argument("--test-images", type=int, default=2_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    images = load_images(options.dataset)
    splits = Splits(first(images.train, options.train_images), first(images.test, options.test_images))
    kernels = measure(splits, options.epochs, options.seeds)
    record = dict(
        data={part.name: part.sha256 for part in splits},
        epochs=options.epochs,
        seeds=options.seeds,
        batch_size=64,
        lr=4e-3,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        kernels=kernels,
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")

    print(f"{'kernel':>6} {'parameters':>10} {'PSNR, dB':>9} {'CPU seconds':>11}   PSNR by seed")
    for kernel, row in kernels.items():
        by_seed = ", ".join(f"{value:.2f}" for value in row["psnr_by_seed"])
        print(f"{kernel:>6} {row['parameters']:>10,} {row['psnr']:>9.2f} {row['cpu_seconds']:>11.1f}   {by_seed}")


if __name__ == "__main__":
    main()
