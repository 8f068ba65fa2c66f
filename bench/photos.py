"""What a photograph loses in a network trained on 32×32 images: whole, in tiles, in overlapping tiles, by GroupNorm's groups.

The shipped weights, and those of three runs of ten epochs that differ in nothing but the groups. A clone holds the
histories of those runs, not their weights: `python bench/runs.py ablation-tuned ablation-groups-8 ablation-groups-32`
trains them again.
"""

import json
from pathlib import Path

import torch
from runs import folder
from torch import Tensor

from dcae_lib import DCAE, to_model
from dcae_lib.data import read_picture
from dcae_lib.metrics import psnr
from dcae_lib.files import resource
from dcae_lib.tiles import TILE, reconstruct

OUT = Path(__file__).resolve().parent.parent / "results" / "bench" / "photos.json"
PHOTOS = ("astronaut", "cat", "coffee")
MODELS = ("full", "ablation-tuned", "ablation-groups-8", "ablation-groups-32")
TILINGS = {f"{tile}/{overlap}": (tile, overlap) for tile, overlap in ((32, 4), (32, 8), (32, 16), (64, 8), (128, 16))}


def photo(name: str) -> Tensor:
    """[3, H, W] in [-1, 1], cropped to whole tiles."""
    x = to_model(read_picture(resource("photos") / f"{name}.webp"))
    H, W = (side // TILE * TILE for side in x.shape[1:])
    return x[:, :H, :W]


@torch.no_grad()
def measure(model: DCAE, x: Tensor) -> dict[str, float]:
    ways = {"whole": model(x[None])[0], "tiles": reconstruct(model, x, overlap=0)}
    ways |= {name: reconstruct(model, x, *tiling) for name, tiling in TILINGS.items()}
    return {name: psnr(y[None], x[None]).item() for name, y in ways.items()}


def main() -> None:
    rows = []
    for name in MODELS:
        model = DCAE.from_pretrained(folder(name))
        for picture in PHOTOS:
            rows.append(dict(model=name, groups=model.config["groups"], photo=picture, psnr=measure(model, photo(picture))))
            print(rows[-1], flush=True)
    OUT.write_text(json.dumps(dict(tile=TILE, torch=torch.__version__, rows=rows), indent=1) + "\n")


if __name__ == "__main__":
    main()
