"""Draw the README's moving picture: test images, and the best that each codec makes of them as the byte budget grows.

Bytes that all files of a codec at one quality share do not count. Writes results/full/picture.gif and .json.
"""

import io
from statistics import mean

import matplotlib.pyplot as plt
import torch
from harness import RESULTS, here, save
from PIL import Image
from torch import Tensor

from dcae_lib import Codec, load_images, plots
from dcae_lib.codec.compare import NAMES, Encoded, best, candidates, constants, counted
from dcae_lib.course import measured

OUT = RESULTS / "full" / "picture.gif"
BUDGETS = (50, 75, 100, 125, 150, 200, 300, 400)  # bytes, a frame each
BUDGET = 150  # of the README's sentence
COUNT = 10  # the sample's first test images: one of each class
GREY = torch.full((3, 32, 32), 230, dtype=torch.uint8)  # where nothing fits


def frame(images: Tensor, files: list[dict[str, Encoded | None]], budget: int) -> Image.Image:
    """Draw a row of originals and one per codec, with the mean PSNR of the row if every image fits."""
    rows = {"original": list(images)}
    rows |= {name: [row[name].image if row[name] else GREY for row in files] for name in NAMES}
    fig, axes = plt.subplots(len(rows), COUNT, figsize=(plots.WIDTH, plots.WIDTH * 0.5))
    for line, (name, pictures) in zip(axes, rows.items()):
        for ax, picture in zip(line, pictures):
            plots.show_image(ax, picture)
        line[0].text(-0.12, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=9)
        score = f"{budget} bytes"
        if name != "original":
            score = "too large" if None in [row[name] for row in files] else f"{mean_psnr(files, name):.1f} dB"
        line[-1].text(1.12, 0.5, score, transform=line[-1].transAxes, ha="left", va="center", fontsize=9)
    file = io.BytesIO()
    fig.savefig(file, dpi=110)
    plt.close(fig)
    return Image.open(file).convert("RGB").quantize(256)


def mean_psnr(files: list[dict[str, Encoded | None]], name: str) -> float | None:
    return None if None in [row[name] for row in files] else mean(row[name].psnr for row in files)


def main() -> None:
    plots.use_style()
    codec, images = Codec.from_pretrained(), load_images("sample").test.images[:COUNT]
    constant = constants(measured("codec", "recorded"))
    tables = [counted(candidates(codec, image), False, constant) for image in images]
    chosen = {b: [{name: best(of, b) for name, of in table.items()} for table in tables] for b in BUDGETS}
    first, *others = [frame(images, files, budget) for budget, files in chosen.items()]
    times = [900] * len(others) + [3000]  # milliseconds
    first.save(OUT, save_all=True, append_images=others, duration=times, loop=0, optimize=True)
    psnr = {budget: {name: mean_psnr(files, name) for name in NAMES} for budget, files in chosen.items()}
    save(OUT.with_suffix(".json"), dict(budget=BUDGET, images=COUNT, psnr=psnr) | here())
    print(psnr)


if __name__ == "__main__":
    main()
