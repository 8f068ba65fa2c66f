"""Draw the README's first picture: test images, and the best that each codec makes of them within one byte budget.

Bytes that all files of a codec at one quality share do not count. Writes results/full/picture.png and .json.
"""

from statistics import mean

import matplotlib.pyplot as plt
import torch
from harness import RESULTS, here, save

from dcae_lib import Codec, load_images, plots
from dcae_lib.codec.compare import NAMES, best, candidates, constants, counted
from dcae_lib.course import measured

OUT = RESULTS / "full" / "picture.png"
BUDGET = 150  # bytes
COUNT = 10  # the sample's first test images: one of each class
GREY = torch.full((3, 32, 32), 230, dtype=torch.uint8)  # where nothing fits


def main() -> None:
    plots.use_style()
    codec, images = Codec.from_pretrained(), load_images("sample").test.images[:COUNT]
    constant = constants(measured("codec", "recorded"))
    tables = [counted(candidates(codec, image), False, constant) for image in images]
    files = [{name: best(of, BUDGET) for name, of in table.items()} for table in tables]
    psnr = {name: [row[name].psnr if row[name] else None for row in files] for name in NAMES}
    rows = {"original": images}
    rows |= {name: [row[name].image if row[name] else GREY for row in files] for name in NAMES}
    fig, axes = plt.subplots(len(rows), COUNT, figsize=(plots.WIDTH, plots.WIDTH * 0.48))
    for line, (name, pictures) in zip(axes, rows.items()):
        for ax, picture in zip(line, pictures):
            plots.show_image(ax, picture)
        line[0].text(-0.12, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=9)
        if name != "original":
            text = "too large" if None in psnr[name] else f"{mean(psnr[name]):.1f} dB"
            line[-1].text(1.12, 0.5, text, transform=line[-1].transAxes, ha="left", va="center", fontsize=9)
    fig.savefig(OUT)
    save(OUT.with_suffix(".json"), dict(budget=BUDGET, images=COUNT, psnr=psnr) | here())
    print(psnr)


if __name__ == "__main__":
    main()
