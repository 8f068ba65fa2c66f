"""The README's first picture: test images of CIFAR-10, and the best that each codec makes of them within one byte budget.

Bytes that all files of a codec at one quality share are not counted, for any of them. Writes results/full/picture.png and .json.
"""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from dcae_lib import Codec, load_images, plots
from dcae_lib.codec.compare import constants, within
from dcae_lib.course import measured

OUT = Path(__file__).resolve().parent.parent / "results" / "full" / "picture.png"
BUDGET = 150                                                # bytes
NAMES = ("DCAE", "AVIF", "WebP", "JPEG")
IMAGES = range(10)                                          # of the sample's test images: one of each class, not chosen


def main() -> None:
    plots.use_style()
    codec, images = Codec.from_pretrained(), load_images("sample").test.images
    constant = constants(measured("codec", "recorded"))
    found = [within(codec, images[i], BUDGET, headers=False, constant=constant) for i in IMAGES]
    fig, axes = plt.subplots(1 + len(NAMES), len(found), figsize=(plots.WIDTH, plots.WIDTH * 0.48))
    psnr = {name: [] for name in NAMES}
    for k, (line, i) in enumerate(zip(found, IMAGES)):
        plots.show_image(axes[0, k], images[i].float() / 127.5 - 1)
        for ax, name in zip(axes[1:, k], NAMES):
            file = line[name]
            plots.show_image(ax, (torch.full((3, 32, 32), 230) if file is None else file.image).float() / 127.5 - 1)
            psnr[name].append(None if file is None else file.psnr)
    for ax, name in zip(axes[:, 0], ("original", *NAMES)):
        ax.text(-0.12, 0.5, name, transform=ax.transAxes, ha="right", va="center", fontsize=9)
    for name in NAMES:
        axes[1 + NAMES.index(name), -1].text(
            1.12, 0.5, f"{sum(psnr[name]) / len(found):.1f} dB" if None not in psnr[name] else "too large",
            transform=axes[1 + NAMES.index(name), -1].transAxes, ha="left", va="center", fontsize=9,
        )
    fig.savefig(OUT)
    OUT.with_suffix(".json").write_text(json.dumps(dict(budget=BUDGET, images=len(found), psnr=psnr), indent=1) + "\n")
    print(psnr)


if __name__ == "__main__":
    main()
